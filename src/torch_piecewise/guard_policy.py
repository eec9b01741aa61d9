"""What a call gets whose guards do not hold, by ``evaluate_guards`` and ``on_guard_failure``."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from torch_piecewise.config import Config
from torch_piecewise.errors import ConfigError, GuardError

LARGEST_INDEX = 2**31 - 1
"""Elements that 32 bits can index."""

RECOMPILE_LIMIT = 16
"""Traces of one callable; more of them means that a call's identity changes with every call."""


@dataclass(frozen=True)
class Mismatch:
    """Why a call is not one that an entry was traced for.

    Attributes:
        got: what the call has; where ``expected`` is None it says both.
        expected: the condition of the trace.
    """

    got: str
    expected: str | None = None

    def __str__(self) -> str:
        return self.got if self.expected is None else f"{self.expected}, got {self.got}"


def refusal(config: Config, reason: Mismatch) -> GuardError | None:
    """The error for a call that no trace serves because of ``reason``; None: trace it again."""
    if config.on_guard_failure != "error":
        return None
    return GuardError(
        "This call is not one the model was traced for",
        expected=reason.expected,
        got=reason.got,
        hint="call it as it was first called, or set on_guard_failure='recompile'",
    )


def stays_eager(config: Config, traces: int) -> bool:
    """Whether calls that none of ``traces`` serves run as they are: more traces would serve few of them."""
    return traces >= RECOMPILE_LIMIT and config.on_miss != "error"


class Repeats:
    """What people are told of calls that keep differing in one thing; once of each thing.

    Args:
        label: what people call the traced callable.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._counts: Counter[str] = Counter()
        self._is_past_limit = False

    def warning(self, reason: Mismatch) -> str | None:
        """What to say before another trace because of ``reason``; None: nothing."""
        thing = _thing(reason)
        self._counts[thing] += 1
        if self._counts[thing] != _DIFFERENCES_BEFORE_WARNING:
            return None
        return (
            f"{self._label} is traced for the fourth time because calls differ in one thing ({reason}); "
            f"after {RECOMPILE_LIMIT} traces such calls run uncompiled: {_advice(reason)}"
        )

    def warning_past_limit(self, reason: Mismatch) -> str | None:
        """What to say of a call that is not traced any more; None: it was said."""
        if self._is_past_limit:
            return None
        self._is_past_limit = True
        return (
            f"{self._label} was traced {RECOMPILE_LIMIT} times and the next call differs again ({reason}): "
            f"calls that none of the traces serves run uncompiled from now on; {_advice(reason)}"
        )


_DIFFERENCES_BEFORE_WARNING = 3


def _thing(reason: Mismatch) -> str:
    """What differs, without the values it has."""
    if reason.expected is not None:
        return re.sub(r"\d+", "", reason.expected)
    return reason.got.partition(" was ")[0]


def _advice(reason: Mismatch) -> str:
    if reason.expected is not None:
        return "change the line that asks, or pass a number that changes as a tensor"
    if reason.got.startswith("the model"):
        return "keep an attribute that changes in a tensor (register_buffer), or change it outside forward"
    if reason.got.startswith(("submodule", "a module")):
        return "compile the model after its modules and hooks are what they stay"
    if reason.got.startswith("the global"):
        return "pass what changes as an argument, a tensor"
    return (
        "declare the dims of a tensor that change in dynamic_arg_dims; pass a number that changes as a tensor"
    )


def evaluation_error(expected: str, got: str) -> GuardError:
    """What ``evaluate_guards`` makes of a call whose sizes violate what the model's own code asked."""
    return GuardError(
        "The model's own code does not treat all sizes of a dynamic dim alike",
        expected=expected,
        got=got,
        hint="change that line, or leave evaluate_guards out to have such sizes traced apart",
    )


def limit_error(got: str, expected: str = f"tensors of at most {LARGEST_INDEX} elements") -> ConfigError:
    """What a call is told that breaks the promise of ``assume_32_bit_indexing``."""
    return ConfigError(
        "A tensor is too large for assume_32_bit_indexing",
        expected=expected,
        got=got,
        hint="set assume_32_bit_indexing=False, or make such calls smaller",
    )
