#!/usr/bin/env python3
"""Training speed of `tokselect rcmha-train` beside the same model in PyTorch, by turns on the same threads.

    rcmha_speed.py --binary target/release/tokselect --python python3 --threads 2 --turns 3 --out speed.json

Each turn trains both for a few steps; speeds are tokens a second over training steps alone. Prints a table; `--out` keeps
every turn.
"""

import argparse
import json
import pathlib
import statistics
import subprocess

HERE = pathlib.Path(__file__).resolve().parent


def ours(a, attention):
    sizes = [("layers", a.layers), ("d-model", a.d_model), ("heads", a.heads), ("d-ffn", a.d_ffn),
             ("segment", a.segment), ("memory", a.memory), ("batch", a.batch), ("steps", a.steps)]
    flags = [text for name, value in sizes for text in (f"--{name}", str(value))]
    command = [a.binary, "rcmha-train", "--attention", attention, "--unit", "byte", "--eval-parts", "100",
               "--threads", str(a.threads), "--quiet", "--format", "json", *flags]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    table = next(table for table in report["tables"] if table["name"] == "cost")
    column = [c["key"] for c in table["columns"]].index("tokens_per_s")
    return table["rows"][0][column], report["manifest"]["build"]


def pytorch(a, attention):
    sizes = [("layers", a.layers), ("d-model", a.d_model), ("heads", a.heads), ("d-ffn", a.d_ffn), ("vocab", 256),
             ("segment", a.segment), ("memory", a.memory), ("batch", a.batch), ("steps", a.steps), ("threads", a.threads)]
    flags = [text for name, value in sizes for text in (f"--{name}", str(value))]
    command = [a.python, str(HERE / "reference_rcmha.py"), "--speed", "--attention", attention, *flags]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["tokens_per_s"]


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
    a = parser.parse_args()
    turns, build = [], None
    for turn in range(a.turns):
        for attention in a.attention.split(","):
            # PyTorch first in every other turn, so that neither always meets the warmer machine.
            if turn % 2:
                reference = pytorch(a, attention)
            speed, build = ours(a, attention)
            if not turn % 2:
                reference = pytorch(a, attention)
            turns.append({"turn": turn, "attention": attention, "tokselect": speed, "pytorch": reference})
    print("| attention | tokselect tokens/s | PyTorch tokens/s | ratio (median of turns) |\n|---|---:|---:|---:|")
    for attention in a.attention.split(","):
        rows = [row for row in turns if row["attention"] == attention]
        median = {key: statistics.median(row[key] for row in rows) for key in ("tokselect", "pytorch")}
        ratios = [row["tokselect"] / row["pytorch"] for row in rows]
        print(f"| {attention} | {median['tokselect']:.0f} | {median['pytorch']:.0f} | "
              f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")
    if a.out:
        settings = {key: value for key, value in vars(a).items() if key not in ("binary", "python", "out")}
        pathlib.Path(a.out).write_text(json.dumps({"settings": settings, "build": build, "turns": turns}, indent=1) + "\n")


if __name__ == "__main__":
    main()
