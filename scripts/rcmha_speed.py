#!/usr/bin/env python3
"""Training speed of `tokselect rcmha-train` beside the same model in PyTorch, by turns on the same threads.

    rcmha_speed.py --binary target/release/tokselect --python python3 --threads 2 --turns 3 --out speed.json

With `--device cuda` both train on the GPU, in f32 (without TF32) and in bf16 (PyTorch by autocast) by `--dtype f32,bf16`.
Each turn trains both for a few steps; speeds are tokens a second of each one's median training step. Prints a table; `--out`
keeps every turn.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def flags(a, *names):
    return [text for name in names for text in (f"--{name}", str(getattr(a, name.replace("-", "_"))))]


def answer(command):
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


SIZES = ("layers", "d-model", "heads", "d-ffn", "segment", "memory", "batch", "steps", "threads", "device")


def ours(a):
    """Tokens a second and bytes by (attention, dtype), and the build."""
    found = {}
    for dtype in a.dtype.split(","):
        report = answer([a.binary, "rcmha-train", "--attention", a.attention, "--unit", "byte", "--eval-parts", "100",
                         "--dtype", dtype, "--quiet", "--format", "json", *flags(a, *SIZES)])
        table = next(table for table in report["tables"] if table["name"] == "cost")
        for cells in table["rows"]:
            row = dict(zip([c["key"] for c in table["columns"]], cells))
            kept = sum(row[key] for key in row if key.endswith("_bytes") and key != "process_peak_bytes")
            found[row["attention"], dtype] = a.segment * a.batch / row["median_step_s"], kept
    return found, report["manifest"]["build"]


def pytorch(a):
    """Rows of reference_rcmha.py by (attention, dtype)."""
    rows = answer([a.python, str(HERE / "reference_rcmha.py"), "--speed", "--attention", a.attention, "--dtype", a.dtype,
                   "--vocab", "256", *flags(a, *SIZES)])
    return {(row["attention"], row["dtype"]): row for row in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/tokselect")
    parser.add_argument("--python", default="python3", help="one that has torch")
    parser.add_argument("--attention", default="mha,mdha,rmha,rcmha")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out")
    for flag, default in [("layers", 4), ("d-model", 128), ("heads", 8), ("d-ffn", 256), ("segment", 128),
                          ("memory", 128), ("batch", 16), ("steps", 8), ("threads", 2)]:
        parser.add_argument(f"--{flag}", type=int, default=default)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="f32", help="f32, or on cuda f32,bf16")
    a = parser.parse_args()
    turns, build, torch = [], None, {}
    for turn in range(a.turns):
        # PyTorch first in every other turn, so that neither always meets the warmer machine.
        if turn % 2:
            reference = pytorch(a)
        mine, build = ours(a)
        if not turn % 2:
            reference = pytorch(a)
        for (attention, dtype), (speed, kept) in mine.items():
            theirs = reference[attention, dtype]
            torch = {key: theirs[key] for key in ("torch", "device", "tf32") if key in theirs}
            turns.append({"turn": turn, "attention": attention, "dtype": dtype, "tokselect": speed,
                          "pytorch": theirs["tokens_per_s"], "tokselect_bytes": kept,
                          "pytorch_peak_bytes": theirs.get("peak_bytes")})
            print(f"{attention} {dtype}: {speed:.0f} and {theirs['tokens_per_s']:.0f}", file=sys.stderr, flush=True)
    print("| attention | dtype | tokselect tokens/s | PyTorch tokens/s | ratio (median of turns) |")
    print("|---|---|---:|---:|---:|")
    for attention in a.attention.split(","):
        for dtype in a.dtype.split(","):
            rows = [row for row in turns if (row["attention"], row["dtype"]) == (attention, dtype)]
            median = {key: statistics.median(row[key] for row in rows) for key in ("tokselect", "pytorch")}
            ratios = [row["tokselect"] / row["pytorch"] for row in rows]
            print(f"| {attention} | {dtype} | {median['tokselect']:.0f} | {median['pytorch']:.0f} | "
                  f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")
    if a.out:
        settings = {key: value for key, value in vars(a).items() if key not in ("binary", "python", "out")}
        pathlib.Path(a.out).write_text(json.dumps({"settings": settings, "build": build, "torch": torch, "turns": turns}, indent=1) + "\n")


if __name__ == "__main__":
    main()
