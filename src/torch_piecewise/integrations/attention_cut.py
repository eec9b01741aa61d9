"""Attention and the update of its key and value cache as one cut, for models whose attention can be replaced.

The cache, the masks and the attention itself stay outside the graph: a compiled call sees tensors and a layer
number, and the cut finds the rest in the call's context. So no length of a cache is a size of the graph, and
any kind of cache that updates by layer serves.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from torch_piecewise.errors import GuardError
from torch_piecewise.splitting_ops import splitting_op


class LayerCache(Protocol):
    """What keeps keys and values."""

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append to a layer, and return all that its queries may look at."""
        ...


@dataclass(frozen=True)
class AttentionCall:
    """What the cuts of one call of a model need and its graph does not hold.

    Attributes:
        layers: attention modules by layer number.
        attend: ``(module, query, key, value, mask, **options) -> (output, weights)``; output
            ``[batch, length, heads, head_dim]``, contiguous.
        masks: by layer number; a layer that is not named has ``mask``.
        mask: for the other layers; None where ``attend`` needs none.
        cache: None to keep nothing.
        read: options as text -> as values; shared by the calls of one model, as they all bring the same few.
    """

    layers: Mapping[int, Any]
    attend: Callable[..., tuple[Tensor, Any]]
    masks: Mapping[int, Tensor | None] = field(default_factory=dict)
    mask: Tensor | None = None
    cache: LayerCache | None = None
    read: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]
    ) -> tuple[Tensor, Any]:
        """Update the cache and attend."""
        if self.cache is not None:
            key, value = self.cache.update(key, value, layer)
        mask = self.masks.get(layer, self.mask)
        return self.attend(self.layers[layer], query, key, value, mask, **options)

    def options(self, text: str) -> dict[str, Any]:
        """What :func:`options_text` wrote."""
        known = self.read.get(text)
        if known is None:
            known = self.read[text] = dict(ast.literal_eval(text))
        return known


_CURRENT: ContextVar[AttentionCall | None] = ContextVar("torch_piecewise_attention_call", default=None)


@contextmanager
def attention_call(call: AttentionCall) -> Iterator[None]:
    """Cuts inside use ``call``; calls of other models may stand inside."""
    token = _CURRENT.set(call)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_call() -> AttentionCall:
    """The call whose cuts run.

    Raises:
        GuardError: attention was called outside of one.
    """
    call = _CURRENT.get()
    if call is None:
        raise GuardError(
            "Attention of a compiled model was called without the model around it",
            expected="a call of the model that compile_causal_lm was given",
            got="a call of one of its parts, or of a copy of it",
            hint="call the model itself; for its parts or a copy, call tp.program_of(model).restore() first",
        )
    return call


def options_text(options: Mapping[str, Any]) -> str:
    """Plain options of an attention call as text; no trace would hold a mapping."""
    return "(" + "".join([f"({name!r}, {value!r})," for name, value in options.items()]) + ")"


def _fake(
    query: Tensor, key: Tensor, value: Tensor, extra: list[Tensor], layer: int, names: str, options: str
) -> Tensor:
    batch, heads, length, _ = query.shape
    return query.new_empty(batch, length, heads, value.shape[-1])


@splitting_op("torch_piecewise_integrations::attention", fake=_fake)
def attention(
    query: Tensor, key: Tensor, value: Tensor, extra: list[Tensor], layer: int, names: str, options: str
) -> Tensor:
    """Append keys and values to the cache of the current call, and attend over it.

    Args:
        query: ``[batch, heads, length, head_dim]``.
        key, value: ``[batch, kv_heads, length, head_dim]``, of the new positions.
        extra: other tensors that the attention takes.
        layer: whose cache, mask and settings.
        names: of ``extra``, separated by spaces.
        options: plain values the attention takes, as :func:`options_text` wrote them.

    Returns:
        ``[batch, length, heads, value's head_dim]``.
    """
    call = current_call()
    given = call.options(options)
    if extra:
        given = {**given, **dict(zip(names.split(), extra, strict=True))}
    output, _weights = call.run(layer, query, key, value, given)
    return output


def traced_attention(
    layer: int, query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]
) -> tuple[Tensor, Any]:
    """Attention as a model under a trace calls it: the cut. Elsewhere it is what the cut does."""
    if not torch.compiler.is_compiling():
        return current_call().run(layer, query, key, value, options)
    names = [name for name, given in options.items() if isinstance(given, Tensor)]
    extra = [options[name] for name in names]
    plain = {name: given for name, given in options.items() if not isinstance(given, Tensor)}
    return attention(query, key, value, extra, layer, " ".join(names), options_text(plain)), None
