"""A piece of the cut graph, with its inputs described by values instead of live fake tensors.

The description is what the fingerprint hashes, what travels to worker processes, and what each
(piece, range) compile rebuilds its own fake tensors from, so that no compile leaks shape guards into
another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule

Dim = int | str
"""A size: a number, or the text of a sympy expression over symbol names (``"s0"``, ``"2*s0 + 1"``)."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor input, up to its values.

    Attributes:
        size, stride: one :data:`Dim` per dim, in elements.
        storage_offset: in elements.
    """

    dtype: torch.dtype
    device: torch.device
    size: tuple[Dim, ...]
    stride: tuple[Dim, ...]
    storage_offset: Dim = 0
    requires_grad: bool = False


@dataclass(frozen=True)
class IntSpec:
    """An integer input: a size that a piece needs as a number."""

    value: Dim


@dataclass(frozen=True)
class ConstantSpec:
    """Another Python scalar that is an input (float, bool, str, None); baked in by its value."""

    value: float | bool | str | None


InputSpec = TensorSpec | IntSpec | ConstantSpec


@dataclass(frozen=True)
class Symbol:
    """A symbolic size.

    Attributes:
        name: as it occurs in the :data:`Dim` texts.
        lower, upper: closed bounds known from the trace; ``upper`` is
            :data:`~torch_piecewise.ranges.UNBOUNDED` where nothing bounds it, ``lower`` minus that for a
            number read from data that nothing bounds.
        hint: the size it had in the trace; carries no meaning, compilers tune for it.
        backed: False for a size or number that depends on data (``nonzero``, ``item``).
    """

    name: str
    lower: int
    upper: int
    hint: int
    backed: bool = True


@dataclass(frozen=True)
class Piece:
    """One compiled unit of the cut graph.

    Attributes:
        name: ``submod_N``, as in the split graph. A label: not part of the piece's identity.
        index: N.
        graph: the piece; takes ``inputs`` in order, returns a tuple.
        inputs: one description per placeholder, in order.
        symbols: every symbol that ``inputs`` mention, in order of first mention.
        relations: what else the trace knows about the symbols, as expression texts.
        dispatch: name of the symbol that ranges and exact sizes are about, if this piece has it.
    """

    name: str
    index: int
    graph: GraphModule
    inputs: tuple[InputSpec, ...]
    symbols: tuple[Symbol, ...] = ()
    relations: tuple[str, ...] = ()
    dispatch: str | None = None

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Run the piece as it was traced, so that a compiler may hand back the piece itself."""
        results: tuple[Any, ...] = self.graph.forward(*inputs)
        return results


@dataclass(frozen=True)
class EagerPiece:
    """A piece that is not compiled.

    Attributes:
        name: ``submod_N``.
        graph: the piece, as traced.
        reason: why, for people.
    """

    name: str
    graph: GraphModule
    reason: str
