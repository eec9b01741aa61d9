"""What every store does, on disk or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from torch_piecewise.errors import StoreError
from torch_piecewise.store import BlobRef, Draft, Hit, MemoryStore, Miss, Store, open_store
from torch_piecewise.store.base import Cause
from torch_piecewise.store.files import Files


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return MemoryStore()
    return open_store(tmp_path / "cache", files=Files(durable=False)).store


def test_an_entry_that_was_never_put_is_a_miss_with_a_reason(store, key):
    found = store.get(key("a"))
    assert isinstance(found, Miss)
    assert found.cause is Cause.ABSENT
    assert key("a")[:12] in found.reason


def test_what_was_put_comes_back(store, key, draft):
    store.put(key("a"), draft("a"))
    found = store.get(key("a"))
    assert isinstance(found, Hit)
    entry = found.value
    assert entry.key == key("a")
    assert entry.ingredients == draft("a").ingredients
    assert entry.meta == draft("a").meta
    assert set(entry.companions) == {"computation_graph.py"}
    blobs = {role: store.blobs.read(ref) for role, ref in entry.blobs.items()}
    assert blobs == {role: Hit(data) for role, data in draft("a").blobs.items()}


def test_an_empty_blob_is_a_hit(store, key):
    store.put(key("a"), Draft([], {"empty": b""}))
    entry = store.get(key("a")).value
    assert store.blobs.read(entry.blobs["empty"]) == Hit(b"")


def test_a_blob_can_be_used_as_a_file(store, key, draft):
    store.put(key("a"), draft("a"))
    found = store.blobs.file(store.get(key("a")).value.blobs["artifact"])
    assert found.value.read_bytes() == draft("a").blobs["artifact"]


def test_a_later_put_replaces_the_entry(store, key, draft):
    store.put(key("a"), draft("a"))
    store.put(key("a"), draft("b"))
    assert store.get(key("a")).value.meta["name"] == "b"


def test_a_draft_can_name_a_blob_that_is_there(store, key, draft):
    store.put(key("a"), draft("a"))
    ref = store.get(key("a")).value.blobs["artifact"]
    store.put(key("b"), Draft([], {"again": ref}))
    assert store.get(key("b")).value.blobs == {"again": ref}


def test_a_miss_for_an_unknown_blob_says_which(store):
    found = store.blobs.read(BlobRef.of(b"never put"))
    assert isinstance(found, Miss)
    assert BlobRef.of(b"never put").digest[:12] in found.reason


def test_entries_are_listed_with_the_most_recently_put_first(store, key, draft):
    for name in "abc":
        store.put(key(name), draft(name))
        _wait_for_another_timestamp()
    assert [entry.meta["name"] for entry in store.entries()] == ["c", "b", "a"]


def test_getting_an_entry_makes_it_the_most_recently_used(store, key, draft):
    for name in "ab":
        store.put(key(name), draft(name))
        _wait_for_another_timestamp()
    store.get(key("a"))
    assert [entry.meta["name"] for entry in store.entries()] == ["a", "b"]


@pytest.mark.parametrize("bad", ["", "abc", "../../etc/passwd", "A" * 64, "g" * 64])
def test_a_key_that_is_no_digest_is_refused(store, bad, draft):
    with pytest.raises(StoreError, match="64 hexadecimal digits"):
        store.get(bad)
    with pytest.raises(StoreError, match="64 hexadecimal digits"):
        store.put(bad, draft())


@pytest.mark.parametrize("name", ["", "..", "a/b", "manifest.json", ".hidden", "a\0b", "x" * 200])
def test_a_companion_with_a_dangerous_name_is_refused(store, key, draft, name):
    with pytest.raises(StoreError, match="companion"):
        store.put(key("a"), draft(companions={name: "text"}))
    assert isinstance(store.get(key("a")), Miss)


@pytest.mark.parametrize(
    "changes",
    [
        {"meta": {"x": object()}},
        {"meta": {"x": float("nan")}},
        {"ingredients": [["x", float("inf")]]},
        {"ingredients": [["x"]]},
        {"ingredients": ["xy"]},
        {"ingredients": [[1, 2]]},
        {"ingredients": [["x", {"a": 1}]]},
        {"ingredients": [["x", b"bytes"]]},
    ],
)
def test_a_draft_that_json_cannot_say_is_refused_and_leaves_nothing(store, key, draft, changes):
    with pytest.raises(StoreError):
        store.put(key("a"), draft(**changes))
    assert isinstance(store.get(key("a")), Miss)


def _wait_for_another_timestamp() -> None:
    # Time stamps of files step by the kernel's tick.
    import time

    time.sleep(0.011)
