"""Identity of Triton kernels in a graph: a node names them by their place in a table of the process."""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType
from typing import Any

from torch.fx import Node

from torch_piecewise.errors import FingerprintError
from torch_piecewise.fingerprint.objects import unnamed
from torch_piecewise.fingerprint.values import ValueWriter
from torch_piecewise.torch_private.ops import (
    is_higher_order,
    op_name,
    triton_constants,
    triton_kernel,
)

_CALLS = frozenset({"triton_kernel_wrapper_mutation", "triton_kernel_wrapper_functional"})

# What Triton's decorators keep beside the source. Read where present: versions differ.
_JIT = ("do_not_specialize", "do_not_specialize_on_alignment", "noinline", "debug")
_CONFIG = ("kwargs", "num_warps", "num_stages", "num_ctas", "maxnreg", "ir_override", "pre_hook")
_AUTOTUNER = ("keys", "reset_to_zero", "restore_value", "configs_top_k", "perf_model", "early_config_prune")
_HOOKS = {"user_defined_pre_hook": "pre_hook", "user_defined_post_hook": "post_hook"}


def is_triton_call(target: object) -> bool:
    """Whether a node with this target launches a Triton kernel out of torch's side table."""
    return is_higher_order(target) and op_name(target) in _CALLS


def kernel_arguments(node: Node, writer: ValueWriter) -> Mapping[str, str]:
    """Canonical texts for the two arguments of a launch that are places in the side table.

    Raises:
        FingerprintError: the table does not have them, or the kernel has no stable identity.
    """
    try:
        kernel = triton_kernel(_index(node, "kernel_idx"))
        constants = triton_constants(_index(node, "constant_args_idx"))
    except KeyError as error:
        raise FingerprintError(
            "A Triton launch refers to a kernel that this process does not know",
            expected="an index into torch's table of kernels",
            got=f"{error}",
            hint="take the fingerprint in the process that traced the graph",
        ) from error
    return {"kernel_idx": kernel_text(kernel, writer), "constant_args_idx": writer.text(dict(constants))}


def _index(node: Node, name: str) -> int:
    index = node.kwargs.get(name)
    if not isinstance(index, int):
        raise KeyError(f"{name}={index!r}")
    return index


def triton_text(value: Any, writer: ValueWriter) -> str:
    """Canonical text of an object of a class that Triton defines.

    Raises:
        FingerprintError: it is no kernel, data type or compile-time constant.
    """
    kind = type(value).__name__
    if kind == "constexpr":
        return f"triton constexpr({writer.text(value.value)})"
    if kind == "dtype":
        return f"triton dtype {str(value)!a}"
    return kernel_text(value, writer)


def kernel_text(kernel: Any, writer: ValueWriter) -> str:
    """Canonical text of a kernel: the source that it and its helpers have, and how it is launched.

    Raises:
        FingerprintError: it is no ``triton.jit`` function, autotuner or heuristic.
    """
    if isinstance(getattr(kernel, "cache_key", None), str):
        options = ", ".join(f"{name}={writer.text(getattr(kernel, name, None))}" for name in _JIT)
        return f"triton jit {kernel.cache_key} ({options})"
    if hasattr(kernel, "configs") and hasattr(kernel, "fn"):
        return _autotuner_text(kernel, writer)
    if isinstance(getattr(kernel, "values", None), dict) and hasattr(kernel, "fn"):
        values = ", ".join(f"{name}={_code(kernel.values[name], writer)}" for name in sorted(kernel.values))
        return f"triton heuristics ({values}) of {kernel_text(kernel.fn, writer)}"
    raise unnamed(kernel, f"{type(kernel).__module__}.{type(kernel).__qualname__}, no kernel that is known")


def _autotuner_text(kernel: Any, writer: ValueWriter) -> str:
    configs = ", ".join(_fields(config, _CONFIG, writer) for config in kernel.configs)
    hooks = [hook for flag, hook in _HOOKS.items() if getattr(kernel, flag, False)]
    settings = _fields(kernel, (*_AUTOTUNER, *hooks), writer)
    return f"triton autotune [{configs}] {settings} of {kernel_text(kernel.fn, writer)}"


def _fields(holder: object, names: tuple[str, ...], writer: ValueWriter) -> str:
    fields = [f"{name}={_code(getattr(holder, name), writer)}" for name in names if hasattr(holder, name)]
    return f"({', '.join(fields)})"


def _code(value: object, writer: ValueWriter) -> str:
    # Heuristics and hooks are lambdas by custom; the launch says which ones, so that they need no name.
    return writer.code(value) if isinstance(value, FunctionType) else writer.text(value)
