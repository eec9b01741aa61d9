"""Piecewise compilation of PyTorch models: cut, compile for ranges of sizes, replay, keep.

Names are loaded when they are first used: what compiles needs Dynamo and Inductor, seconds that a program
which defines a splitting op, reads a configuration or starts from the store does not owe.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

    from torch_piecewise.api import compile as compile
    from torch_piecewise.api import program_of as program_of
    from torch_piecewise.artifact import Artifact as Artifact
    from torch_piecewise.backend import PiecewiseCompileBackend as PiecewiseCompileBackend
    from torch_piecewise.baking import bake as bake
    from torch_piecewise.bundle_start import load as load
    from torch_piecewise.compilers import make_compiler as make_compiler
    from torch_piecewise.completion import set_on_compilation_complete as set_on_compilation_complete
    from torch_piecewise.config import Config as Config
    from torch_piecewise.cudagraph_mode import CUDAGraphMode as CUDAGraphMode
    from torch_piecewise.cudagraphs import BatchDescriptor as BatchDescriptor
    from torch_piecewise.cudagraphs import CUDAGraphDispatcher as CUDAGraphDispatcher
    from torch_piecewise.cudagraphs import CUDAGraphOptions as CUDAGraphOptions
    from torch_piecewise.cudagraphs import CUDAGraphWrapper as CUDAGraphWrapper
    from torch_piecewise.cudagraphs import forward_context as forward_context
    from torch_piecewise.cudagraphs import make_copy_and_call as make_copy_and_call
    from torch_piecewise.ignoring import ignore as ignore
    from torch_piecewise.manager import CompilerManager as CompilerManager
    from torch_piecewise.passes.base import GraphPass as GraphPass
    from torch_piecewise.passes.context import get_pass_context as get_pass_context
    from torch_piecewise.passes.context import pass_context as pass_context
    from torch_piecewise.passes.manager import PassManager as PassManager
    from torch_piecewise.ranges import Range as Range
    from torch_piecewise.splitting import SplitItem as SplitItem
    from torch_piecewise.splitting import split_graph as split_graph
    from torch_piecewise.splitting_ops import splitting_op as splitting_op
    from torch_piecewise.tags import set_model_tag as set_model_tag

_MODULE_OF = {
    "Artifact": "artifact",
    "BatchDescriptor": "cudagraphs",
    "CUDAGraphDispatcher": "cudagraphs",
    "CUDAGraphMode": "cudagraph_mode",
    "CUDAGraphOptions": "cudagraphs",
    "CUDAGraphWrapper": "cudagraphs",
    "CompilerManager": "manager",
    "Config": "config",
    "GraphPass": "passes.base",
    "PassManager": "passes.manager",
    "PiecewiseCompileBackend": "backend",
    "Range": "ranges",
    "SplitItem": "splitting",
    "bake": "baking",
    "compile": "api",
    "forward_context": "cudagraphs",
    "get_pass_context": "passes.context",
    "ignore": "ignoring",
    "load": "bundle_start",
    "make_compiler": "compilers",
    "make_copy_and_call": "cudagraphs",
    "pass_context": "passes.context",
    "program_of": "api",
    "set_model_tag": "tags",
    "set_on_compilation_complete": "completion",
    "split_graph": "splitting",
    "splitting_op": "splitting_ops",
}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605 - a list of names, in one place


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_MODULE_OF, "__version__"]


def _version() -> str:
    """The distribution's version; ``"unknown"`` where the package lies on the path and is not installed."""
    # Imported for its cost: nobody who does not ask owes it.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("torch-piecewise")
    except PackageNotFoundError:
        return "unknown"
