"""Records of programs: what they may hold, and that another process gets the same."""

from __future__ import annotations

import types
from typing import Any

import pytest

from torch_piecewise.errors import FingerprintError
from torch_piecewise.graph_bytes import from_bytes, to_bytes


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


def test_what_another_process_cannot_find_is_refused() -> None:
    class Local:
        pass

    held: Any = {"type": Local}
    with pytest.raises(FingerprintError, match=r"(?s)cannot be kept.*Local.*move what it refers to"):
        to_bytes(held)
