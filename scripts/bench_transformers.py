#!/usr/bin/env python3
"""Times Hugging Face transformers on the CPU, for the comparison with tokselect. Random weights: only speed is measured.

    bench_transformers.py --shape qwen2-0.5b --threads 2 --out transformers.json
    bench_transformers.py --config DIR_OR_FILE/config.json --prefill 4096 --decode-at 1024,4096

Prefill: one forward over all tokens, logits of the last token only, cache filled. Decode: single-token forwards on a cache that
holds N tokens; after each step the cache is cut back to N, outside the timed part, so every repetition does the same work.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

SHAPES = {
    "qwen2-0.5b": dict(
        model_type="qwen2", hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True, rope_theta=1000000.0, rms_norm_eps=1e-6,
        max_position_embeddings=131072, use_sliding_window=False,
    ),
    "tiny": dict(  # to try the script
        model_type="qwen2", hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=1000, tie_word_embeddings=True, rope_theta=1000000.0, rms_norm_eps=1e-6,
        max_position_embeddings=131072, use_sliding_window=False,
    ),
}  # fmt: skip


def build(config: dict, dtype: torch.dtype, attention: str, seed: int):
    config = dict(config)
    kind = config.pop("model_type")
    for key in ("architectures", "torch_dtype", "dtype", "transformers_version"):
        config.pop(key, None)
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **config)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return model.eval()


def summary(times: list[float], tokens: int) -> dict:
    middle = statistics.median(times)
    return dict(
        median_s=middle, min_s=min(times), max_s=max(times), n=len(times), tokens_per_s=tokens / middle, repetitions_s=times
    )


def time_prefill(model, ids, repetitions: int, warmup: int) -> dict:
    times = []
    for i in range(warmup + repetitions):
        start = time.perf_counter()
        out = model(ids, use_cache=True, past_key_values=DynamicCache(config=model.config), logits_to_keep=1)
        took = time.perf_counter() - start
        assert out.logits.shape[1] == 1 and out.past_key_values.get_seq_length() == ids.shape[1]
        if i >= warmup:
            times.append(took)
        print(f"prefill of {ids.shape[1]}: {took:.3f} s{' (warm-up)' if i < warmup else ''}", file=sys.stderr)
        del out
    return dict(n_tokens=ids.shape[1], warmup=warmup, **summary(times, ids.shape[1]))


def time_decode(model, n_stored: int, steps: int, warmup: int) -> dict:
    cache = DynamicCache(config=model.config)
    shape = (1, model.config.num_key_value_heads, n_stored, head_dim(model.config))
    for layer in range(model.config.num_hidden_layers):  # the content does not matter for the time
        cache.update(torch.randn(shape, dtype=model.dtype), torch.randn(shape, dtype=model.dtype), layer)
    times = []
    token = torch.tensor([[1]])
    for i in range(warmup + steps):
        start = time.perf_counter()
        model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        took = time.perf_counter() - start
        cache.crop(-1)
        assert cache.get_seq_length() == n_stored
        if i >= warmup:
            times.append(took)
    result = summary(times, 1)
    print(f"decode at {n_stored}: {result['median_s'] * 1e3:.1f} ms", file=sys.stderr)
    return dict(n_stored_tokens=n_stored, warmup=warmup, **result)


def head_dim(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--shape", choices=SHAPES)
    source.add_argument("--config", type=Path, help="config.json or its directory")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--prefill", type=lambda t: [int(x) for x in t.split(",") if x], default=[4096])
    parser.add_argument("--decode-at", type=lambda t: [int(x) for x in t.split(",") if x], default=[1024, 4096])
    parser.add_argument("--repetitions", type=int, default=3, help="of each prefill, after one warm-up")
    parser.add_argument("--decode-steps", type=int, default=16, help="timed, after four warm-ups")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file; otherwise stdout")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    if args.shape:
        config, name = SHAPES[args.shape], args.shape
    else:
        file = args.config / "config.json" if args.config.is_dir() else args.config
        config, name = json.loads(file.read_text()), args.config.name
    model = build(config, getattr(torch, args.dtype), args.attention, args.seed)
    print(f"{name}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters", file=sys.stderr)
    generator = torch.Generator().manual_seed(args.seed)

    report = dict(
        model=name,
        config=config,
        n_parameters=sum(p.numel() for p in model.parameters()),
        weights="random",
        dtype=args.dtype,
        attention=model.config._attn_implementation,
        threads=torch.get_num_threads(),
        cpu=cpu_name(),
        n_cpus=os.cpu_count(),
        load_average_before=list(os.getloadavg()),
        torch=torch.__version__,
        transformers=transformers.__version__,
        python=platform.python_version(),
        command=sys.argv,
        prefill=[],
        decode=[],
    )
    for n in args.decode_at:
        report["decode"].append(time_decode(model, n, args.decode_steps, warmup=4))
    for n in args.prefill:
        ids = torch.randint(0, model.config.vocab_size, (1, n), generator=generator)
        report["prefill"].append(time_prefill(model, ids, args.repetitions, warmup=1))
    report["load_average_after"] = list(os.getloadavg())

    text = json.dumps(report, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
