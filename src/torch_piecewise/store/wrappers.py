"""Stores around a store: one only reads, one carries on when the disk does not; and one that has nothing."""

from __future__ import annotations

import errno
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from torch_piecewise.errors import StoreError, UntrustedError
from torch_piecewise.store.base import BlobRef, Blobs, Cause, Draft, Entry, Found, Miss, Store, check_key

_T = TypeVar("_T")
logger = logging.getLogger("torch_piecewise.store")


class ReadOnlyStore:
    """Reads from ``inner``; what is put is dropped."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    @property
    def blobs(self) -> Blobs:
        """The bytes that the entries name."""
        return self._inner.blobs

    def get(self, key: str) -> Found[Entry]:
        return self._inner.get(key)

    def put(self, key: str, draft: Draft) -> None:
        """Drop ``draft``."""
        logger.debug("entry %s was not kept: the store is used read-only", key[:12])

    def entries(self) -> Iterator[Entry]:
        yield from self._inner.entries()


class NullStore:
    """Has nothing and keeps nothing.

    Args:
        reason: what every miss says.
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason

    @property
    def blobs(self) -> Blobs:
        """No bytes at all."""
        return _NullBlobs(self._reason)

    def get(self, key: str) -> Found[Entry]:
        check_key(key)
        return Miss(self._reason, Cause.UNAVAILABLE)

    def put(self, key: str, draft: Draft) -> None:
        """Drop ``draft``."""
        check_key(key)

    def entries(self) -> Iterator[Entry]:
        yield from ()


class _NullBlobs:
    def __init__(self, reason: str) -> None:
        self._reason = reason

    def read(self, ref: BlobRef) -> Found[bytes]:
        return Miss(self._reason, Cause.UNAVAILABLE)

    def file(self, ref: BlobRef) -> Found[Path]:
        return Miss(self._reason, Cause.UNAVAILABLE)


class OneWarning:
    """Says the first complaint aloud, and later ones for those who debug.

    Args:
        warn: gets the text of the first.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._said = False
        self._guard = threading.Lock()

    def __call__(self, text: str) -> None:
        with self._guard:
            first, self._said = not self._said, True
        if first:
            self._warn(text)
        else:
            logger.debug("%s", text)


class DegradingStore:
    """Carries on when ``inner`` fails: reading becomes a miss, and after a failed put nothing more is put.

    A root that is not to be trusted is still refused: running from it would be worse than not running.

    Args:
        complain: called with the reason of each failure and how to mend it; see :class:`OneWarning`.
    """

    def __init__(self, inner: Store, complain: Callable[[str], None]) -> None:
        self._inner = inner
        self._complain = complain
        self._keeps = True

    @property
    def keeps(self) -> bool:
        """Whether putting still works."""
        return self._keeps

    @property
    def blobs(self) -> Blobs:
        """The bytes that the entries name."""
        return _DegradingBlobs(self._inner.blobs, self._complain)

    def get(self, key: str) -> Found[Entry]:
        return _or_miss(lambda: self._inner.get(key), self._complain)

    def put(self, key: str, draft: Draft) -> None:
        """Keep ``draft`` if that is possible.

        Raises:
            UntrustedError: another user can write to the store.
            StoreError: ``draft`` cannot be kept by any store.
        """
        if not self._keeps:
            logger.debug("entry %s was not kept: an earlier one could not be", key[:12])
            return
        try:
            self._inner.put(key, draft)
        except StoreError as error:
            if isinstance(error, UntrustedError) or error.errno is None:
                raise
            # A blob that was evicted meanwhile says nothing about the next put; a full disk does.
            self._keeps = error.errno == errno.ENOENT
            self._complain(f"{error}\n  The model runs; what it compiles is not kept.")

    def entries(self) -> Iterator[Entry]:
        found = iter(self._inner.entries())
        for _ in itertools.count():
            try:
                entry = next(found)
            except StopIteration:
                return
            except OSError as error:
                logger.debug("entries could not be listed: %s", error)
                return
            yield entry


class _DegradingBlobs:
    def __init__(self, inner: Blobs, complain: Callable[[str], None]) -> None:
        self._inner = inner
        self._complain = complain

    def read(self, ref: BlobRef) -> Found[bytes]:
        return _or_miss(lambda: self._inner.read(ref), self._complain)

    def file(self, ref: BlobRef) -> Found[Path]:
        return _or_miss(lambda: self._inner.file(ref), self._complain)


def _or_miss(look: Callable[[], Found[_T]], complain: Callable[[str], None]) -> Found[_T]:
    try:
        return look()
    except UntrustedError:
        raise
    except StoreError as error:
        if error.errno is None:
            raise
        complain(f"{error}\n  The model runs; it compiles what it cannot load.")
        return Miss(error.what, Cause.UNAVAILABLE)
