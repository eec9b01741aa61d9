"""What graph passes did during a compile, on its way from wherever it ran to whoever listens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch_piecewise.events import PassRecord
from torch_piecewise.ranges import Range


def as_meta(records: Iterable[PassRecord]) -> dict[str, Any]:
    """Records as an artifact's ``meta`` carries them."""
    return {"passes": [_as_json(record) for record in records]}


def pass_records(meta: Mapping[str, Any], piece: str, range: Range) -> list[PassRecord]:
    """The records in an artifact's ``meta`` that a compile of this process, or of a worker, wrote."""
    return [PassRecord(piece=piece, range=range, **record) for record in meta.get("passes", ())]


def _as_json(record: PassRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "ran": record.ran,
        "matches": record.matches,
        "seconds": record.seconds,
        "nodes_before": record.nodes_before,
        "nodes_after": record.nodes_after,
    }
