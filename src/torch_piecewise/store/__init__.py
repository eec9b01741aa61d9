"""The store: what was compiled, kept so that the next process starts at once."""

from torch_piecewise.store.base import (
    BlobRef,
    Blobs,
    Cause,
    Draft,
    Entry,
    Found,
    Hit,
    Miss,
    Namespace,
    Store,
)
from torch_piecewise.store.memory import MemoryStore
from torch_piecewise.store.opening import OpenStore, open_store
from torch_piecewise.store.root import cache_root
from torch_piecewise.store.single_flight import Flights, Outcome, get_or_make

__all__ = [
    "BlobRef",
    "Blobs",
    "Cause",
    "Draft",
    "Entry",
    "Flights",
    "Found",
    "Hit",
    "MemoryStore",
    "Miss",
    "Namespace",
    "OpenStore",
    "Outcome",
    "Store",
    "cache_root",
    "get_or_make",
    "open_store",
]
