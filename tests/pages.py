"""The documentation as tests see it: pages, their links, anchors, messages and code."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
NOTES = ("not run: ", "slow: ", "needs the package ")
"""How a note about the block below it begins; the rest is the reason, or the package."""

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SETUP = re.compile(r"^<!-- setup\n(.*?)^-->$", re.MULTILINE | re.DOTALL)
_NOTE = re.compile(r"<!-- ((?:not run:|slow:|needs the package)[^\n]*) -->\n+\Z")
_LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """Some code of a page.

    Attributes:
        line: where it begins, from 1.
        language: of the fence; empty where it names none; ``setup`` for what the page does not show.
        note: what the comment above it says: why it is not run, or not by default; else empty.
    """

    line: int
    language: str
    text: str
    note: str = ""

    def runs(self, *, slow: bool) -> bool:
        """Whether a test can run it, and is meant to."""
        kind, _, package = self.note.partition("needs the package ")
        if package:
            return importlib.util.find_spec(package) is not None
        return not kind or (slow and kind.startswith("slow"))


def blocks(page: Path) -> list[Block]:
    """What the page shows as code, and its hidden setup, in order."""
    text = page.read_text()
    found = [_block(text, match, language=match[1], code=2) for match in _FENCE.finditer(text)]
    found += [_block(text, match, language="setup", code=1) for match in _SETUP.finditer(text)]
    return sorted(found, key=lambda block: block.line)


def _block(text: str, match: re.Match[str], *, language: str, code: int) -> Block:
    note = _NOTE.search(text, 0, match.start())
    line = text.count("\n", 0, match.start(code)) + 1
    return Block(line, language, match[code], note[1] if note else "")


def python_blocks(page: Path) -> list[Block]:
    """Those of them that are Python."""
    return [block for block in blocks(page) if block.language in {"python", "setup"}]


def as_module(page: Path, *, slow: bool) -> str:
    """The page as Python: every block on its own lines, everything else left blank."""
    lines = [""] * page.read_text().count("\n")
    for block in python_blocks(page):
        if not block.runs(slow=slow):
            continue
        code = block.text.splitlines()
        lines[block.line - 1 : block.line - 1 + len(code)] = code
    return "\n".join(lines) + "\n"


def links(page: Path) -> Iterator[str]:
    """Targets of the page's links within the repository, code left out."""
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text()))
    for target in _LINK.findall(text):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(page: Path) -> set[str]:
    """What ``#...`` can name: headings, as both GitHub and mkdocs spell them."""
    text = _FENCE.sub("", page.read_text())
    return {_slug(title) for title in re.findall(r"^#+ +(.+)$", text, re.MULTILINE)}


def _slug(title: str) -> str:
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
