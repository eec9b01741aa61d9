from __future__ import annotations

from torch_piecewise.store import Hit, Miss, Namespace
from torch_piecewise.store.files import Files
from torch_piecewise.store.inspection import listed, verify


def test_every_entry_of_every_namespace_is_listed_with_its_size(opened, key, draft):
    opened.store.put(key("a"), draft("a"))
    opened.in_namespace(Namespace("vision")).store.put(key("b"), draft("b"))
    rows = listed(opened.disk.layout, Files())
    assert {row.namespace for row in rows} == {"backbone@0of1", "vision@0of1"}
    assert all(isinstance(row.found, Hit) for row in rows)
    manifest = opened.disk._place(key("a")).manifest.stat().st_size
    blobs = sum(len(data) for data in draft("a").blobs.values())
    sizes = {row.key: row.size for row in rows}
    assert sizes[key("a")] == manifest + blobs + len("# graph of a\n")


def test_listing_is_no_use(opened, key, draft):
    opened.store.put(key("a"), draft("a"))
    before = opened.disk._place(key("a")).manifest.stat().st_mtime_ns
    listed(opened.disk.layout, Files())
    list(opened.store.entries())
    assert opened.disk._place(key("a")).manifest.stat().st_mtime_ns == before


def test_a_damaged_entry_is_listed_with_the_reason_and_not_moved(opened, key, draft):
    opened.store.put(key("a"), draft("a"))
    manifest = opened.disk._place(key("a")).manifest
    manifest.write_bytes(b"torn")
    (row,) = listed(opened.disk.layout, Files())
    assert isinstance(row.found, Miss)
    assert "torn" in row.found.reason
    assert manifest.read_bytes() == b"torn"


def test_a_whole_root_has_no_problems(opened, key, draft):
    opened.store.put(key("a"), draft("a"))
    verdict = verify(opened.disk.layout, Files())
    assert (verdict.entries, verdict.blobs, verdict.problems) == (1, 2, ())


def test_a_missing_blob_and_a_changed_companion_are_told_apart_by_harm(opened, root, key, draft):
    opened.store.put(key("a"), draft("a"))
    ref = opened.store.get(key("a")).value.blobs["artifact"]
    opened.disk.layout.blob(ref.digest).unlink()
    (opened.disk._place(key("a")).folder / "computation_graph.py").write_text("changed")
    problems = {problem.harmful: problem for problem in verify(opened.disk.layout, Files()).problems}
    assert "artifact" in problems[True].what
    assert problems[False].path.endswith("computation_graph.py")


def test_a_root_that_does_not_exist_is_empty(opened, root, tmp_path):
    from torch_piecewise.store.layout import Layout

    assert listed(Layout(tmp_path / "none"), Files()) == []
    assert verify(Layout(tmp_path / "none"), Files()).problems == ()
