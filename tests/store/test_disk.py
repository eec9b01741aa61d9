from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from torch_piecewise.errors import StoreError
from torch_piecewise.store import BlobRef, Draft, Hit, Miss, Namespace, open_store
from torch_piecewise.store.base import Cause
from torch_piecewise.store.files import Files
from torch_piecewise.store.manifest import FORMAT


def blob_files(root: Path) -> list[Path]:
    return [path for path in (root / "blobs").rglob("*") if path.is_file()]


def manifest_of(root: Path, key: str) -> Path:
    return next((root / "entries").glob(f"*/{key[:2]}/{key[2:]}/manifest.json"))


def test_a_blob_lies_under_the_digest_of_its_bytes(opened, root, key, draft):
    opened.store.put(key("a"), draft("a"))
    ref = BlobRef.of(draft("a").blobs["artifact"])
    path = root / "blobs" / ref.digest[:2] / ref.digest[2:]
    assert path.read_bytes() == draft("a").blobs["artifact"]


def test_equal_bytes_are_kept_once(opened, root, key, draft):
    opened.store.put(key("a"), draft("a"))
    opened.store.put(key("b"), draft("b"))
    assert len(blob_files(root)) == 3


def test_namespaces_are_apart_and_share_blobs(opened, root, key, draft):
    other = opened.in_namespace(Namespace("vision", rank=1, world_size=2))
    opened.store.put(key("a"), draft("a"))
    assert isinstance(other.store.get(key("a")), Miss)
    other.store.put(key("a"), draft("a"))
    assert isinstance(other.store.get(key("a")), Hit)
    assert len(blob_files(root)) == 2


def test_a_namespace_lists_only_its_own_entries(opened, key, draft):
    other = opened.in_namespace(Namespace("vision"))
    opened.store.put(key("a"), draft("a"))
    other.store.put(key("b"), draft("b"))
    assert [entry.meta["name"] for entry in other.store.entries()] == ["b"]


def test_companions_lie_beside_the_manifest_as_text(opened, root, key, draft):
    opened.store.put(key("a"), draft("a"))
    folder = manifest_of(root, key("a")).parent
    assert (folder / "computation_graph.py").read_text() == "# graph of a\n"


def test_a_lost_or_altered_companion_does_not_matter(opened, root, key, draft):
    opened.store.put(key("a"), draft("a"))
    companion = manifest_of(root, key("a")).parent / "computation_graph.py"
    companion.write_text("raise SystemExit")
    assert isinstance(opened.store.get(key("a")), Hit)
    companion.unlink()
    assert isinstance(opened.store.get(key("a")), Hit)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o644), (0o077, 0o600), (0o027, 0o640)])
def test_published_files_follow_the_umask_and_are_never_writable_by_a_group(root, key, draft, umask, mode):
    before = os.umask(umask)
    try:
        open_store(root, files=Files(durable=False)).store.put(key("a"), draft("a"))
    finally:
        os.umask(before)
    files = [*blob_files(root), manifest_of(root, key("a"))]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {mode}
    folders = [path for path in root.rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) & 0o022 for path in folders} == {0}


def test_no_file_holds_the_path_of_the_root(opened, root, key, draft):
    opened.store.put(key("a"), draft("a"))
    for path in root.rglob("*"):
        if path.is_file():
            assert str(root).encode() not in path.read_bytes()


@pytest.mark.parametrize("how", ["rename", "copy", "copy_without_times", "symlink"])
def test_a_moved_copied_or_linked_root_still_hits(opened, root, tmp_path, key, draft, how):
    opened.store.put(key("a"), draft("a"))
    new = tmp_path / "else where" / "ö"
    new.parent.mkdir()
    if how == "rename":
        root.rename(new)
    elif how == "symlink":
        new.symlink_to(root)
    else:
        subprocess.run(["cp", "-a" if how == "copy" else "-r", str(root), str(new)], check=True)
    store = open_store(new, files=Files(durable=False)).store
    entry = store.get(key("a")).value
    assert store.blobs.read(entry.blobs["artifact"]) == Hit(draft("a").blobs["artifact"])


def test_a_lost_blob_is_a_miss_that_names_its_role(opened, root, key, draft):
    opened.store.put(key("a"), draft("a"))
    for path in blob_files(root):
        path.unlink()
    found = opened.store.get(key("a"))
    assert isinstance(found, Miss)
    assert "artifact" in found.reason


def test_an_altered_blob_is_a_miss_set_aside_and_mended_by_a_put(opened, root, key, draft):
    opened.store.put(key("a"), draft("a"))
    ref = opened.store.get(key("a")).value.blobs["artifact"]
    path = root / "blobs" / ref.digest[:2] / ref.digest[2:]
    path.write_bytes(b"X" * ref.size)
    found = opened.store.blobs.read(ref)
    assert isinstance(found, Miss)
    assert found.cause is Cause.DAMAGED
    assert [aside.read_bytes() for aside in (root / "quarantine").iterdir()] == [b"X" * ref.size]
    assert isinstance(opened.store.get(key("a")), Miss)
    opened.store.put(key("a"), draft("a"))
    assert opened.store.blobs.read(ref) == Hit(draft("a").blobs["artifact"])


def test_a_put_mends_a_damaged_blob_that_nobody_has_read(opened, root, key, draft):
    opened.store.put(key("a"), draft("a"))
    ref = opened.store.get(key("a")).value.blobs["artifact"]
    (root / "blobs" / ref.digest[:2] / ref.digest[2:]).write_bytes(b"X" * ref.size)
    opened.store.put(key("a"), draft("a"))
    assert opened.store.blobs.read(ref) == Hit(draft("a").blobs["artifact"])


def test_a_file_is_handed_out_only_when_its_bytes_are_right(opened, root, key, draft):
    opened.store.put(key("a"), draft("a"))
    ref = opened.store.get(key("a")).value.blobs["artifact"]
    (root / "blobs" / ref.digest[:2] / ref.digest[2:]).write_bytes(b"X" * ref.size)
    assert isinstance(opened.store.blobs.file(ref), Miss)


def test_a_damaged_manifest_is_set_aside_and_mended_by_a_put(opened, root, key, draft):
    opened.store.put(key("a"), draft("a"))
    manifest_of(root, key("a")).write_bytes(b'{"body":')
    found = opened.store.get(key("a"))
    assert isinstance(found, Miss)
    assert found.cause is Cause.DAMAGED
    assert opened.store.get(key("a")).cause is Cause.ABSENT
    opened.store.put(key("a"), draft("a"))
    assert isinstance(opened.store.get(key("a")), Hit)


def test_a_manifest_of_another_format_is_a_miss_and_is_left_alone(opened, root, key, draft):
    import hashlib

    opened.store.put(key("a"), draft("a"))
    path = manifest_of(root, key("a"))
    body = {**json.loads(path.read_bytes())["body"], "format": FORMAT + 1}
    head = b'{"body":' + json.dumps(body).encode() + b","
    text = head + b'\n"sha256":"%s"}\n' % hashlib.sha256(head).hexdigest().encode()
    path.write_bytes(text)
    found = opened.store.get(key("a"))
    assert isinstance(found, Miss)
    assert found.cause is Cause.FOREIGN
    assert f"format {FORMAT + 1}" in found.reason
    assert path.read_bytes() == text


@pytest.mark.parametrize("kind", ["folder", "fifo", "dangling link", "link to a device"])
def test_something_else_in_the_place_of_a_file_neither_hangs_nor_crashes(opened, root, key, draft, kind):
    opened.store.put(key("a"), draft("a"))
    ref = opened.store.get(key("a")).value.blobs["artifact"]
    for path in (manifest_of(root, key("a")), root / "blobs" / ref.digest[:2] / ref.digest[2:]):
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero" if kind == "link to a device" else "nowhere")
    assert isinstance(opened.store.blobs.read(ref), Miss)
    assert isinstance(opened.store.get(key("a")), Miss)
    opened.store.put(key("a"), draft("a"))
    assert isinstance(opened.store.get(key("a")), Hit)
    assert opened.store.blobs.read(ref) == Hit(draft("a").blobs["artifact"])


def test_a_draft_that_names_an_unknown_blob_is_not_kept(opened, key):
    with pytest.raises(StoreError, match="not in the store"):
        opened.disk.put(key("a"), Draft([], {"x": BlobRef.of(b"unknown")}))
    assert isinstance(opened.store.get(key("a")), Miss)


def test_companions_that_utf8_cannot_say_are_still_written(opened, root, key, draft):
    opened.store.put(key("a"), draft(companions={"graph.py": "# \udc80"}))
    assert (manifest_of(root, key("a")).parent / "graph.py").read_bytes() == b"# \\udc80"


def test_a_failed_put_leaves_the_old_entry_and_no_temp_file(root, key, draft, opened):
    opened.store.put(key("a"), draft("a"))

    class Broken(Files):
        def write(self, descriptor: int, data: bytes) -> None:
            os.write(descriptor, data[:3])
            raise OSError(5, "Input/output error")

    other = open_store(root, files=Broken(durable=False))
    with pytest.raises(StoreError, match="Input/output error"):
        other.disk.put(key("a"), draft("b"))
    assert opened.store.get(key("a")).value.meta["name"] == "a"
    assert not list(root.rglob("*.tmp"))


def test_the_root_is_tagged_so_that_backups_skip_it(opened, root):
    assert (root / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
