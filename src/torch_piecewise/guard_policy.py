"""What a call gets whose guards do not hold, by ``evaluate_guards`` and ``on_guard_failure``."""

from __future__ import annotations

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


def refusal(config: Config, reason: Mismatch, traces: int) -> GuardError | None:
    """The error for a call that none of ``traces`` serves because of ``reason``; None: trace it again."""
    if config.on_guard_failure == "error":
        return GuardError(
            "This call is not one the model was traced for",
            expected=reason.expected,
            got=reason.got,
            hint="call it as it was first called, or set on_guard_failure='recompile'",
        )
    if traces >= RECOMPILE_LIMIT:
        return GuardError(
            f"The model was traced {RECOMPILE_LIMIT} times and the next call differs again",
            expected="calls that few traces serve",
            got=str(reason),
            hint="declare what changes in dynamic_arg_dims, or pass it as a tensor",
        )
    return None


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
