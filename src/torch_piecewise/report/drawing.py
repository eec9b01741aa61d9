"""The folded cut graph as boxes and lines, top down; the page draws them as SVG."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch_piecewise.report.facts import Fold, Kind, Step
from torch_piecewise.report.show import count, cut_short, op_label

WIDTH = 360
_LEFT, _BOX = 14, 272
_PIECE, _CUT, _GAP, _FRAME = 50, 30, 20, 12


@dataclass(frozen=True)
class Box:
    """A piece or a cut. Lengths are in the drawing's own units.

    Attributes:
        letter: of the piece's kind; empty for a cut.
    """

    x: int
    y: int
    width: int
    height: int
    letter: str
    title: str
    subtitle: str = ""


@dataclass(frozen=True)
class Frame:
    """Steps that repeat."""

    y: int
    height: int
    times: int


@dataclass(frozen=True)
class Drawing:
    """Everything to draw; ``links`` are vertical lines as (y from, y to)."""

    boxes: tuple[Box, ...]
    frames: tuple[Frame, ...]
    links: tuple[tuple[int, int], ...]
    height: int
    width: int = WIDTH


def drawing_of(folds: Sequence[Fold], kinds: Sequence[Kind]) -> Drawing:
    """Boxes under each other, repeated rounds in a frame."""
    by_letter = {kind.letter: kind for kind in kinds}
    boxes: list[Box] = []
    frames: list[Frame] = []
    y = 4
    for fold in folds:
        repeats = fold.times > 1
        top = y
        y += _FRAME if repeats else 0
        for step in fold.steps:
            box = _box(step, y, by_letter, fold.times)
            boxes.append(box)
            y += box.height + _GAP
        if repeats:
            frames.append(Frame(top, y - _GAP + _FRAME - top, fold.times))
            y += _FRAME
    links = tuple((one.y + one.height, other.y) for one, other in itertools.pairwise(boxes))
    return Drawing(tuple(boxes), tuple(frames), links, max(y - _GAP, 0) + 6)


def _box(step: Step, y: int, kinds: dict[str, Kind], times: int) -> Box:
    if not step.letter:
        inset = 36
        title = cut_short(", ".join(dict.fromkeys(map(op_label, step.calls))), 24)
        return Box(_LEFT + inset, y, _BOX - 2 * inset, _CUT, "", title)
    kind = kinds[step.letter]
    name = step.name if times == 1 else f"{step.name} and {times - 1} more"
    what = "stays eager" if kind.eager else count(len(kind.ops), "op")
    return Box(_LEFT, y, _BOX, _PIECE, step.letter, cut_short(kind.title, 30), f"{name} · {what}")
