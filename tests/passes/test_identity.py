from __future__ import annotations

import functools
import importlib.util
import itertools
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from torch_piecewise.errors import FingerprintError
from torch_piecewise.passes.identity import identity_of

Load = Callable[..., ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import source text as a module; each time from a file, and under a name, of its own."""
    numbers = itertools.count()

    def make(source: str, **beside: str) -> ModuleType:
        folder = tmp_path / f"v{next(numbers)}"
        folder.mkdir()
        for name, text in beside.items():
            (folder / f"{name}.py").write_text(text)
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(str(folder))
        file = folder / f"made_{folder.name}.py"
        file.write_text(source)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, file.stem, module)
        spec.loader.exec_module(module)
        return module

    return make


def digest(value: object) -> str:
    return identity_of(value, what="it").digest


def change(load: Load, before: str, after: str, source: str, **beside: str) -> bool:
    """Whether ``f`` or ``F()`` is something else when ``before`` is replaced by ``after``."""
    assert before in source or any(before in text for text in beside.values())

    def once(text: dict[str, str]) -> str:
        module = load(**text)
        return digest(module.f if hasattr(module, "f") else module.F())

    given = {"source": source, **beside}
    first = once(given)
    assert once(given) == first, "the same text has two identities"
    return once({name: text.replace(before, after) for name, text in given.items()}) != first


FUNCTION = """
import math

SCALE = 2

def helper(x):
    return deeper(x) + SCALE

def deeper(x):
    return x * 3

def f(x, times=4):
    def inner(y):
        return helper(y)
    return inner(x) + math.pi
"""


@pytest.mark.parametrize(
    ("what", "before", "after"),
    [
        ("its own text", "inner(x) + math.pi", "inner(x) - math.pi"),
        ("a default", "times=4", "times=5"),
        ("a helper", "deeper(x) + SCALE", "deeper(x) - SCALE"),
        ("a helper's helper", "x * 3", "x * 4"),
        ("a constant that a helper names", "SCALE = 2", "SCALE = 3"),
    ],
)
def test_a_function_is_something_else_after_a_change_of(load, what, before, after):
    assert change(load, before, after, FUNCTION), what


def test_what_a_function_does_not_name_does_not_count(load):
    assert not change(load, "OTHER = 1", "OTHER = 2", FUNCTION + "\nOTHER = 1\n")


def test_a_function_of_another_module_of_the_user_counts(load):
    source = "import made_helpers\n\ndef f(x):\n    return made_helpers.fuse(x)\n"
    assert change(load, "x + 1", "x + 2", source, made_helpers="def fuse(x):\n    return x + 1\n")


def test_a_function_imported_inside_counts(load):
    source = "def f(x):\n    from made_helpers import fuse\n    return fuse(x)\n"
    assert change(load, "x + 1", "x + 2", source, made_helpers="def fuse(x):\n    return x + 1\n")


def test_a_module_counts_only_as_far_as_it_is_named(load):
    source = "import made_helpers\n\ndef f(x):\n    return made_helpers.fuse(x)\n"
    helpers = "def fuse(x):\n    return x\n\ndef other(x):\n    return 1\n"
    assert not change(load, "return 1", "return 2", source, made_helpers=helpers)


def test_a_wrapped_function_counts_with_its_wrapper_and_what_it_wraps(load):
    source = """
import functools

def twice(function):
    @functools.wraps(function)
    def wrapper(x):
        return function(x) * 2
    return wrapper

@twice
def helper(x):
    return x + 1

def f(x):
    return helper(x)
"""
    assert change(load, "* 2", "* 3", source)
    assert change(load, "x + 1", "x + 5", source)


def test_a_cached_function_counts(load):
    source = """
import functools

@functools.cache
def helper(x):
    return x + 1

def f(x):
    return helper(x)
"""
    assert change(load, "x + 1", "x + 2", source)


def test_functions_that_call_each_other_end(load):
    module = load("def f(x):\n    return g(x)\n\ndef g(x):\n    return f(x)\n")
    assert identity_of(module.f, what="it").names >= {f"{module.__name__}.f", f"{module.__name__}.g"}


CLASS = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Base:
    size: int = 1
    LIMIT: ClassVar[int] = 10

    def shared(self):
        return outside(self.size)

def outside(x):
    return x + 7

@dataclass(frozen=True)
class F(Base):
    names: tuple = ("a",)

    def __call__(self):
        return self.shared()

    @property
    def half(self):
        return self.size / 2

    @staticmethod
    def fixed():
        return 3
"""


@pytest.mark.parametrize(
    ("what", "before", "after"),
    [
        ("a method", "return self.shared()", "return -self.shared()"),
        ("a method of its base", "outside(self.size)", "outside(-self.size)"),
        ("a helper that its base names", "x + 7", "x + 8"),
        ("a field's default", '("a",)', '("b",)'),
        ("a field of its base", "size: int = 1", "size: int = 2"),
        ("a class attribute of its base", "= 10", "= 11"),
        ("a property", "self.size / 2", "self.size / 3"),
        ("a static method", "return 3", "return 4"),
    ],
)
def test_an_instance_is_something_else_after_a_change_of(load, what, before, after):
    assert change(load, before, after, CLASS), what


def test_an_instance_is_what_its_fields_are(load):
    made = load(CLASS).F
    assert digest(made(size=1)) == digest(made(size=1))
    assert digest(made(size=1)) != digest(made(size=2))
    assert digest(made(size=1)) != digest(made(size=1.0))


def test_a_method_put_in_later_counts(load):
    module = load(CLASS)
    before = digest(module.F())
    module.F.shared = module.outside
    assert digest(module.F()) != before


def test_sets_and_mappings_have_no_order():
    assert digest({"a", "b", "c"}) == digest({"c", "b", "a"})
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        ("1", 1),
        ((1, 2), [1, 2]),
        ((1, (2,)), ((1, 2),)),
        (None, "None"),
        (torch.float32, "torch.float32"),
        (torch.float32, torch.float16),
        (torch.ops.aten.add.Tensor, torch.ops.aten.add.Scalar),
        (torch.ops.aten.add, torch.ops.aten.mul),
        (torch.nn.Linear, torch.nn.Conv1d),
        (torch.nn.functional.relu, torch.nn.functional.gelu),
        (len, max),
        (functools.partial(max, 1), functools.partial(max, 2)),
        (Path("a"), Path("b")),
    ],
)
def test_apart_are(one, other):
    assert digest(one) != digest(other)
    assert digest(one) == digest(one)


def test_tools_count_by_name():
    assert digest(logging.getLogger("a")) != digest(logging.getLogger("b"))
    assert digest(threading.Lock()) == digest(threading.Lock())


class Live:
    """Not a dataclass: nobody says what its state is."""


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (lambda x: x, "a lambda (at it)"),
        (torch.zeros(2), "a live Tensor (at it)"),
        (Live(), "a live Live (at it)"),
        (threading.Event(), "a live Event (at it)"),
    ],
)
def test_a_value_without_a_name_is_refused(value, got):
    with pytest.raises(FingerprintError) as caught:
        digest(value)
    assert caught.value.got == got


def test_a_local_function_is_refused_by_name():
    def local(x: int) -> int:
        return x

    with pytest.raises(FingerprintError) as caught:
        digest(local)
    assert str(caught.value) == (
        "it has no identity that holds in another process\n"
        "  expected: functions and classes written at the top of a module, and plain values\n"
        "  got: the local function test_a_local_function_is_refused_by_name.<locals>.local (at it)\n"
        "  to do: move it to the top of a module, make it a field of the pass, or override uuid()"
    )


def test_a_refusal_says_where_it_was_met(load):
    module = load("TABLE = {'a': object()}\n\ndef g():\n    return TABLE\n\ndef f():\n    return g()\n")
    with pytest.raises(FingerprintError, match=r"a live object \(at it -> g -> TABLE\)"):
        digest(module.f)


def test_code_without_source_is_refused():
    scope: dict[str, object] = {"__name__": "made_of_nothing"}
    exec("def f():\n    return 1", scope)
    with pytest.raises(FingerprintError, match="code whose source is not at hand"):
        digest(scope["f"])


def test_installed_code_counts_by_name_and_version(load, monkeypatch):
    source = "import packaging.version\n\ndef f(x):\n    return packaging.version.parse(x)\n"
    module = load(source)
    before = digest(module.f)
    assert not any("packaging" in name for name in identity_of(module.f, what="it").names)
    monkeypatch.setattr(sys.modules["packaging"], "__version__", "another")
    assert digest(module.f) != before
