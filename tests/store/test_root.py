from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from torch_piecewise.errors import StoreError
from torch_piecewise.store import cache_root


def test_the_variable_comes_first():
    assert cache_root({"TORCH_PIECEWISE_CACHE_DIR": "/a/b", "XDG_CACHE_HOME": "/x"}) == Path("/a/b")


def test_a_tilde_is_the_home_folder():
    assert cache_root({"TORCH_PIECEWISE_CACHE_DIR": "~/cache"}) == Path.home() / "cache"


@pytest.mark.parametrize("empty", [{}, {"TORCH_PIECEWISE_CACHE_DIR": ""}])
def test_without_it_the_xdg_cache_home_is_used(empty):
    assert cache_root({**empty, "XDG_CACHE_HOME": "/x"}) == Path("/x/torch-piecewise")


@pytest.mark.parametrize("xdg", ["", "relative"])
def test_an_unusable_xdg_cache_home_is_ignored(xdg):
    expected = platformdirs.user_cache_path("torch-piecewise", appauthor=False)
    assert cache_root({"XDG_CACHE_HOME": xdg}) == expected


@pytest.mark.parametrize("bad", ["cache", "./cache", "~nobody-of-that-name/cache"])
def test_a_relative_path_is_refused_as_it_would_depend_on_where_one_starts(bad):
    with pytest.raises(StoreError, match="absolute path"):
        cache_root({"TORCH_PIECEWISE_CACHE_DIR": bad})
