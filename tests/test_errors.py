"""The error tree: one root, builtins people already catch, messages in four parts."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from torch_piecewise import errors
from torch_piecewise.errors import ConfigError, PiecewiseError

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, PiecewiseError) and cls.__module__ == errors.__name__
]

all_classes = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def drawn() -> dict[str, tuple[str | None, str]]:
    """Class -> builtin beside it and class above it, as drawn in the module's docstring."""
    found: dict[str, tuple[str | None, str]] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"^((?:    |│   |├── |└── )*)(\w+Error)\b\s*(?:\((\w+)\))?", line)
        if match is None:
            continue
        # The tree itself is indented by four.
        level = len(match[1]) // 4 - 1
        del path[level:]
        found[match[2]] = (match[3], path[-1] if path else "Exception")
        path.append(match[2])
    return found


def test_the_tree_that_is_drawn_is_the_tree_that_there_is():
    assert set(drawn()) == {cls.__name__ for cls in CLASSES}
    for cls in CLASSES:
        builtin, parent = drawn()[cls.__name__]
        bases = [base.__name__ for base in cls.__bases__]
        assert bases == [name for name in (parent, builtin) if name is not None]


@all_classes
def test_every_error_can_be_caught_as_ours(cls):
    with pytest.raises(PiecewiseError):
        raise cls("it went wrong")


@all_classes
def test_a_message_has_its_parts_in_order_and_leaves_out_what_is_not_said(cls):
    full = cls("it went wrong", expected="this", got="that", hint="do so")
    assert str(full) == "it went wrong\n  expected: this\n  got: that\n  to do: do so"
    assert str(cls("it went wrong", hint="do so")) == "it went wrong\n  to do: do so"
    assert str(cls("it went wrong")) == "it went wrong"


@all_classes
def test_an_error_crosses_processes_with_all_its_parts(cls):
    error = cls("it went wrong", expected="this", got="that", hint="do so")
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is cls
    assert (twin.what, twin.expected, twin.got, twin.hint) == ("it went wrong", "this", "that", "do so")
    assert str(twin) == str(error)


@all_classes
def test_every_error_says_what_it_is_for(cls):
    first, *_ = (cls.__doc__ or "").splitlines() or [""]
    assert first.endswith(".")


def test_a_config_error_is_the_value_error_people_catch():
    with pytest.raises(ValueError, match="wrong"):
        raise ConfigError("wrong")
