#!/usr/bin/env python3
"""Which part of the tokens that 16-bit keys choose does an 8-bit copy of the keys choose, on a model that reads a text?

    int8_recall.py target/release/tokselect --text input.txt --output recall.json

Needs a GPU: the copy is one of its decode steps. Every prompt is a piece of the text; it is read once with `--score-dtype f32` and
once with `int8`, with the selection cache off. Of each decode step and layer the selections are compared, as long as both have
written the same ids. The first layer has the same queries and keys in both; further ones have what different selections before them
left, which in lists longer than a model's trained window may be much: budgets should fit it. Exit code 1 if the mean recall of any case is below the bound.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BOUND = 0.99
STEPS = 16
# Characters of a prompt, and tokens to select: 512 is what `auto` is for the demo model.
CASES = [(16_000, 256), (16_000, 512), (48_000, 256), (48_000, 512)]
PIECES = 4


def selections(program, model, dtype, prompt, top_k, score_dtype):
    with tempfile.TemporaryDirectory() as folder:
        text, dump = Path(folder) / "prompt.txt", Path(folder) / "dump.json"
        text.write_text(prompt)
        command = [program, "infer", "--quiet", "-m", model, "--device", "cuda", "--dtype", dtype, "--prompt-file", str(text),
                   "--policy", "token-select", "--cache-threshold", "off", "--score-dtype", score_dtype, "--n-init", "32",
                   "--n-local", "128", "--top-k", str(top_k), "--prefill-chunk", "128", "--temperature", "0", "-n", str(STEPS),
                   "--ignore-eos", "--dump-logits", str(dump)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[:500])
        return json.loads(dump.read_text())


def compare(program, model, dtype, job):
    name, piece, prompt, top_k = job
    # The id of step i is the i-th one written; the first that differs ends the comparison.
    exact, rounded = (selections(program, model, dtype, prompt, top_k, kind) for kind in ("f32", "int8"))
    ids = zip(exact["generated_ids"], rounded["generated_ids"])
    equal = next((i for i, (x, y) in enumerate(ids) if x != y), STEPS)
    if not exact["decode_steps"]:
        raise RuntimeError(f"{program} told no selections of decode steps")
    recalls = []
    for step in range(min(equal, len(exact["decode_steps"]))):
        layers = zip(exact["decode_steps"][step]["selected"], rounded["decode_steps"][step]["selected"])
        recalls.append([len(set(x) & set(y)) / len(x) for x, y in layers])
    return dict(text=name, piece=piece, characters=len(prompt), tokens=len(exact["input_ids"]), top_k=top_k, steps_compared=len(recalls),
                mean=statistics.fmean(x for step in recalls for x in step), least=min(min(step) for step in recalls),
                first_layer_mean=statistics.fmean(step[0] for step in recalls), recall_by_step_and_layer=recalls)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="the tokselect binary")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="f16", help="type of weights and activations")
    parser.add_argument("--text", type=Path, action="append", required=True, help="file of text; may be repeated")
    parser.add_argument("--workers", type=int, default=4, help="runs at a time")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    arguments = parser.parse_args()
    jobs = []
    for path in arguments.text:
        text = path.read_text()
        for length, top_k in CASES:
            if len(text) < length:
                sys.exit(f"{path}: {len(text)} characters, and prompts have {length}")
            for piece in range(PIECES):
                start = (len(text) - length) * piece // (PIECES - 1)
                jobs.append((path.name, piece, text[start : start + length], top_k))
    with ThreadPoolExecutor(arguments.workers) as pool:
        rows = list(pool.map(lambda job: compare(arguments.program, arguments.model, arguments.dtype, job), jobs))
    cases, passed = [], True
    for name in dict.fromkeys(row["text"] for row in rows):
        for length, top_k in CASES:
            of_case = [row for row in rows if (row["text"], row["characters"], row["top_k"]) == (name, length, top_k)]
            case = dict(text=name, characters=length, tokens=[row["tokens"] for row in of_case], top_k=top_k,
                        recall=statistics.fmean(row["mean"] for row in of_case), least=min(row["least"] for row in of_case),
                        first_layer=statistics.fmean(row["first_layer_mean"] for row in of_case), bound=BOUND)  # fmt: skip
            case["passed"] = case["recall"] >= BOUND
            passed &= case["passed"]
            cases.append(case)
            print(f"{name:20s} {max(case['tokens']):6d} tokens, top {top_k:5d}: recall {case['recall']:.4f}, "
                  f"first layer {case['first_layer']:.4f}, least of a step and layer {case['least']:.4f} {'ok' if case['passed'] else 'BELOW ' + str(BOUND)}")  # fmt: skip
    if arguments.output:
        doctor = subprocess.run([arguments.program, "doctor", "--json"], capture_output=True, text=True)
        machine = {key: json.loads(doctor.stdout)[key] for key in ("build", "device")}
        report = dict(command=sys.argv, machine=machine, model=arguments.model, dtype=arguments.dtype,
                      cases=cases, rows=rows, passed=passed)  # fmt: skip
        arguments.output.write_text(json.dumps(report, indent=1))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
