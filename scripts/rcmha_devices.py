#!/usr/bin/env python3
"""Training on a GPU against training on the CPU: loss by step, and runs that are killed.

    rcmha_devices.py --binary target/release/tokselect --data input.txt --out devices.json

For each attention: the losses of the same run on both devices, step by step; a run on the GPU that is killed and started
again, which must go on to the bit; and one that is started on the CPU and goes on on the GPU from its checkpoint. A run that
began anew would have the same losses, so a mark in the metrics before the checkpoint must still be there at the end. Exit
code 1 if a check fails.
"""

import argparse
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

# An accuracy that no run has.
MARK = 2.0


def command(a, attention, device, dtype, folder):
    return [a.binary, "rcmha-train", "--attention", attention, "--layers", str(a.layers), "--d-model", str(a.d_model),
            "--heads", str(a.heads), "--segment", str(a.segment), "--memory", str(a.memory), "--batch", str(a.batch),
            "--steps", str(a.steps), "--warmup", "10", "--rate", "0.002", "--dropout", str(a.dropout), "--log-every", "1",
            "--checkpoint-every", "10", "--eval-every", "20", "--eval-parts", "20", "--device", device, "--dtype", dtype,
            "--data", a.data, "--quiet", "--format", "json", "-o", str(folder)]


def metrics(folder, attention):
    return folder / f"{attention}-seed-0" / "metrics.jsonl"


def lines(folder, attention):
    path = metrics(folder, attention)
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def numbers(folder, attention):
    return [(line["step"], line["part"], line["loss"], line["gradient_norm"]) for line in lines(folder, attention)]


def train(a, attention, device, dtype, folder):
    subprocess.run(command(a, attention, device, dtype, folder), check=True, stdout=subprocess.DEVNULL)
    return numbers(folder, attention)


def machine(folder):
    """What computed a run, and which build."""
    manifest = json.loads((folder / "report.json").read_text())["manifest"]
    return {"device": manifest["device"], "build": manifest["build"]}


def go_on(a, attention, dtype, folder):
    """Lets a stopped run finish; its numbers, and whether it went on from a checkpoint instead of beginning anew."""
    path = metrics(folder, attention)
    first, rest = path.read_text().split("\n", 1)
    path.write_text(json.dumps({**json.loads(first), "accuracy": MARK}) + "\n" + rest)
    found = train(a, attention, a.device, dtype, folder)
    return found, lines(folder, attention)[0]["accuracy"] == MARK


def killed(a, attention, dtype, folder):
    """Kills the run some steps after its first checkpoint, then lets it finish."""
    process = subprocess.Popen(command(a, attention, a.device, dtype, folder), stdout=subprocess.DEVNULL)
    path = metrics(folder, attention)
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < 14):
        time.sleep(0.0005)
    was_running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = len(lines(folder, attention))
    return was_running, reached, *go_on(a, attention, dtype, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/tokselect")
    parser.add_argument("--data", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="f32,bf16")
    parser.add_argument("--attention", default="mha,mdha,rmha,rcmha,rope-conv,rcmha-carry")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--out")
    for flag, default in [("layers", 2), ("d-model", 64), ("heads", 4), ("segment", 64), ("memory", 64), ("batch", 16),
                          ("steps", 50)]:
        parser.add_argument(f"--{flag}", type=int, default=default)
    a = parser.parse_args()
    rows, failed, machines = [], [], {}
    print("| attention | dtype | last loss CPU | GPU | largest difference | resumed alike | CPU checkpoint continued: difference |")
    print("|---|---|---:|---:|---:|---|---:|")
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        for attention in a.attention.split(","):
            cpu = train(a, attention, "cpu", "f32", root / f"{attention}-cpu")
            machines["cpu"] = machine(root / f"{attention}-cpu")
            for dtype in a.dtype.split(","):
                folder = root / f"{attention}-{dtype}"
                gpu = train(a, attention, a.device, dtype, folder)
                machines[a.device] = machine(folder)
                again = train(a, attention, a.device, dtype, root / f"{attention}-{dtype}-again")
                was_running, reached, resumed, went_on = killed(a, attention, dtype, root / f"{attention}-{dtype}-killed")
                differences = [abs(x[2] - y[2]) for x, y in zip(cpu, gpu)]
                crossed = None
                if dtype == "f32":
                    # The CPU's checkpoint of step 40, continued here.
                    to = root / f"{attention}-crossed"
                    run = f"{attention}-seed-0"
                    (to / run).mkdir(parents=True)
                    for name in ("step-000000040.safetensors", "metrics.jsonl"):
                        shutil.copy(root / f"{attention}-cpu" / run / name, to / run / name)
                    continued, crossed_over = go_on(a, attention, dtype, to)
                    went_on = went_on and crossed_over and len(continued) == len(cpu)
                    crossed = max(abs(x[2] - y[2]) for x, y in zip(cpu, continued))
                # f32 differs by the order of sums, which training magnifies; bf16 by its eight bits.
                bound = 1e-3 if dtype == "f32" else 5e-2
                row = {"attention": attention, "dtype": dtype, "cpu_loss": cpu[-1][2], "gpu_loss": gpu[-1][2],
                       "largest_difference": max(differences), "bound": bound, "repeats": again == gpu,
                       "killed_while_running": was_running, "killed_at_line": reached, "resumed_alike": resumed == gpu, "went_on_from_checkpoint": went_on,
                       "crossed_difference": crossed, "cpu": cpu, "gpu": gpu}
                rows.append(row)
                good = max(differences) < bound and row["repeats"] and row["resumed_alike"] and was_running and went_on
                if not good or (crossed is not None and crossed > bound) or len(cpu) != len(gpu):
                    failed.append(f"{attention} {dtype}")
                print(f"| {attention} | {dtype} | {cpu[-1][2]:.4f} | {gpu[-1][2]:.4f} | {max(differences):.1e} | "
                      f"{'yes' if row['resumed_alike'] and row['repeats'] and went_on else 'NO'} (killed at {reached}) | "
                      f"{'' if crossed is None else format(crossed, '.1e')} |", flush=True)
    if a.out:
        settings = {key: value for key, value in vars(a).items() if key not in ("binary", "data", "out")}
        pathlib.Path(a.out).write_text(json.dumps({"settings": settings, "machines": machines, "rows": rows}, indent=1) + "\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
