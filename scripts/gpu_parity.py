#!/usr/bin/env python3
"""Compares a GPU with the CPU in one program: logits after a prompt and greedy continuations, model by model.

    gpu_parity.py target/release/tokselect --models ../shared/data/reference_models --output parity.json

The CPU computes in f32, the GPU with 16-bit weights and activations, so logits differ by rounding: the bounds below are
relative to the largest logit. Selections are compared where the policy chooses tokens: a rounded key may swap tokens whose
votes are nearly equal, so the share of equal ones is bounded, and logits are bounded only where all were equal.
On the demo model the generated text must be the same, word for word. Exit code 1 if a bound is missed.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Dense attention, relative to the largest logit: a few roundings of 2^-9 (bf16) or 2^-12 (f16) through all layers.
BOUNDS = {"bf16": 3e-2, "f16": 4e-3}
SELECT = ["--policy", "token-select", "--cache-threshold", "off"]
CASES = [
    ("dense, 40 tokens", 40, ["--policy", "dense"]),
    ("dense, 700 tokens", 700, ["--policy", "dense"]),
    ("token-select", 700, [*SELECT, "--n-init", "16", "--n-local", "48", "--top-k", "96", "--prefill-chunk", "64"]),
    ("token-select, published rules", 300,
     [*SELECT, "--n-init", "8", "--n-local", "32", "--top-k", "64", "--prefill-chunk", "32", "--head-map", "modulo",
      "--local-outside-chunk", "off", "--last-token-alone", "off"]),
    ("token-select, everything kept", 200, [*SELECT, "--top-k", "2048", "--prefill-chunk", "64"]),
]  # fmt: skip
PROMPTS = ["Once upon a time", "The passkey is", "Remember these numbers:", "A red house", "Question: how many"]


def run(program, arguments):
    done = subprocess.run([program, "infer", "--quiet", *arguments], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[:500])
    return done.stdout


def dump(program, model, ids, arguments, folder):
    path = Path(folder) / "dump.json"
    path.unlink(missing_ok=True)
    ids = ",".join(map(str, ids))
    run(program, ["-m", model, "--token-ids", ids, "-n", "24", "--ignore-eos", "--dump-logits", str(path), *arguments])
    return json.loads(path.read_text())


def compare(program, model, vocabulary, dtype, case):
    name, length, policy = case
    rng = random.Random(f"{model}/{name}")
    ids = [rng.randrange(3, vocabulary) for _ in range(length)]
    with tempfile.TemporaryDirectory() as folder:
        cpu = dump(program, model, ids, [*policy, "--threads", "2", "--device", "cpu"], folder)
        gpu = dump(program, model, ids, [*policy, "--threads", "2", "--device", "cuda", "--dtype", dtype], folder)
        a, b = cpu["last_logits"], gpu["last_logits"]
        scale = max(map(abs, a))
        difference = max(abs(x - y) for x, y in zip(a, b)) / scale
        same = next((i for i, (x, y) in enumerate(zip(cpu["generated_ids"], gpu["generated_ids"])) if x != y), 24)
        exact = "dense" in name or "everything" in name
        return dict(
            model=Path(model).name, case=name, dtype=dtype, tokens=length, relative_difference=difference,
            largest_logit=scale, equal_ids=same, of_ids=24, bound=BOUNDS[dtype] if exact else None,
            passed=difference <= BOUNDS[dtype] if exact else None,
        )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="the tokselect binary")
    parser.add_argument("--models", type=Path, help="folder of small checkpoints; without it only the demo model is run")
    parser.add_argument("--dtypes", default="bf16,f16")
    parser.add_argument("--text-dtype", default="auto", help="type on the GPU of the texts of the demo model")
    parser.add_argument("--workers", type=int, default=4, help="runs at a time")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    arguments = parser.parse_args()
    models = [("demo", 2304)]
    if arguments.models:
        for path in sorted(arguments.models.iterdir()):
            if (path / "config.json").is_file():
                models.append((str(path), json.loads((path / "config.json").read_text())["vocab_size"]))
    jobs = [(model, vocabulary, dtype, case) for model, vocabulary in models
            for dtype in arguments.dtypes.split(",") for case in CASES]  # fmt: skip
    rows, texts = [], []
    # Side by side: each run is short, and most of it is starting up.
    with ThreadPoolExecutor(arguments.workers) as pool:
        for row in pool.map(lambda job: compare(arguments.program, *job), jobs):
            rows.append(row)
            verdict = {True: "ok", False: "FAILED", None: "-"}[row["passed"]]
            print(f"{row['model']:20s} {row['dtype']:5s} {row['case']:30s} {row['relative_difference']:.1e} "
                  f"equal ids {row['equal_ids']:2d}/24 {verdict}", flush=True)  # fmt: skip

        def text(ask):
            prompt, policy = ask
            command = ["--threads", "2", "--prompt", prompt, "-n", "60", "--policy", policy]
            cpu = run(arguments.program, [*command, "--device", "cpu"])
            gpu = run(arguments.program, [*command, "--device", "cuda", "--dtype", arguments.text_dtype])
            return dict(prompt=prompt, policy=policy, dtype=arguments.text_dtype, equal=cpu == gpu, text=gpu)

        for row in pool.map(text, [(prompt, policy) for prompt in PROMPTS for policy in ("dense", "token-select")]):
            texts.append(row)
            print(f"demo text, {row['policy']}, {row['prompt']!r}: {'equal' if row['equal'] else 'DIFFERENT'}", flush=True)
    passed = all(row["passed"] is not False for row in rows) and all(text["equal"] for text in texts)
    if arguments.output:
        arguments.output.write_text(json.dumps(dict(command=sys.argv, rows=rows, texts=texts, passed=passed), indent=1))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
