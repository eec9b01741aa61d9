"""What the store's tests share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from torch_piecewise.store import Draft, OpenStore, open_store
from torch_piecewise.store.files import Files


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes many seconds; left out with -m 'not slow'")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def opened(root: Path) -> OpenStore:
    return open_store(root, files=Files(durable=False))


@pytest.fixture
def reopen(root: Path) -> Callable[[], OpenStore]:
    """The root as another process would open it: with marks of its own."""
    return lambda: open_store(root, files=Files(durable=False))


@pytest.fixture
def key() -> Callable[[object], str]:
    return lambda name: hashlib.sha256(repr(name).encode()).hexdigest()


@pytest.fixture
def draft() -> Callable[..., Draft]:
    def make(name: str = "a", **changes: object) -> Draft:
        fields: dict[str, object] = {
            "ingredients": [["name", name], ["nested", [["eps", 1e-5], ["flag", True]]]],
            "blobs": {"artifact": f"bytes of {name}".encode() * 20, "shared": b"the same for all" * 10},
            "meta": {"kind": "artifact", "name": name},
            "companions": {"computation_graph.py": f"# graph of {name}\n"},
        }
        return Draft(**{**fields, **changes})  # type: ignore[arg-type]

    return make
