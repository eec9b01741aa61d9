"""Every error the library raises, as one tree.

Each one is also a subclass of the builtin that people already catch::

    PiecewiseError                      everything below
    ├── ConfigError        (ValueError)     a setting is unknown, contradictory or malformed
    ├── ArgumentError      (TypeError)      a call was given a value of the wrong type
    ├── CaptureError       (RuntimeError)   the model could not be traced as one graph
    │   ├── GraphBreakError                 Dynamo had to break the graph
    │   └── DynamicDimError  (ValueError)   a dynamic dim does not exist or was specialised
    ├── SplitError         (ValueError)     a splitting op cannot be resolved or applied
    ├── FingerprintError   (TypeError)      a piece holds something that has no stable identity
    ├── CompileError       (RuntimeError)   compiling failed
    │   ├── PieceCompileError               ... for one piece: names piece, range, op, source line
    │   └── CompilerError                   a compiler broke its protocol
    ├── DispatchError      (LookupError)    no compiled range serves this size
    ├── GuardError         (RuntimeError)   a call does not meet what the program was traced for
    ├── PassError          (RuntimeError)   a graph pass is misplaced or left a broken graph
    ├── StaticGraphError   (RuntimeError)   capture or replay of a static graph was refused
    ├── StoreError         (OSError)        the store cannot be used
    │   └── UntrustedError                  a root, bundle or blob is not to be trusted
    ├── MissError          (RuntimeError)   ``on_miss="error"`` and the store had no entry
    └── BundleError        (ValueError)     a bundle does not fit this machine, model or key
        └── BundleFileError  (OSError)          ... or a file of it cannot be read or written

A message says what went wrong, what was expected, what was given, and what to do, in that order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(given: object, known: Iterable[str]) -> str | None:
    """A hint that names what was probably meant; None where nothing known is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(given).lower(), by_lower, n=3)
    return f"did you mean {' or '.join(repr(by_lower[name]) for name in near)}?" if near else None


class PiecewiseError(Exception):
    """Base of all errors raised on purpose by torch-piecewise.

    Args:
        what: one sentence: what went wrong, naming the thing it went wrong with.
        expected: what would have been right, if that can be said.
        got: what was given instead.
        hint: what to do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.expected = expected
        self.got = got
        self.hint = hint
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [self.what]
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        if self.got is not None:
            lines.append(f"  got: {self.got}")
        if self.hint is not None:
            lines.append(f"  to do: {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (the compile pool); keyword arguments need help with that.
        return (_rebuild, (type(self), self.what, self.expected, self.got, self.hint))


def _rebuild(
    cls: type[PiecewiseError], what: str, expected: str | None, got: str | None, hint: str | None
) -> PiecewiseError:
    return cls(what, expected=expected, got=got, hint=hint)


class ConfigError(PiecewiseError, ValueError):
    """A setting is unknown, contradicts another, or has a value it cannot have."""


class ArgumentError(PiecewiseError, TypeError):
    """A call of this library was given a value of the wrong type."""


class CaptureError(PiecewiseError, RuntimeError):
    """The model could not be traced into one graph."""


class GraphBreakError(CaptureError):
    """Dynamo had to break the graph; names file, line, reason and what to change."""


class DynamicDimError(CaptureError, ValueError):
    """A dim declared dynamic does not exist, or the model's code fixes its size."""


class SplitError(PiecewiseError, ValueError):
    """A splitting op cannot be resolved, or the graph cannot be cut there."""


class FingerprintError(PiecewiseError, TypeError):
    """A piece refers to something that has no stable identity (a lambda, a local function)."""


class CompileError(PiecewiseError, RuntimeError):
    """Compiling failed."""


class PieceCompileError(CompileError):
    """One piece failed to compile; names the piece, the range, the op and the source line."""


class CompilerError(CompileError):
    """A compiler did not keep its protocol (returned nothing, took another's artifact)."""


class DispatchError(PiecewiseError, LookupError):
    """No compiled range serves the size of this call."""


class GuardError(PiecewiseError, RuntimeError):
    """A call does not meet what the program was traced for."""


class PassError(PiecewiseError, RuntimeError):
    """A graph pass is in the wrong place or left a broken graph."""


class StaticGraphError(PiecewiseError, RuntimeError):
    """Capture or replay of a static (CUDA) graph was refused."""


class StoreError(PiecewiseError, OSError):
    """The store cannot be used; the model still runs without it."""


class UntrustedError(StoreError):
    """A root, a blob or a bundle is not to be trusted; says which and how to mend it."""


class MissError(PiecewiseError, RuntimeError):
    """``on_miss="error"`` was asked for and the store had no entry; says why."""


class BundleError(PiecewiseError, ValueError):
    """A bundle does not fit this machine, model or key."""


class BundleFileError(BundleError, OSError):
    """A bundle, or the weights beside it, cannot be read or written; says what the system says."""
