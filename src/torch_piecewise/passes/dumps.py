"""Writes graphs into a folder for people to read."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from pathlib import Path

from torch import fx

from torch_piecewise.passes.text import graph_text
from torch_piecewise.ranges import UNBOUNDED, Range

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DumpFolder:
    """The dumps of one run of passes over one graph. A failing disk costs the dumps, never the compile.

    Attributes:
        path: where they go; None writes nothing.
    """

    path: Path | None

    @classmethod
    def under(cls, root: Path | None, range: Range, label: str = "") -> DumpFolder:
        """A folder of its own for one run: ``passes/1-8.0``, ``passes/9-inf.1``, whatever is still free.

        Args:
            label: whose graph it is: ``passes/backbone.submod_0.1-8.0``.
        """
        if root is None:
            return cls(None)
        end = "inf" if range.end == UNBOUNDED else range.end
        try:
            (root / "passes").mkdir(parents=True, exist_ok=True)
            return cls(
                _unused(
                    root / "passes", ".".join([*filter(None, [_safe(label, "_-.")]), f"{range.start}-{end}"])
                )
            )
        except OSError as error:
            _log.warning("No pass dumps: %s cannot be written: %s", root, error)
            return cls(None)

    def write(self, position: int, name: str, moment: str, graph: fx.Graph) -> None:
        """Write ``02_noop_elimination.before.txt`` and the like.

        Args:
            position: of the pass among those of the run, from 0.
            name: of the pass.
            moment: ``before``, ``after`` or ``broken``.
            graph: as it is now.
        """
        if self.path is None:
            return
        file = self.path / f"{position:02}_{_safe(name)}.{moment}.txt"
        try:
            file.write_text(graph_text(graph, shapes=True), encoding="utf-8")
        except OSError as error:
            _log.warning("No dump of the graph %s %s: %s", moment, name, error)


def _safe(name: str, also: str = "_-") -> str:
    return "".join(letter if letter.isalnum() or letter in also else "_" for letter in name)


def _unused(folder: Path, stem: str) -> Path:
    for number in itertools.count():
        path = folder / f"{stem}.{number}"
        try:
            # Making it is what claims it, also against other processes.
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError("count() ended")
