"""May a call be padded to a larger size? What the traced graph tells about it.

A padded call is right where no token's result depends on another token of the batch beyond it. Nobody can
tell that of a custom operation: whoever asks for captured sizes promises it, as engines do. What a graph
does show is refused: results that mix tokens, that pick them by their place from the end, or that use the
size as a number.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch.fx import Graph, Node

from torch_piecewise.cut_policy_names import target_names
from torch_piecewise.torch_private.nodes import example_value, user_line
from torch_piecewise.torch_private.shapes import dim_text

_TAKES_SIZES = frozenset(
    (
        *("view", "reshape", "expand", "repeat", "unflatten", "split", "chunk", "narrow", "getitem", "size"),
        *(
            "empty",
            "zeros",
            "ones",
            "full",
            "new_empty",
            "new_zeros",
            "new_ones",
            "new_full",
            "empty_strided",
        ),
        *("as_strided", "sym_size", "broadcast_to", "_unsafe_view", "slice", "setitem", "repeat_interleave"),
        *("new_empty_strided", "empty_permuted", "sym_stride", "tensor_split", "split_with_sizes"),
    )
)
"""Operations that make or cut tensors of a size, instead of computing with it."""

_MIXES = {
    **dict.fromkeys(
        ("softmax", "log_softmax", "softmin", "sort", "argsort", "flip", "roll", "logcumsumexp"), 1
    ),
    **dict.fromkeys(("normalize", "layer_norm", "glu"), 1),
    **dict.fromkeys(("flipud", "msort"), None),
}
"""Operations that mix what lies along a dim and keep its size: where the dim stands among the arguments."""


def why_not_padded(
    graph: Graph, symbol: str, padded: AbstractSet[Node], is_cut: Callable[[Node], bool] = lambda node: False
) -> str:
    """Why calls of this graph cannot be padded; empty where nothing speaks against it.

    Args:
        symbol: the size that padding changes.
        padded: the inputs that are padded.
        is_cut: whether a node runs between the captured pieces; its operation is trusted.
    """
    checker = _Checker(symbol)
    for node in graph.nodes:
        reason = checker.look_at(node, node in padded, is_cut(node))
        if reason:
            return reason
    return ""


class _Checker:
    def __init__(self, symbol: str) -> None:
        self._symbol = symbol
        self._mentions = re.compile(rf"\b{re.escape(symbol)}\b")
        self._tokens: set[Node] = set()

    def look_at(self, node: Node, padded: bool, cut: bool) -> str:
        if node.op == "placeholder":
            return self._input(node, padded)
        if node.op == "output":
            return self._outputs(node.all_input_nodes)
        if any(operand in self._tokens for operand in node.all_input_nodes) or self._has_tokens(node):
            self._tokens.add(node)
        if _attends_to_all(node, self._token_dim):
            return self._because(node, "lets tokens look at all others")
        if not cut and self._computes_with_size(node):
            return self._because(node, "computes with the size")
        if node not in self._tokens:
            return ""
        if not cut and self._mixes(node):
            return self._because(node, "mixes tokens")
        return self._result(node)

    def _input(self, node: Node, padded: bool) -> str:
        if not padded:
            return ""
        self._tokens.add(node)
        dims = self._token_dims(example_value(node))
        if len(dims) != 1 or dims[0] != self._symbol:
            return f"input {node.name} does not have exactly one dim of that size"
        return ""

    def _outputs(self, results: Iterable[Node]) -> str:
        for node in results:
            value = example_value(node)
            if node in self._tokens and isinstance(value, torch.Tensor):
                dims = self._token_dims(value)
                if dims != [self._symbol]:
                    return self._because(node, f"gives a result of size {list(map(_text, value.shape))}")
        return ""

    def _result(self, node: Node) -> str:
        values = list(_tensors(example_value(node)))
        if not values and node.target == operator.setitem and isinstance(node.args[0], Node):
            values = list(_tensors(example_value(node.args[0])))
        for value in values:
            dims = self._token_dims(value)
            if not dims:
                return self._because(node, "leaves no dim for tokens")
            if len(dims) > 1:
                return self._because(node, "pairs tokens with each other")
            if not re.fullmatch(rf"(\d+\*)?{re.escape(self._symbol)}", dims[0]):
                return self._because(node, f"makes {dims[0]} rows of {self._symbol}")
        return ""

    def _has_tokens(self, node: Node) -> bool:
        return any(self._token_dims(value) for value in _tensors(example_value(node)))

    def _token_dims(self, value: torch.Tensor) -> list[str]:
        texts = [str(_text(size)) for size in value.shape]
        return [text for text in texts if self._mentions.search(text)]

    def _token_dim(self, value: Any) -> int | None:
        if not isinstance(value, torch.Tensor):
            return None
        at = [i for i, size in enumerate(value.shape) if self._mentions.search(str(_text(size)))]
        return at[0] if at else None

    def _computes_with_size(self, node: Node) -> bool:
        sizes = [operand for operand in node.all_input_nodes if self._is_size(operand)]
        if not sizes or not list(_tensors(example_value(node))):
            return False
        name = _name(node)
        if name == "arange":
            return not (
                (len(node.args) == 1 and node.args[0] in sizes)
                or (len(node.args) == 2 and isinstance(node.args[0], int) and node.args[1] in sizes)
            )
        return name not in _TAKES_SIZES

    def _is_size(self, node: Node) -> bool:
        value = example_value(node)
        if not isinstance(value, torch.SymInt | torch.SymFloat):
            return False
        return isinstance(value, torch.SymFloat) or bool(self._mentions.search(str(_text(value))))

    def _mixes(self, node: Node) -> bool:
        name = _name(node)
        operand = node.all_input_nodes[0] if node.all_input_nodes else node
        value = example_value(operand)
        token = self._token_dim(value)
        if token is None:
            return False
        if name in ("conv1d", "conv2d", "conv3d"):
            return token >= 2
        if name == "batch_norm":
            return bool(node.kwargs.get("training", node.args[5] if len(node.args) > 5 else False))
        if name not in _MIXES:
            return False
        return token in _dims_of(node, _MIXES[name], value.dim())

    def _because(self, node: Node, what: str) -> str:
        return f"padding would change results: {_name(node) or node.name} {what}, at {user_line(node)}"


def _dims_of(node: Node, position: int | None, rank: int) -> set[int]:
    """The dims that an operation works along; all of them where it does not say."""
    if position is None:
        return {0}
    given: Any = node.kwargs.get("dim", node.kwargs.get("dims"))
    if given is None and len(node.args) > position:
        given = node.args[position]
    if _name(node) == "layer_norm":
        return set()
    if given is None:
        return {rank - 1} if _name(node) in ("sort", "argsort", "glu") else set(range(rank))
    listed = given if isinstance(given, tuple | list) else (given,)
    return {dim % rank for dim in listed if isinstance(dim, int)}


def _attends_to_all(node: Node, token_dim: Callable[[Any], int | None]) -> bool:
    """Whether attention reads keys whose number is padded, and no rule keeps tokens from the later ones."""
    names = target_names(node)
    if not any(
        "attention" in name and name.startswith(("torch.", "aten::", "higher_order::")) for name in names
    ):
        return False
    given: Any = node.kwargs.get("key", node.args[1] if len(node.args) > 1 else None)
    keys = example_value(given) if isinstance(given, Node) else None
    if not isinstance(keys, torch.Tensor):
        return False
    causal = node.kwargs.get("is_causal", node.args[5] if len(node.args) > 5 else False)
    return token_dim(keys) == keys.dim() - 2 and causal is not True


def _name(node: Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    name = str(getattr(node.target, "__name__", ""))
    known = target_names(node)
    dotted = next((text.rpartition("::")[2].partition(".")[0] for text in known if "::" in text), "")
    return dotted or name


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _text(size: Any) -> Any:
    return dim_text(size) if isinstance(size, int | torch.SymInt) else size
