"""The straight line as steps, read off the runner's own source, and folded where it repeats."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence

from torch_piecewise.report.facts import Fold, Step
from torch_piecewise.stitching import Stitched

_LONGEST_UNIT = 32


def steps_of(stitched: Stitched, letters: Mapping[str, str], name_of: Callable[[str], str]) -> list[Step]:
    """Pieces and cuts in the order in which they run.

    Read from the source because that is all a warm start has.

    Args:
        letters: name of a piece -> its letter.
        name_of: what people call a constant of the source.
    """
    steps: list[Step] = []
    waiting: list[ast.stmt] = []
    for statement in _body(stitched.source):
        piece = _called(statement)
        if piece not in stitched.pieces:
            waiting.append(statement)
            continue
        steps += _cut(waiting, stitched, name_of)
        waiting = []
        steps.append(Step(name=piece, letter=letters.get(piece, "")))
    return steps + _cut(waiting, stitched, name_of)


def folded(steps: Sequence[Step]) -> list[Fold]:
    """``steps`` with runs of equal rounds written once; equal are steps with equal labels."""
    labels = [step.label for step in steps]
    folds: list[Fold] = []
    plain: list[Step] = []
    at = 0
    while at < len(steps):
        unit, times = _best_run(labels, at)
        if times == 1:
            plain.append(steps[at])
            at += 1
            continue
        if plain:
            folds.append(Fold(tuple(plain), 1))
            plain = []
        folds.append(Fold(tuple(steps[at : at + unit]), times))
        at += unit * times
    if plain:
        folds.append(Fold(tuple(plain), 1))
    return folds


def _best_run(labels: Sequence[str], at: int) -> tuple[int, int]:
    """Length of the unit that repeats over the most steps from ``at`` on, and how often it does."""
    best = (1, 1)
    for unit in range(1, min(_LONGEST_UNIT, (len(labels) - at) // 2) + 1):
        times = 1
        while labels[at + times * unit : at + (times + 1) * unit] == labels[at : at + unit]:
            times += 1
        if times > 1 and unit * times > best[0] * best[1]:
            best = (unit, times)
    return best


def _body(source: str) -> list[ast.stmt]:
    (make,) = ast.parse(source).body
    assert isinstance(make, ast.FunctionDef)
    run = make.body[0]
    assert isinstance(run, ast.FunctionDef)
    return [one for one in run.body if not isinstance(one, ast.Delete | ast.Return)]


def _called(statement: ast.stmt) -> str:
    value = statement.value if isinstance(statement, ast.Assign | ast.Expr) else None
    called = value.func if isinstance(value, ast.Call) else None
    return called.id if isinstance(called, ast.Name) else ""


def _cut(statements: Sequence[ast.stmt], stitched: Stitched, name_of: Callable[[str], str]) -> list[Step]:
    # Statements that call nothing only pass values on.
    calling = [one for one in statements if any(isinstance(part, ast.Call) for part in ast.walk(one))]
    if not calling:
        return []
    named = [_called(one) for one in calling]
    calls = tuple(name_of(name) for name in named if name in stitched.constants)
    lines = tuple(ast.unparse(one) for one in calling)
    return [Step(calls=calls or ("other operations",), lines=lines)]
