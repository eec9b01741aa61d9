"""The report that was kept with a program."""

from __future__ import annotations

import json
from pathlib import Path

from torch_piecewise.cache_cli.base import entries_of, find_entry
from torch_piecewise.errors import MissError
from torch_piecewise.observing import REPORT_FILE
from torch_piecewise.report import Report, from_json
from torch_piecewise.store.base import BlobRef
from torch_piecewise.store.layout import Layout


def kept_report(root: Path, target: str | None) -> Report:
    """The report of the cold start that made a kept program.

    Args:
        target: the beginning of its key, or the model's name or tag (then the newest); None for
            the newest program.

    Raises:
        MissError: there is no such entry, or nothing was kept with it.
    """
    entry = find_entry(root, target)
    namespaces = {one.key: one.namespace for one in entries_of(root)}
    file = Layout(root).entry(namespaces[entry.key], entry.key).folder / REPORT_FILE
    if REPORT_FILE not in entry.companions or not file.is_file():
        raise MissError(
            f"No report was kept with {entry.meta.get('label') or target or entry.key[:12]}",
            expected="a program that this version compiled",
            got=f"{entry.meta.get('kind') or 'an entry'} {entry.key[:12]}",
            hint="name a program (torch-piecewise cache list), or call report() in the process that runs it",
        )
    data = file.read_bytes()
    if BlobRef.of(data) != entry.companions[REPORT_FILE]:
        raise MissError(
            f"The report kept with {entry.key[:12]} is damaged",
            expected="the bytes that were written",
            hint="torch-piecewise cache verify lists what else is",
        )
    return from_json(json.loads(data))
