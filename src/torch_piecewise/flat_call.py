"""A graph that torch.compile hands over: its inputs are flat, and what its dims mean torch has decided."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_piecewise.config import Config
from torch_piecewise.config.advice import advice
from torch_piecewise.errors import CompileError
from torch_piecewise.program import Program
from torch_piecewise.torch_private.modules import dispatch_modes_active
from torch_piecewise.torch_private.nodes import example_value
from torch_piecewise.torch_private.shapes import dim_text

logger = logging.getLogger("torch_piecewise")

_TORCH_DECIDES = {
    "dynamic_arg_dims": "torch.compile(dynamic=True), or torch._dynamo.mark_dynamic(tensor, dim)",
    "mark_unbacked_dims": "torch._dynamo.decorators.mark_unbacked(tensor, dim)",
    "dynamic_shapes": "torch.compile(dynamic=...)",
    "evaluate_guards": "nothing",
    "guards": "torch.compile's own guards",
    "on_guard_failure": "torch.compiler.set_stance",
    "on_miss": "nothing, for what is kept are pieces and no programs",
}
"""Settings about the trace, which torch.compile makes, and what does their work there."""


def dispatch_symbol(sources: Sequence[str], fakes: Sequence[Any], config: Config) -> str | None:
    """The symbol of the dim that ``dispatch_on`` names, else of the first dynamic dim of a tensor.

    Args:
        sources: where the graph's inputs come from, as Dynamo writes it (``L['x']``).
        fakes: their traced values.

    Returns:
        None where the graph has no such dim; a log line says so where ``dispatch_on`` is given.
    """
    found = list(_dynamic_dims(sources, fakes))
    if config.dispatch_on is None:
        return next((symbol for _, _, _, symbol in found), None)
    argument, _, text = config.dispatch_on.rpartition(".")
    for name, dim, rank, symbol in found:
        if name == argument and int(text) in (dim, dim - rank):
            return symbol
    logger.warning(
        "dispatch_on=%r is no dynamic dim of this graph, which is compiled once for all sizes; it has %s",
        config.dispatch_on,
        ", ".join(f"{name}.{dim}" for name, dim, _, _ in found) or "none",
    )
    return None


def _dynamic_dims(sources: Sequence[str], fakes: Sequence[Any]) -> Iterator[tuple[str, int, int, str]]:
    """Argument, dim, rank and symbol of each dim that is a symbol."""
    for source, fake in zip(sources, fakes, strict=True):
        for dim, size in enumerate(fake.shape if isinstance(fake, torch.Tensor) else ()):
            symbol = dim_text(size)
            if isinstance(symbol, str) and symbol.isidentifier():
                yield source.removeprefix("L['").removesuffix("']"), dim, fake.dim(), symbol


def tell_what_torch_decides(config: Config) -> None:
    """Log the settings given in code that have no effect, or mean nothing to a backend of torch.compile."""
    for sentence in advice(config):
        logger.warning("%s", sentence)
    for row in config.rows():
        if row.name not in _TORCH_DECIDES or row.source != "given":
            continue
        # Pieces are kept there too, so a missing one can be an error, or made in the background.
        if row.value not in (row.default, "background", "error"):
            logger.warning(
                "%s means nothing under torch.compile(backend='piecewise'), which traces by itself; "
                "what does it there: %s; or call tp.compile instead",
                row.name,
                _TORCH_DECIDES[row.name],
            )


def refuse_own_weights(graph: GraphModule) -> None:
    """Refuse a graph that Dynamo did not make and whose module holds tensors of its own.

    Raises:
        CompileError: it does; a piece takes all its tensors as inputs.
    """
    nodes = list(graph.graph.nodes)
    if all(example_value(node) is not None for node in nodes if node.op == "placeholder"):
        return
    holding = [f"{node.op} {node.target}" for node in nodes if _holds_tensors(graph, node)]
    if holding:
        raise CompileError(
            "This graph holds weights of its own",
            expected="a graph that takes every tensor as an input, as Dynamo's do",
            got=", ".join(holding[:3]) + (f" and {len(holding) - 3} more" if len(holding) > 3 else ""),
            hint="compile it as the module it is: tp.compile(graph, dynamic_arg_dims={...})",
        )


def _holds_tensors(graph: GraphModule, node: Node) -> bool:
    if node.op not in ("get_attr", "call_module"):
        return False
    held: Any = graph
    for name in str(node.target).split("."):
        held = getattr(held, name, None)
    if isinstance(held, torch.nn.Module):
        return node.op == "call_module" and bool(held.state_dict())
    return isinstance(held, torch.Tensor)


def flat_entry(program: Program) -> Callable[..., tuple[Any, ...]]:
    """A function of the graph's inputs that looks up the size and runs the program."""
    reader = program.sizes.names[program.sizes.symbols[0]] if program.sizes.symbols else "0"
    source = (
        "def call(*args):\n"
        f"    key = {reader}\n"
        "    run = lookup(key)\n"
        "    if run is None or modes_active():\n"
        "        run = find_under_modes(key) if modes_active() else find(key)\n"
        "    return run(*args)\n"
    )
    scope: dict[str, Any] = {
        "lookup": program.table.lookup,
        "find": program.table.find,
        "find_under_modes": program.mode_table.find,
        "modes_active": dispatch_modes_active,
    }
    exec(compile(source, "<torch-piecewise flat entry>", "exec"), scope)
    call: Callable[..., tuple[Any, ...]] = scope["call"]
    return call
