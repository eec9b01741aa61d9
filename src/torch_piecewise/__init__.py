"""Piecewise compilation of PyTorch models: cut, compile for ranges of sizes, replay, keep."""

from torch_piecewise.api import compile, program_of
from torch_piecewise.backend import PiecewiseCompileBackend
from torch_piecewise.compilers import make_compiler
from torch_piecewise.config import Config
from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.manager import CompilerManager
from torch_piecewise.ranges import Range
from torch_piecewise.splitting import SplitItem, split_graph
from torch_piecewise.splitting_op import splitting_op

__all__ = [
    "CUDAGraphMode",
    "CompilerManager",
    "Config",
    "PiecewiseCompileBackend",
    "Range",
    "SplitItem",
    "compile",
    "make_compiler",
    "program_of",
    "split_graph",
    "splitting_op",
]
