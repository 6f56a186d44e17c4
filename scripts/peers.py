#!/usr/bin/env python3
"""Times dense attention of other libraries on a GPU, and a dense whole-model decode step, for the comparison with tokselect.

    peers.py --out peers.json
    peers.py --shapes qwen2-7b --lengths 8k,128k --kinds decode,chunk --out peers.json

Rows of the output: `decode` (one query row), `chunk` (512 and 8192 query rows, the last of the text), `causal` (a whole prompt),
`model-decode` (all layers, one CUDA graph per token). Times are of one layer, except those of `model-decode`. `tokselect bench
attention --gpu --peers FILE` and `tokselect report compare` read the file.

How it measures: random normal bf16 data; several buffer sets that together exceed 0.4 GB, so that no call finds its keys in the
L2 cache; calls recorded as one CUDA graph and replayed between two events; the median of all replays, which are all kept. Up to
128K tokens 64 query rows of each output are compared with f32. What is missing, fails or does not fit into the budget has a
row with a note and without a time.
"""

import argparse
import json
import math
import os
import platform
import signal
import statistics
import sys
import time

SHAPES = {
    "qwen2-7b": dict(layers=28, query_heads=28, kv_heads=4, head_dim=128, hidden=3584, intermediate=18944, vocab=152064, bias=True),
    "llama-3-8b": dict(layers=32, query_heads=32, kv_heads=8, head_dim=128, hidden=4096, intermediate=14336, vocab=128256, bias=False),
    "tiny": dict(layers=2, query_heads=4, kv_heads=2, head_dim=64, hidden=256, intermediate=512, vocab=1000, bias=False),
}  # fmt: skip
# In the order of measuring: what is quoted most comes first, what compiles longest last.
KINDS = ["decode", "chunk", "causal", "model-decode"]
METHODS = ["sdpa-cudnn", "sdpa-flash", "flash-attention-3", "flashinfer", "flex-attention"]
CHUNK_ROWS = [512, 8192]
# Bytes that the buffer sets of one measurement span at least.
ROTATED_BYTES = 450_000_000
CHECKED_TOKENS = 128 << 10
CHECKED_ROWS = 64
EXIT_ENVIRONMENT = 3


class OutOfBudget(Exception):
    pass


class Missing(Exception):
    """A peer that is not installed or does not do this; the message becomes its note."""


def tokens(text: str) -> int:
    factor = {"k": 1 << 10, "m": 1 << 20}.get(text[-1:].lower(), 1)
    digits = text[:-1] if factor > 1 else text
    if not digits.isdigit() or int(digits) == 0:
        raise argparse.ArgumentTypeError(f"{text}: pass tokens, such as 4096, 8k or 1m")
    return int(digits) * factor


def listed(convert, known=None):
    def parse(text: str) -> list:
        values = [convert(part) for part in text.split(",") if part]
        unknown = [value for value in values if known is not None and value not in known]
        if unknown or not values:
            raise argparse.ArgumentTypeError(f"{text}: pass a comma-separated list of {', '.join(known or ['lengths'])}")
        return values

    return parse


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shapes", type=listed(str, list(SHAPES)), default=["qwen2-7b", "llama-3-8b"], help="model shapes")
    parser.add_argument("--lengths", type=listed(tokens), default=[8 << 10, 128 << 10, 1 << 20], help="stored tokens")
    parser.add_argument("--kinds", type=listed(str, KINDS), default=KINDS, help="what to time")
    parser.add_argument("--methods", type=listed(str, METHODS), default=METHODS, help="libraries")
    parser.add_argument("--chunk-rows", type=listed(int), default=CHUNK_ROWS, help="query rows of chunks")
    parser.add_argument("--longest-causal", type=tokens, default=256 << 10, help="whole prompts longer than this are left out")
    parser.add_argument("--budget", type=float, default=55.0, help="seconds after which the rest is left out")
    parser.add_argument("--measure-ms", type=float, default=80.0, help="milliseconds of replays per row")
    parser.add_argument("--no-compile", action="store_true", help="no torch.compile of the model step's pointwise parts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="peers.json", help="file to write")
    return parser.parse_args()


def stop(message: str, help_: str):
    sys.stderr.write(f"error: {message}\nhelp: {help_}\n")
    sys.exit(EXIT_ENVIRONMENT)


# ---- measuring ------------------------------------------------------------------------------------------------------


def replays(run, count: int) -> list[float]:
    """Microseconds of each of `count` calls of `run`."""
    pairs = []
    for _ in range(count):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e3 for start, end in pairs]


def measure(calls: list, milliseconds: float, graph: bool = True) -> tuple[list[float], str]:
    """Microseconds per call, one value per replay of all `calls`, and a note."""
    note = ""
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        calls[0]()
    torch.cuda.current_stream().wait_stream(warm)
    torch.cuda.synchronize()

    def run():
        for call in calls:
            call()

    if graph:
        try:
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded):
                kept = [call() for call in calls]
            run = recorded.replay
        except OutOfBudget:
            raise
        except Exception as error:
            torch.cuda.synchronize()
            note = f"launched one by one, no CUDA graph: {first_line(error)}"
    estimate = replays(run, 1)[0] * 1e-3
    count = int(max(3, min(60, milliseconds / max(estimate, 1e-3))))
    times = [time / len(calls) for time in replays(run, count)]
    if graph and not note:
        del kept, recorded
    return times, note


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


class Pool:
    """Random bf16 numbers; keys and values are pieces of it, so that nothing is drawn twice."""

    def __init__(self):
        self.data = None

    def take(self, elements: int):
        if self.data is None or self.data.numel() < elements:
            self.free()
            data = torch.empty(elements, dtype=torch.bfloat16, device="cuda")
            for start in range(0, elements, 1 << 28):
                data[start : start + (1 << 28)].normal_()
            self.data = data
        return self.data

    def free(self):
        self.data = None
        torch.cuda.empty_cache()


def relative_error(found, expected) -> float:
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / expected.norm()).item()


def checked_rows(rows: int):
    return torch.linspace(0, rows - 1, min(rows, CHECKED_ROWS), device="cuda").round().long().unique()


def attention_f32(q, keys, values, last):
    """f32 attention of queries [R, H, D]; row r sees keys 0..last[r] of [N, Hkv, D]."""
    rows, heads, dim = q.shape
    count, kv_heads, _ = keys.shape
    out = torch.empty(rows, heads, dim, dtype=torch.float32, device=q.device)
    hidden = torch.arange(count, device=q.device)[None] > last[:, None]
    for head in range(heads):
        kv = head // (heads // kv_heads)
        scores = (q[:, head].float() @ keys[:, kv].float().T) * dim**-0.5
        scores.masked_fill_(hidden, -math.inf)
        out[:, head] = torch.softmax(scores, -1) @ values[:, kv].float()
    return out


# ---- libraries ------------------------------------------------------------------------------------------------------
# A library turns (query rows [M, H, D], keys and values of one buffer set as flat memory, case) into a call. `layout` says how it
# reads the flat memory: heads first or tokens first.


class Case:
    def __init__(self, kind: str, shape: dict, tokens: int, rows: int):
        self.kind, self.shape, self.tokens, self.rows = kind, shape, tokens, rows
        self.heads, self.kv_heads, self.dim = shape["query_heads"], shape["kv_heads"], shape["head_dim"]

    def heads_first(self, flat):
        return flat.view(1, self.kv_heads, self.tokens, self.dim)

    def tokens_first(self, flat):
        return flat.view(self.tokens, self.kv_heads, self.dim)

    def last_key(self, row, masked: bool):
        return row + (self.tokens - self.rows) if masked else torch.full_like(row, self.tokens - 1)


class Sdpa:
    """PyTorch's scaled_dot_product_attention with one of its backends."""

    layout = "heads"

    def __init__(self, backend: str):
        self.backend = backend

    def masked(self, case: Case) -> bool:
        # cuDNN's causal mask is aligned at the start, which is wrong for a chunk: there it computes the triangle as well.
        return not (self.backend == "cudnn" and case.kind == "chunk")

    def note(self, case: Case) -> str:
        return "" if self.masked(case) else "no mask: each row sees all keys"

    def call(self, case: Case, q, keys, values):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        q = q.transpose(0, 1).contiguous()[None]
        keys, values = case.heads_first(keys), case.heads_first(values)
        if self.backend == "flash" and case.kind == "chunk":
            # The public function refuses a causal mask for fewer queries than keys; the operation aligns it at the end.
            flash = torch.ops.aten._scaled_dot_product_flash_attention
            return lambda: flash(q, keys, values, 0.0, True, False)[0]
        backend = SDPBackend.CUDNN_ATTENTION if self.backend == "cudnn" else SDPBackend.FLASH_ATTENTION
        causal = case.kind == "causal"

        def call():
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(q, keys, values, is_causal=causal, enable_gqa=True)

        return call

    def rows_of(self, out):
        return out[0].transpose(0, 1)


class Flex:
    layout = "heads"

    def masked(self, case: Case) -> bool:
        return True

    def note(self, case: Case) -> str:
        return ""

    def __init__(self):
        from torch.nn.attention.flex_attention import flex_attention

        self.compiled = torch.compile(flex_attention, dynamic=False)

    def call(self, case: Case, q, keys, values):
        from torch.nn.attention.flex_attention import create_block_mask

        q = q.transpose(0, 1).contiguous()[None]
        keys, values = case.heads_first(keys), case.heads_first(values)
        mask = None
        if case.rows > 1:
            offset = case.tokens - case.rows
            mask = create_block_mask(lambda b, h, i, j: i + offset >= j, None, None, case.rows, case.tokens)
        return lambda: self.compiled(q, keys, values, block_mask=mask, enable_gqa=True)

    def rows_of(self, out):
        return out[0].transpose(0, 1)


class FlashAttention3:
    layout = "tokens"

    def __init__(self):
        try:
            from flash_attn_interface import flash_attn_func

            self.run = lambda q, k, v, causal: flash_attn_func(q[None], k[None], v[None], causal=causal)
        except ImportError:
            try:
                from vllm.vllm_flash_attn import flash_attn_varlen_func
            except ImportError as error:
                raise Missing("not installed: neither flash_attn_interface nor vllm.vllm_flash_attn") from error
            ends = {}

            def end(count: int):
                if count not in ends:
                    ends[count] = torch.tensor([0, count], dtype=torch.int32, device="cuda")
                return ends[count]

            self.run = lambda q, k, v, causal: flash_attn_varlen_func(
                q, k, v, len(q), end(len(q)), len(k), end(len(k)), causal=causal, fa_version=3
            )

    def masked(self, case: Case) -> bool:
        return True

    def note(self, case: Case) -> str:
        return ""

    def call(self, case: Case, q, keys, values):
        keys, values = case.tokens_first(keys), case.tokens_first(values)
        return lambda: self.run(q, keys, values, case.rows > 1)

    def rows_of(self, out):
        out = out[0] if isinstance(out, tuple) else out
        return out[0] if out.dim() == 4 else out


class FlashInfer:
    """Pages of one token, as the paper's own measurement has them."""

    layout = "tokens"

    def __init__(self):
        try:
            import flashinfer
        except ImportError as error:
            raise Missing("not installed: flashinfer") from error
        self.library = flashinfer
        self.last = (None, None)
        self.workspace = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")

    def masked(self, case: Case) -> bool:
        return True

    def note(self, case: Case) -> str:
        return "fa2, pages of one token"

    def call(self, case: Case, q, keys, values):
        wrapper = self.planned(case)
        paged = tuple(case.tokens_first(flat)[:, None] for flat in (keys, values))
        return lambda: wrapper.run(q, paged)

    def planned(self, case: Case):
        """One plan serves all buffer sets of a case."""
        if self.last[0] is case:
            return self.last[1]
        heads = (case.heads, case.kv_heads, case.dim)
        one = torch.tensor([1], dtype=torch.int32)
        ends = [torch.tensor([0, count], dtype=torch.int32) for count in (case.rows, case.tokens)]
        pages = torch.arange(case.tokens, device="cuda", dtype=torch.int32)
        if case.rows == 1:
            wrapper = self.library.BatchDecodeWithPagedKVCacheWrapper(self.workspace, "NHD", use_tensor_cores=True)
            wrapper.plan(ends[1], pages, one, *heads, 1, q_data_type=torch.bfloat16)
        else:
            wrapper = self.library.BatchPrefillWithPagedKVCacheWrapper(self.workspace, "NHD", backend="fa2")
            wrapper.plan(ends[0], ends[1], pages, one, *heads, 1, causal=True, q_data_type=torch.bfloat16)
        self.last = (case, wrapper)
        return wrapper

    def rows_of(self, out):
        return out


LIBRARIES = {
    "sdpa-cudnn": lambda: Sdpa("cudnn"),
    "sdpa-flash": lambda: Sdpa("flash"),
    "flash-attention-3": FlashAttention3,
    "flashinfer": FlashInfer,
    "flex-attention": Flex,
}


def time_attention(case: Case, library, pool: Pool, milliseconds: float) -> dict:
    elements = case.tokens * case.kv_heads * case.dim
    sets = max(2, -(-ROTATED_BYTES // (elements * 4))) if case.kind != "causal" else 1
    data = pool.take(2 * elements * sets)
    pieces = [data[i * elements : (i + 1) * elements] for i in range(2 * sets)]
    q = torch.randn(case.rows, case.heads, case.dim, dtype=torch.bfloat16, device="cuda")
    calls = [library.call(case, q, pieces[2 * i], pieces[2 * i + 1]) for i in range(sets)]
    error, notes = None, [library.note(case)]
    if case.tokens <= CHECKED_TOKENS:
        row = checked_rows(case.rows)
        keys, values = (
            case.heads_first(flat)[0].transpose(0, 1) if library.layout == "heads" else case.tokens_first(flat) for flat in pieces[:2]
        )
        expected = attention_f32(q[row], keys, values, case.last_key(row, library.masked(case)))
        error = relative_error(library.rows_of(calls[0]()).reshape(case.rows, case.heads, case.dim)[row], expected)
    else:
        notes.append(f"compared with f32 up to {CHECKED_TOKENS} tokens only")
    times, note = measure(calls, milliseconds, graph=case.kind != "causal")
    notes.append(note)
    return dict(
        median_us=statistics.median(times), repetitions_us=times, relative_error=error, note="; ".join(n for n in notes if n)
    )


# ---- a whole model --------------------------------------------------------------------------------------------------


class Step:
    """One decode step with random weights: cuBLAS products, cuDNN attention, the rest fused by torch.compile."""

    def __init__(self, shape: dict, fuse: bool):
        F = torch.nn.functional
        self.shape = shape
        heads, kv_heads, dim = shape["query_heads"], shape["kv_heads"], shape["head_dim"]

        def weight(*size):
            return torch.empty(*size, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)

        def one():
            return torch.ones(shape["hidden"], dtype=torch.bfloat16, device="cuda")

        qkv_width = (heads + 2 * kv_heads) * dim
        self.layers = [
            dict(
                attention_norm=one(),
                mlp_norm=one(),
                qkv=weight(qkv_width, shape["hidden"]),
                bias=weight(qkv_width) if shape["bias"] else None,
                output=weight(shape["hidden"], heads * dim),
                gate_up=weight(2 * shape["intermediate"], shape["hidden"]),
                down=weight(shape["hidden"], shape["intermediate"]),
            )
            for _ in range(shape["layers"])
        ]
        self.fused = fuse
        self.norm, self.embedding = one(), weight(shape["vocab"], shape["hidden"])
        self.head = weight(shape["vocab"], shape["hidden"])
        self.id = torch.zeros(1, dtype=torch.long, device="cuda")
        angles = torch.randn(dim // 2, device="cuda")
        self.cos, self.sin = (torch.cat([f(angles)] * 2) for f in (torch.cos, torch.sin))

        def rms_norm(x, w):
            y = x.float()
            return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * w

        def enter(x, delta, norm, w, bias):
            x = x + delta
            return x, F.linear(rms_norm(x, norm), w, bias)

        def leave(attended, x, output, norm, gate_up, down):
            x = x + F.linear(attended, output)
            gate, up = F.linear(rms_norm(x, norm), gate_up).chunk(2, -1)
            return x, F.linear(F.silu(gate) * up, down)

        def rotate(x, cos, sin):
            a, b = x.float().chunk(2, -1)
            return (x.float() * cos + torch.cat([-b, a], -1) * sin).to(x.dtype)

        wrap = (lambda f: torch.compile(f, dynamic=False)) if fuse else (lambda f: f)
        self.enter, self.leave, self.rotate = wrap(enter), wrap(leave), wrap(rotate)

    def __call__(self, keys, values, tokens: int, position):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        heads, kv_heads, dim = (self.shape[key] for key in ("query_heads", "kv_heads", "head_dim"))
        x = torch.nn.functional.embedding(self.id, self.embedding)
        delta = torch.zeros_like(x)
        for layer, w in enumerate(self.layers):
            x, qkv = self.enter(x, delta, w["attention_norm"], w["qkv"], w["bias"])
            q, k, v = qkv.split([heads * dim, kv_heads * dim, kv_heads * dim], -1)
            q = self.rotate(q.view(heads, dim), self.cos, self.sin)
            k = self.rotate(k.view(kv_heads, dim), self.cos, self.sin)
            keys[layer].index_copy_(0, position, k[None])
            values[layer].index_copy_(0, position, v.view(1, kv_heads, dim))
            stored = [t[layer][:tokens].transpose(0, 1)[None] for t in (keys, values)]
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                attended = torch.nn.functional.scaled_dot_product_attention(q.view(1, heads, 1, dim), *stored, enable_gqa=True)
            x, delta = self.leave(attended.reshape(1, -1), x, w["output"], w["mlp_norm"], w["gate_up"], w["down"])
        x, logits = self.enter(x, delta, self.norm, self.head, None)
        self.id.copy_(logits.argmax(-1))
        return logits


def time_model(step: Step, tokens: int, pool: Pool, milliseconds: float) -> dict:
    shape = step.shape
    size = (shape["layers"], tokens + 16, shape["kv_heads"], shape["head_dim"])
    elements = math.prod(size)
    data = pool.take(2 * elements)
    keys, values = (data[i * elements : (i + 1) * elements].view(size) for i in range(2))
    position = torch.tensor([tokens - 1], device="cuda")
    times, note = measure([lambda: step(keys, values, tokens, position)], milliseconds)
    notes = [note, "" if step.fused else "pointwise parts not fused", "random weights: no f32 model beside it"]
    return dict(
        median_us=statistics.median(times), repetitions_us=times, relative_error=None, note="; ".join(n for n in notes if n)
    )


# ---- the run --------------------------------------------------------------------------------------------------------


def jobs(args: argparse.Namespace) -> list[tuple]:
    """(kind, shape, tokens, rows, method), what is quoted most first and what compiles at last."""
    quick = [m for m in args.methods if m != "flex-attention"]
    late = [m for m in args.methods if m == "flex-attention"]

    def attention(methods):
        for shape in args.shapes:
            for kind, rows in [("decode", [1]), ("chunk", args.chunk_rows), ("causal", [0])]:
                if kind not in args.kinds:
                    continue
                for count in rows:
                    for length in args.lengths:
                        for method in methods:
                            if kind == "causal" or count <= length:
                                yield (kind, shape, length, count or length, method)

    whole = [
        ("model-decode", shape, length, 1, "cudnn, cublas, one cuda graph")
        for shape in args.shapes
        for length in args.lengths
        if "model-decode" in args.kinds
    ]
    first = sorted(attention(quick), key=lambda job: (CHUNK_ROWS[-1] <= job[3] and job[0] != "decode"))
    return first + whole + list(attention(late))


class Run:
    def __init__(self, args: argparse.Namespace):
        self.args, self.rows, self.pool = args, [], Pool()
        self.started = time.monotonic()
        self.libraries, self.step = {}, (None, None)

    def left(self) -> float:
        return self.args.budget - (time.monotonic() - self.started)

    def spent(self) -> str:
        return f"the budget of {self.args.budget:g} s was used up"

    def library(self, method: str):
        if method not in self.libraries:
            try:
                self.libraries[method] = LIBRARIES[method]()
            except Missing as error:
                self.libraries[method] = error
        found = self.libraries[method]
        if isinstance(found, Missing):
            raise found
        return found

    def one(self, kind: str, name: str, length: int, rows: int, method: str) -> dict:
        shape, milliseconds = SHAPES[name], self.args.measure_ms
        if kind == "model-decode":
            if self.step[0] != name:
                self.step = (None, None)
                self.pool.free()
                self.step = (name, Step(shape, not self.args.no_compile))
            return time_model(self.step[1], length, self.pool, milliseconds)
        if kind == "causal" and length > self.args.longest_causal:
            raise Missing(f"not run: longer than --longest-causal {self.args.longest_causal}")
        return time_attention(Case(kind, shape, length, rows), self.library(method), self.pool, milliseconds)

    def go(self):
        def expired(*_):
            raise OutOfBudget

        signal.signal(signal.SIGALRM, expired)
        over = False
        for kind, name, length, rows, method in jobs(self.args):
            found = dict(median_us=None, repetitions_us=[], relative_error=None)
            try:
                if over or self.left() <= 0:
                    raise OutOfBudget
                signal.setitimer(signal.ITIMER_REAL, self.left())
                found.update(self.one(kind, name, length, rows, method))
            except OutOfBudget:
                over = True
                found["note"] = f"not run: {self.spent()}"
            except Missing as error:
                found["note"] = str(error)
            except torch.OutOfMemoryError:
                found["note"] = "OOM"
                self.pool.free()
            except Exception as error:
                # A compiler in between may have wrapped the alarm.
                over = over or self.left() <= 0
                found["note"] = f"not run: {self.spent()}" if over else f"failed: {first_line(error)}"
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            row = dict(kind=kind, shape=name, tokens=length, rows=rows, method=method, **found)
            self.rows.append(row)
            shown = f"{row['median_us']:10.1f} us" if row["median_us"] else " " * 13
            error = f"  error {row['relative_error']:.1e}" if row["relative_error"] is not None else ""
            sys.stderr.write(f"{kind:13}{name:12}{length:9}{rows:8}  {method:20}{shown}{error}  {row['note']}\n")
        self.write()

    def write(self):
        gpu = torch.cuda.get_device_properties(0)
        report = dict(
            format="tokselect peers",
            version=1,
            device=dict(
                name=gpu.name,
                compute_capability=f"{gpu.major}.{gpu.minor}",
                memory_bytes=gpu.total_memory,
                multiprocessors=gpu.multi_processor_count,
                driver=driver_version(),
            ),
            versions=versions(),
            command=sys.argv,
            seed=self.args.seed,
            budget_s=self.args.budget,
            duration_s=round(time.monotonic() - self.started, 2),
            rows=self.rows,
        )
        aside = f"{self.args.out}.part"
        with open(aside, "w") as file:
            json.dump(report, file, indent=1)
            file.write("\n")
        os.replace(aside, self.args.out)
        sys.stderr.write(f"{len(self.rows)} rows in {report['duration_s']} s: {self.args.out}\n")


def driver_version():
    try:
        with open("/proc/driver/nvidia/version") as file:
            words = file.readline().split()
        return next((word for word in words if word[:1].isdigit() and "." in word), None)
    except OSError:
        return None


def versions() -> dict:
    found = dict(
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
    )
    for module in ("triton", "flashinfer", "flash_attn_interface", "vllm"):
        loaded = sys.modules.get(module)
        if loaded is not None:
            found[module] = getattr(loaded, "__version__", "unknown")
    return found


def main():
    args = arguments()
    global torch
    try:
        import torch
    except ImportError:
        stop("this script needs PyTorch", "run it with a Python that has torch built for CUDA")
    if not torch.cuda.is_available():
        stop("PyTorch finds no CUDA device", "run it on a machine with an NVIDIA GPU and torch built for CUDA")
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode():
        Run(args).go()


if __name__ == "__main__":
    main()
