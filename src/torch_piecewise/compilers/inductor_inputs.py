"""The fake inputs that both Inductor compilers compile with."""

from __future__ import annotations

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
