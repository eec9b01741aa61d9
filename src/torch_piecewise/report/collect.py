"""Collect what a compiled model knows of itself into a :class:`~torch_piecewise.report.facts.Report`."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from torch_piecewise.artifact import guard_name
from torch_piecewise.config import Config, settings
from torch_piecewise.cudagraphs import TableRow
from torch_piecewise.events import Event, PieceCompiled, PieceFailed, PieceLoaded
from torch_piecewise.events.recorder import Recorded
from torch_piecewise.manager import Ready
from torch_piecewise.piece import EagerPiece
from torch_piecewise.program import PieceInfo, Program
from torch_piecewise.ranges import Range
from torch_piecewise.relations import readable
from torch_piecewise.report.facts import Built, Kind, ProgramFacts, Report, Timed
from torch_piecewise.report.flow import folded, steps_of
from torch_piecewise.report.graphs import graph_uses
from torch_piecewise.report.operations import input_text, name_of, operations_of, title_of
from torch_piecewise.report.show import reader
from torch_piecewise.report.timeline import lookups_of, moments_of, spans_of
from torch_piecewise.report.use import use_of

CODE_LIMIT = 60_000
"""Characters of generated code that are shown of one artifact."""


@dataclass(frozen=True)
class Recording:
    """What a report is made from.

    Attributes:
        title: what people call the model.
        config: its settings.
        programs: newest trace first.
        recorded: its events.
        counts: for each program, size -> calls; None where calls were not counted.
        timed: fingerprint -> measurements.
        served: counts of calls by what static graphs did for them.
    """

    title: str
    config: Config
    programs: Sequence[Program]
    recorded: Sequence[Recorded]
    counts: Sequence[Mapping[int, int] | None] = ()
    timed: Mapping[str, Sequence[Timed]] = field(default_factory=dict)
    served: Sequence[TableRow] = ()


def collect(recording: Recording, *, code: bool = True) -> Report:
    """The report of a recorded run.

    Args:
        code: False for a report that is kept beside a program: without generated code, which is kept
            already, and without settings of the place, as what is kept can be moved.
    """
    counts = [*recording.counts, *([None] * len(recording.programs))]
    return Report(
        title=recording.title,
        made=time.time(),
        versions=_versions(),
        settings=_settings(recording.config, kept=not code),
        programs=tuple(
            _program(program, recording, count, code)
            for program, count in zip(recording.programs, counts, strict=False)
        ),
        spans=tuple(spans_of(recording.recorded)),
        moments=tuple(moments_of(recording.recorded)),
        lookups=lookups_of(recording.recorded),
        graphs=graph_uses(recording.served, recording.recorded),
    )


def _versions() -> dict[str, str]:
    try:
        own = version("torch-piecewise")
    except PackageNotFoundError:
        own = "not installed"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "torch-piecewise": own,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": device,
        "threads": str(torch.get_num_threads()),
    }


def _settings(config: Config, *, kept: bool) -> dict[str, str]:
    default = Config()
    return {
        name: repr(getattr(config, name))
        for name, setting in settings().items()
        if getattr(config, name) != getattr(default, name) and (setting.keyed or not kept)
    }


def _program(
    program: Program, recording: Recording, counts: Mapping[int, int] | None, code: bool
) -> ProgramFacts:
    kinds = tuple(_kinds(program, recording, code))
    letters = {piece: kind.letter for kind in kinds for piece in kind.pieces}
    constants = program.stitched.constants
    steps = steps_of(program.stitched, letters, lambda name: name_of(constants[name]))
    sizes = program.sizes
    named = {symbol: reader(source) for symbol, source in sizes.names.items()}
    config = recording.config
    captured = config.resolved_capture_sizes() if config.cudagraph_mode else ()
    return ProgramFacts(
        symbols=dict(sizes.names),
        dispatch=sizes.dispatch or "",
        ranges=tuple(map(str, (*sizes.ranges, *(Range(size, size) for size in sizes.exact)))),
        relations=tuple(readable(relation.text, named) for relation in program.relations),
        kinds=kinds,
        steps=tuple(steps),
        folds=tuple(folded(steps)),
        use=use_of(sizes, counts, captured) if counts is not None else None,
        eager=program.eager_pieces(),
    )


def _kinds(program: Program, recording: Recording, code: bool) -> Iterator[Kind]:
    """Each distinct piece, in order of first use; every eager piece is one of its own."""
    alike: dict[str, list[PieceInfo]] = {}
    for info in program.pieces.infos:
        alike.setdefault(info.fingerprint or info.name, []).append(info)
    made = program.made()
    for number, (identity, infos) in enumerate(alike.items()):
        piece = program.pieces.piece(infos[0].name)
        placeholders = [node.name for node in piece.graph.graph.nodes if node.op == "placeholder"]
        specs: Sequence[Any] = [None] * len(placeholders) if isinstance(piece, EagerPiece) else piece.inputs
        ready = {range: one for (owner, range), one in made.items() if owner == identity}
        events = [
            one.event for one in recording.recorded if getattr(one.event, "fingerprint", "") == identity
        ]
        yield Kind(
            letter=letter(number),
            title=title_of(piece.graph),
            pieces=tuple(info.name for info in infos),
            eager=piece.reason if isinstance(piece, EagerPiece) else "",
            inputs=tuple(map(input_text, placeholders, specs)),
            ops=operations_of(piece.graph),
            code=str(piece.graph.code).strip(),
            built=tuple(
                _built(program, infos[0], range, ready[range], events, code) for range in sorted(ready)
            ),
            timed=tuple(recording.timed.get(identity, ())),
        )


def _built(
    program: Program, info: PieceInfo, range: Range, ready: Ready, events: Sequence[Event], code: bool
) -> Built:
    about = [event for event in events if getattr(event, "range", None) == range]
    text = "any size" if range == program.any_size else str(range)
    artifact = ready.artifact
    names = program.sizes.names
    named = {guard_name(at): reader(names.get(symbol, symbol)) for at, symbol in enumerate(info.symbols)}
    if artifact is None:
        reasons = [event.reason for event in about if isinstance(event, PieceFailed)]
        return Built(text, "eager", f"failed to compile: {reasons[-1] if reasons else 'unknown'}")
    compiled = [event.seconds for event in about if isinstance(event, PieceCompiled)]
    loaded = [event for event in about if isinstance(event, PieceLoaded)]
    size = len(artifact.payload) + sum(_size(content) for content in artifact.files.values())
    return Built(
        range=text,
        compiler=artifact.compiler,
        origin=loaded[-1].source if loaded else "unknown",
        compile_seconds=compiled[-1] if compiled else None,
        load_seconds=loaded[-1].seconds if loaded else None,
        size=size if artifact.is_storable else None,
        files=tuple(artifact.files),
        guards=tuple(readable(guard, named) for guard in artifact.guards),
        code=program.generated_code(artifact)[:CODE_LIMIT] if code else "",
    )


def _size(content: Any) -> int:
    return len(content) if isinstance(content, bytes) else int(content.stat().st_size)


def letter(number: int) -> str:
    """A to Z, then AA, AB, ..."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("A") + rest) + text
    return text
