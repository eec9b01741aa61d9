"""Records of programs: what they may hold, and that another process gets the same."""

from __future__ import annotations

import math
import types
from typing import Any, NamedTuple

import pytest
import torch

from torch_piecewise.errors import FingerprintError
from torch_piecewise.graph_bytes import from_bytes, to_bytes


class Pair(NamedTuple):
    """A result's class."""

    one: int
    other: int


@pytest.mark.parametrize(
    "kind",
    [types.MethodType, types.FunctionType, types.CodeType, types.ModuleType, types.NoneType, types.CellType],
)
def test_types_that_only_the_types_module_names_are_kept(kind: type) -> None:
    assert from_bytes(to_bytes(("before", kind))) == ("before", kind)


def test_code_is_kept() -> None:
    def doubled(x: int) -> int:
        return x * 2

    code = from_bytes(to_bytes(doubled.__code__))
    assert code == doubled.__code__
    assert types.FunctionType(code, {})(4) == 8


def test_code_with_constants_that_marshal_does_not_know_is_kept() -> None:
    def made(x: Any) -> Any:
        def inner() -> Any:
            return x, "dtype", -0.0

        return [inner()]

    constants = (None, torch.float16, torch.device("cpu"), torch.contiguous_format, Pair._make)
    swap = {"dtype": torch.bfloat16}
    inner = next(one for one in made.__code__.co_consts if isinstance(one, types.CodeType))
    inner = inner.replace(co_consts=tuple(swap.get(one, one) for one in inner.co_consts))
    outer = tuple(inner if isinstance(one, types.CodeType) else one for one in made.__code__.co_consts)
    code = from_bytes(to_bytes(made.__code__.replace(co_consts=(*outer, *constants))))
    assert code.co_consts[len(outer) :] == constants
    ((x, dtype, zero),) = types.FunctionType(code, {})(8)
    assert (x, dtype) == (8, torch.bfloat16)
    assert math.copysign(1, zero) == -1


def test_what_another_process_cannot_find_is_refused() -> None:
    class Local:
        pass

    held: Any = {"type": Local}
    with pytest.raises(FingerprintError, match=r"(?s)cannot be kept.*Local.*move what it refers to"):
        to_bytes(held)
