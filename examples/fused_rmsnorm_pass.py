"""A pass of your own: find RMSNorm in the traced graph and put one operator in its place.

Run it: ``python examples/fused_rmsnorm_pass.py``. It compiles a small model with the pass, prints the graph
before and after it and what the pass found, and compares the result with eager mode.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

import torch_piecewise as tp
from torch_piecewise.events import PassRecord
from torch_piecewise.passes.text import graph_text

aten = torch.ops.aten

# The operator that takes RMSNorm's place. On a GPU this would be a kernel of yours; here it is four lines.
library = torch.library.Library("examples", "FRAGMENT")
library.define("fused_rms_norm(Tensor x, Tensor weight, float eps) -> Tensor")


@torch.library.impl(library, "fused_rms_norm", "CompositeExplicitAutograd")
def fused_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x * scale * weight


@torch.library.register_fake("examples::fused_rms_norm")
def fused_rms_norm_shape(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class FuseRMSNorm(tp.GraphPass):
    """Replaces ``x * rsqrt(mean(x ** 2) + eps) * weight`` by ``examples::fused_rms_norm``.

    Attributes:
        smallest: leave norms over fewer elements alone; a kernel launch would cost more than it saves.
    """

    smallest: int = 1

    def __call__(self, graph: fx.Graph) -> int:
        found = [match for node in graph.nodes if (match := match_rms_norm(node)) is not None]
        # Never compare a size that may be symbolic by hand: that would add a guard on it.
        fused = [m for m in found if statically_known_true(m.x.meta["val"].shape[-1] >= self.smallest)]
        for match in fused:
            replace(graph, match)
        return len(fused)


@dataclass(frozen=True)
class Match:
    """One RMSNorm in the graph: ``result`` is its last multiplication."""

    x: fx.Node
    weight: fx.Node
    eps: float
    result: fx.Node


def match_rms_norm(result: fx.Node) -> Match | None:
    """The RMSNorm that ends in ``result``, if there is one.

    Walks from the end to the start: the end is the only node that may have users outside of the pattern.
    """
    for scaled, weight in both_ways(result):
        for x, rsqrt in both_ways(only_used_here(scaled)):
            add = only_used_here(argument(only_used_here(rsqrt), aten.rsqrt.default, 0))
            mean = only_used_here(argument(add, aten.add.Tensor, 0))
            power = only_used_here(argument(mean, aten.mean.dim, 0))
            if argument(power, aten.pow.Tensor_Scalar, 0) is not x or power is None or power.args[1] != 2:
                continue
            if (
                add is None
                or mean is None
                or not isinstance(add.args[1], float)
                or mean.args[1:] != ([-1], True)
            ):
                continue
            if fits(x, weight):
                return Match(x, weight, add.args[1], result)
    return None


def both_ways(node: fx.Node | None) -> list[tuple[fx.Node, fx.Node]]:
    """The factors of a multiplication of two tensors, in both orders; empty for anything else."""
    if node is None or node.op != "call_function" or node.target is not aten.mul.Tensor:
        return []
    left, right = node.args
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return []
    return [(left, right), (right, left)]


def argument(node: fx.Node | None, target: object, index: int) -> fx.Node | None:
    """An argument of a call of ``target`` that is a node; None for any other node."""
    if node is None or node.target is not target or node.kwargs:
        return None
    value = node.args[index]
    return value if isinstance(value, fx.Node) else None


def only_used_here(node: fx.Node | None) -> fx.Node | None:
    """The node, if it has one user: a value that others read cannot be fused away."""
    return node if node is not None and len(node.users) == 1 else None


def fits(x: fx.Node, weight: fx.Node) -> bool:
    """Whether the operator means the same: one weight a column, and no change of type on the way."""
    value, scale = x.meta.get("val"), weight.meta.get("val")
    if not isinstance(value, torch.Tensor) or not isinstance(scale, torch.Tensor):
        return False
    alike = value.dtype == scale.dtype and value.is_floating_point()
    return alike and scale.dim() == 1 and value.dim() >= 1


def replace(graph: fx.Graph, match: Match) -> None:
    """Write the operator; the nodes that nobody needs now are removed by the manager's clean-up."""
    with graph.inserting_before(match.result):
        fused = graph.call_function(
            torch.ops.examples.fused_rms_norm.default, (match.x, match.weight, match.eps)
        )
    fused.meta = dict(match.result.meta)
    match.result.replace_all_uses_with(fused)


class RMSNorm(nn.Module):
    """As written in many models."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(dim) + 0.5)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def show(graph: fx.Graph) -> None:
    """A pass may be a plain function: this one prints."""
    print(graph_text(graph))


def main() -> None:
    model = nn.Sequential(nn.Linear(64, 64), RMSNorm(64), nn.Linear(64, 64), RMSNorm(64)).eval()
    reference = copy.deepcopy(model)
    tp.compile(
        model,
        dynamic_arg_dims={"input": 0},
        inductor_passes={
            "before": show,
            "fuse_rmsnorm": FuseRMSNorm(),
            "clean": "torch_piecewise.passes.cleanup.CleanUp",
            "after": show,
        },
        # Nothing comes from a cache, so that there is something to see each time.
        disable_cache=True,
        inductor_compile_config={"fx_graph_cache": False},
    )
    records: list[PassRecord] = []
    tp.program_of(model).bus.add(
        lambda event: records.append(event) if isinstance(event, PassRecord) else None
    )
    x = torch.randn(10, 64)
    with torch.no_grad():
        difference = (model(x) - reference(x)).abs().max().item()
    for record in records:
        print(f"{record.name}: {record.matches} matches, {record.nodes_before} -> {record.nodes_after} nodes")
    print(f"largest difference from eager: {difference:.1e}")


if __name__ == "__main__":
    main()
