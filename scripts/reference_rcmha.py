#!/usr/bin/env python3
"""The model of `tokselect rcmha-train` in PyTorch, transcribed from the method's description: fixtures and speed.

    reference_rcmha.py --fixtures tests/fixtures/rcmha.json
    reference_rcmha.py --speed --attention rcmha --layers 4 --d-model 128 --heads 8 --d-ffn 256 \\
        --segment 128 --memory 128 --batch 16 --vocab 65 --steps 10 --threads 2 [--device cuda --dtype f32,bf16]

Fixtures hold sizes, seeds, ids, losses and gradients; parameters follow from a formula that both sides compute, so the
file stays small. The relative shift is written by its index formula (a gather), convolutions are torch's, attention is
plain softmax over a mask: nothing here shares a trick with the Rust kernels.
"""

import argparse
import json
import math
import time

import torch
import torch.nn.functional as F

KINDS = {
    # positions, convolution, query/key bias, carry
    "mha": ("sinusoid", False, True, False),
    "mdha": ("sinusoid", True, True, False),
    "rmha": ("relative", False, False, False),
    "rcmha": ("relative", True, False, False),
    "rope-conv": ("rotary", True, True, False),
    "rcmha-carry": ("relative", True, False, True),
}


class Model:
    """Functional: `p` maps the names of the Rust program to tensors; affine weights are [in, out]."""

    def __init__(self, kind, layers, d, heads, d_ffn, vocab, segment, memory, kernel=3, dtype=torch.float64):
        self.kind, self.layers, self.d, self.heads, self.d_ffn = kind, layers, d, heads, d_ffn
        self.vocab, self.segment, self.memory, self.kernel, self.dtype = vocab, segment, memory, kernel, dtype
        self.positions, self.conv, self.qk_bias, self.carry = KINDS[kind]
        self.p, self.fast = {}, False
        self._shapes()

    def _shapes(self):
        d, dk = self.d, self.d // self.heads
        s = {"embedding.weight": (self.vocab, d)}
        for l in range(self.layers):
            n = f"layers.{l}"
            s[f"{n}.norm_attention.weight"] = s[f"{n}.norm_attention.bias"] = (d,)
            for part in ("query", "key", "value"):
                s[f"{n}.attention.{part}.weight"] = (d, d)
                if self.qk_bias or part == "value":
                    s[f"{n}.attention.{part}.bias"] = (d,)
                if self.conv:
                    s[f"{n}.attention.{part}.convolution.weight"] = (dk, 1, self.kernel)
                    s[f"{n}.attention.{part}.convolution.bias"] = (dk,)
            s[f"{n}.attention.output.weight"] = (d, d)
            s[f"{n}.attention.output.bias"] = (d,)
            if self.positions == "relative":
                rows = self.memory + self.segment
                s[f"{n}.attention.relative.table"] = (rows, self.heads, dk)
                s[f"{n}.attention.relative.bias"] = (rows, self.heads)
                s[f"{n}.attention.relative.query_bias"] = (self.heads, dk)
            s[f"{n}.norm_ffn.weight"] = s[f"{n}.norm_ffn.bias"] = (d,)
            s[f"{n}.ffn.expand.weight"], s[f"{n}.ffn.expand.bias"] = (d, self.d_ffn), (self.d_ffn,)
            s[f"{n}.ffn.contract.weight"], s[f"{n}.ffn.contract.bias"] = (self.d_ffn, d), (d,)
        s["norm.weight"] = s["norm.bias"] = (d,)
        s["output.weight"], s["output.bias"] = (d, self.vocab), (self.vocab,)
        self.shapes = s

    def fill(self, value):
        """Parameter i of tensor `name` is `value(name, i)`."""
        for name, shape in self.shapes.items():
            count = math.prod(shape)
            data = torch.tensor([value(name, i) for i in range(count)], dtype=torch.float64)
            self.p[name] = data.reshape(shape).to(self.dtype).requires_grad_()

    def heads_of(self, x, n, part, skip):
        """[rows, B, d] to [B, H, rows - skip, dk], convolved along time if the kind is."""
        rows, batch, _ = x.shape
        dk = self.d // self.heads
        x = x.reshape(rows, batch, self.heads, dk).permute(1, 2, 3, 0)  # B, H, dk, time
        if self.conv:
            w = self.p[f"{n}.attention.{part}.convolution.weight"]
            b = self.p[f"{n}.attention.{part}.convolution.bias"]
            flat = x.reshape(batch * self.heads, dk, rows)
            flat = F.conv1d(flat, w, b, padding=self.kernel - 1, groups=dk)[..., :rows]
            x = flat.reshape(batch, self.heads, dk, rows)
        return x[..., skip:].transpose(2, 3)

    def rotate(self, x, first):
        half = x.shape[-1] // 2
        at = torch.arange(first, first + x.shape[-2], dtype=torch.float64)[:, None]
        angle = at * 10000.0 ** (-2 * torch.arange(half, dtype=torch.float64) / x.shape[-1])
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def attention(self, n, z, t):
        p, d, dk = self.p, self.d, self.d // self.heads
        stored = z.shape[0] - t
        m = min(stored, self.memory)
        q_skip = min(self.kernel - 1, stored) if self.carry else 0
        kv_skip = stored - m

        def project(part, x):
            y = x @ p[f"{n}.attention.{part}.weight"]
            bias = p.get(f"{n}.attention.{part}.bias")
            return y if bias is None else y + bias

        q = self.heads_of(project("query", z[z.shape[0] - t - q_skip :]), n, "query", q_skip)
        k = self.heads_of(project("key", z), n, "key", kv_skip)
        v = self.heads_of(project("value", z), n, "value", kv_skip)
        if self.positions == "rotary":
            q, k = self.rotate(q, m), self.rotate(k, 0)
        if self.positions == "relative":
            table = p[f"{n}.attention.relative.table"]
            i = torch.arange(t)[:, None]
            j = torch.arange(m + t)[None, :]
            row = (j - m - i).clamp(max=0) + table.shape[0] - 1
            u = p[f"{n}.attention.relative.query_bias"]
            score = torch.einsum("bhid,bhjd->bhij", q + u[None, :, None, :], k)
            # Products with every row of the table, then the row that each pair of positions asks for.
            if self.fast:
                # As Transformer-XL implementations shift: pad, reshape, slice. Equal wherever the mask lets through.
                every = torch.einsum("bhid,rhd->bhir", q, table[-m - t :])
                every = every + p[f"{n}.attention.relative.bias"][-m - t :].T[:, None, :]
                padded = F.pad(every, (1, 0)).reshape(*every.shape[:2], m + t + 1, t)
                score = score + padded[:, :, 1:].reshape(every.shape)
            else:
                every = torch.einsum("bhid,rhd->bhir", q, table)
                score = score + every.gather(3, row.expand(*every.shape[:2], t, m + t))
                score = score + p[f"{n}.attention.relative.bias"][row].permute(2, 0, 1)
        else:
            score = torch.einsum("bhid,bhjd->bhij", q, k)
        hidden = torch.arange(m + t)[None, :] > torch.arange(t)[:, None] + m
        score = (score / math.sqrt(dk)).masked_fill(hidden, float("-inf"))
        out = torch.einsum("bhij,bhjd->bhid", score.softmax(-1), v)
        out = out.permute(2, 0, 1, 3).reshape(t, z.shape[1], d)
        return out @ p[f"{n}.attention.output.weight"] + p[f"{n}.attention.output.bias"]

    def sinusoid(self, rows, t):
        window = self.memory + t
        at = torch.arange(window - rows, window, dtype=torch.float64)[:, None]
        c = torch.arange(self.d)
        angle = at / 10000.0 ** ((c // 2 * 2).double() / self.d)
        return torch.where(c % 2 == 0, angle.sin(), angle.cos()).to(self.dtype)[:, None, :]

    def loss(self, ids, targets, memory):
        """Mean loss of [T, B] ids; `memory` is a list of [rows, B, d], and the list after it is returned."""
        p, d, t = self.p, self.d, ids.shape[0]
        x = p["embedding.weight"][ids]
        keep = self.memory + (self.kernel - 1 if self.carry else 0)
        after = []
        for l in range(self.layers):
            n = f"layers.{l}"
            whole = x if memory is None else torch.cat([memory[l], x])
            after.append(whole[max(whole.shape[0] - keep, 0) :].detach() if keep else whole[:0].detach())
            z = F.layer_norm(whole, (d,), p[f"{n}.norm_attention.weight"], p[f"{n}.norm_attention.bias"])
            if self.positions == "sinusoid":
                z = z + self.sinusoid(z.shape[0], t)
            x = x + self.attention(n, z, t)
            h = F.layer_norm(x, (d,), p[f"{n}.norm_ffn.weight"], p[f"{n}.norm_ffn.bias"])
            h = F.relu(h @ p[f"{n}.ffn.expand.weight"] + p[f"{n}.ffn.expand.bias"])
            x = x + h @ p[f"{n}.ffn.contract.weight"] + p[f"{n}.ffn.contract.bias"]
        x = F.layer_norm(x, (d,), p["norm.weight"], p["norm.bias"])
        logits = x @ p["output.weight"] + p["output.bias"]
        return F.cross_entropy(logits.reshape(-1, self.vocab), targets.reshape(-1)), after


def parameter(name, i):
    """A number in (-0.6, 0.6) that both programs compute alike; times 4 for embeddings. The square in it keeps rows apart:
    rows that nearly repeat make f32 gradients uncertain by 4e-5, in torch too."""
    seed = sum(name.encode()) % 101
    scale = 2.4 if name.startswith("embedding") else 0.6
    return scale * math.sin((i + 1) * (i + 1) * 0.37 + 12.9898 * (i + 1) + 7.233 * seed)


def ids(count, vocab, shift):
    return [(i * i + 3 * i * shift + shift) % vocab for i in range(count)]


def fixtures(path):
    cases = []
    for kind in KINDS:
        size = {"layers": 2, "d_model": 12, "heads": 3, "d_ffn": 10, "vocab": 11, "segment": 5, "memory": 7}
        batch = 2
        model = Model(kind, 2, 12, 3, 10, 11, 5, 7)
        model.fill(parameter)
        memory, losses = None, []
        for step in range(3):
            for value in model.p.values():
                value.grad = None
            x = torch.tensor(ids(5 * batch, 11, step)).reshape(5, batch)
            y = torch.tensor(ids(5 * batch, 11, step + 5)).reshape(5, batch)
            loss, memory = model.loss(x, y, memory)
            loss.backward()
            losses.append(loss.item())
        # Of every tensor the sum, a weighted sum that sees the order, and three elements.
        gradients = {}
        for name, value in model.p.items():
            g = value.grad.reshape(-1)
            weights = torch.cos(torch.arange(g.numel(), dtype=torch.float64))
            at = [0, g.numel() // 2, g.numel() - 1]
            gradients[name] = [g.sum().item(), (g * weights).sum().item()] + [g[i].item() for i in at]
        cases.append({"attention": kind, "batch": batch, **size, "losses": losses, "gradients": gradients})
    with open(path, "w") as file:
        json.dump({"made_by": "scripts/reference_rcmha.py", "cases": cases}, file, separators=(",", ":"))
        file.write("\n")


def speed(a, attention, dtype):
    torch.manual_seed(0)
    model = Model(attention, a.layers, a.d_model, a.heads, a.d_ffn, a.vocab, a.segment, a.memory, dtype=torch.float32)
    for name, shape in model.shapes.items():
        model.p[name] = (torch.randn(shape) * 0.05).requires_grad_()
    model.fast = True
    values = list(model.p.values())
    adam = torch.optim.Adam(values, lr=1e-4)
    memory, times = None, []
    filled = -(-a.memory // a.segment)
    on_gpu = a.device != "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    half = torch.autocast("cuda", dtype=torch.bfloat16, enabled=on_gpu and dtype == "bf16")
    # The first steps of a GPU load kernels and choose products.
    warm = filled + (10 if on_gpu else 2)
    for step in range(warm + a.steps):
        x = torch.randint(a.vocab, (a.segment, a.batch))
        y = torch.randint(a.vocab, (a.segment, a.batch))
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        adam.zero_grad()
        with half:
            loss, memory = model.loss(x, y, memory)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(values, 1.0)
        adam.step()
        if on_gpu:
            torch.cuda.synchronize()
        if step >= warm:
            times.append(time.perf_counter() - start)
    times.sort()
    seconds = times[len(times) // 2]
    result = {"attention": attention, "dtype": dtype, "median_step_s": seconds, "tokens_per_s": a.segment * a.batch / seconds, "steps": len(times),
              "torch": torch.__version__}
    if on_gpu:
        result |= {"device": torch.cuda.get_device_name(), "tf32": torch.backends.cuda.matmul.allow_tf32,
                   "peak_bytes": torch.cuda.max_memory_allocated()}
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", metavar="FILE")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--attention", default="rcmha", help=f"with --speed: some of {', '.join(KINDS)}")
    for flag, default in [
        ("layers", 4), ("d-model", 128), ("heads", 8), ("d-ffn", 256), ("segment", 128), ("memory", 128),
        ("batch", 16), ("vocab", 65), ("steps", 10), ("threads", 2),
    ]:
        parser.add_argument(f"--{flag}", type=int, default=default)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="f32", help="f32, bf16 (by autocast, on cuda) or both")
    a = parser.parse_args()
    if a.fixtures:
        fixtures(a.fixtures)
    if a.speed:
        torch.set_num_threads(a.threads)
        torch.set_default_device(a.device)
        print(json.dumps([speed(a, attention, dtype) for attention in a.attention.split(",") for dtype in a.dtype.split(",")]))


if __name__ == "__main__":
    main()
