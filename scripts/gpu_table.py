#!/usr/bin/env python3
"""Prints the README's table of GPU speed from the reports of `tokselect bench attention` and `bench end-to-end --gpu`.

    gpu_table.py                      prints it
    gpu_table.py --write README.md    replaces what stands between the marker comments
    gpu_table.py --check README.md    fails if that is not what the reports say

Reads the `speed` tables of results/tokenselect/h200-*/*/report.json: medians, and the ratio to the best dense library that ran
beside them, or to our own dense policy where none did. The marker comments are those of `marked.py`. Standard library only.
"""

import json
import pathlib

import marked

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "results/tokenselect"
WHAT = {
    "decode": "decode attention, one layer",
    "chunk": "512-query chunk, one layer",
    "causal": "whole prompt's attention, one layer",
    "model-prefill": "whole model, time to first token",
    "model-decode": "whole model, one step",
}


def rows():
    for path in sorted(FOLDER.glob("h200-*/*/report.json")):
        report = json.loads(path.read_text())
        commit = report["manifest"]["build"]["git_commit"]["value"][:7]
        for table in report["tables"]:
            if table["name"] == "speed":
                keys = [column["key"] for column in table["columns"]]
                for values in table["rows"]:
                    yield commit, dict(zip(keys, values))


def shown(microseconds):
    if microseconds >= 1e6:
        return f"{microseconds / 1e6:.2f} s"
    return f"{microseconds / 1e3:.2f} ms" if microseconds >= 1e3 else f"{microseconds:.1f} us"


def number(value):
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def table():
    measured = [(commit, row, number(row["median_us"])) for commit, row in rows()]
    measured = [entry for entry in measured if entry[2] is not None]
    dense = {(row["kind"], row["shape"], row["tokens"]): us for _, row, us in measured if row["method"] == "dense"}
    lines = ["| what | tokens | how | median | dense / this | dense is | commit |", "|---|---:|---|---:|---:|---|---|"]
    order = list(WHAT)
    for commit, row, us in sorted(measured, key=lambda e: (order.index(e[1]["kind"]), e[1]["tokens"])):
        if not str(row["measured_by"]).startswith("tokselect"):
            continue
        if row["kind"] == "model-decode" and row["method"] == "token-select":
            continue  # hits and misses as they fell, of random weights: says nothing about a text
        best, name = number(row["best_dense_us"]), row["best_dense_peer"]
        if best is None:
            best, name = dense.get((row["kind"], row["shape"], row["tokens"])), "ours"
        ratio = "" if best is None or (name == "ours" and row["method"] == "dense") else f"{best / us:.2f}"
        what = f"{WHAT[row['kind']]}, {row['shape']}"
        lines.append(f"| {what} | {row['tokens']} | {row['method']} | {shown(us)} | {ratio} | {name if ratio else ''} | {commit} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    marked.run(marked.parser(__file__, __doc__).parse_args(), {"gpu": table})
