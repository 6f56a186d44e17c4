#!/usr/bin/env python3
"""The policies TokenSelect is compared with, in plain PyTorch: the independent truth the Rust engine is compared with.

ntk, yarn, self-extend, inf-llm, quest, snap-kv and h2o as their papers (and, where those leave room, their released code)
have them, with the readings that the Rust files state. Float32 on the CPU, as literal as possible. Unlike the engine,
nothing here rotates keys: a query is rotated by its distance to each key, pair by pair, so that a position scheme is a
matrix of distances.

    reference_baselines.py --binary target/release/tokselect [--shared-data DIR] [--models NAMES] [--cases NAMES]

runs every case on the reference models and compares logits (1e-3), generated ids and every selection. Shapes: C chunk,
N stored tokens, P listed tokens, H query heads, Hkv KV heads, D head dim.
"""

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import reference_token_select as ref
import torch

LOGITS = 1e-3  # absolute, on f32 logits: stated by the models' README
MARGIN = 1e-3  # two ids closer than this are equally right
TIE = 1e-5  # votes closer than this, relative to the largest, may be ordered by rounding


@dataclass
class Knobs:
    """Field names are the flag names."""

    policy: str
    prefill_chunk: int = 64
    n_init: int = 8
    n_local: int = 24
    top_k: int = 48
    positions: str = "original"
    rope_factor: float | None = None
    self_extend_group: int = 8
    self_extend_window: int = 1024
    inf_llm_block_size: int = 128
    inf_llm_representatives: int = 4
    quest_page_size: int = 16
    quest_dense_layers: int = 2
    snap_kv_window: int = 32
    snap_kv_kernel: int = 5
    snap_kv_pooling: str = "mean"
    h2o_prefill: str = "dense"


# ---------------------------------------------------------------------------------------------------------- attention


def weights_of(q, keys, distance, visible, rope, window=None):
    """q [C, H, D]; keys [Hkv, P, D] un-rotated; distance [C, Hkv or 1, P]; visible alike -> softmax weights [C, H, P].

    Rotating q and k at their positions and multiplying them is rotating q by the distance alone."""
    c, n_heads, d = q.shape
    group = n_heads // keys.shape[0]
    out = torch.zeros(c, n_heads, keys.shape[1])
    for h in range(n_heads):
        kv = h // group
        dist = distance[:, min(kv, distance.shape[1] - 1)]
        seen = visible[:, min(kv, visible.shape[1] - 1)]
        if window is not None:
            seen = seen & (dist < window)
        angle = dist[..., None].float() * rope.inv_freq  # [C, P, D/2]
        a, b = q[:, h, None, : d // 2], q[:, h, None, d // 2 :]
        low, high = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
        k1, k2 = keys[kv, :, : d // 2], keys[kv, :, d // 2 :]
        logits = (low * k1 + high * k2).sum(-1) * rope.factor**2 / math.sqrt(d)
        out[:, h] = torch.softmax(logits.masked_fill(~seen, -math.inf), dim=-1)
    return out


def apply(weights, values):
    """weights [C, H, P], values [Hkv, P, D] -> [C, H, D]."""
    group = weights.shape[1] // values.shape[0]
    return torch.stack([weights[:, h] @ values[h // group] for h in range(weights.shape[1])], dim=1)


def stretched_rope(model, kn: Knobs, max_context: int):
    """The model's rotary tables, or those of ntk and yarn."""
    if kn.policy not in ("ntk", "yarn"):
        return model.rope
    cfg, d = dict(model.config), model.head_dim
    trained = cfg["max_position_embeddings"]
    factor = kn.rope_factor or max(1.0, max_context / trained)
    params = {**(cfg.pop("rope_scaling", None) or {}), **(cfg.pop("rope_parameters", None) or {})}
    theta = float(params.get("rope_theta", cfg.get("rope_theta", 10000.0)))
    if factor <= 1:
        return model.rope
    if kn.policy == "ntk":
        return ref.Rope(d, cfg | {"rope_theta": theta * factor ** (d / (d - 2))})
    yarn = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": trained}
    return ref.Rope(d, cfg | {"rope_theta": theta, "rope_scaling": yarn})


# ------------------------------------------------------------------------------------------------------------ policies


class Layer:
    def __init__(self, n_kv, n_heads, d):
        self.k, self.v = torch.empty(n_kv, 0, d), torch.empty(n_kv, 0, d)
        self.blocks = []  # inf-llm: [H, D] per block
        self.local_score = torch.empty(n_heads, 0)  # inf-llm: from the first token after the blocks on
        self.queries = torch.empty(0, n_heads, d)  # snap-kv: the last prompt queries
        self.kept = None  # snap-kv, h2o: one list per KV head
        self.chosen = None
        self.prompt = 0
        self.score = {}  # h2o: (KV head, token) -> attention


class Session:
    def __init__(self, model, kn: Knobs, max_context: int):
        self.model, self.kn = model, kn
        self.rope = stretched_rope(model, kn, max_context)
        self.layers = [Layer(model.n_kv, model.n_heads, model.head_dim) for _ in range(model.n_layers)]
        self.prefill_chunks, self.decode_steps = [], []
        self.smallest_gap = math.inf  # between the last chosen and the first not chosen, relative

    def step(self, ids, decoding):
        selected = []

        def attention(index, q, k, v):
            layer = self.layers[index]
            layer.k = torch.cat([layer.k, k.transpose(0, 1)], dim=1)
            layer.v = torch.cat([layer.v, v.transpose(0, 1)], dim=1)
            method = getattr(self, self.kn.policy.replace("-", "_"))
            out, chosen = method(index, layer, q, decoding)
            selected.append(chosen)
            return out

        logits = self.model.forward(ids, attention)
        record = {"n_stored": self.layers[0].k.shape[1], "selected": selected}
        (self.decode_steps if decoding else self.prefill_chunks).append(record)
        return logits

    def best(self, values, k):
        """The k largest, ascending; equal values: the lower position."""
        if k < len(values):
            top = torch.sort(values, descending=True).values
            gap = float(top[k - 1] - top[k]) / max(float(top[0].abs()), 1e-30)
            self.smallest_gap = min(self.smallest_gap, gap)
        return ref.top_k(values, k)

    # -- every token

    def over(self, index, layer, q, lists, distance=None):
        """Attention over lists [Hkv or 1][P] whose last C entries are the chunk; -> (out, weights)."""
        c, p, n = q.shape[0], len(lists[0]), layer.k.shape[1]
        at = torch.tensor([lists[min(kv, len(lists) - 1)] for kv in range(self.model.n_kv)])  # [Hkv, P]
        place = torch.arange(n - c, n)[:, None, None]
        visible = at[None] <= place
        if distance is None:
            if self.kn.positions == "packed" and p < n:
                distance = (p - c + torch.arange(c))[:, None, None] - torch.arange(p)[None, None, :]
            else:
                distance = place - at[None]
        else:
            distance = distance(place, at[None])
        gather = at[..., None].expand(-1, -1, layer.k.shape[2])
        w = weights_of(q, layer.k.gather(1, gather), distance, visible, self.rope, self.model.windows[index])
        return apply(w, layer.v.gather(1, gather)), w

    def everything(self, index, layer, q, distance=None):
        return self.over(index, layer, q, [list(range(layer.k.shape[1]))], distance)[0]

    def dense(self, index, layer, q, decoding):
        return self.everything(index, layer, q), None

    ntk = yarn = dense

    def self_extend(self, index, layer, q, decoding):
        g, w = self.kn.self_extend_group, self.kn.self_extend_window

        def distance(query, key):
            return torch.where(query - key < w, query - key, query // g - key // g + w - w // g)

        return self.everything(index, layer, q, distance), None

    # -- inf-llm

    def inf_llm(self, index, layer, q, decoding):
        kn, n, c = self.kn, layer.k.shape[1], q.shape[0]
        size, wanted = kn.inf_llm_block_size, kn.top_k // kn.inf_llm_block_size
        after = kn.n_init + size * len(layer.blocks)  # first token in no block
        chosen = None
        listed = list(range(n))
        if len(layer.blocks) > wanted:
            query = self.rope.rotate(q, torch.full((c,), kn.n_local)).mean(dim=0)  # [H, D]
            votes = torch.stack([(query * block).sum() for block in layer.blocks])
            chosen = [kn.n_init + b * size + t for b in self.best(votes, wanted) for t in range(size)]
            listed = list(range(kn.n_init)) + chosen + list(range(after, n))

        def distance(at, key):
            return torch.where(at - key < kn.n_local, at - key, torch.tensor(kn.n_local))

        out, w = self.over(index, layer, q, [listed], distance)
        # Attention that tokens get while they are near, after the softmax over near and far.
        at = torch.tensor(listed)
        near = (torch.arange(n - c, n)[:, None] - at[None]) < kn.n_local
        got = (w * near[:, None]).sum(dim=0)  # [H, P]
        grown = torch.zeros(self.model.n_heads, max(n - after, 0))
        grown[:, : layer.local_score.shape[1]] = layer.local_score
        for j, t in enumerate(listed):
            if t >= after:
                grown[:, t - after] += got[:, j]
        while n - after - size >= kn.n_local:
            rows = []
            for h in range(self.model.n_heads):
                kv = h // (self.model.n_heads // self.model.n_kv)
                best = self.best(grown[h, :size], kn.inf_llm_representatives)
                rows.append(layer.k[kv, [after + t for t in best]].mean(dim=0))
            layer.blocks.append(torch.stack(rows))
            grown, after = grown[:, size:], after + size
        layer.local_score = grown
        return out, chosen

    # -- quest

    def quest(self, index, layer, q, decoding):
        kn, n, size = self.kn, layer.k.shape[1], self.kn.quest_page_size
        first = -(-kn.n_init // size)
        local = max(n - kn.n_local, 0) // size
        wanted = kn.top_k // size
        if not decoding or index < kn.quest_dense_layers or local <= first + wanted:
            return self.everything(index, layer, q), None
        rotated_q = self.rope.rotate(q[-1:], torch.tensor([n - 1]))[0]
        lists, chosen = [], []
        group = self.model.n_heads // self.model.n_kv
        for kv in range(self.model.n_kv):
            keys = self.rope.rotate(layer.k[kv][:, None], torch.arange(n))[:, 0]
            votes = []
            for page in range(first, local):
                part = keys[page * size : (page + 1) * size]
                high, low = part.amax(0), part.amin(0)
                bounds = [torch.maximum(x * high, x * low).sum() for x in rotated_q[kv * group : (kv + 1) * group]]
                votes.append(max(bounds))
            pages = [first + p for p in self.best(torch.stack(votes), wanted)]
            tokens = [p * size + t for p in pages for t in range(size)]
            lists.append(list(range(first * size)) + tokens + list(range(local * size, n)))
            chosen += tokens
        return self.over(index, layer, q, lists)[0], chosen

    # -- snap-kv

    def snap_kv(self, index, layer, q, decoding):
        kn, n, c = self.kn, layer.k.shape[1], q.shape[0]
        if not decoding:
            layer.queries = torch.cat([layer.queries, q])[-kn.snap_kv_window :]
            layer.prompt = n
            return self.everything(index, layer, q), None
        if layer.kept is None:
            layer.kept = self.compress(index, layer)
        if not layer.kept:
            return self.everything(index, layer, q), None
        lists = [kept + list(range(layer.prompt, n)) for kept in layer.kept]
        return self.over(index, layer, q, lists)[0], layer.chosen

    def compress(self, index, layer):
        kn, prompt, seen = self.kn, layer.prompt, layer.queries.shape[0]
        if prompt <= kn.n_init + kn.top_k + max(kn.n_local, kn.snap_kv_window):
            return []
        place = torch.arange(prompt - seen, prompt)[:, None, None]
        key = torch.arange(prompt)[None, None, :]
        w = weights_of(
            layer.queries, layer.k[:, :prompt], place - key, key <= place, self.rope, self.model.windows[index]
        )
        group, end = self.model.n_heads // self.model.n_kv, prompt - max(kn.n_local, seen)
        kept, layer.chosen = [], []
        for kv in range(self.model.n_kv):
            votes = w[:, kv * group : (kv + 1) * group].sum(dim=(0, 1))[: prompt - seen]
            pool = torch.nn.functional.avg_pool1d if kn.snap_kv_pooling == "mean" else torch.nn.functional.max_pool1d
            votes = pool(votes[None, None], kn.snap_kv_kernel, stride=1, padding=kn.snap_kv_kernel // 2)[0, 0]
            best = [kn.n_init + t for t in self.best(votes[kn.n_init : end], kn.top_k)]
            kept.append(list(range(kn.n_init)) + best + list(range(end, prompt)))
            layer.chosen += best
        return kept

    # -- h2o

    def h2o(self, index, layer, q, decoding):
        kn, n, c = self.kn, layer.k.shape[1], q.shape[0]
        kept = layer.kept or [[] for _ in range(self.model.n_kv)]
        if (decoding or kn.h2o_prefill == "evict") and len(kept[0]) > kn.n_init + kn.top_k + kn.n_local:
            layer.chosen = []
            for kv, tokens in enumerate(kept):
                middle = tokens[kn.n_init : len(tokens) - kn.n_local]
                best = self.best(torch.tensor([layer.score[kv, t] for t in middle]), kn.top_k)
                heavy = [middle[j] for j in best]
                kept[kv] = tokens[: kn.n_init] + heavy + tokens[len(tokens) - kn.n_local :]
                layer.chosen += heavy
        kept = [tokens + list(range(n - c, n)) for tokens in kept]
        out, w = self.over(index, layer, q, kept)
        group = self.model.n_heads // self.model.n_kv
        for kv, tokens in enumerate(kept):
            for t, got in zip(tokens, w[:, kv * group : (kv + 1) * group].sum(dim=(0, 1)).tolist()):
                layer.score[kv, t] = layer.score.get((kv, t), 0.0) + got
        layer.kept = kept
        return out, layer.chosen


@torch.inference_mode()
def run(model, prompt, n_new, kn: Knobs, forced=None) -> tuple[dict, float]:
    """Prefill and greedy decoding as the engine dumps them; `forced` ids are followed instead of the own ones."""
    session = Session(model, kn, len(prompt) + n_new)
    head = prompt[:-1] if kn.policy == "inf-llm" and len(prompt) > 1 else prompt
    chunks = [head[i : i + kn.prefill_chunk] for i in range(0, len(head), kn.prefill_chunk)]
    chunks += [prompt[-1:]] if len(head) < len(prompt) else []
    for chunk in chunks:
        logits = session.step(chunk, decoding=False)
    last, rows, generated = logits[-1], [logits[-1]], []
    for i in range(n_new):
        if i > 0:
            rows.append(session.step([generated[-1]], decoding=True)[-1])
        generated.append(forced[i] if forced else int(rows[-1].argmax()))
    out = {"last_logits": last.tolist(), "generated_ids": generated, "rows": rows}
    return out | {"decode_steps": session.decode_steps, "prefill_chunks": session.prefill_chunks}, session.smallest_gap


# ---------------------------------------------------------------------------------------------------------- comparison


def cases():
    """label, flags that differ from Knobs, models left out because they stretch their rotary embedding themselves."""
    yield "dense", dict(policy="dense")
    for policy in ("ntk", "yarn"):
        yield f"{policy} auto", dict(policy=policy)
        yield f"{policy} factor 3.5", dict(policy=policy, rope_factor=3.5)
    for group, window, chunk in ((4, 30, 64), (3, 7, 50), (8, 64, 1000), (5, 1024, 64)):
        yield f"self-extend {group} {window}", dict(
            policy="self-extend", self_extend_group=group, self_extend_window=window, prefill_chunk=chunk
        )
    small = dict(inf_llm_block_size=16, inf_llm_representatives=3)
    yield "inf-llm", dict(policy="inf-llm", **small)
    yield "inf-llm chunk 17", dict(policy="inf-llm", prefill_chunk=17, n_init=5, n_local=20, **small)
    yield "inf-llm whole", dict(policy="inf-llm", n_local=2000, top_k=128)
    yield "inf-llm all blocks", dict(policy="inf-llm", top_k=1600, **small)
    yield "quest", dict(policy="quest", quest_dense_layers=0)
    yield "quest as published", dict(policy="quest", n_init=0, n_local=1, quest_page_size=16)
    yield "quest packed", dict(policy="quest", quest_dense_layers=1, quest_page_size=5, top_k=50, positions="packed")
    yield "quest whole", dict(policy="quest", quest_dense_layers=0, top_k=2000)
    yield "snap-kv", dict(policy="snap-kv")
    yield "snap-kv as published", dict(policy="snap-kv", n_init=0, n_local=32, snap_kv_pooling="max", snap_kv_kernel=7)
    yield "snap-kv packed chunk 10", dict(policy="snap-kv", prefill_chunk=10, positions="packed", snap_kv_kernel=1)
    yield "snap-kv whole", dict(policy="snap-kv", top_k=2000)
    yield "h2o", dict(policy="h2o")
    yield "h2o evict", dict(policy="h2o", h2o_prefill="evict")
    yield "h2o evict packed chunk 20", dict(policy="h2o", h2o_prefill="evict", positions="packed", prefill_chunk=20)
    yield "h2o whole", dict(policy="h2o", top_k=2000)


READ = {
    "dense": [],
    "ntk": ["rope_factor"],
    "yarn": ["rope_factor"],
    "self-extend": ["self_extend_group", "self_extend_window"],
    "inf-llm": ["n_init", "n_local", "top_k", "inf_llm_block_size", "inf_llm_representatives"],
    "quest": ["n_init", "n_local", "top_k", "positions", "quest_page_size", "quest_dense_layers"],
    "snap-kv": ["n_init", "n_local", "top_k", "positions", "snap_kv_window", "snap_kv_kernel", "snap_kv_pooling"],
    "h2o": ["n_init", "n_local", "top_k", "positions", "h2o_prefill"],
}


def flags(kn: Knobs):
    out = ["--policy", kn.policy, "--prefill-chunk", str(kn.prefill_chunk)]
    for name in READ[kn.policy]:
        if getattr(kn, name) is not None:
            out += ["--" + name.replace("_", "-"), str(getattr(kn, name))]
    return out


def compare(model, directory, binary, kn: Knobs, prompt, n_new, scratch):
    """-> (problems, largest difference of logits, selections compared, whether a tie explains the problems)."""
    ids, dump = scratch / "ids.txt", scratch / "dump.json"
    ids.write_text(",".join(map(str, prompt)))
    dump.unlink(missing_ok=True)
    command = [binary, "infer", "-m", str(directory), "--token-ids", str(ids), "--max-new-tokens", str(n_new)]
    command += ["--ignore-eos", "--dump-logits", str(dump), *flags(kn)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        return [f"exit {done.returncode}: {done.stderr[-500:]}"], math.inf, 0, False
    theirs = json.loads(dump.read_text())
    ours, gap = run(model, prompt, n_new, kn, theirs["generated_ids"])
    problems = []
    diff = max(abs(a - b) for a, b in zip(theirs["last_logits"], ours["last_logits"], strict=True))
    if not diff <= LOGITS:
        problems.append(f"logits differ by {diff:.2e}")
    for i, (row, theirs_id) in enumerate(zip(ours["rows"], theirs["generated_ids"], strict=True)):
        if float(row.max() - row[theirs_id]) > MARGIN:
            problems.append(f"id {theirs_id} of step {i} is {float(row.max() - row[theirs_id]):.2e} below the best")
    compared = 0
    for key in ("prefill_chunks", "decode_steps"):
        for i, (o, t) in enumerate(zip(ours[key], theirs[key], strict=True)):
            for layer, (a, b) in enumerate(zip(o["selected"], t["selected"], strict=True)):
                compared += bool(a)
                if (a or []) != (b or []):
                    problems.append(f"{key} {i} layer {layer}: ours {a and a[:9]}, theirs {b and b[:9]}")
    return problems, diff, compared, gap < TIE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--shared-data", type=Path, default=ref.REPO.parent / "shared" / "data")
    parser.add_argument("--models", help="comma-separated parts of names")
    parser.add_argument("--cases", help="comma-separated parts of labels")
    parser.add_argument("--seed", type=int, help="prompts; fresh by default")
    parser.add_argument("--tokens", type=int, default=330, help="prompt length")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seed = args.seed if args.seed is not None else random.randrange(2**31)
    binary = str(Path(args.binary).resolve())
    bad = rows = 0
    print(f"seed {seed}\n{'model':<20} {'case':<28} {'verdict':<9} {'selections':>10} {'logits':>8}")
    with tempfile.TemporaryDirectory() as scratch:
        for directory in sorted(p.parent for p in (args.shared_data / "reference_models").glob("*/config.json")):
            if args.models and not any(m in directory.name for m in args.models.split(",")):
                continue
            model, rng = ref.Model(directory), random.Random(f"{seed} {directory.name}")
            cfg = model.config
            params = {**(cfg.get("rope_scaling") or {}), **(cfg.get("rope_parameters") or {})}
            scaled = params.get("rope_type", params.get("type", "default")) != "default"
            prompt = [rng.randrange(cfg["vocab_size"]) for _ in range(args.tokens)]
            for label, changes in cases():
                kn = Knobs(**changes)
                if (args.cases and not any(c in label for c in args.cases.split(","))) or (
                    scaled and kn.policy in ("ntk", "yarn")
                ):
                    continue
                problems, diff, compared, tie = compare(model, directory, binary, kn, prompt, 16, Path(scratch))
                verdict = "equal" if not problems else "tie" if tie else "MISMATCH"
                rows, bad = rows + 1, bad + (verdict == "MISMATCH")
                print(f"{directory.name:<20} {label:<28} {verdict:<9} {compared:>10} {diff:>8.1e}", flush=True)
                for problem in problems[:3]:
                    print("   ", problem)
    print(f"{rows} cases, {bad} with mismatches")
    return 1 if bad or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
