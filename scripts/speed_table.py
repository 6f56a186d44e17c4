#!/usr/bin/env python3
"""Prints the README's table of CPU speed from the reports of `tokselect bench end-to-end`.

    speed_table.py                      prints it
    speed_table.py --write README.md    replaces what stands between the marker comments
    speed_table.py --check README.md    fails if that is not what the reports say

Reads results/tokenselect/cpu-end-to-end/*/report.json: the ratios of medians of every report, one row for each pair of
programs or policies, part and shape. Where several reports (`turn-1`, `turn-2`, ...) have the same row, it shows the median
and the range. The marker comments are those of `marked.py`. Standard library only.
"""

import json
import pathlib
import re
import statistics

import marked

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "results/tokenselect/cpu-end-to-end"


def rows():
    """Ratios by (phase, tokens, part, slower side, faster side, shape), in the order of the reports."""
    found = {}
    for path in sorted(FOLDER.glob("*/report.json")):
        shape = re.sub(r"-[0-9a-f]{7}(-turn-\d+)?$", "", path.parent.name)
        report = json.loads(path.read_text())
        for table in report["tables"]:
            if table["name"] != "ratios":
                continue
            keys = [column["key"] for column in table["columns"]]
            for values in table["rows"]:
                row = dict(zip(keys, values))
                key = (row["phase"], row["tokens"], row["part"], row["numerator"], row["denominator"], shape)
                found.setdefault(key, []).append(row["ratio"])
    return found


def table():
    lines = ["| time of A / time of B, above 1: B is faster | ratio | turns | shape |", "|---|---:|---:|---|"]
    order = {"prefill": 0, "decode": 1}
    for key, ratios in sorted(rows().items(), key=lambda item: (order[item[0][0]], item[0])):
        phase, tokens, part, slower, faster, shape = key
        if faster == "token-select":
            continue  # hits and misses as they fell, of random weights: says nothing about a text
        what = f"{phase} at {tokens}, attention part" if part == "attention" else f"{phase} at {tokens}"
        ratio = f"{statistics.median(ratios):.2f}"
        if len(ratios) > 1:
            ratio += f" ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {what}: {slower} / {faster} | {ratio} | {len(ratios)} | {shape} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    marked.run(marked.parser(__file__, __doc__).parse_args(), {"speed": table})
