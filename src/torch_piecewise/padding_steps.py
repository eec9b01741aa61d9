"""Where the tokens of a batch lie in the values of a traced graph."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from torch_piecewise.cut_policy_names import target_names
from torch_piecewise.torch_private.nodes import example_value
from torch_piecewise.torch_private.shapes import dim_text


@dataclass(frozen=True)
class Place:
    """Where a tensor carries tokens.

    Attributes:
        dim: which dim, from the left.
        rank: how many dims there are.
        text: its size, ``n`` or ``k*n``: k rows of one token, then those of the next.
    """

    dim: int
    rank: int
    text: str

    @property
    def from_right(self) -> tuple[int, str]:
        """What must be equal for two values to meet token by token when they are broadcast."""
        return self.rank - self.dim, self.text


class Tokens:
    """The values that are known to carry the tokens in order.

    Attributes:
        symbol: the size that padding changes.
        nodes: what carries tokens.
    """

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.nodes: set[Node] = set()
        self._mentions = re.compile(rf"\b{re.escape(symbol)}\b")
        self._rows = re.compile(rf"(\d+\*)?{re.escape(symbol)}")

    def dims(self, value: torch.Tensor) -> list[str]:
        """The sizes of ``value`` that the symbol stands in."""
        return [text for text in map(size_text, value.shape) if self._mentions.search(text)]

    def place(self, value: Any) -> Place | None:
        """Where the tokens lie; None where not exactly one dim has ``n`` or ``k*n`` rows."""
        if not isinstance(value, torch.Tensor):
            return None
        texts = list(map(size_text, value.shape))
        found = [at for at, text in enumerate(texts) if self._mentions.search(text)]
        if len(found) != 1 or not self._rows.fullmatch(texts[found[0]]):
            return None
        return Place(found[0], len(texts), texts[found[0]])

    def shows(self, value: Any) -> bool:
        """Whether the size stands in the shape of a tensor of ``value``."""
        return any(self.dims(one) for one in tensors(value))

    def is_size(self, value: Any) -> bool:
        """Whether ``value``, a node, is a number (or numbers) that the size stands in."""
        given = example_value(value) if isinstance(value, Node) else None
        parts = given if isinstance(given, tuple | list) else (given,)
        return any(self._is_size(part) for part in parts)

    def _is_size(self, value: Any) -> bool:
        if isinstance(value, torch.SymFloat | torch.SymBool):
            return True
        return isinstance(value, torch.SymInt) and bool(self._mentions.search(size_text(value)))


class Step:
    """One node, and what is known of its operands."""

    def __init__(self, node: Node, tokens: Tokens) -> None:
        self.node = node
        self.tokens = tokens

    @property
    def first(self) -> Node | None:
        """The first operand, if a node."""
        given = self.node.args[0] if self.node.args else None
        given = self.node.kwargs.get("input", self.node.kwargs.get("self", given)) if given is None else given
        return given if isinstance(given, Node) else None

    @property
    def results(self) -> list[torch.Tensor]:
        """The tensors that come out."""
        return list(tensors(example_value(self.node)))

    def given(self, position: int, *names: str, default: Any = None) -> Any:
        """An argument, by its name or its place."""
        for name in names:
            if name in self.node.kwargs:
                return self.node.kwargs[name]
        return self.node.args[position] if len(self.node.args) > position else default

    def value(self, operand: Any) -> torch.Tensor | None:
        """The tensor that an operand is; None where it is none."""
        found = example_value(operand) if isinstance(operand, Node) else None
        return found if isinstance(found, torch.Tensor) else None

    def place(self, operand: Any) -> Place | None:
        """Where an operand carries tokens; None where it has nothing to do with them."""
        if not isinstance(operand, Node) or operand not in self.tokens.nodes:
            return None
        return self.tokens.place(example_value(operand))

    def places(self) -> list[Place]:
        """Of every operand that carries tokens."""
        found = [self.place(operand) for operand in self.node.all_input_nodes]
        return [place for place in found if place is not None]

    def result_places(self) -> list[Place | None]:
        """Of every result."""
        return [self.tokens.place(value) for value in self.results]

    def is_size(self, value: Any) -> bool:
        """Whether an argument is a size, or a list with one in it."""
        if isinstance(value, tuple | list):
            return any(map(self.is_size, value))
        return self.tokens.is_size(value)


def op_name(node: Node) -> str:
    """What a node calls, in one word: ``add`` for ``aten::add.Tensor``, ``torch.add`` and ``x.add``."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    known = target_names(node)
    dotted = next((text.rpartition("::")[2].partition(".")[0] for text in known if "::" in text), "")
    return dotted or str(getattr(node.target, "__name__", ""))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of nested tuples and lists."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)


def size_text(size: Any) -> str:
    """A size as text."""
    return str(dim_text(size) if isinstance(size, int | torch.SymInt) else size)
