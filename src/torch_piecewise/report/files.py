"""A report as files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch_piecewise.errors import ConfigError
from torch_piecewise.report.facts import (
    VERSION,
    Built,
    Fold,
    GraphUse,
    Kind,
    Lookups,
    Moment,
    Op,
    ProgramFacts,
    RangeUse,
    Report,
    Span,
    Step,
    Timed,
)
from torch_piecewise.report.perfetto import trace_events


def write(report: Report, path: Path) -> None:
    """Write ``report`` as what the suffix says: ``.html``, ``.perfetto.json`` or ``.json``.

    Raises:
        ConfigError: another suffix, or a page without jinja2.
    """
    if path.name.endswith(".perfetto.json"):
        text = json.dumps(trace_events(report))
    elif path.suffix == ".json":
        text = json.dumps(as_json(report), indent=1)
    elif path.suffix in (".html", ".htm"):
        # Imported for its cost, and because it is an extra.
        from torch_piecewise.report.page import page

        text = page(report)
    else:
        raise ConfigError(
            "A report is written as what its file name says",
            expected="a name that ends in .html, .json or .perfetto.json",
            got=repr(path.name),
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain data, field by field."""
    return dataclasses.asdict(report)


def from_json(document: Any) -> Report:
    """The report that :func:`as_json` wrote.

    Raises:
        ConfigError: it is something else, or of another version.
    """
    version = document.get("version") if isinstance(document, Mapping) else None
    if version != VERSION:
        raise ConfigError(
            "This is no recorded run",
            expected=f"JSON that program.report('run.json') wrote, version {VERSION}",
            got=f"version {version!r}" if isinstance(document, Mapping) else type(document).__name__,
            hint="record the run again with this version of the library",
        )
    try:
        return _report(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError("This recorded run is damaged", got=repr(error), hint="record it again") from error


def _report(document: Mapping[str, Any]) -> Report:
    return Report(
        **{
            **document,
            "programs": tuple(map(_program, document["programs"])),
            "spans": tuple(Span(**one) for one in document["spans"]),
            "graphs": tuple(GraphUse(**one) for one in document.get("graphs", ())),
            "moments": tuple(Moment(**one) for one in document["moments"]),
            "lookups": Lookups(
                tuple(document["lookups"]["hits"]),
                tuple((what, reason) for what, reason in document["lookups"]["misses"]),
            ),
        }
    )


def _program(document: Mapping[str, Any]) -> ProgramFacts:
    use = document["use"]
    return ProgramFacts(
        **{
            **document,
            "ranges": tuple(document["ranges"]),
            "relations": tuple(document["relations"]),
            "kinds": tuple(map(_kind, document["kinds"])),
            "steps": tuple(map(_step, document["steps"])),
            "folds": tuple(Fold(tuple(map(_step, one["steps"])), one["times"]) for one in document["folds"]),
            "use": tuple(RangeUse(**one) for one in use) if use is not None else None,
            "eager": tuple(document.get("eager", ())),  # what was kept before it was counted has none
        }
    )


def _kind(document: Mapping[str, Any]) -> Kind:
    built = (
        Built(**{**one, "files": tuple(one["files"]), "guards": tuple(one["guards"])})
        for one in document["built"]
    )
    return Kind(
        **{
            **document,
            "pieces": tuple(document["pieces"]),
            "inputs": tuple(document["inputs"]),
            "ops": tuple(Op(**one) for one in document["ops"]),
            "built": tuple(built),
            "timed": tuple(Timed(**one) for one in document["timed"]),
        }
    )


def _step(document: Mapping[str, Any]) -> Step:
    return Step(**{**document, "calls": tuple(document["calls"]), "lines": tuple(document["lines"])})
