"""Sizes of which nobody can tell whether they follow the size of the call."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from torch_piecewise.piece import Dim
from torch_piecewise.torch_private.nodes import example_value
from torch_piecewise.torch_private.shapes import dim_text

_OneSize = tuple[str, int, str]
"""Argument, dim, symbol."""


def unclear_sizes(
    cuts: Sequence[Node],
    dispatch: str | None,
    shapes: Mapping[str, Sequence[Dim]],
    named: Mapping[str, Mapping[int, str | None]],
) -> str:
    """Why nobody can tell what is to be padded; empty where it is clear.

    An argument whose size is one of its own to the trace may be as long as the batch in every call (slots),
    or not (block tables). Code that is compiled shows which; a cut that reads it does not.

    Args:
        cuts: what is not compiled, as nodes.
        dispatch: the symbol that padding changes; None where no size changes.
        shapes: shape of each argument that is a tensor.
        named: argument -> dim -> the name that was given to its size. A name says that it is meant.
    """
    if dispatch is None:
        return ""
    follows = next(((name, dim) for name, dim, symbol in _sizes(shapes) if symbol == dispatch), None)
    for name, dim, symbol in _sizes(shapes):
        if symbol == dispatch or _name_of(named.get(name, {}), dim, len(shapes[name])):
            continue
        if follows is None or not any(_meet(node, dispatch, symbol) for node in cuts):
            continue
        other, at = follows
        return (
            f"a cut reads {name!r}, whose size may or may not be that of {other!r} in every call; if it is, "
            f"give both one name: dynamic_arg_dims={{{other!r}: {{{at}: 'n'}}, {name!r}: {{{dim}: 'n'}}}}; "
            f"if not, give it one of its own: {name!r}: {{{dim}: 'm'}}"
        )
    return ""


def _sizes(shapes: Mapping[str, Sequence[Dim]]) -> Iterator[_OneSize]:
    for name, shape in shapes.items():
        yield from ((name, dim, size) for dim, size in enumerate(shape) if isinstance(size, str))


def _name_of(names: Mapping[int, str | None], dim: int, rank: int) -> str | None:
    return names.get(dim) or names.get(dim - rank)


def _meet(cut: Node, dispatch: str, symbol: str) -> bool:
    """Whether the cut reads tensors of both sizes."""
    texts = [text for operand in cut.all_input_nodes for text in _dims(example_value(operand))]
    return all(any(re.search(rf"\b{name}\b", text) for text in texts) for name in (dispatch, symbol))


def _dims(value: Any) -> list[str]:
    return [str(dim_text(size)) for size in value.shape] if isinstance(value, torch.Tensor) else []
