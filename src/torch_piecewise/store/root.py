"""Where the root is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch_piecewise.errors import StoreError

VARIABLE = "TORCH_PIECEWISE_CACHE_DIR"
_FOLDER = "torch-piecewise"


def cache_root(env: Mapping[str, str]) -> Path:
    """The folder to keep compiled programs in: the variable, else the user's cache folder.

    Args:
        env: environment variables; ``TORCH_PIECEWISE_CACHE_DIR`` comes first, then ``XDG_CACHE_HOME``.

    Returns:
        An absolute path; it need not exist.

    Raises:
        StoreError: the variable holds a relative path, or there is no home folder.
    """
    given = env.get(VARIABLE, "")
    if given:
        return _absolute(given, VARIABLE)
    # As the XDG specification says, an empty or relative value counts as none.
    xdg = Path(env.get("XDG_CACHE_HOME", ""))
    if xdg.is_absolute():
        return xdg / _FOLDER
    # Imported where no root is named: machines that name one run with torch alone.
    import platformdirs

    return _absolute(str(platformdirs.user_cache_path(_FOLDER, appauthor=False)), "the user's cache folder")


def _absolute(text: str, source: str) -> Path:
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        path = Path(text)
    if path.is_absolute():
        return path
    raise StoreError(
        f"The cache has no place: {source} is not an absolute path",
        expected="an absolute path (~ is the home folder, if there is one)",
        got=repr(text),
        hint=f"set {VARIABLE}",
    )
