#!/usr/bin/env python3
"""Trains the demo model: a small Qwen2 on text that the toolkit makes while the training runs.

    python3 scripts/train_demo_model.py --binary target/release/tokselect --tokenizer models/demo \\
        --data corpus --out out --config base --minutes 6 --seed 0

Needs PyTorch, NumPy and safetensors; with transformers it also compares the saved model's logits. Several
configurations (`--config base,deep`) are trained one after the other on the same data; to train them side by side,
start a second process with the same --data and without --binary.

Writes OUT/CONFIG/ in the Hugging Face layout in bfloat16 after every evaluation, so that a run that is cut off leaves a
model, with train.csv (the loss curve), evaluation.csv and a model card.
"""

import argparse
import csv
import dataclasses
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

# Weights of the corpus (src/eval/demo_corpus/document.rs), in sixteenths.
CLASSES = {8: "language", 17: "fact", 24: "repeated", 64: "answer"}
ANSWER = 64


@dataclasses.dataclass(frozen=True)
class Config:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    learning_rate: float = 1e-3
    rope_theta: float = 10_000.0


CONFIGS = {
    "base": Config(256, 6, 4, 2, 64, 640),
    "deep": Config(256, 8, 4, 2, 64, 384),
    "heads": Config(256, 6, 8, 4, 32, 640),
    "slim": Config(192, 5, 4, 2, 64, 512),
    "small": Config(192, 5, 3, 1, 64, 512),
    "tiny": Config(64, 2, 4, 2, 16, 128),
}


class RmsNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, 1e-6)


def rotate(x, cos, sin):
    """x [B, H, T, D]; the pairs of a rotation are the two halves of a head, as in Qwen2."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.input_layernorm = RmsNorm(c.hidden)
        self.post_attention_layernorm = RmsNorm(c.hidden)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(c.hidden, c.heads * c.head_dim),
                "k_proj": nn.Linear(c.hidden, c.kv_heads * c.head_dim),
                "v_proj": nn.Linear(c.hidden, c.kv_heads * c.head_dim),
                "o_proj": nn.Linear(c.heads * c.head_dim, c.hidden, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(c.hidden, c.intermediate, bias=False),
                "up_proj": nn.Linear(c.hidden, c.intermediate, bias=False),
                "down_proj": nn.Linear(c.intermediate, c.hidden, bias=False),
            }
        )

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        c, a = self.c, self.self_attn
        h = self.input_layernorm(x)
        q = rotate(a["q_proj"](h).view(b, t, c.heads, c.head_dim).transpose(1, 2), cos, sin)
        k = rotate(a["k_proj"](h).view(b, t, c.kv_heads, c.head_dim).transpose(1, 2), cos, sin)
        v = a["v_proj"](h).view(b, t, c.kv_heads, c.head_dim).transpose(1, 2)
        group = c.heads // c.kv_heads
        q, k = q.to(v.dtype), k.to(v.dtype).repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q, k, v.repeat_interleave(group, dim=1), is_causal=True)
        x = x + a["o_proj"](y.transpose(1, 2).reshape(b, t, c.heads * c.head_dim))
        h = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](h)) * self.mlp["up_proj"](h))


class Qwen2(nn.Module):
    """Parameters are named as in Hugging Face checkpoints, below `model.`."""

    def __init__(self, c, vocabulary, window):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, c.hidden)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = RmsNorm(c.hidden)
        frequencies = c.rope_theta ** -(torch.arange(0, c.head_dim, 2).float() / c.head_dim)
        angles = torch.outer(torch.arange(window).float(), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * c.layers) if deep else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids):
        t = ids.shape[1]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, self.cos[:t], self.sin[:t])
        return F.linear(self.norm(x), self.embed_tokens.weight)


class Pool:
    """Rows of a folder's shards on the device. Fresh shards are read as they appear; without any, rows come again."""

    def __init__(self, folder, window, device, generator):
        self.folder, self.window, self.device, self.generator = folder, window, device, generator
        self.seen, self.shards, self.queue, self.rows, self.passes = set(), [], [], 0, 0
        self.looked = 0.0

    def look(self):
        self.looked = time.monotonic()
        for path in sorted(self.folder.glob("rows-*.bin")):
            if path.name not in self.seen:
                self.seen.add(path.name)
                ids, weights = read_rows(path, self.window)
                self.shards.append((ids.to(self.device), weights.to(self.device)))
                self.rows += len(ids)
                order = torch.randperm(len(ids), generator=self.generator)
                self.queue.append((len(self.shards) - 1, order))

    def wait(self, process):
        while not self.shards:
            if process is not None and process.poll() not in (None, 0):
                sys.exit(f"the corpus generator failed with exit code {process.returncode}")
            time.sleep(0.5)
            self.look()

    def take(self, count):
        """`count` rows [count, window] of ids and weights."""
        if time.monotonic() - self.looked > 2:
            self.look()
        ids, weights = [], []
        while count > 0:
            if not self.queue:
                self.passes += 1
                for shard in torch.randperm(len(self.shards), generator=self.generator).tolist():
                    order = torch.randperm(len(self.shards[shard][0]), generator=self.generator)
                    self.queue.append((shard, order))
            shard, order = self.queue.pop(0)
            now, later = order[:count], order[count:]
            if len(later):
                self.queue.insert(0, (shard, later))
            now = now.to(self.device)
            ids.append(self.shards[shard][0][now])
            weights.append(self.shards[shard][1][now])
            count -= len(now)
        return torch.cat(ids), torch.cat(weights)


def read_rows(path, window):
    data = np.fromfile(path, dtype=np.uint8)
    rows = len(data) // (3 * window)
    ids = data[: rows * window * 2].view("<u2").astype(np.int16).reshape(rows, window)
    return torch.from_numpy(ids), torch.from_numpy(data[rows * window * 2 :].reshape(rows, window).copy())


def start_generators(args):
    """Makes the corpus in the background: the mix, the repetitions of the early steps, and held-out documents."""
    tokenizer = args.tokenizer / "tokenizer.json"
    cores = os.cpu_count() or 2
    processes = []
    for name, documents, threads, seed, mix in [
        ("held-out", 512, 2, args.seed + 1_000_003, None),
        ("repetition", args.repetitions, max(1, cores // 6), args.seed, "repetition=1"),
        ("main", args.documents, max(1, cores - cores // 6 - 2), args.seed, None),
    ]:
        command = [args.binary, "bench", "demo-corpus", "--export", args.data / name, "--documents", documents]
        command += ["--seed", seed, "--window", args.window, "--tokenizer", tokenizer, "--threads", threads]
        command += ["--quiet"] + (["--mix", mix] if mix else [])
        process = subprocess.Popen([str(part) for part in command])
        if name == "held-out":
            if process.wait() != 0:
                sys.exit(f"the corpus generator failed: {' '.join(map(str, command))}")
        else:
            processes.append(process)
    return processes


def precision(device):
    return torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda")


@torch.no_grad()
def evaluate(model, folder, device, most):
    """Share of questions whose whole answer is predicted, by kind and length."""
    scores = {}
    for path in sorted(folder.glob("*.bin"), key=lambda p: (p.stem.rsplit("-", 1)[0], int(p.stem.rsplit("-", 1)[1]))):
        kind, length = path.stem.rsplit("-", 1)
        ids, weights = read_rows(path, int(length))
        right = []
        for start in range(0, min(most, len(ids)), 32):
            part = ids[start : min(start + 32, most)].to(device).long()
            wanted = weights[start : min(start + 32, most)].to(device)[:, 1:] == ANSWER
            with precision(device):
                guess = model(part)[:, :-1].argmax(-1)
            right.append((~wanted | (guess == part[:, 1:])).all(1))
        scores[kind, int(length)] = torch.cat(right).float().mean().item()
    return scores


@torch.no_grad()
def held_out(model, rows, device):
    """Share of right predictions and mean loss by class of weight."""
    ids, weights = rows
    totals = {name: [0, 0.0, 0.0] for name in CLASSES.values()}
    for start in range(0, len(ids), 32):
        part = ids[start : start + 32].to(device).long()
        weight = weights[start : start + 32].to(device)[:, 1:]
        with precision(device):
            logits = model(part)[:, :-1].float()
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), part[:, 1:].reshape(-1), reduction="none")
        right = logits.argmax(-1) == part[:, 1:]
        for value, name in CLASSES.items():
            mask = weight == value
            total = totals[name]
            total[0] += mask.sum().item()
            total[1] += right[mask].sum().item()
            total[2] += loss.view_as(mask)[mask].sum().item()
    return {name: (right / max(n, 1), loss / max(n, 1)) for name, (n, right, loss) in totals.items()}


def save(model, c, args, folder, vocabulary):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{k}": v.detach().to(torch.bfloat16).cpu().contiguous() for k, v in model.named_parameters()}
    partial = folder / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.rename(folder / "model.safetensors")
    ids = json.loads((args.tokenizer / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in ids}
    end, stop = ids["<|endoftext|>"], ids["<|im_end|>"]
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": vocabulary,
        "hidden_size": c.hidden,
        "intermediate_size": c.intermediate,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": args.window,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "rope_theta": c.rope_theta,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": stop,
        "pad_token_id": end,
        "torch_dtype": "bfloat16",
    }
    generation = {"eos_token_id": [stop, end], "pad_token_id": end, "do_sample": False}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(args.tokenizer / name, folder / name)


def check_against_transformers(folder, c, vocabulary, window, ids):
    """The largest difference of logits between this file's model and transformers', both in f32 from the saved files."""
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        return None
    model = Qwen2(c, vocabulary, window)
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({k.removeprefix("model."): v.float() for k, v in tensors.items()})
    other = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        difference = (model(ids) - other(ids).logits).abs().max().item()
    if not difference < 2e-3:
        sys.exit(f"`{folder}`: logits differ from transformers' by {difference}")
    return difference


def train(name, args, device, processes):
    c = CONFIGS[name]
    if args.learning_rate:
        c = dataclasses.replace(c, learning_rate=args.learning_rate)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    about = args.data / "main" / "corpus.json"
    while not about.exists():
        if any(process.poll() not in (None, 0) for process in processes):
            sys.exit("the corpus generator failed")
        time.sleep(0.5)
    about = json.loads(about.read_text())
    vocabulary = -(-about["vocab_size"] // 64) * 64
    folder = args.out / name
    folder.mkdir(parents=True, exist_ok=True)
    main_pool = Pool(args.data / "main", args.window, device, generator)
    repetition_pool = Pool(args.data / "repetition", args.window, device, generator)
    for pool, process in zip((repetition_pool, main_pool), processes or [None, None]):
        pool.wait(process)
    held = [read_rows(path, args.window) for path in sorted((args.data / "held-out").glob("rows-*.bin"))]
    held = tuple(torch.cat(part)[:128] for part in zip(*held))

    model = Qwen2(c, vocabulary, args.window).to(device)
    count = sum(p.numel() for p in model.parameters())
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=c.learning_rate,
        betas=(0.9, 0.98),
        fused=device == "cuda",
    )

    def losses(ids, weights):
        # Every position predicts the next; the last of a row, which has none, weighs nothing.
        targets, weights = F.pad(ids[:, 1:], (0, 1)).reshape(-1), F.pad(weights[:, 1:], (0, 1)).reshape(-1)
        loss = F.cross_entropy(model(ids).float().reshape(-1, vocabulary), targets, reduction="none")
        return (loss * weights).sum() / weights.sum().clamp(min=1.0)

    compiled = torch.compile(losses) if device == "cuda" and not args.no_compile else losses
    rows = max(1, args.batch_tokens // args.window)
    print(f"{name}: {count / 1e6:.2f} M parameters, {rows} rows of {args.window} a step, on {device}", flush=True)

    train_log = (folder / "train.csv").open("w", newline="")
    evaluation_log = (folder / "evaluation.csv").open("w", newline="")
    train_csv, evaluation_csv = csv.writer(train_log), csv.writer(evaluation_log)
    train_csv.writerow(["step", "elapsed_s", "tokens", "loss", "learning_rate", "repetition_share", "passes"])
    evaluation_csv.writerow(["step", "elapsed_s", "measure", "kind", "length_tokens", "value"])
    # Compilation counts towards the limit but not towards the schedule.
    limit = args.minutes * 60
    began, schedule_began, step, total, best = time.monotonic(), None, 0, torch.zeros((), device=device), None
    logged, since, scores, classes = [], 0, {}, {}
    finished = False
    while not finished:
        now = time.monotonic()
        if schedule_began is None and step == 3:
            schedule_began = now
        passed = 0.0 if schedule_began is None else (now - schedule_began) / max(1e-9, limit - (schedule_began - began))
        progress = max(step / args.steps, passed)
        if progress >= 1:
            finished = True
        warmup = min(1.0, (step + 1) / args.warmup)
        decay = 1.0 if progress < args.decay_from else max(0.0, (1 - progress) / (1 - args.decay_from))
        rate = c.learning_rate * warmup * decay
        share = args.early_repetition
        if progress > args.repetition_until:
            fade = min(1.0, (progress - args.repetition_until) / args.repetition_until)
            share += (args.late_repetition - args.early_repetition) * fade
        if not finished:
            for group in optimizer.param_groups:
                group["lr"] = rate
            repeated = round(rows * share)
            parts = [pool.take(n) for pool, n in ((repetition_pool, repeated), (main_pool, rows - repeated)) if n]
            ids = torch.cat([part[0] for part in parts]).long()
            weights = torch.cat([part[1] for part in parts]).float() / 16
            with precision(device):
                loss = compiled(ids, weights)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
            step, since = step + 1, since + 1
        if since and (since == args.log_every or finished):
            mean = total.item() / since
            elapsed = time.monotonic() - began
            train_csv.writerow(
                [step, round(elapsed, 2), step * rows * args.window, round(mean, 5), rate, round(share, 4), main_pool.passes]
            )
            train_log.flush()
            logged.append((step, elapsed, mean))
            total.zero_()
            since = 0
            if not math.isfinite(mean):
                sys.exit(f"step {step}: the loss is {mean}")
            if step % (args.log_every * 5) == 0:
                print(f"{name} step {step} {elapsed:.0f} s loss {mean:.4f} lr {rate:.2e} passes {main_pool.passes}", flush=True)
        if step and (step % args.evaluate_every == 0 or finished):
            scores = evaluate(model, args.data / "main" / "evaluation", device, 64 if finished else 16)
            classes = held_out(model, held, device)
            elapsed = time.monotonic() - began
            for (kind, length), value in scores.items():
                evaluation_csv.writerow([step, round(elapsed, 2), "exact", kind, length, round(value, 4)])
            for kind, (right, loss_value) in classes.items():
                evaluation_csv.writerow([step, round(elapsed, 2), "token_accuracy", kind, "", round(right, 4)])
                evaluation_csv.writerow([step, round(elapsed, 2), "loss", kind, "", round(loss_value, 4)])
            evaluation_log.flush()
            save(model, c, args, folder, vocabulary)
            table = {}
            for (kind, length), value in scores.items():
                table.setdefault(kind, []).append(f"{length}:{value:.2f}")
            print(f"{name} step {step} exact", "; ".join(f"{k} {' '.join(v)}" for k, v in table.items()), flush=True)
            print("   ", "; ".join(f"{k} {a:.3f} ({l:.3f})" for k, (a, l) in classes.items()), flush=True)
    elapsed = time.monotonic() - began
    sample = held[0][:2, : min(256, args.window)].long()
    difference = check_against_transformers(folder, c, vocabulary, args.window, sample)
    print(f"{name}: {step} steps in {elapsed:.0f} s; largest difference to transformers' logits: {difference}", flush=True)
    card(folder, name, c, args, about, count, step, rows, elapsed, logged, scores, classes, difference)


def card(folder, name, c, args, about, count, steps, rows, elapsed, logged, scores, classes, difference):
    """The model card, from what was measured in this run alone."""
    lengths = sorted({length for _, length in scores})
    lines = ["| task | " + " | ".join(f"{n} tokens" for n in lengths) + " |", "|---|" + "---|" * len(lengths)]
    for kind in sorted({kind for kind, _ in scores}):
        cells = [f"{scores[kind, n]:.2f}" if (kind, n) in scores else "does not fit" for n in lengths]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    step_of = [logged[min(len(logged) - 1, i * (len(logged) - 1) // 8)] for i in range(9)] if logged else []
    curve = "\n".join(f"| {s} | {t:.0f} | {loss:.3f} |" for s, t, loss in dict.fromkeys(step_of))
    mix = ", ".join(f"{kind} {share}" for kind, share in about["mix"])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    same = "transformers was absent" if difference is None else f"largest difference of logits to transformers {difference:.1e}"
    text = f"""# Demo model

A Qwen2 of {count / 1e6:.2f} M parameters that looks things up in its context, made for trying and testing `tokselect` without a
download. It is not a language model to be relied on for anything else.

| | |
|---|---|
| configuration | `{name}`: hidden {c.hidden}, {c.layers} layers, {c.heads} query and {c.kv_heads} KV heads of {c.head_dim}, MLP {c.intermediate}, tied embedding |
| trained window | {args.window} tokens, rope theta {c.rope_theta:g} |
| tokenizer | byte-level BPE, {about['vocab_size']} ids; digits, capitals and the letters of uuids stand alone |
| weights | bfloat16, {same} |
| data | made by `tokselect bench demo-corpus` (seed {about['seed']}): synthetic text alone, nothing downloaded |
| kinds of documents, with shares | {mix} |
| recipe | AdamW, {rows * args.window} tokens a step, peak learning rate {c.learning_rate:g}, {steps} steps, {steps * rows * args.window / 1e6:.0f} M tokens, seed {args.seed} |
| trained on | {device}, {elapsed / 60:.1f} minutes, `scripts/train_demo_model.py` |

## Share of held-out questions whose whole answer is predicted (dense attention, n = up to 64 each)

{chr(10).join(lines)}

Token accuracy on held-out documents: {"; ".join(f"{kind} {right:.3f}" for kind, (right, _) in classes.items())}.

## Loss

Weighted cross entropy over the tokens that can be predicted; the mix of early steps holds more repetitions.

| step | seconds | loss |
|---|---|---|
{curve}

## Made with

The training text is made beside the training, from its seed; the weights also hang on how many steps fit into the minutes.

```sh
cargo build --release
target/release/tokselect bench demo-corpus --export text --documents 30000
python3 scripts/train_demo_tokenizer.py --documents text/documents.jsonl --out models/demo
python3 scripts/train_demo_model.py --binary target/release/tokselect --tokenizer models/demo --data corpus --out out \\
    --config {name} --minutes {args.minutes:g} --window {args.window} --seed {args.seed}
cp out/{name}/* models/demo/
python3 scripts/make_demo_fixture.py
```

`train.csv` has the loss every {args.log_every} steps, `evaluation.csv` all scores every {args.evaluate_every}.

## Use from Python

`Qwen2ForCausalLM.from_pretrained("models/demo")` and `PreTrainedTokenizerFast.from_pretrained("models/demo")`. Not
`AutoTokenizer`: for this `model_type` transformers 5 puts a pre-tokenizer of its own in the place of the one in
`tokenizer.json`, which cuts digits and capitals otherwise than in training.

## Limits

- English in simple patterns only; it knows the categories of `datasets/knowledge` and one-line arithmetic, nothing else.
- A vocabulary of {about['vocab_size']} ids: other languages and code are cut into bytes, and a text takes more tokens than with others.
- Texts beyond {args.window} tokens are outside what dense attention was trained on.
- It has seen the wording of RULER and InfiniteBench questions in training: its scores there say how a selection policy
  changes them, not how good a model of this size is.

## Licence

MIT or Apache-2.0, as the program; no text but what the program makes went into it.
"""
    (folder / "README.md").write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", help="the toolkit, to make the corpus; without it --data must be or become filled")
    parser.add_argument("--tokenizer", type=pathlib.Path, default=pathlib.Path("models/demo"), help="folder of tokenizer.json")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of the corpus")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the trained models")
    parser.add_argument("--config", default="base", help=f"one or more of {', '.join(CONFIGS)}, with commas")
    parser.add_argument("--minutes", type=float, default=6, help="wall clock of each training")
    parser.add_argument("--steps", type=int, default=100_000, help="the most steps of each training")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--batch-tokens", type=int, default=65_536)
    parser.add_argument("--learning-rate", type=float, help="peak, in place of the configuration's")
    parser.add_argument("--warmup", type=int, default=200, help="steps")
    parser.add_argument("--decay-from", type=float, default=0.6, help="progress at which the rate begins to fall to 0")
    parser.add_argument("--early-repetition", type=float, default=0.5, help="share of repetition rows at first")
    parser.add_argument("--late-repetition", type=float, default=0.0, help="share of them later, beyond the mix's own")
    parser.add_argument("--repetition-until", type=float, default=0.2, help="progress at which their share begins to fall")
    parser.add_argument("--documents", type=int, default=1_500_000, help="documents to make")
    parser.add_argument("--repetitions", type=int, default=65_536, help="repetition documents to make")
    parser.add_argument("--evaluate-every", type=int, default=500)
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    names = args.config.split(",")
    unknown = [name for name in names if name not in CONFIGS]
    if unknown:
        parser.error(f"--config {unknown[0]}: choose from {', '.join(CONFIGS)}")
    torch.set_float32_matmul_precision("high")
    args.data.mkdir(parents=True, exist_ok=True)
    processes = start_generators(args) if args.binary else []
    try:
        for name in names:
            train(name, args, args.device, processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()


if __name__ == "__main__":
    main()
