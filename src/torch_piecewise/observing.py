"""What is observed of one compiled model: its events; on request its calls, its pieces, their times."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_piecewise.config import Config
from torch_piecewise.cudagraphs import TableRow
from torch_piecewise.entry import Entry
from torch_piecewise.events import Bus, PieceKeptEager
from torch_piecewise.events.recorder import Recorder
from torch_piecewise.program import SizeKey

# Reports and trials are imported where they are used: they load symbolic shapes, which a start from the store
# never needs.
if TYPE_CHECKING:
    from torch_piecewise.report import Report
    from torch_piecewise.trials import Profile, Verification

logger = logging.getLogger("torch_piecewise")

REPORT_FILE = "report.json"
"""The companion of a kept program that ``torch-piecewise report`` shows."""


class Observed:
    """Everything a report is made from. Records nothing on the hot path unless calls are to be counted.

    Args:
        config: whether calls are counted, and what becomes of slow pieces.
    """

    def __init__(self, config: Config) -> None:
        self.recorder = Recorder()
        self._config = config
        self._counting = config.count_calls
        self._counts: dict[int, dict[int, int]] = {}
        self._timed: dict[str, list[Any]] = {}
        self._lock = threading.Lock()

    def added(self, entry: Entry) -> None:
        """A trace was added to the model."""
        if self._counting:
            self._count(entry)

    def count_calls(self, entries: Iterable[Entry]) -> None:
        """Count the calls of these entries, and of all that come."""
        self._counting = True
        for entry in entries:
            self._count(entry)

    def _count(self, entry: Entry) -> None:
        if id(entry.program) in self._counts:
            return
        counts = self._counts.setdefault(id(entry.program), {})
        dispatch = entry.program.sizes.dispatch

        def seen(key: SizeKey) -> None:
            size = (key if isinstance(key, int) else key[0]) if dispatch is not None else 0
            with self._lock:
                counts[size] = counts.get(size, 0) + 1

        entry.tell_sizes(seen)

    def report(
        self,
        title: str,
        entries: Sequence[Entry],
        path: str | os.PathLike[str] | None = None,
        *,
        served: Sequence[TableRow] = (),
    ) -> Report:
        """What was recorded so far.

        Args:
            served: counts of calls by what static graphs did for them.
            path: where to write it; the suffix says as what: ``.html`` one page that needs no network,
                ``.json`` everything as one document, ``.perfetto.json`` the timeline as Chrome trace events.
                None: nothing is written.

        Raises:
            ConfigError: another suffix, or a page without jinja2 being installed.
        """
        from torch_piecewise.report import Recording, collect, write

        programs = [entry.program for entry in entries]
        counts = [self._counts.get(id(program)) for program in programs]
        recording = Recording(
            title, self._config, programs, self.recorder.recorded(), counts, self._timed, served
        )
        report = collect(recording)
        if path is not None:
            write(report, Path(path))
        return report

    def companions(self, title: str, entry: Entry) -> Mapping[str, str]:
        """The report of a program about to be kept, as files by name."""
        from torch_piecewise.report import Recording, as_json, collect

        try:
            recording = Recording(title, self._config, [entry.program], self.recorder.recorded())
            return {REPORT_FILE: json.dumps(as_json(collect(recording, code=False)))}
        except Exception:
            # A report that cannot be made is no reason to fail a start.
            logger.warning("no report is kept with %s", title, exc_info=True)
            return {}

    def verify(
        self, entries: Sequence[Entry], inputs: Any, *, rtol: float | None, atol: float | None
    ) -> Verification:
        """Run calls piece by piece, compiled and eager on the same values, and compare.

        With static graphs each call is also made as it is served, padded and replayed, and compared whole.

        The calls run with eager's results, so that a piece is judged by itself, and change what the model's
        own call would change. Call it under the grad mode that the model is served with.

        Args:
            inputs: a tuple of positional arguments, a dict of keyword arguments, a single argument, or a list
                of such calls: one for each range that is to be compared.
            rtol, atol: relative and absolute tolerance; None: by dtype, as ``torch.testing.assert_close``.

        Raises:
            GuardError: the model was not traced for such a call.
        """
        from torch_piecewise.trials import verify

        config = self._config
        served = config.cudagraph_num_of_warmups + 2 if config.cudagraph_mode else 0
        return verify(entries, inputs, rtol=rtol, atol=atol, served_calls=served)

    def profile(self, entries: Sequence[Entry], inputs: Any, *, rounds: int, bus: Bus) -> Profile:
        """Measure each distinct piece compiled and eager, alternately, on the values that reach it.

        With ``on_slow_piece="eager"`` pieces that are slower than eager run eagerly from now on, for the
        range they were measured for.

        Args:
            inputs: as for :meth:`verify`.
            rounds: samples of each; the median counts.
        """
        from torch_piecewise.report import Timed
        from torch_piecewise.trials import profile

        found = profile(entries, inputs, rounds=rounds)
        keep_eager = self._config.on_slow_piece == "eager"
        for one in found.pieces:
            timed = Timed(
                _range_text(one.range, entries),
                "" if one.size is None else str(one.size),
                one.compiled,
                one.eager,
                kept_eager=keep_eager and one.is_slow,
            )
            rows = self._timed.setdefault(one.fingerprint or one.piece, [])
            rows[:] = [row for row in rows if (row.range, row.size) != (timed.range, timed.size)] + [timed]
        if keep_eager:
            self._keep_eager(entries, found, bus)
        return found

    def _keep_eager(self, entries: Sequence[Entry], found: Profile, bus: Bus) -> None:
        slow = [one for one in found.pieces if one.is_slow]
        if not slow:
            return
        for entry in entries:
            entry.program.run_eagerly((one.fingerprint, one.range) for one in slow)
        for one in slow:
            bus.emit(
                PieceKeptEager(
                    piece=one.piece,
                    range=one.range,
                    compiled=one.compiled,
                    eager=one.eager,
                    fingerprint=one.fingerprint,
                )
            )


def _range_text(range: Any, entries: Sequence[Entry]) -> str:
    return "any size" if entries and range == entries[0].program.any_size else str(range)
