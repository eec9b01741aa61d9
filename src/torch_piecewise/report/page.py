"""The page: one HTML file with everything in it."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from torch_piecewise.errors import ConfigError
from torch_piecewise.report import show
from torch_piecewise.report.drawing import Drawing, drawing_of
from torch_piecewise.report.facts import Kind, ProgramFacts, Report, Span

_PAUSE = 30.0
"""Seconds without anything recorded that end a stretch; importing a compiler takes several."""

_MOST_STRETCHES = 6
_KEY = re.compile(r"\b[0-9a-f]{12,64}\b")


@dataclass(frozen=True)
class Stretch:
    """A part of the timeline in which something happened: the start, or a later trace.

    Attributes:
        begin, length: in seconds.
        lanes: name -> rows of spans.
        ticks: (place as a percentage, text).
    """

    begin: float
    length: float
    lanes: dict[str, list[list[Span]]]
    ticks: tuple[tuple[float, str], ...]

    def left(self, span: Span) -> float:
        """Where a span begins, as a percentage."""
        return 100 * (span.start - self.begin) / self.length

    def width(self, span: Span) -> float:
        """How long it is, as a percentage."""
        return 100 * span.seconds / self.length


@dataclass(frozen=True)
class Shown:
    """A program with what the page needs beside it."""

    facts: ProgramFacts
    drawing: Drawing
    hues: dict[str, int]
    kind_of: dict[str, Kind]
    number: int

    @property
    def cuts(self) -> int:
        """Steps that are cuts."""
        return sum(not step.letter for step in self.facts.steps)

    @property
    def pieces(self) -> int:
        """Steps that are pieces."""
        return sum(bool(step.letter) for step in self.facts.steps)

    @property
    def has_figures(self) -> bool:
        """Whether anything of it was measured or counted."""
        return self.most_calls > 0 or any(kind.timed for kind in self.facts.kinds)

    @property
    def most_calls(self) -> int:
        """Of the range that is used most."""
        return max((one.calls for one in self.facts.use or ()), default=0)


def page(report: Report) -> str:
    """``report`` as one HTML page that needs neither network nor other files.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    template = _template()
    stretches = stretches_of(report.spans)
    programs = [_shown(facts, number) for number, facts in enumerate(report.programs)]
    spent = _spent(report.spans)
    return str(
        template.render(
            report=report,
            programs=programs,
            stretches=stretches,
            spent=spent,
            start=sum(spent.values()),
            figured=[one for one in programs if one.has_figures] or programs[:1],
            misses=_by_reason(report),
            moments=[one for one in report.moments if one.what != "missed"],
            made=dt.datetime.fromtimestamp(report.made).astimezone().isoformat(" ", "minutes"),
            hue_of_piece={
                name: program.hues[kind.letter]
                for program in reversed(programs)
                for kind in program.facts.kinds
                for name in kind.pieces
            },
            show=show,
        )
    )


def _template() -> Any:
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise ConfigError(
            "The page needs jinja2, which is not installed",
            expected="pip install 'torch-piecewise[report]'",
            got=str(error),
            hint="program.report('run.json') works without; the page can be made from it elsewhere",
        ) from error
    folder = resources.files(__package__)

    def asset(name: str) -> Any:
        return markupsafe.Markup((folder / name).read_text(encoding="utf-8"))  # noqa: S704 - our own files

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals["asset"] = asset
    environment.filters["condition"] = show.condition
    return environment.from_string((folder / "page.html").read_text(encoding="utf-8"))


def _shown(facts: ProgramFacts, number: int) -> Shown:
    return Shown(
        facts,
        drawing_of(facts.folds, facts.kinds),
        {kind.letter: show.hue(index) for index, kind in enumerate(facts.kinds)},
        {kind.letter: kind for kind in facts.kinds},
        number,
    )


def _by_reason(report: Report) -> dict[str, list[str]]:
    """What missed, by why: a first start misses everything for one reason."""
    found: dict[str, list[str]] = {}
    for what, reason in report.lookups.misses:
        # The reason may begin with what it is about, and name a key that is like no other.
        plain = _KEY.sub("", reason.removeprefix(f"{what}: ")).strip()
        found.setdefault("never kept before" if plain in ("", "no entry") else plain, []).append(what)
    return found


def _spent(spans: Sequence[Span]) -> dict[str, float]:
    """Seconds by phase, in the order in which they came first."""
    spent: dict[str, float] = {}
    for span in spans:
        if span.lane == "phases":
            spent[span.name] = spent.get(span.name, 0.0) + span.seconds
    return spent


def stretches_of(spans: Sequence[Span]) -> list[Stretch]:
    """The timeline, cut where nothing happened for a while: a trace hours later has a picture of its own."""
    groups: list[list[Span]] = []
    end = -math.inf
    for span in sorted(spans, key=lambda span: span.start):
        if not groups or span.start > end + _PAUSE:
            groups.append([])
        groups[-1].append(span)
        end = max(end, span.start + span.seconds)
    return [_stretch(group) for group in groups[:_MOST_STRETCHES]]


def _stretch(spans: Sequence[Span]) -> Stretch:
    begin = min(span.start for span in spans)
    length = max(max(span.start + span.seconds for span in spans) - begin, 1e-6)
    lanes: dict[str, list[list[Span]]] = {}
    for lane in ("phases", "compile", "load", "capture"):
        own = [span for span in spans if span.lane == lane]
        rows = sorted({span.row for span in own})
        if rows:
            lanes[lane] = [[span for span in own if span.row == row] for row in rows]
    return Stretch(begin, length, lanes, _ticks(length))


def _ticks(length: float) -> tuple[tuple[float, str], ...]:
    """Four to eight round times."""
    rough = length / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return tuple(
        (100 * number * step / length, show.seconds(number * step) if number else "0")
        for number in range(int(0.97 * length / step) + 1)
    )
