#!/usr/bin/env python3
"""Tables of `results/icn/README.md` and of the README's part about ICN, from the tables that the runs wrote.

    icn_table.py                                  prints every table
    icn_table.py --write results/icn/README.md    replaces what stands between the marker comments
    icn_table.py --check results/icn/README.md    fails if that is not what the runs say

The marker comments are those of `marked.py`. Standard library only.
"""

import csv
import pathlib

import marked

RUNS = pathlib.Path(__file__).resolve().parent.parent / "results/icn"
SIZES = [(2, 5), (2, 10), (4, 5), (4, 10), (8, 5), (8, 10)]
STRENGTHS = {"temperature": "1", "top-p": "0.9", "diverse-beam": "0.5", "cluster-penalty": "1", "key-projection": "1"}
PATHS = {"sampling": "sampling, temperature 0.7", "greedy": "greedy, one path"}
LEVELS = {
    "1": "1: as taught",
    "2": "2: sums to 1.2, products to 1.1 times the taught numbers",
    "3": "3: 1.5 and 1.25",
    "4": "4: 1.9 and 1.45",
    "5": "5: a third change, taught numbers",
}
MEASURES = {
    "explored_mass": "explored, mass",
    "open_mass": "open, mass",
    "explored_dot": "explored, product less the vocabulary's mean",
    "open_dot": "open, product less the vocabulary's mean",
}


def rows(run, table=None):
    name = f"table.{table}.csv" if table else "table.csv"
    with open(RUNS / run / name, newline="") as file:
        return list(csv.DictReader(file))


def number(value, digits=3, sign=""):
    try:
        return format(float(value), f"{sign}.{digits}f")
    except ValueError:
        return "-"


def interval(row, name):
    return f"{number(row[name])} ({number(row[name + '_low'])} to {number(row[name + '_high'])})"


def change(row, digits=3):
    low, high = (number(row[end], digits, "+") for end in ("low", "high"))
    return f"{number(row['difference'], digits, '+')} ({low} to {high})"


def lines(head, body, text=1):
    ends = ["---"] * text + ["---:"] * (len(head) - text)
    return "".join(f"| {' | '.join(row)} |\n" for row in [head]) + f"|{'|'.join(ends)}|\n" + "".join(
        f"| {' | '.join(row)} |\n" for row in body
    )


def named(method):
    return " ".join([method, STRENGTHS.get(method, "")]).strip()


def answers(run, equal_cost):
    shown = ["precision", "recall"] + ["recall_at_equal_cost"] * equal_cost
    head = ["method", "precision", "recall of the list"] + ["recall at equal cost"] * equal_cost + ["distinct answers"]
    body = [[named(r["method"]), *(interval(r, s) for s in shown), number(r["distinct"])] for r in rows(run)]
    return lines(head, body)


def differences(run):
    shown = ["precision", "recall", "distinct", "precision_at_equal_cost", "recall_at_equal_cost", "distinct_at_equal_cost"]
    found = {(r["method"], r["metric"]): r for r in rows(run, "differences")}
    methods = dict.fromkeys(method for method, _ in found)
    head = ["icn less", *(name.replace("_at_equal_cost", ", equal cost") for name in shown)]
    return lines(head, [[named(m), *(change(found[m, name]) for name in shown)] for m in methods])


def sweep():
    found = {(int(r["rounds"]), int(r["step"]), r["method"]): r for r in rows("demo-sweep")}
    head = ["rounds x step", "answers", "icn: precision", "recall", "top: precision", "recall"]
    head += ["cluster-penalty k=64: recall", "k=128: recall"]
    body = []
    for rounds, step in SIZES:
        of = lambda method, name: number(found[rounds, step, method][name])
        both = [of(method, name) for method in ("icn", "top") for name in ("precision", "recall")]
        penalty = [of(f"cluster-penalty k={k}", "recall") for k in (64, 128)]
        body.append([f"{rounds} x {step}", str(rounds * step), *both, *penalty])
    return lines(head, body)


def geometry():
    head = ["round", "tokens", "lists", "no list", "found listed", "placebo", "difference to placebo"]
    body = []
    for r in rows("demo-navigate-20", "geometry"):
        if r["round"] in ("1", "3") and r["measure"] in MEASURES:
            row = {"difference": r["navigated_minus_placebo"], **r}
            digits = 3 if "mass" in r["measure"] else 2
            means = [number(r[prompt], digits) for prompt in ("start", "navigated", "placebo")]
            body.append([r["round"], MEASURES[r["measure"]], r["n"], *means, change(row, digits)])
    body.sort(key=lambda row: (row[0], list(MEASURES.values()).index(row[1])))
    return lines(head, body, 2)


def neighbours():
    names = {
        "inside_less_outside": "in a cluster of the first 10, less the others",
        "inside_less_outside_at_equal_rank": "the same at equal rank (5 ranks around)",
    }
    found = {r["comparison"]: r for r in rows("demo-correlate", "differences")}
    body = [[names[n], change(found[n]), number(found[n]["p_against_shuffles"])] for n in names]
    return lines(["comparison of ranks 11 to 100", "difference in precision", "p against shuffled clusters"], body)


def groups():
    body = [
        [r["group"].replace("_", ", "), r["n"], interval({"precision_low": r["low"], "precision_high": r["high"], **r}, "precision"),
         number(r["mean_rank"], 1), number(r["share_of_ranks"])]
        for r in rows("demo-correlate")
    ]
    return lines(["ranks", "lists", "precision", "mean rank", "share of ranks"], body)


def by_rank():
    body = [
        [r["ranks"], f"{number(r['inside'])} ({r['inside_n']})", f"{number(r['outside'])} ({r['outside_n']})", change(r), r["n"]]
        for r in rows("demo-correlate", "by-rank")
    ]
    return lines(["ranks", "inside (lists)", "outside (lists)", "difference", "lists with both"], body)


def texts():
    shown = ["validity", "distinct_2", "self_bleu", "hidden_distance"]
    head = ["method", "validity", "distinct-2", "self-BLEU", "distance of hidden states"]
    return lines(head, [[named(r["method"]), *(number(r[s], 2) for s in shown)] for r in rows("demo-generate", "sentences")])


def paths():
    head = ["method", "majority", "per path", "any path", "distinct paths", "generated tokens"]
    body = [
        [PATHS.get(r["method"], r["method"]), interval(r, "majority"), interval(r, "per_path"), number(r["any_path"]),
         number(r["distinct_paths"]), number(r["generated_tokens"], 0)]
        for r in rows("demo-reason")
    ]
    return lines(head, body)


def parsers():
    found = rows("demo-reason")
    shown = ["majority", "majority_released_parser", "per_path", "per_path_released_parser"]
    head = ["method", "majority", "by the released parser", "per path", "by the released parser"]
    return lines(head, [[PATHS.get(r["method"], r["method"]), *(number(r[s]) for s in shown)] for r in found])


def path_differences():
    found = {(r["method"], r["metric"]): r for r in rows("demo-reason", "differences")}
    body = [[PATHS.get(m, m), *(change(found[m, name]) for name in ("majority", "per_path"))]
            for m in dict.fromkeys(method for method, _ in found)]
    return lines(["icn less", "majority", "per path"], body)


def levels():
    found = {}
    for r in rows("demo-reason", "levels"):
        found.setdefault(r["level"], []).append(f"{number(r['majority'])} ({number(r['per_path'])})")
    return lines(["level", "icn", "top", "sampling", "greedy"], [[LEVELS[level], *cells] for level, cells in found.items()])


def speed():
    head = ["way", "completions", "seconds", "seconds a completion", "times as fast as re-encoding", "same as one by one"]
    body = [
        [r["way"], r["completions"], number(r["wall_s"], 2), number(r["completion_s"], 4),
         number(r["times_as_fast_as_re_encoding"], 1), r["same_as_one_by_one"]]
        for r in rows("demo-speed")
    ]
    return lines(head, body)


def summary():
    at = [{r["method"]: r for r in rows(run)} for run in ("demo-navigate-20", "demo-navigate")]
    head = ["method", "precision at 20", "recall at 20", "precision at 100", "recall at 100"]
    methods = [method for method in at[0] if method != "icn-continued"]
    return lines(head, [[m, *(number(run[m][s]) for run in at for s in ("precision", "recall"))] for m in methods])


TABLES = {
    "answers-100": lambda: answers("demo-navigate", True),
    "differences-100": lambda: differences("demo-navigate"),
    "answers-20": lambda: answers("demo-navigate-20", False),
    "differences-20": lambda: differences("demo-navigate-20"),
    "sweep": sweep,
    "geometry": geometry,
    "groups": groups,
    "neighbours": neighbours,
    "by-rank": by_rank,
    "texts": texts,
    "paths": paths,
    "path-differences": path_differences,
    "parsers": parsers,
    "levels": levels,
    "speed": speed,
    "summary": summary,
}


if __name__ == "__main__":
    marked.run(marked.parser(__file__, __doc__).parse_args(), TABLES)
