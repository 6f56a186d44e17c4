#!/usr/bin/env python3
"""Memory by component and time of a training step, per attention and segment length.

    rcmha_memory.py --binary target/release/tokselect --out memory-cpu.json
    rcmha_memory.py --device cuda --layers 6 --d-model 512 --d-ffn 1024 --memory segment --steps 10 --out memory-gpu.json

Every row is a process of its own that trains one model for a few steps: bytes of weights, gradients, optimiser and
activations at their peak as `rcmha-train` counts them, the peak of the process (resident memory, from the run's beginning
on), and the median time of a step. On the CPU both ways to the attention weights are taken, kept and computed again. A GPU
always computes them again; there the memory in use on the device is read every few milliseconds while the process runs, and
what was in use before it is subtracted. Turns go over all rows, so that a busy minute does not fall on one row alone. Prints
the medians; `--out` keeps every turn.
"""

import argparse
import ctypes
import json
import pathlib
import statistics
import subprocess
import sys
import threading
import time

KEPT = ("weights_bytes", "gradients_bytes", "optimizer_bytes", "activations_peak_bytes", "process_peak_bytes")
SIZES = ("layers", "d-model", "heads", "d-ffn", "segment", "memory", "batch", "steps", "threads", "device", "dtype")


class DeviceMemory:
    """Bytes in use on the first GPU, from NVML."""

    class Info(ctypes.Structure):
        _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]

    def __init__(self):
        self.library = ctypes.CDLL("libnvidia-ml.so.1")
        self.handle = ctypes.c_void_p()
        self.call("nvmlInit_v2")
        self.call("nvmlDeviceGetHandleByIndex_v2", 0, ctypes.byref(self.handle))

    def call(self, name, *arguments):
        if code := getattr(self.library, name)(*arguments):
            raise OSError(f"{name}: error {code}")

    def used(self):
        info = self.Info()
        self.call("nvmlDeviceGetMemoryInfo", self.handle, ctypes.byref(info))
        return info.used

    def watch(self, run):
        """The result of `run`, and by how many bytes what is in use grew meanwhile."""
        before, most, done = self.used(), [0], threading.Event()

        def look():
            while not done.wait(0.003):
                most[0] = max(most[0], self.used())

        thread = threading.Thread(target=look)
        thread.start()
        try:
            found = run()
        finally:
            done.set()
            thread.join()
        return found, max(0, most[0] - before)


def train(a, case):
    """The row of `case`, a choice of attention, segment, type and way to the weights."""
    values = {**vars(a), **case}
    if values["memory"] == "segment":
        values["memory"] = case["segment"]
    flags = [text for name in SIZES for text in (f"--{name}", str(values[name.replace("-", "_")]))]
    command = [a.binary, "rcmha-train", "--attention", case["attention"], "--attention-weights", case["attention_weights"],
               "--eval-parts", "100", "--quiet", "--format", "json", *flags]

    def run():
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    answer, used = a.gpu.watch(run) if a.gpu else (run(), None)
    report = json.loads(answer)
    table = next(table for table in report["tables"] if table["name"] == "cost")
    row = dict(zip([c["key"] for c in table["columns"]], table["rows"][0]))
    kept = {key: row[key] if isinstance(row[key], int) else None for key in KEPT}
    return {**case, "step_s": row["median_step_s"], **kept, "gpu_used_bytes": used}, report["manifest"]


def cases(a):
    ways = ["recompute"] if a.device != "cpu" else a.weights.split(",")
    return [{"attention": attention, "segment": segment, "dtype": dtype, "attention_weights": way}
            for dtype in a.dtypes.split(",") for segment in map(int, a.segments.split(","))
            for attention in a.attention.split(",") for way in ways]


def mib(rows, key):
    values = [row[key] for row in rows]
    return "-" if None in values else f"{statistics.median(values) / 2**20:.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/tokselect")
    parser.add_argument("--attention", default="mha,mdha,rmha,rcmha")
    parser.add_argument("--segments", default="128,512,2048,4096")
    parser.add_argument("--weights", default="recompute,keep", help="on the CPU; a GPU only computes them again")
    parser.add_argument("--memory", default="0", help="positions, or `segment` for as many as a segment has")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtypes", default="f32", help="f32, or on cuda f32,bf16")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--budget", type=float, help="seconds after which no further process is started, once every row has a turn")
    for flag, default in [("layers", 1), ("d-model", 128), ("heads", 8), ("d-ffn", 256), ("batch", 1), ("steps", 4), ("threads", 2)]:
        parser.add_argument(f"--{flag}", type=int, default=default)
    parser.add_argument("--out")
    a = parser.parse_args()
    a.gpu = None
    if a.device != "cpu":
        try:
            a.gpu = DeviceMemory()
            a.gpu.used()
        except (OSError, AttributeError) as error:
            a.gpu = None
            print(f"memory in use on the device is not measured: {error}", file=sys.stderr)
    settings = {key: value for key, value in vars(a).items() if key not in ("binary", "out", "gpu")}
    rows, machine, begin = [], None, time.monotonic()
    for turn in range(a.turns):
        for case in cases(a):
            if turn and a.budget and time.monotonic() - begin > a.budget:
                break
            row, manifest = train(a, case)
            machine = {key: manifest[key] for key in ("build", "device")}
            rows.append({"turn": turn, **row})
            print(f"{turn}: {row}", file=sys.stderr, flush=True)
            if a.out:
                kept = {"settings": settings, "machine": machine, "rows": rows}
                pathlib.Path(a.out).write_text(json.dumps(kept, indent=1) + "\n")
    print("| dtype | segment | attention | weights are | turns | step: ms | weights: MiB | gradients | optimiser | activations | process | GPU |")
    print("|---|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for case in cases(a):
        those = [row for row in rows if case.items() <= row.items()]
        print("| {dtype} | {segment} | {attention} | {attention_weights} |".format(**case), len(those), "|",
              f"{1000 * statistics.median(row['step_s'] for row in those):.2f} |",
              " | ".join(mib(those, key) for key in (*KEPT, "gpu_used_bytes")), "|")


if __name__ == "__main__":
    main()
