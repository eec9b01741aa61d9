"""The modes in which a model runs as one: uncompiled (``none``), or through plain ``torch.compile``."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from torch_piecewise.call_form import call_form
from torch_piecewise.config import Config
from torch_piecewise.dynamic_dims import Dims, dynamic_dims, from_front
from torch_piecewise.errors import ConfigError

WHOLE_MODES = ("none", "stock_torch_compile")
"""Values of ``mode`` in which nothing of this library runs in a call."""


def dims_of_mode(declared: Callable[..., Any], config: Config) -> Dims:
    """Which dims are dynamic under ``config.mode``.

    Raises:
        ConfigError: as :func:`~torch_piecewise.dynamic_dims.dynamic_dims`; but where nothing is configured
            and nothing annotated, plain ``torch.compile`` finds out by itself.
    """
    if config.mode == "none":
        return {}
    try:
        return dynamic_dims(declared, config)
    except ConfigError:
        if config.mode == "stock_torch_compile" and config.dynamic_arg_dims is None:
            return {}
        raise


def whole_call(
    original: Callable[..., Any], named: inspect.Signature, dims: Dims, config: Config
) -> Callable[..., Any] | None:
    """What runs a call in the modes of :data:`WHOLE_MODES`; None in those that trace the model here.

    Args:
        original: the uncompiled call.
        named: its parameters by the names people know.
        dims: which dims of its arguments are dynamic.
    """
    if config.mode == "none":
        return original
    return StockCompiled(original, named, dims, config) if config.mode == "stock_torch_compile" else None


class StockCompiled:
    """``torch.compile`` of a call, with those settings that it has too.

    ``backend`` (its own ``inductor`` or ``eager``), ``inductor_compile_config`` and
    ``assume_32_bit_indexing`` become its backend and options. Declared dims are marked on the arguments of
    each call (``maybe_mark_dynamic``; ``mark_unbacked`` for unbacked ones), which is how it is told of them:
    the marks stay on the caller's tensors.
    """

    def __init__(
        self, function: Callable[..., Any], named: inspect.Signature, dims: Dims, config: Config
    ) -> None:
        self._function = function
        self._named = named
        self._dims = dims
        self._config = config
        self._compiled: Callable[..., Any] | None = None
        self._lock = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the call; torch compiles where it has not yet."""
        if torch.compiler.is_compiling():  # inside another compile there is nothing left to do
            return self._function(*args, **kwargs)
        with self._lock:
            if self._compiled is None:
                self._compiled = torch.compile(self._function, **stock_arguments(self._config))
        if self._dims:
            self._mark(args, kwargs)
        return self._compiled(*args, **kwargs)

    def _mark(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        # Imported for its cost: it loads Dynamo.
        from torch_piecewise.torch_private.dynamo import mark_maybe_dynamic, mark_unbacked

        values = call_form(self._function, self._named, args, kwargs).values
        for name, by_dim in from_front(self._dims, values).items():
            value = values[name]
            unbacked = {dim % value.dim() for dim in self._config.unbacked_dims().get(name, ())}
            for dim in by_dim:
                if self._config.dynamic_shapes == "unbacked" or dim in unbacked:
                    mark_unbacked(value, dim)
                else:
                    mark_maybe_dynamic(value, dim)


def stock_arguments(config: Config) -> dict[str, Any]:
    """What ``torch.compile`` is called with."""
    if config.backend == "eager":
        return {"backend": "eager"}
    options = config.inductor_settings()
    return {"backend": "inductor", **({"options": options} if options else {})}
