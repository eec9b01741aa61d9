from __future__ import annotations

import errno
import os

import pytest

from torch_piecewise.errors import StoreError, UntrustedError
from torch_piecewise.store import BlobRef, Hit, MemoryStore, Miss, open_store
from torch_piecewise.store.base import Cause
from torch_piecewise.store.files import Files
from torch_piecewise.store.wrappers import DegradingStore, NullStore, OneWarning, ReadOnlyStore


class FailingFiles(Files):
    """Fails as a real file system does, where and while it is told to."""

    def __init__(self, writing: int = 0, reading: int = 0) -> None:
        super().__init__(durable=False)
        self.writing = writing
        self.reading = reading

    def write(self, descriptor, data):
        if self.writing:
            os.write(descriptor, data[: len(data) // 2])
            raise OSError(self.writing, os.strerror(self.writing))
        super().write(descriptor, data)

    def read(self, path):
        if self.reading:
            raise OSError(self.reading, os.strerror(self.reading), str(path))
        return super().read(path)


def test_a_read_only_store_reads_and_drops_what_is_put(key, draft):
    inner = MemoryStore()
    inner.put(key("a"), draft("a"))
    store = ReadOnlyStore(inner)
    store.put(key("b"), draft("b"))
    assert isinstance(store.get(key("a")), Hit)
    assert isinstance(inner.get(key("b")), Miss)
    assert len(list(store.entries())) == 1


def test_a_null_store_misses_with_its_reason(key, draft):
    store = NullStore("switched off")
    store.put(key("a"), draft("a"))
    assert store.get(key("a")) == Miss("switched off", Cause.UNAVAILABLE)
    assert store.blobs.read(BlobRef.of(b"")) == Miss("switched off", Cause.UNAVAILABLE)
    assert list(store.entries()) == []


MENDS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "quota",
    errno.EROFS: "mount it writable",
    errno.EACCES: "chown",
    errno.EIO: "look at the folder",
}


@pytest.mark.parametrize("number", MENDS)
def test_a_failed_put_warns_once_with_the_reason_and_the_mend_and_later_puts_are_dropped(
    root, key, draft, number
):
    warnings: list[str] = []
    files = FailingFiles()
    opened = open_store(root, files=files, warn=warnings.append)
    opened.store.put(key("a"), draft("a"))
    files.writing = number
    for name in "bcd":
        opened.store.put(key(name), draft(name))
    assert len(warnings) == 1
    assert os.strerror(number) in warnings[0]
    assert MENDS[number] in warnings[0]
    assert str(root) in warnings[0]
    assert "the model runs" in warnings[0].lower()
    assert isinstance(opened.store.get(key("a")), Hit)
    assert isinstance(opened.store.get(key("b")), Miss)
    assert not list(root.rglob("*.tmp"))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE])
def test_what_cannot_be_read_is_a_miss_and_one_warning(root, key, draft, number):
    warnings: list[str] = []
    files = FailingFiles()
    opened = open_store(root, files=files, warn=warnings.append)
    opened.store.put(key("a"), draft("a"))
    ref = opened.store.get(key("a")).value.blobs["artifact"]
    files.reading = number
    assert opened.store.get(key("a")).cause is Cause.UNAVAILABLE
    assert opened.store.blobs.read(ref).cause is Cause.UNAVAILABLE
    assert opened.store.blobs.file(ref).cause is Cause.UNAVAILABLE
    assert list(opened.store.entries()) == []
    assert len(warnings) == 1
    files.reading = 0
    assert isinstance(opened.store.get(key("a")), Hit)


def test_namespaces_of_one_root_share_the_one_warning(root, key, draft):
    from torch_piecewise.store import Namespace

    warnings: list[str] = []
    opened = open_store(root, files=FailingFiles(writing=errno.ENOSPC), warn=warnings.append)
    opened.store.put(key("a"), draft("a"))
    opened.in_namespace(Namespace("vision")).store.put(key("a"), draft("a"))
    assert len(warnings) == 1


def test_a_blob_that_went_meanwhile_does_not_end_putting(opened, key, draft):
    opened.store.put(key("a"), draft(blobs={"x": BlobRef.of(b"evicted")}))
    assert isinstance(opened.store.get(key("a")), Miss)
    opened.store.put(key("b"), draft("b"))
    assert isinstance(opened.store.get(key("b")), Hit)


def test_a_draft_that_no_store_can_keep_is_an_error_all_the_same(opened, key, draft):
    with pytest.raises(StoreError, match="companion"):
        opened.store.put(key("a"), draft(companions={"../x": ""}))
    opened.store.put(key("b"), draft("b"))
    assert isinstance(opened.store.get(key("b")), Hit)


def test_a_root_that_is_not_trusted_is_refused_and_not_degraded(opened, root, key, draft):
    opened.store.put(key("a"), draft("a"))
    root.chmod(0o777)
    with pytest.raises(UntrustedError):
        opened.store.get(key("a"))


def test_complaints_after_the_first_go_to_those_who_debug(caplog):
    said: list[str] = []
    complain = OneWarning(said.append)
    with caplog.at_level("DEBUG", logger="torch_piecewise.store"):
        complain("first")
        complain("second")
    assert said == ["first"]
    assert [record.getMessage() for record in caplog.records] == ["second"]


def test_by_default_the_warning_is_logged(root, key, draft, caplog):
    opened = open_store(root, files=FailingFiles(writing=errno.ENOSPC))
    with caplog.at_level("WARNING", logger="torch_piecewise.store"):
        opened.store.put(key("a"), draft("a"))
    assert "No space left on device" in caplog.text


def test_whether_putting_still_works_can_be_asked(key, draft):
    class Full(MemoryStore):
        def put(self, key, draft):
            error = StoreError("full")
            error.errno = errno.ENOSPC
            raise error

    store = DegradingStore(Full(), lambda text: None)
    assert store.keeps
    store.put(key("a"), draft("a"))
    assert not store.keeps
