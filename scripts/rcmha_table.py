#!/usr/bin/env python3
"""Prints the tables of results/rcmha/README.md from the runs beside it.

    rcmha_table.py                                    prints every table
    rcmha_table.py --write results/rcmha/README.md    replaces what stands between the marker comments
    rcmha_table.py --check results/rcmha/README.md    fails if that is not what the runs say

Reads `table.csv` and `table.paired.csv` of the runs, and the files of `rcmha_speed.py`. The marker comments are those of
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


TABLES = {make.__name__: lambda make=make: "\n".join(make()) + "\n" for make in (runs, paper, speed)}


if __name__ == "__main__":
    marked.run(marked.parser(__file__, __doc__).parse_args(), TABLES)
