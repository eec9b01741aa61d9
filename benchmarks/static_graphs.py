"""How close do replayed calls come to a graph captured by hand, and what do 35 sizes cost?

    PYTHONPATH=src python benchmarks/static_graphs.py [--batches 1 8 64] [--rounds 9] [--steps 50]

Decode steps of a model of SmolLM2-135M's shape with random weights, one token for each sequence, on a GPU;
needs torch and this library alone. The ways run in turn within each round, so that a change of the machine's
speed meets them alike; medians, and ratios to the hand-captured graph. Then the time and the memory that
capturing 35 sizes takes, against the largest alone. ``--tiny`` runs every path at a toy size, on the CPU
where there is no GPU, to see that the script works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import torch_piecewise as tp
from torch_piecewise.cudagraphs import default_capture_sizes

Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """SmolLM2-135M's, unless told otherwise."""

    vocab: int = 49152
    hidden: int = 576
    intermediate: int = 1536
    layers: int = 30
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    capacity: int = 256
    sequences: int = 256


TINY = Shape(97, 48, 64, 2, 3, 1, 16, 32, 16)


@tp.splitting_op("bench_static::attention", mutates_args=("keys", "values", "out"))
def attention(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, positions: Tensor, out: Tensor
) -> None:
    """Token i belongs to sequence i: keep its key and value at its position, attend to what is before it."""
    n = q.shape[0]
    rows = torch.arange(n, device=q.device)
    keys[rows, :, positions] = k
    values[rows, :, positions] = v
    mask = torch.arange(keys.shape[2], device=q.device) <= positions[:, None]
    attended = F.scaled_dot_product_attention(
        q[:, :, None], keys[:n], values[:n], attn_mask=mask[:, None, None], enable_gqa=True
    )
    out.copy_(attended.reshape(n, -1))


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.heads * shape.head_dim
        self.norm1, self.norm2 = nn.RMSNorm(shape.hidden), nn.RMSNorm(shape.hidden)
        self.qkv = nn.Linear(shape.hidden, width + 2 * shape.kv_heads * shape.head_dim, bias=False)
        self.o = nn.Linear(width, shape.hidden, bias=False)
        self.gate_up = nn.Linear(shape.hidden, 2 * shape.intermediate, bias=False)
        self.down = nn.Linear(shape.intermediate, shape.hidden, bias=False)
        cache = (shape.sequences, shape.kv_heads, shape.capacity, shape.head_dim)
        self.register_buffer("keys", torch.zeros(cache))
        self.register_buffer("values", torch.zeros(cache))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
        shape = self.shape
        qkv = self.qkv(self.norm1(x)).view(-1, shape.heads + 2 * shape.kv_heads, shape.head_dim)
        turned = rotate(qkv[:, : shape.heads + shape.kv_heads], cos, sin)
        q, k, v = turned[:, : shape.heads], turned[:, shape.heads :], qkv[:, shape.heads + shape.kv_heads :]
        out = x.new_empty(x.shape[0], shape.heads * shape.head_dim)
        attention(q, k, v, self.keys, self.values, positions, out)
        x = x + self.o(out)
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Decoder(nn.Module):
    """Logits [n, vocab] of one token [n] of each of n sequences, at positions [n]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden)
        exponents = torch.arange(0, shape.head_dim, 2) / shape.head_dim
        self.register_buffer("frequencies", 1e5**-exponents)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        x = self.embed(ids)
        angles = (positions[:, None] * self.frequencies)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, positions)
        return F.linear(self.norm(x), self.embed.weight)


def settings(args: argparse.Namespace, **fields: Any) -> dict[str, Any]:
    own = {
        "dynamic_arg_dims": {"ids": {0: "n"}, "positions": {0: "n"}},
        "splitting_ops": ["bench_static::attention"],
        "disable_cache": True,
        "backend": args.backend,
    }
    if args.device == "cpu":
        own["static_graph_class"] = "torch_piecewise.testing.GraphRecorder"
    return {**own, **fields}


def synchronize(args: argparse.Namespace) -> None:
    if args.device == "cuda":
        torch.cuda.synchronize()


def inputs(args: argparse.Namespace, batch: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, args.shape.vocab, (batch,), device=args.device)
    return ids, torch.full((batch,), args.shape.capacity // 2, device=args.device)


def hand_captured(model: nn.Module, args: argparse.Namespace, batch: int) -> Step:
    """The whole call as one graph over buffers of our own, by torch's own means."""
    ids, positions = inputs(args, batch)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model(ids, positions)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model(ids, positions)

    def step(new_ids: Tensor, new_positions: Tensor) -> Tensor:
        ids.copy_(new_ids)
        positions.copy_(new_positions)
        graph.replay()
        return logits.clone()

    return step


def ways(model: Decoder, args: argparse.Namespace, batch: int) -> dict[str, Step]:
    """Each way has a model of its own, all with the same weights."""
    made: dict[str, Step] = {"eager": model}
    made["torch.compile"] = torch.compile(copy.deepcopy(model), dynamic=False)
    if args.device == "cuda":
        made["reduce-overhead"] = torch.compile(copy.deepcopy(model), dynamic=False, mode="reduce-overhead")
    for name in ("none", "piecewise", "full"):
        one = tp.compile(
            copy.deepcopy(model),
            **settings(args, cudagraph_mode=name, cudagraph_capture_sizes=[batch], compile_sizes=[batch]),
        )
        one(*inputs(args, batch))
        tp.program_of(one).warmup([batch])
        made[f"ours, {name}"] = one
    if args.device == "cuda":
        made["hand-captured"] = hand_captured(made["ours, none"], args, batch)
    return made


def seconds_a_step(step: Step, args: argparse.Namespace, batch: int) -> float:
    given = inputs(args, batch)
    synchronize(args)
    start = time.perf_counter()
    for _ in range(args.steps):
        # Only graphs of torch's own trees need the mark; it costs the others next to nothing.
        torch.compiler.cudagraph_mark_step_begin()
        step(*given)
    synchronize(args)
    return (time.perf_counter() - start) / args.steps


def compare(model: Decoder, args: argparse.Namespace, batch: int) -> None:
    made = ways(model, args, batch)
    given = inputs(args, batch)
    expected = made["eager"](*given)
    for name, step in made.items():
        for _ in range(4):
            got = step(*given)
        worst = float((got - expected).abs().max())
        assert worst < 0.1 * float(expected.abs().max()), f"{name} differs by {worst}"
        del got
    rounds = [
        {name: seconds_a_step(step, args, batch) for name, step in made.items()} for _ in range(args.rounds)
    ]
    against = "hand-captured" if "hand-captured" in made else "ours, none"
    print(f"\nbatch {batch:<24} {'us a step':>10}  against {against}")
    for name in made:
        median = statistics.median(one[name] for one in rounds)
        ratio = statistics.median(one[name] / one[against] for one in rounds)
        print(f"{name:<30} {1e6 * median:>10.1f} {ratio:>8.3f}")


def capture_costs(model: Decoder, args: argparse.Namespace) -> None:
    sizes = default_capture_sizes(args.shape.sequences)
    print(f"\n{'capturing':<30} {'sizes':>6} {'seconds':>8} {'MiB':>8}")
    for mode in ("piecewise", "full"):
        for chosen in (sizes[-1:], sizes):
            gc.collect()
            one = tp.compile(
                copy.deepcopy(model),
                **settings(args, cudagraph_mode=mode, cudagraph_capture_sizes=chosen),
            )
            with torch.no_grad():
                one(*inputs(args, chosen[-1]))
                start = time.perf_counter()
                report = tp.program_of(one).warmup()
                synchronize(args)
            taken = time.perf_counter() - start
            assert report is not None
            print(f"{mode:<30} {len(chosen):>6} {taken:>8.2f} {report.bytes_used / 2**20:>8.1f}")
            tp.program_of(one).restore()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.device == "cpu" and not args.tiny:
        raise SystemExit("There is no GPU: nothing to measure. --tiny shows that the script runs.")
    args.shape = TINY if args.tiny else Shape()
    torch.manual_seed(0)
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    model = Decoder(args.shape).to(args.device, dtype).eval().requires_grad_(requires_grad=False)
    device = torch.cuda.get_device_name() if args.device == "cuda" else "no GPU: the figures mean nothing"
    print(f"torch {torch.__version__}, {device}, {dtype}")
    with torch.no_grad():
        for batch in args.batches:
            compare(model, args, batch)
    capture_costs(model, args)


if __name__ == "__main__":
    main()
