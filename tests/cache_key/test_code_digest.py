from __future__ import annotations

import functools

import pytest
import torch

from torch_piecewise.cache_key.code import class_digest, class_values, code_digest, goes_by_name, name_of


def compiled(text: str):
    space: dict[str, object] = {"torch": torch, "functools": functools, "__name__": "some_module"}
    exec(text, space)
    return space["f"]


SAME = [
    ("def f(x): return x + 1", "def f(x):\n    # a comment\n\n    return x + 1"),
    ("def f(x: int) -> int: return x", "def f(x: int) -> int:\n    return (x)"),
]
DIFFERENT = [
    ("def f(x): return x + 1", "def f(x): return x + 2"),
    ("def f(x): return x + 1", "def f(x): return x + 1.0"),
    ("def f(x): return x + 1", "def f(x): return x + True"),
    ("def f(x): return x - 0.0", "def f(x): return x - (-0.0)"),
    ("def f(x, y=1): return x", "def f(x, y=2): return x"),
    ("def f(x, *, y=1): return x", "def f(x, *, y=2): return x"),
    ("def f(x, y=torch.float32): return x", "def f(x, y=torch.float16): return x"),
    ("def f(x, y=[1]): return x", "def f(x, y=[2]): return x"),
    ("def f(x): return torch.sin(x)", "def f(x): return torch.cos(x)"),
    ("def f(x): return x in {1, 2}", "def f(x): return x in {1, 3}"),
    ("def f(x): return [i for i in x]", "def f(x): return [i + 1 for i in x]"),
    ("def f(x): return (lambda: 1)", "def f(x): return (lambda: 2)"),
    (
        "def g(a):\n  def h(x): return a\n  return h\nf = g(1)",
        "def g(a):\n  def h(x): return a\n  return h\nf = g(2)",
    ),
    ("f = functools.lru_cache(lambda x: 1)", "f = functools.lru_cache(lambda x: 2)"),
    ("@torch.no_grad()\ndef f(x): return 1", "@torch.no_grad()\ndef f(x): return 2"),
    (
        "def f(x):\n  try: return x\n  except ValueError: return 1",
        "def f(x):\n  try: return x\n  except KeyError: return 1",
    ),
]


@pytest.mark.parametrize(("left", "right"), SAME)
def test_the_same_code_in_another_dress_has_one_digest(left, right):
    assert code_digest(compiled(left)) == code_digest(compiled(right))


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_other_code_has_another_digest(left, right):
    assert code_digest(compiled(left)) == code_digest(compiled(left))
    assert code_digest(compiled(left)) != code_digest(compiled(right))


def test_running_a_function_does_not_change_its_digest():
    def f(x: float) -> float:
        total = 0.0
        for _ in range(2000):
            total += x * 2.0
        return total

    before = code_digest(f)
    f(1.5)
    assert code_digest(f) == before


def test_what_has_no_python_code_counts_by_name():
    assert code_digest(len) != code_digest(max)
    assert code_digest(torch.sin) != code_digest(torch.cos)


def make_class(text: str) -> type:
    space: dict[str, object] = {"__name__": "some_module", "functools": functools}
    exec(text, space)
    return space["C"]


BODIES = [
    "  def m(self): return {}",
    "  @property\n  def m(self): return {}",
    "  @staticmethod\n  def m(): return {}",
    "  @classmethod\n  def m(cls): return {}",
    "  @functools.cached_property\n  def m(self): return {}",
]


@pytest.mark.parametrize("body", BODIES)
def test_every_kind_of_method_counts(body):
    first, same, other = (make_class(f"class C:\n{body.format(number)}") for number in (1, 1, 2))
    assert class_digest(first) == class_digest(same)
    assert class_digest(first) != class_digest(other)


def test_a_base_class_counts():
    text = "class B:\n  def m(self): return {}\nclass C(B): pass"
    assert class_digest(make_class(text.format(1))) != class_digest(make_class(text.format(2)))


def test_plain_values_of_classes_are_told_apart_from_code():
    text = "class B:\n  eps = 1\n  dim = 2\nclass C(B):\n  eps = {}\n  __hidden__ = 1"
    first, second = make_class(text.format(3)), make_class(text.format(4))
    assert class_digest(first) == class_digest(second)
    assert class_values(first) == {"eps": 3, "dim": 2}


def test_a_users_file_called_like_a_module_of_the_standard_library_counts_by_its_code(tmp_path, monkeypatch):
    import sys
    import types

    module = types.ModuleType("queue")
    module.__file__ = str(tmp_path / "queue.py")
    assert goes_by_name("queue")
    assert goes_by_name("torch.nn.modules.linear")
    assert not goes_by_name("transformers.models")
    assert not goes_by_name(None)
    monkeypatch.setitem(sys.modules, "queue", module)
    assert not goes_by_name("queue")


def test_names_are_qualified():
    assert name_of(torch.nn.Linear) == "torch.nn.modules.linear.Linear"
    assert name_of(int) == "int"
    assert name_of(make_class) == f"{__name__}.make_class"
