"""The fake inputs that both Inductor compilers compile with."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from torch_piecewise.artifact import guard_name
from torch_piecewise.compilers.base import tuning_size
from torch_piecewise.piece import Piece
from torch_piecewise.ranges import Range
from torch_piecewise.torch_private.fake_inputs import FakeInputs


def fake_inputs(piece: Piece, range: Range) -> FakeInputs:
    """Fresh fake inputs of ``piece`` for ``range``."""
    hints = {symbol.name: symbol.hint for symbol in piece.symbols}
    hint = tuning_size(range, hints.get(piece.dispatch or "", range.start))
    # A range that begins at 1 serves size 0 as well, where the model allows it.
    start = 0 if range.start == 1 and not range.is_single_size() else range.start
    return FakeInputs(piece, (start, range.end), hint)


def by_position(piece: Piece, relations: Iterable[str]) -> tuple[str, ...]:
    """Relations over ``piece``'s symbols, with each symbol called by its place in the piece."""
    names = {symbol.name: guard_name(position) for position, symbol in enumerate(piece.symbols)}

    def renamed(match: re.Match[str]) -> str:
        return names.get(match[0], match[0])

    return tuple(re.sub(r"\b[a-z]\w*\b", renamed, text) for text in relations)


def cache_tag(range: Range) -> str:
    """What torch's own graph cache has to tell apart beside its key: the bounds, and the CPU's capability."""
    return f"{range} {torch.backends.cpu.get_cpu_capability()}"
