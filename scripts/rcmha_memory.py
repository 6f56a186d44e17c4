#!/usr/bin/env python3
"""Activation memory and time of relative attention over the segment length, weights kept against computed again.

    rcmha_memory.py --binary target/release/tokselect --segments 256,512,1024,2048,4096 --out memory.json

Trains one layer of RCMHA on one stream for a few steps per length and reads `activations_peak_bytes`, the peak memory of the
process and the speed from the report.
"""

import argparse
import json
import pathlib
import subprocess


def train(a, segment, weights):
    command = [a.binary, "rcmha-train", "--attention", a.attention, "--layers", "1", "--d-model", "128", "--heads", "8",
               "--segment", str(segment), "--memory", str(a.memory), "--batch", "1", "--steps", str(a.steps),
               "--eval-parts", "100", "--attention-weights", weights, "--quiet", "--format", "json",
               "--threads", str(a.threads)]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    table = next(table for table in report["tables"] if table["name"] == "cost")
    row = dict(zip([c["key"] for c in table["columns"]], table["rows"][0]))
    return {"segment": segment, "weights": weights, "step_s": segment / row["tokens_per_s"],
            "activations_peak_bytes": row["activations_peak_bytes"], "process_peak_bytes": row["process_peak_bytes"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/tokselect")
    parser.add_argument("--attention", default="rcmha")
    parser.add_argument("--segments", default="256,512,1024,2048,4096")
    parser.add_argument("--memory", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out")
    a = parser.parse_args()
    rows = []
    print("| segment | kept: MiB | again: MiB | share | kept: s | again: s | time |\n|---:|---:|---:|---:|---:|---:|---:|")
    for segment in map(int, a.segments.split(",")):
        keep, again = train(a, segment, "keep"), train(a, segment, "recompute")
        rows += [keep, again]
        mib = [row["activations_peak_bytes"] / 2**20 for row in (keep, again)]
        print(f"| {segment} | {mib[0]:.1f} | {mib[1]:.1f} | {mib[1] / mib[0]:.3f} | {keep['step_s']:.3f} | "
              f"{again['step_s']:.3f} | {again['step_s'] / keep['step_s']:.2f} |", flush=True)
    if a.out:
        settings = {key: value for key, value in vars(a).items() if key not in ("binary", "out")}
        pathlib.Path(a.out).write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
