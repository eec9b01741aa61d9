"""Each piece against eager, on the values that really reach it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_piecewise.entry import Entry
from torch_piecewise.stitching import Runner
from torch_piecewise.trials.base import Results, Visited, call_through, calls_of
from torch_piecewise.trials.copies import copied
from torch_piecewise.trials.unwritten import unwritten_outputs

WHOLE_CALL = "whole call, as served"
"""Stands for a piece where a call through static graphs was compared as a whole."""
DRAWS_RANDOM_NUMBERS = "it draws random numbers, which compiled code draws otherwise"


@dataclass(frozen=True)
class PieceCheck:
    """One piece on one call.

    Attributes:
        piece: ``submod_N``; :data:`WHOLE_CALL` for a call as static graphs serve it, padded and replayed.
        range: text of the range whose code ran; ``any size`` where the piece has no changing size.
        size: of the dispatch dim; None where no size changes.
        problem: in what it differs from eager; empty where it agrees.
        skipped: why it was not compared; empty where it was.
        largest: largest absolute difference of a value.
    """

    piece: str
    range: str
    size: int | None
    problem: str = ""
    skipped: str = ""
    largest: float = 0.0


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found, piece by piece, in the order in which they ran."""

    checks: tuple[PieceCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether no piece differs from eager."""
        return self.first is None

    @property
    def first(self) -> PieceCheck | None:
        """The first piece that differs; each got eager's values, so none differs because of another."""
        return next((check for check in self.checks if check.problem), None)

    @property
    def first_by_range(self) -> Mapping[str, PieceCheck | None]:
        """For each range that served a call, the first piece that differs in it; None where all agree."""
        found: dict[str, PieceCheck | None] = {}
        for check in self.checks:
            if found.get(check.range) is None:
                found[check.range] = check if check.problem else None
        return found

    def __str__(self) -> str:
        compared = sum(not check.skipped for check in self.checks)
        lines = [f"{compared} of {len(self.checks)} runs of pieces compared with eager"]
        for name, check in self.first_by_range.items():
            lines.append(f"{name}: " + ("agrees" if check is None else f"{check.piece}: {check.problem}"))
        lines += sorted(
            {f"{check.piece} not compared: {check.skipped}" for check in self.checks if check.skipped}
        )
        return "\n".join(lines)


def verify(
    entries: Iterable[Entry],
    inputs: Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    served_calls: int = 0,
) -> Verification:
    """Run calls piece by piece, compiled and eager on the same values; eager's results flow on.

    Args:
        inputs: see :func:`~torch_piecewise.trials.base.calls_of`.
        rtol, atol: tolerances, both or none; None: by dtype, as ``torch.testing.assert_close`` has them.
        served_calls: how often each call is made as it is served, the last of them compared as a whole; 0:
            never. With static graphs that is one more than it takes until a call is replayed.

    Raises:
        GuardError: no trace serves such a call.
    """
    known = tuple(entries)
    checker = _Checker(
        known, {} if rtol is None and atol is None else {"rtol": rtol or 0.0, "atol": atol or 0.0}
    )
    for args, kwargs in calls_of(inputs):
        around = functools.partial(checker.whole, served_calls) if served_calls else None
        call_through(known, args, kwargs, checker.visit, around)
    return Verification(tuple(checker.checks))


class _Checker:
    def __init__(self, entries: Sequence[Entry], tolerances: Mapping[str, float]) -> None:
        self.checks: list[PieceCheck] = []
        self._tolerances = tolerances
        self._unwritten: dict[Callable[..., Results], frozenset[int]] = {}

    def visit(self, visited: Visited, inputs: tuple[Any, ...]) -> Results:
        copies = copied(inputs)
        before = _random_states()
        expected = visited.eager(*inputs)
        after = _random_states()
        name = "any size" if not visited.info.ranged else str(visited.range)

        def found(**what: Any) -> None:
            self.checks.append(PieceCheck(visited.info.name, name, visited.size, **what))

        if not all(map(torch.equal, before, after)):
            found(skipped=DRAWS_RANDOM_NUMBERS)
            return expected
        try:
            got = visited.compiled(*copies)
        except Exception as error:  # noqa: BLE001 - that it fails where eager does not is the finding
            found(problem=f"fails where eager does not: {type(error).__name__}: {error}".splitlines()[0])
            return expected
        problem, largest = self._difference(visited, (expected, inputs), (got, copies))
        found(problem=problem, largest=largest)
        return expected

    def whole(self, times: int, served: Runner, visiting: Runner, inputs: tuple[Any, ...]) -> Results:
        """Compare a call as it is served with its pieces run eagerly; the inputs change once."""
        before, states = copied(inputs), _random_states()
        results: Results = ()
        problem = ""
        for _ in range(times):
            _restore(inputs, before)
            try:
                results = copied(served(*inputs))
            except Exception as error:  # noqa: BLE001 - that it fails where eager does not is the finding
                problem = f"fails where eager does not: {type(error).__name__}: {error}".splitlines()[0]
                break
        left = copied(inputs)
        _restore(inputs, before)
        drawn = not all(map(torch.equal, states, _random_states()))
        first = len(self.checks)
        expected = visiting(*inputs)
        if not drawn and not problem and len(results) == len(expected):
            for what, wanted, given in (("output", expected, results), ("input", inputs, left)):
                for index, (one, other) in enumerate(zip(wanted, given, strict=True)):
                    text, _ = _compared(one, other, self._tolerances)
                    problem = problem or (f"{what} {index}: {text}" if text else "")
        size, name = (
            (self.checks[first].size, self.checks[first].range) if self.checks[first:] else (None, "")
        )
        skipped = DRAWS_RANDOM_NUMBERS if drawn else ""
        self.checks.append(PieceCheck(WHOLE_CALL, name or "any size", size, problem, skipped))
        return expected

    def _difference(
        self, visited: Visited, expected: tuple[Results, Results], got: tuple[Results, Results]
    ) -> tuple[str, float]:
        if len(expected[0]) != len(got[0]):
            return f"{len(got[0])} outputs instead of {len(expected[0])}", 0.0
        unwritten = self._unwritten_of(visited)
        problem, largest = "", 0.0
        for what, wanted, given in zip(("output", "input"), expected, got, strict=True):
            for index, (one, other) in enumerate(zip(wanted, given, strict=True)):
                if what == "output" and index in unwritten:
                    continue
                text, difference = _compared(one, other, self._tolerances)
                largest = max(largest, difference)
                changed = " (changed in place)" if what == "input" else ""
                problem = problem or (f"{what} {index}{changed}: {text}" if text else "")
        return problem, largest

    def _unwritten_of(self, visited: Visited) -> frozenset[int]:
        if visited.eager not in self._unwritten:
            self._unwritten[visited.eager] = unwritten_outputs(visited.eager.__self__)  # type: ignore[attr-defined]
        return self._unwritten[visited.eager]


def _compared(expected: Any, got: Any, tolerances: Mapping[str, float]) -> tuple[str, float]:
    """In what ``got`` differs, empty where it does not, and the largest absolute difference."""
    if not isinstance(expected, Tensor) or not isinstance(got, Tensor):
        return ("", 0.0) if expected == got else (f"{got!r} instead of {expected!r}", 0.0)
    expected, got = expected.detach(), got.detach()
    try:
        torch.testing.assert_close(
            got,
            expected,
            rtol=tolerances.get("rtol"),
            atol=tolerances.get("atol"),
            equal_nan=True,
            check_stride=False,
        )
    except AssertionError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = "; ".join(line.rstrip(".") for line in lines)
    else:
        text = ""
    return text, _largest(expected, got)


def _largest(expected: Tensor, got: Tensor) -> float:
    if expected.shape != got.shape or expected.numel() == 0 or expected.dtype != got.dtype:
        return 0.0
    wide = torch.complex128 if expected.is_complex() else torch.float64
    differences = (expected.to("cpu", wide) - got.to("cpu", wide)).abs().nan_to_num(0.0)
    return float(differences.max())


def _restore(inputs: Sequence[Any], before: Sequence[Any]) -> None:
    with torch.no_grad():
        for now, then in zip(inputs, before, strict=True):
            if isinstance(now, Tensor) and not torch.equal(now, then):
                now.copy_(then)


def _random_states() -> list[Tensor]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return states
