"""A program as a value: what another process needs to run it without tracing and without compiling."""

from __future__ import annotations

from dataclasses import dataclass

from torch_piecewise.compilers.base import Ambient
from torch_piecewise.convention import Convention
from torch_piecewise.program import PieceInfo, Sizes
from torch_piecewise.relations import Relation
from torch_piecewise.replay_facts import ReplayFacts
from torch_piecewise.stitching import Stitched


@dataclass(frozen=True)
class ProgramRecord:
    """One program, its compiled pieces left out (they are entries of their own).

    Attributes:
        convention: how its calls go in and out.
        stitched: the straight line.
        infos: its pieces, in order.
        sizes, relations, cuts: as for :class:`~torch_piecewise.program.Program`.
        ambient: torch's settings it was compiled under.
        facts: what replaying its calls has to know; None where nothing is captured.
    """

    convention: Convention
    stitched: Stitched
    infos: tuple[PieceInfo, ...]
    sizes: Sizes
    relations: tuple[Relation, ...]
    cuts: int
    ambient: Ambient
    facts: ReplayFacts | None = None
