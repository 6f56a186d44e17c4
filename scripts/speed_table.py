#!/usr/bin/env python3
"""Prints the README's table of CPU speed from the reports of `tokselect bench end-to-end`.

    python3 scripts/speed_table.py [--write FILE | --check FILE]

Reads results/tokenselect/cpu-end-to-end/*/report.json: the ratios of medians of every report, one row for each pair of
programs or policies, part and shape. Where several reports (`turn-1`, `turn-2`, ...) have the same row, it shows the median
and the range. `--write` replaces what stands between the marker lines of a file, `--check` compares it.
"""

import argparse
import json
import pathlib
import re
import statistics
import sys

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "results/tokenselect/cpu-end-to-end"
BEGIN, END = "<!-- speed_table.py: begin -->\n", "<!-- speed_table.py: end -->"


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--check", type=pathlib.Path, metavar="FILE")
    args = parser.parse_args()
    made = table()
    file = args.write or args.check
    if file is None:
        print(made, end="")
        return
    text = file.read_text()
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        sys.exit(f"{file}: no lines `{BEGIN.strip()}` and `{END}`")
    new = before + BEGIN + made + END + after
    if args.write:
        file.write_text(new)
    elif new != text:
        sys.exit(f"{file}: the table differs from the reports; run with --write")


if __name__ == "__main__":
    main()
