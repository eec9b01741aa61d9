"""What mkdocs needs to build docs/ so that the same pages also read well in the repository.

Links in pages are written for the repository: relative to the file they stand in. Here those that leave
docs/ are mended: to a page that the site takes in from outside, they lead there; to any other file of the
repository, they become its name. A link to a file that does not exist is left as it is, and ``--strict``
refuses it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FROM_OUTSIDE = ("benchmarks/RESULTS.md", "CHANGELOG.md", "CONTRIBUTING.md")
"""Pages of the site that lie elsewhere in the repository; on the site they stand beside index.md."""

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """List the decisions in the navigation, so that a new page needs no line there."""
    pages = sorted(path.name for path in (DOCS / "decisions").glob("*.md"))
    config.nav[-1] = {"Decisions": [f"decisions/{name}" for name in pages]}
    return config


def on_files(files: Any, config: Any) -> Any:
    """Take in the pages from outside."""
    from mkdocs.structure.files import File

    for name in FROM_OUTSIDE:
        files.append(File.generated(config, Path(name).name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Mend the links of a page."""
    here = next((ROOT / name for name in FROM_OUTSIDE if Path(name).name == page.file.src_uri), None)
    return mended(markdown, here or DOCS / page.file.src_uri)


def mended(markdown: str, page: Path) -> str:
    """``markdown`` of the file ``page`` with links as the site has them."""

    def one(match: re.Match[str]) -> str:
        target = match["target"]
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = Path(os.path.normpath(page.parent / target))
        if not path.exists():
            return match[0]
        on_site = _on_site(path)
        if on_site is None:
            return _named(match["text"], path)
        place = _on_site(page) or Path()
        return f"[{match['text']}]({os.path.relpath(on_site, place.parent)}{match['anchor'] or ''})"

    return _LINK.sub(one, markdown)


def _on_site(path: Path) -> Path | None:
    """Where a file of the repository is on the site; None where it is not."""
    if path.relative_to(ROOT).as_posix() in FROM_OUTSIDE:
        return Path(path.name)
    return path.relative_to(DOCS) if path.is_relative_to(DOCS) and path.is_file() else None


def _named(text: str, path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    return f"`{name}`" if text.strip("`") == name else f"{text} (`{name}`)"
