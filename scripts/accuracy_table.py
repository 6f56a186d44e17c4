#!/usr/bin/env python3
"""Tables and a plot of `tokselect bench ruler|infinite-bench` runs, from their samples.jsonl alone.

    accuracy_table.py                                  prints every table
    accuracy_table.py --sections scores,same-samples   prints some
    accuracy_table.py --write README.md                replaces what stands between the marker comments
    accuracy_table.py --check README.md                fails if that is not what the runs say
    accuracy_table.py --write accuracy.svg             writes (or, with --check, compares) the plot

The marker comments are those of `marked.py`; the tables that they name are the sections.

A run directory named in SWEEPS varies one setting of `token-select` at one length; all others together are the main
table. A score is InfiniteBench's official one, or RULER's string match; a cell is the mean over tasks of each task's mean.
Of an interrupted run only the questions count that all of its policies answered. A cell that lacks tasks is marked, since
its mean is over other questions; `same-samples` compares what can be compared. Standard library only.
"""

import json
import math
import re
import statistics
import sys
from collections import defaultdict
from html import escape
from pathlib import Path
from typing import NamedTuple

import marked

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "results/tokenselect/demo-accuracy"
SWEEPS = {
    "votes": "Selection function (the paper's Table 4)",
    "top-k": "Number of selected tokens (the paper's Table 5)",
    "cache-threshold": "Threshold of the selection cache (the paper's Table 9)",
    "corrections": "Corrections taken back one at a time, other settings, and the paper preset with the same budget",
}
# Sweeps compare with this policy; the table of tasks is of it.
BASE = "token-select"
# RULER's needles with a single right place or several; `vt` follows chains and is left out.
NEEDLE = "niah_"
# Runs with other numbers of threads cannot be timed against each other; most had two.
TIMED_THREADS = 2


class Sample(NamedTuple):
    """One answered question: where it stands, its score (0 to 1), seconds and bytes, and whether those can be compared."""

    task: str
    length: int
    policy: str
    sample: str
    score: float
    wall_s: float
    peak_bytes: int
    timed: bool


def read_run(directory):
    """Samples of a run; those of a resumed run are never `timed`, since its parts may be of two machines."""
    report = json.loads((directory / "report.json").read_text())
    timed = report["samples"]["resumed_count"] == 0 and report["manifest"]["threads"] == TIMED_THREADS
    samples = []
    for number, line in enumerate((directory / "samples.jsonl").read_text().splitlines(), 1):
        record = json.loads(line)
        data, scores = record["data"], record["data"].get("scores") or {}
        score = scores.get("official", scores.get("string_match_all"))
        if score is None:
            sys.exit(f"{directory}/samples.jsonl:{number}: the sample has no score; leave its task out")
        samples.append(
            Sample(record["task"], data["length_tokens"], data["variant"], data["sample"], score, data["wall_s"],
                   data["peak_rss_bytes"], timed)
        )  # fmt: skip
    if len(samples) != report["samples"]["count"]:
        sys.exit(f"{directory}: {len(samples)} samples, but report.json counts {report['samples']['count']}")
    if not report["interrupted"]:
        return samples
    policies = len({s.policy for s in samples})
    return [s for question in group(samples, "length", "task", "sample").values() if len(question) == policies for s in question]


def group(samples, *fields):
    """Samples by the named fields, in the order of their first appearance."""
    groups = defaultdict(list)
    for sample in samples:
        groups[tuple(getattr(sample, field) for field in fields)].append(sample)
    return groups


def task_mean(samples):
    """Mean over tasks of each task's mean score."""
    return statistics.mean(statistics.mean(s.score for s in of_task) for of_task in group(samples, "task").values())


def length_mean(samples):
    """Mean over lengths of the mean over tasks: the order of the rows."""
    return statistics.mean(task_mean(of_length) for of_length in group(samples, "length").values())


def readable(policy):
    """`a:b=c,d=e` as `a (b c, d e)`; a policy's own chunk size becomes a star that the footnote explains."""
    name, _, knobs = policy.partition(":")
    if re.fullmatch(r"prefill-chunk=\d+", knobs):
        return f"{name} \\*"
    return f"{name} ({knobs.replace('=', ' ').replace(',', ', ')})" if knobs else name


def footnote(policies):
    chunks = {p.partition("prefill-chunk=")[2] for p in policies if readable(p).endswith("*")}
    return f"\\* prompt read in chunks of {', '.join(sorted(chunks))} tokens (`prefill-chunk`)." if chunks else ""


def short(length):
    return f"{length // 1024}K"


def table(header, rows):
    """Markdown; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def by_policy_and_length(samples, cell):
    """A table of `cell(samples)`, rows in the order of the mean score, best first."""
    lengths = sorted({s.length for s in samples})
    cells = group(samples, "policy", "length")
    order = sorted(group(samples, "policy").items(), key=lambda item: -length_mean(item[1]))
    header = ["policy", *map(short, lengths)]
    rows = [
        [readable(policy), *(cell(cells[policy, length]) if (policy, length) in cells else "-" for length in lengths)]
        for (policy,), _ in order
    ]
    return table(header, rows) + "\n\n" + footnote([policy for (policy,), _ in order])


def per_task(samples):
    """Number of samples of each task, which must be one number."""
    counts = {len(of_task) for of_task in group(samples, "task").values()}
    if len(counts) != 1:
        sys.exit(f"{samples[0].policy} at {samples[0].length}: the tasks have {sorted(counts)} samples")
    return counts.pop()


def scores(samples):
    tasks = list(dict.fromkeys(s.task for s in samples))
    counts = {key: per_task(of_cell) for key, of_cell in group(samples, "policy", "length").items()}
    usual, lacking = statistics.mode(counts.values()), {}

    def cell(of_cell):
        n, there = per_task(of_cell), {s.task for s in of_cell}
        missing = tuple(task for task in tasks if task not in there)
        mark = lacking.setdefault(missing, "†" * (len(lacking) + 1)) if missing else ""
        return f"{task_mean(of_cell):.3f}" + (f" ({n})" if n != usual else "") + mark

    text = by_policy_and_length(samples, cell)
    others = ", ".join(f"({n}): {n}" for n in sorted(set(counts.values()) - {usual}))
    note = f"Mean over {len(tasks)} tasks; samples of each: {usual}" + (f", {others}." if others else ".")
    for missing, mark in lacking.items():
        note += f" {mark} {len(tasks) - len(missing)} tasks, without {', '.join(f'`{task}`' for task in missing)}."
    step = ", ".join(f"{1 / (len(tasks) * n):.3f} where n = {n}" for n in sorted(set(counts.values()), reverse=True))
    return f"{text} {note} One whole answer more or less moves a cell of all tasks by {step}."


def needles(samples):
    return scores([s for s in samples if s.task.startswith(NEEDLE)])


def same_samples(samples):
    """The scores on the questions that every policy was asked, at lengths where some were asked more."""
    cells, notes, policies = defaultdict(dict), [], len({s.policy for s in samples})
    for (length,), of_length in sorted(group(samples, "length").items()):
        questions = group(of_length, "task", "sample").values()
        shared = [question for question in questions if len(question) == policies]
        if len(shared) < len(questions):
            notes.append(f"{short(length)}: {len(shared)} questions of {len({q[0].task for q in shared})} tasks")
            for (policy,), of_policy in group([s for question in shared for s in question], "policy").items():
                cells[policy][short(length)] = task_mean(of_policy)
    if not cells:
        return "Every policy was asked the same questions."
    rows = sorted(cells.items(), key=lambda item: -statistics.mean(item[1].values()))
    text = table(["policy", *rows[0][1]], [[readable(p), *(f"{mean:.3f}" for mean in of_policy.values())] for p, of_policy in rows])
    return f"{text}\n\n{footnote(cells)} Only the questions that every policy was asked; {'; '.join(notes)}."


def tasks_of_base(samples):
    of_base = [s for s in samples if s.policy == BASE]
    lengths, cells = sorted({s.length for s in of_base}), group(of_base, "task", "length")
    rows = [
        [f"`{task}`", *(f"{statistics.mean(s.score for s in cells[task, length]):.2f}" for length in lengths)]
        for (task,) in group(of_base, "task")
    ]
    return table([f"`{BASE}`", *map(short, lengths)], rows)


def timed_only(samples):
    kept = [s for s in samples if s.timed]
    counts = sorted({len(cell) for cell in group(kept, "policy", "length").values()})
    return kept, f"Runs of {TIMED_THREADS} threads that were not resumed, {counts[0]} to {counts[-1]} samples a cell."


def wall(samples):
    kept, note = timed_only(samples)
    cell = lambda of_cell: f"{statistics.median(s.wall_s for s in of_cell):.2f}"  # noqa: E731
    return f"{by_policy_and_length(kept, cell)} Median seconds of a sample, prompt and answer. {note}"


def memory(samples):
    """Peaks by length alone: the process keeps what earlier samples took, so policies that share one cannot be told apart."""
    kept, note = timed_only(samples)[0], "a process keeps what its earlier samples took, so this does not tell policies apart"
    cells = sorted(group(kept, "length").items())
    rows = [
        [name, *(f"{pick(s.peak_bytes for s in of_length) / 2**20:.0f}" for _, of_length in cells)]
        for name, pick in (("least of any sample", min), ("most of any sample", max))
    ]
    return table(["peak memory, MiB", *(short(length) for (length,), _ in cells)], rows) + f"\n\n`peak_rss_bytes`; {note}."


def p_value(better, worse):
    """p of the two-sided exact sign test over the samples that differ."""
    n, k = better + worse, min(better, worse)
    p = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def pairs(samples):
    """Every policy beside BASE on the questions that both were asked, counted by length and together."""
    lengths = sorted({s.length for s in samples})
    base = {(s.length, s.task, s.sample): s.score for s in samples if s.policy == BASE}
    rows = []
    for (policy,), of_policy in group(samples, "policy").items():
        if policy == BASE:
            continue
        counts = {length: [0, 0, 0] for length in lengths}
        for s in of_policy:
            if (other := base.get((s.length, s.task, s.sample))) is not None:
                for i, hit in enumerate((s.score > other, s.score < other, True)):
                    counts[s.length][i] += hit
        better, worse, n = (sum(column) for column in zip(*counts.values()))
        cells = [f"{b} / {w} of {of}" for b, w, of in counts.values()]
        rows.append((better - worse, [readable(policy), *cells, f"{better} / {worse} of {n}", p_value(better, worse)]))
    rows.sort(key=lambda row: -row[0])
    text = table(["better / worse", *map(short, lengths), "together", "p"], [row for _, row in rows])
    note = f"Questions answered better / worse than by `{BASE}`, of those that both were asked; p: exact sign test."
    return f"{text}\n\n{footnote([s.policy for s in samples])} {note}"


def sweep(samples):
    """Each setting beside BASE on the same questions."""
    if len({len(of_policy) for of_policy in group(samples, "policy").values()}) > 1:
        sys.exit("a sweep is not complete: run its command again")
    policies, tasks = group(samples, "policy"), [task for (task,) in group(samples, "task")]
    base = {(s.task, s.sample): s.score for s in policies[(BASE,)]}
    rows = []
    for (policy,), of_policy in policies.items():
        differences = [s.score - base[s.task, s.sample] for s in of_policy]
        better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
        name = f"`{policy.partition(':')[2]}`" if policy != BASE else f"`{BASE}`"
        change = task_mean(of_policy) - task_mean(policies[(BASE,)])
        compared = ["-"] * 3 if policy == BASE else [f"{change:+.3f}", f"{better} / {worse}", p_value(better, worse)]
        means = [f"{statistics.mean(s.score for s in of_task):.2f}" for of_task in group(of_policy, "task").values()]
        rows.append([name, f"{task_mean(of_policy):.3f}", *compared, *means])
    lengths = ", ".join(short(length) for (length,) in group(samples, "length"))
    header = ["setting", "score", "difference", "better / worse", "p", *(f"`{task}`" for task in tasks)]
    note = f"At {lengths}, {per_task(policies[(BASE,)])} samples a task, so {len(base)} pairs; "
    note += "p: exact sign test on those that differ."
    return f"{table(header, rows)}\n\n{note}"


def plot(samples):
    """Mean score over length as SVG: every policy has a marker of its own and its name at the right end of its line."""
    width, height, left, right, top, bottom = 720, 420, 46, 476, 34, 366
    lengths = sorted({s.length for s in samples})
    low, high = math.log2(lengths[0]), math.log2(lengths[-1])
    x = lambda length: left + 12 + (right - left - 24) * (math.log2(length) - low) / (high - low)  # noqa: E731
    y = lambda score: bottom - 8 - (bottom - top - 16) * score  # noqa: E731
    cells = group(samples, "policy", "length")
    usual = statistics.mode(per_task(of_cell) for of_cell in cells.values())
    whole = usual * len({s.task for s in samples})
    last = {policy: task_mean(cells[policy, lengths[-1]]) for (policy,) in group(samples, "policy")}
    order = sorted(last, key=lambda policy: -length_mean([s for s in samples if s.policy == policy]))
    colours = ["#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#000000", "#7f7f7f", "#8c564b", "#6a3d9a"]
    dashes = ["none", "7 3", "2 3", "9 3 2 3"]
    # Corners in units of the marker's radius; the circle comes first.
    def corners(n, turn, inner=1.0):
        spokes = [(inner if i % 2 else 1.0, turn + i * 2 * math.pi / n) for i in range(n)]
        return [(radius * math.sin(angle), -radius * math.cos(angle)) for radius, angle in spokes]

    shapes = [None, corners(4, math.pi / 4), corners(3, 0), corners(4, 0), corners(3, math.pi), corners(10, 0, 0.45), corners(6, 0),
              corners(8, 0, 0.35), corners(5, 0), corners(3, math.pi / 2)]  # fmt: skip

    def marker(place, at_x, at_y, filled):
        style = f'fill="{colours[place % 10] if filled else "#fff"}" stroke="{colours[place % 10]}" stroke-width="1.4"'
        if shapes[place % 10] is None:
            return f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="4.5" {style}/>'
        points = " ".join(f"{at_x + 5.6 * dx:.1f},{at_y + 5.6 * dy:.1f}" for dx, dy in shapes[place % 10])
        return f'<polygon points="{points}" {style}/>'

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        "<!-- accuracy_table.py: plot -->",
        "<title>Mean score over prompt length per policy</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="20" font-size="13">Mean score of {len({s.task for s in samples})} tasks by length; '
        f"filled: {usual} samples of each, hollow: fewer, or tasks missing</text>",
    ]
    for tick in range(6):
        at = y(tick / 5)
        out.append(f'<line x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{tick / 5:.1f}</text>')
    for length in lengths:
        out.append(f'<line x1="{x(length):.1f}" x2="{x(length):.1f}" y1="{bottom}" y2="{bottom + 5}" stroke="#333"/>')
        out.append(f'<text x="{x(length):.1f}" y="{bottom + 19}" text-anchor="middle">{short(length)}</text>')
    out.append(f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#333"/>')
    out.append(f'<text x="{(left + right) / 2:.0f}" y="{bottom + 40}" text-anchor="middle">tokens of prompt and answer</text>')
    # Names stand at the heights of the last points, pushed apart downwards, then back up from the bottom edge.
    gap, names = 17, sorted(last, key=lambda policy: (-last[policy], order.index(policy)))
    heights = []
    for policy in names:
        heights.append(max(y(last[policy]), heights[-1] + gap if heights else 0))
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], bottom + 4 - gap * (len(heights) - 1 - i))
    # The best are drawn last, above the others.
    for place, policy in reversed(list(enumerate(order))):
        there = [(length, cells[policy, length]) for length in lengths if (policy, length) in cells]
        points = [(x(length), y(task_mean(of_cell)), len(of_cell) == whole) for length, of_cell in there]
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in points)
        dash = dashes[place % 4]
        stroke = f'stroke="{colours[place % 10]}" stroke-width="1.8" stroke-dasharray="{dash}"'
        out.append(f'<polyline points="{line}" fill="none" {stroke}/>')
        out += [marker(place, *point) for point in points]
        at = heights[names.index(policy)]
        out.append(f'<path d="M{x(lengths[-1]) + 7:.1f} {y(last[policy]):.1f}L{right + 14} {at:.1f}" stroke="#bbb" fill="none"/>')
        out.append(marker(place, right + 22, at, True))
        label = readable(policy).replace(" \\*", "")
        out.append(f'<text x="{right + 33}" y="{at + 4:.1f}">{escape(label)}</text>')
    return "\n".join([*out, "</svg>", ""])


def sections(runs):
    """What makes the text of every section, by name, and the samples of the main table."""
    samples = {path.parent.name: read_run(path.parent) for path in sorted(runs.glob("*/samples.jsonl"))}
    main = [s for name, of_run in samples.items() if name not in SWEEPS for s in of_run]
    if not main:
        sys.exit(f"{runs}: no run directory with samples.jsonl")
    made = {"scores": scores, "same-samples": same_samples, "pairs": pairs, "needles": needles, "tasks": tasks_of_base,
            "wall": wall, "memory": memory}  # fmt: skip
    texts = {name: lambda make=make: make(main) + "\n" for name, make in made.items()}
    for name, title in SWEEPS.items():
        if name in samples:
            texts[name] = lambda name=name, title=title: f"{title}:\n\n{sweep(samples[name])}\n"
    return texts, main


def main():
    parser = marked.parser(__file__, __doc__)
    parser.add_argument("runs", nargs="?", type=Path, default=RUNS, help="directory of run directories (default: %(default)s)")
    parser.add_argument("--sections", default="", help="names, separated by commas (default: all)")
    args = parser.parse_args()
    texts, samples = sections(args.runs)
    marked.run(args, texts, {".svg": lambda: plot(samples)}, [name for name in args.sections.split(",") if name])


if __name__ == "__main__":
    main()
