#!/usr/bin/env python3
"""Writes small fixtures of the selection and attention functions, computed by reference_token_select.py.

    make_fixtures.py --out FILE.json[.gz]

With them the kernels are checked against PyTorch where neither Python nor the shared models are present.

File: {"format": 1, "made_with": .., "cases": [..], "exact_cases": [..], "top_k": [..], "smoothing": [..], "rope": [..]}

Every number list is row-major; floats are the exact float32 values.
* case: n_heads, n_kv_heads, head_dim, chunk (C), n_stored (N, chunk included), n_init, n_local, top_k, head_map, score_scale,
  score_dtype, chunk_query, smoothing, local_outside_chunk, positions, rope_theta, sliding_window or null;
  q [C, H, D], k and v [N, Hkv, D], un-rotated; and the results
    window            effective local window W; candidates are [n_init, N - W)
    queries           [subchunks, H, D] selection queries, rotated at n_local + i
    scores            [subchunks, H, T]
    votes             {soft, head, logit: {vote [T], smoothed [T'], selected: ascending logical positions}}
    packed            sinks, the soft selection, the window
    attention         [C, H, D] over `packed`, rotated at `positions`
  A chunk of 1 stands for a decode token. In f32, draws where the k-th and (k+1)-th smoothed vote, or a head's scores at its
  own boundary, are nearer than 1e-4 (relative) are not used; with score_dtype bf16, draws where any value is so near a
  rounding boundary that float noise could flip it are not. So the sets must match exactly, and bf16 values bit for bit.
* exact_cases: small whole numbers, so that every product is exact and ties are real ones: scores, logit and head votes only.
* top_k, smoothing: the bare functions on values with ties. rope: x [rows, D] -> rotated, per rope type.
Tolerances: 1e-5 absolute or relative for scores and attention, 1e-6 for soft votes in f32.
"""

import argparse
import gzip
import json
from pathlib import Path

import torch

import reference_token_select as ref
from reference_token_select import Knobs, Rope

SEED = 20411

# H, Hkv, D, C, N, then what differs from the base settings
SHAPES = [
    (4, 2, 8, 5, 60, {}),
    (4, 4, 8, 1, 40, {}),
    (6, 2, 16, 3, 34, dict(head_map="modulo")),
    (8, 2, 8, 4, 45, dict(score_scale="sqrt-d", chunk_query="last")),
    (3, 1, 8, 7, 64, dict(chunk_query="subchunk:3", n_local=5)),
    (4, 2, 16, 2, 33, dict(smoothing=5, positions="original")),
    (4, 2, 8, 6, 60, dict(smoothing=4, local_outside_chunk=False, n_local=3)),
    (2, 1, 32, 3, 30, dict(n_init=0, top_k=1)),
    (4, 2, 8, 4, 48, dict(score_dtype="bf16", head_map="modulo", local_outside_chunk=False)),
    (4, 2, 8, 4, 48, dict(sliding_window=9, positions="original")),
    (4, 2, 8, 3, 40, dict(sliding_window=12)),
]


def boundary_gap(values: torch.Tensor, k: int) -> float:
    """Relative distance between the k-th and the next value."""
    ordered = values.sort(descending=True).values
    a, b = float(ordered[k - 1]), float(ordered[k])
    return (a - b) / max(abs(a), abs(b), 1e-30)


def plateau_safe_gap(raw, smoothed, k, kernel) -> float:
    """As boundary_gap; equal values of one plateau are a real tie, so the next different value counts."""
    if kernel <= 1:
        return boundary_gap(smoothed, k)
    distinct = raw.unique()  # all votes well apart: then every plateau is an exact tie and no other ties exist
    return float(((distinct[1:] - distinct[:-1]) / distinct[1:].abs()).min())


def steady(x: torch.Tensor, cancels: bool) -> bool:
    """No element rounds to another bf16 number if moved by more than float32 noise; sums that cancel have some of their
    largest terms' noise too."""
    off = 1e-5 * x.abs()
    if cancels:
        off += 5e-7 * x.abs().amax(-1, keepdim=True)
    return torch.equal(ref.bf16(x - off), ref.bf16(x + off))


def steady_in_bf16(queries, keys, kn: Knobs) -> bool:
    """All roundings of the bf16 path, step by step. Sums of a few bf16 logits are exact in f32, so those need no check."""
    votes = torch.zeros(len(keys))
    for query in queries:
        exact = ref.scores(ref.bf16(query), ref.bf16(keys), Knobs(head_map=kn.head_map, score_scale=kn.score_scale))
        p = torch.softmax(ref.bf16(exact), dim=-1)
        votes += ref.bf16(p).sum(0)
        if not (steady(query, True) and steady(exact, True) and steady(p, False)):
            return False
    return steady(votes, False)


def draw(shape, gen):
    """One case, or None where a set would hang on rounding."""
    n_heads, n_kv, d, c, n, extra = shape
    extra = dict(extra)
    sliding = extra.pop("sliding_window", None)
    kn = Knobs(**(dict(policy="token-select", n_init=3, n_local=6, top_k=8) | extra))
    # Hundredths keep the file short; a scale of 1.5 makes the softmax neither flat nor one-hot.
    q, k, v = (
        (torch.randn(rows, heads, d, generator=gen) * 1.5).mul(100).round().div(100)
        for rows, heads in ((c, n_heads), (n, n_kv), (n, n_kv))
    )
    rope = Rope(d, {"rope_theta": 10000.0})
    w = kn.n_local + c if kn.local_outside_chunk else max(kn.n_local, c)
    candidates = k[kn.n_init : n - w]
    assert len(candidates) > kn.top_k, shape
    queries = ref.selection_queries(q, rope, kn)
    all_scores = [ref.scores(x, candidates, kn) for x in queries]
    in_bf16 = kn.score_dtype == "bf16"
    if in_bf16 and not steady_in_bf16(queries, candidates, kn):
        return None
    if not in_bf16 and any(boundary_gap(row, kn.top_k) < 1e-4 for s in all_scores for row in s):
        return None
    votes = {}
    for kind in ("soft", "head", "logit"):
        kn.vote = kind
        a = ref.vote(all_scores, kn)
        smoothed = ref.smooth(a, kn.smoothing)
        if kind != "head" and not in_bf16 and plateau_safe_gap(a, smoothed, kn.top_k, kn.smoothing) < 1e-4:
            return None
        chosen = [kn.n_init + t for t in ref.top_k(smoothed, kn.top_k)]
        votes[kind] = dict(vote=a.tolist(), smoothed=smoothed.tolist(), selected=chosen)
    packed = [*range(kn.n_init), *votes["soft"]["selected"], *range(n - w, n)]
    at = torch.tensor(packed)
    if kn.positions == "packed":
        k_positions, q_positions = torch.arange(len(packed)), len(packed) - c + torch.arange(c)
    else:
        k_positions, q_positions = at, n - c + torch.arange(c)
    out = ref.attend(q, k[at], v[at], q_positions, k_positions, rope, sliding)
    return dict(
        n_heads=n_heads, n_kv_heads=n_kv, head_dim=d, chunk=c, n_stored=n,
        **{f: getattr(kn, f) for f in ("n_init", "n_local", "top_k", "head_map", "score_scale", "score_dtype", "chunk_query",
                                       "smoothing", "local_outside_chunk", "positions")},
        rope_theta=10000.0, sliding_window=sliding,
        q=flat(q), k=flat(k), v=flat(v), window=w, queries=flat(torch.stack(queries)), scores=flat(torch.stack(all_scores)),
        votes=votes, packed=packed, attention=flat(out),
    )  # fmt: skip


def exact_case(gen, n_heads, n_kv, d, t, k, head_map):
    """Whole numbers and repeated keys: many exact ties, to be resolved by the lower position."""
    kn = Knobs(top_k=k, head_map=head_map)
    query = torch.randint(-2, 3, (n_heads, d), generator=gen).float()
    keys = torch.randint(-1, 2, (t, n_kv, d), generator=gen).float()
    keys[t // 2 :] = keys[: t - t // 2].clone()
    s = ref.scores(query, keys, kn)
    case = dict(n_heads=n_heads, n_kv_heads=n_kv, head_dim=d, n_candidates=t, top_k=k, head_map=head_map)
    case |= dict(query=flat(query), keys=flat(keys), scores=flat(s), votes={})
    for kn.vote in ("head", "logit"):
        a = ref.vote([s], kn)
        case["votes"][kn.vote] = dict(vote=a.tolist(), selected=ref.top_k(a, k))
    return case


def flat(x: torch.Tensor) -> list[float]:
    return x.flatten().tolist()


def shorten(x):
    """Shortest decimals that give back the same float32 (tolist() has widened them to float64)."""
    if isinstance(x, dict):
        return {key: shorten(value) for key, value in x.items()}
    if isinstance(x, list):
        return [shorten(value) for value in x]
    if isinstance(x, float):
        for digits in range(1, 10):
            short = float(f"{x:.{digits}g}")
            if torch.tensor(short, dtype=torch.float32).item() == x:
                return int(short) if short == int(short) and abs(short) < 1e6 else short
    return x


def fixtures() -> dict:
    gen = torch.Generator().manual_seed(SEED)
    cases = []
    for shape in SHAPES:
        case = None
        while case is None:
            case = draw(shape, gen)
        cases.append(case)
    exact = [
        exact_case(gen, 4, 2, 8, 40, 7, "grouped"),
        exact_case(gen, 6, 3, 8, 31, 10, "modulo"),
        exact_case(gen, 1, 1, 4, 9, 9, "grouped"),
    ]
    tops = []
    for n, k in ((1, 1), (7, 3), (33, 5), (64, 64), (100, 31)):
        values = torch.randint(-4, 5, (n,), generator=gen).float() / 4
        tops.append(dict(values=flat(values), k=k, selected=ref.top_k(values, k)))
    tops.append(dict(values=[0.5] * 10, k=4, selected=ref.top_k(torch.full((10,), 0.5), 4)))
    smooths = []
    for n, kernel in ((12, 1), (12, 2), (12, 3), (13, 6), (20, 9), (6, 128), (5, 32)):
        values = torch.randint(0, 9, (n,), generator=gen).float() / 8
        smooths.append(dict(values=flat(values), kernel=kernel, smoothed=flat(ref.smooth(values, kernel))))
    ropes = []
    scaled = {"factor": 8.0, "original_max_position_embeddings": 64}
    for params in (
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0} | scaled,
        {"rope_type": "yarn"} | scaled,
        {"rope_type": "yarn", "beta_fast": 16.0, "mscale": 1.5, "mscale_all_dim": 0.7} | scaled,
    ):
        config = {"rope_theta": 10000.0, "rope_scaling": params, "max_position_embeddings": 512}
        x = torch.randn(5, 16, generator=gen).mul(100).round().div(100)
        positions = torch.tensor([0, 1, 17, 200, 511])
        rotated = Rope(16, config).rotate(x[:, None, :], positions)
        ropes.append(dict(config=config, head_dim=16, positions=positions.tolist(), x=flat(x), rotated=flat(rotated)))
    made = dict(script="scripts/make_fixtures.py", seed=SEED, torch=torch.__version__)
    return shorten(dict(format=1, made_with=made, cases=cases, exact_cases=exact, top_k=tops, smoothing=smooths, rope=ropes))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="FILE.json or FILE.json.gz")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        text = json.dumps(fixtures(), separators=(",", ":"))
    data = text.encode()
    if args.out.suffix == ".gz":
        data = gzip.compress(data, mtime=0)  # the same bytes every time
    args.out.write_bytes(data)
    print(f"{args.out}: {len(data)} bytes ({len(text)} as JSON)")


if __name__ == "__main__":
    main()
