"""Folders that show people one program each: ``debug_dump_path``."""

from __future__ import annotations

import itertools
import logging
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("torch_piecewise")


@dataclass(frozen=True)
class ProgramDump:
    """The folder of one program. A failing disk costs the dump, never the model.

    Attributes:
        path: None where nothing is written.
    """

    path: Path | None = None

    @classmethod
    def write(cls, root: str | None, name: str, files: Mapping[str, str]) -> ProgramDump:
        """Write ``<root>/<name>.<N>`` with the first free number N; it is there whole or not at all.

        Args:
            root: None writes nothing.
            name: of the program; what file systems refuse is replaced.
            files: path inside the folder -> text.
        """
        if root is None:
            return cls()
        safe = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)
        try:
            return cls(_published(Path(root), safe, files))
        except OSError as error:
            logger.warning("debug_dump_path: %s cannot be written and is left out: %s", root, error)
            return cls()

    def add(self, name: str, text: str) -> None:
        """One more file, there whole or not at all."""
        if self.path is None:
            return
        try:
            partial = self.path / f".{name}.partial"
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.path / name)
        except OSError as error:
            logger.warning("debug_dump_path: %s lacks %s: %s", self.path, name, error)


def _published(root: Path, name: str, files: Mapping[str, str]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    partial = root / f".{name}.{uuid.uuid4().hex}"
    partial.mkdir()
    try:
        for file, text in files.items():
            (partial / file).parent.mkdir(exist_ok=True)
            (partial / file).write_text(text, encoding="utf-8")
        return _renamed(partial, root, name)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _renamed(partial: Path, root: Path, name: str) -> Path:
    for number in itertools.count():
        path = root / f"{name}.{number}"
        if path.exists():
            continue
        try:
            # A folder takes the place of nothing or of an empty folder only, so nobody's dump is lost.
            partial.rename(path)
        except FileExistsError:
            continue
        except OSError:
            if not path.exists():
                raise
            continue
        return path
    raise AssertionError("count() ended")
