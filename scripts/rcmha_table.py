#!/usr/bin/env python3
"""Prints the tables of results/rcmha/README.md from the runs beside it.

    rcmha_table.py                                    prints every table
    rcmha_table.py --write results/rcmha/README.md    replaces what stands between the marker comments
    rcmha_table.py --check results/rcmha/README.md    fails if that is not what the runs say

Reads `table.csv` and `table.paired.csv` of the runs, and the files of `rcmha_speed.py` and `rcmha_memory.py`. The marker comments are those of
`marked.py`. Standard library only.
"""

import csv
import json
import pathlib
import statistics

import marked

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "results/rcmha"
RUNS = ["shakespeare-128", "shakespeare-512", "wikitext-2-128", "wikitext-2-512"]
PAPER = ["paper-h200/rcmha", "paper-h200/rmha"]
SPEED = ["speed-cpu-2-threads.json", "speed-h200-small.json", "speed-h200-large.json"]


MEMORY = ["memory-cpu.json", "memory-h200.json"]
# Query rows that the attention kernels of the CPU take at a time; bytes of a page.
BLOCK, PAGE = 32, 4096


def rows(path):
    with open(FOLDER / path, newline="") as file:
        return list(csv.DictReader(file))


def runs():
    yield "| run | attention | validation loss | accuracy | accuracy as the released code counts | loss minus RMHA's, 95 % interval |"
    yield "|---|---|---:|---:|---:|---:|"
    for run in RUNS:
        against = {row["attention"]: row for row in rows(f"{run}/table.paired.csv")
                   if (row["against"], row["measure"]) == ("rmha", "valid_loss")}
        for row in rows(f"{run}/table.csv"):
            pair = against.get(row["attention"])
            difference = "-" if pair is None else "{:+.3f} ({:+.3f} to {:+.3f})".format(
                *(float(pair[key]) for key in ("difference", "ci95_low", "ci95_high")))
            yield "| {} | {} | {:.3f} | {:.4f} | {:.4f} | {} |".format(
                run, row["attention"].upper(), *(float(row[key]) for key in ("valid_loss", "valid_accuracy", "coded_accuracy")), difference)


def paper():
    yield "| attention | accuracy as the released code counts | the paper's | accuracy on held-out text | its loss |"
    yield "|---|---:|---:|---:|---:|"
    for run in PAPER:
        for row in rows(f"{run}/table.csv"):
            said = "0.572" if row["attention"] == "rcmha" else "-"
            yield "| {} | {:.4f} | {} | {:.4f} | {:.3f} |".format(
                row["attention"].upper(), float(row["coded_accuracy"]), said, float(row["valid_accuracy"]), float(row["valid_loss"]))


def speed():
    yield "| file | attention | type | tokselect tokens/s | PyTorch tokens/s | ratio, median of turns (lowest to highest) |"
    yield "|---|---|---|---:|---:|---:|"
    for name in SPEED:
        turns = json.loads((FOLDER / name).read_text())["turns"]
        for key in dict.fromkeys((turn["attention"], turn.get("dtype", "f32")) for turn in turns):
            those = [turn for turn in turns if (turn["attention"], turn.get("dtype", "f32")) == key]
            ratios = [turn["tokselect"] / turn["pytorch"] for turn in those]
            yield "| {} | {} | {} | {:.0f} | {:.0f} | {:.2f} ({:.2f} to {:.2f}) |".format(
                name.removesuffix(".json"), *key, *(statistics.median(turn[who] for turn in those) for who in ("tokselect", "pytorch")),
                statistics.median(ratios), min(ratios), max(ratios))


def measured():
    """Name, what a row is about and its turns, of every row of the memory files that are there."""
    for name in MEMORY:
        if not (FOLDER / name).exists():
            continue
        turns = json.loads((FOLDER / name).read_text())["rows"]
        for key in dict.fromkeys((turn["dtype"], turn["segment"], turn["attention"]) for turn in turns):
            those = [turn for turn in turns if (turn["dtype"], turn["segment"], turn["attention"]) == key]
            yield name.removesuffix(".json"), key, those


def by(turns, way):
    return [turn for turn in turns if turn["attention_weights"] == way]


def median(turns, key, unit=2**20):
    values = [turn[key] for turn in turns]
    return None if None in values else statistics.median(values) / unit


def shown(value, digits=1):
    return "-" if value is None else f"{value:.{digits}f}"


def memory():
    yield "| file | type | segment | attention | weights | gradients | optimiser | activations | process | GPU | step: ms |"
    yield "|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, (dtype, segment, attention), turns in measured():
        again = by(turns, "recompute")
        parts = ("weights_bytes", "gradients_bytes", "optimizer_bytes", "activations_peak_bytes", "process_peak_bytes", "gpu_used_bytes")
        yield "| {} | {} | {} | {} | {} | {} |".format(
            name, dtype, segment, attention.upper(), " | ".join(shown(median(again, part)) for part in parts),
            shown(median(again, "step_s", 1e-3), 2))


def kept():
    yield ("| file | segment | attention | activations: kept | again | share | process: kept | again | share | "
           "step: kept, ms | again, ms | ratio, median of turns (lowest to highest) |")
    yield "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name, (_, segment, attention), turns in measured():
        keep, again = by(turns, "keep"), by(turns, "recompute")
        if not keep:
            continue
        cells = []
        for part in ("activations_peak_bytes", "process_peak_bytes"):
            both = [median(way, part) for way in (keep, again)]
            cells += [shown(both[0]), shown(both[1]), "-" if None in both else shown(both[1] / both[0], 3)]
        ratios = [turn["step_s"] / next(other["step_s"] for other in keep if other["turn"] == turn["turn"]) for turn in again]
        steps = [shown(median(way, "step_s", 1e-3), 2) for way in (keep, again)]
        yield "| {} | {} | {} | {} | {} | {:.2f} ({:.2f} to {:.2f}) |".format(
            name, segment, attention.upper(), " | ".join(cells), " | ".join(steps), statistics.median(ratios), min(ratios), max(ratios))


def pages():
    """The weights that are kept: what they take, what of it is written, and by how much the process is larger for them."""
    yield "| file | segment | kept weights, allocated | in pages that are written | kept less again: activations | process (lowest to highest of the attentions) |"
    yield "|---|---:|---:|---:|---:|---:|"
    settings = {name.removesuffix(".json"): json.loads((FOLDER / name).read_text())["settings"] for name in MEMORY if (FOLDER / name).exists()}
    grown = {}
    for name, (_, segment, _), turns in measured():
        if by(turns, "keep"):
            grown.setdefault((name, segment), []).append([median(by(turns, "keep"), part) - median(by(turns, "recompute"), part)
                                                          for part in ("activations_peak_bytes", "process_peak_bytes")])
    for (name, segment), differences in grown.items():
        of = settings[name]
        memory = segment if of["memory"] == "segment" else int(of["memory"])
        tasks, keys = of["heads"] * of["batch"], memory + segment
        # A block of rows is stored up to the last key that one of them sees, four bytes each; rows follow one another.
        ends = [(row * keys, row * keys + memory + min(row // BLOCK * BLOCK + BLOCK, segment)) for row in range(segment)]
        written = {page for begin, end in ends for page in range(4 * begin // PAGE, (4 * end - 1) // PAGE + 1)}
        activations, process = zip(*differences)
        yield "| {} | {} | {:.1f} | {:.1f} | {:.1f} | {:.1f} to {:.1f} |".format(
            name, segment, tasks * segment * keys * 4 / 2**20, tasks * len(written) * PAGE / 2**20, statistics.median(activations),
            min(process), max(process))


TABLES = {make.__name__: lambda make=make: "\n".join(make()) + "\n" for make in (runs, paper, speed, memory, kept, pages)}


if __name__ == "__main__":
    marked.run(marked.parser(__file__, __doc__).parse_args(), TABLES)
