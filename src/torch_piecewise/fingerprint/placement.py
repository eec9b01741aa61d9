"""Where a piece runs does not count, as long as nothing in the piece asks for one place.

Indices of accelerators are numbered per device type in the order in which the piece mentions them:
``cuda#0``, ``cuda#1``. That is the whole truth only if renumbering the devices would renumber the whole
program. A piece that also names a device by a string (``"cuda:1"``), by a bare number (``x.to(1)``), or
as the current one (``torch.device("cuda")``, ``x.cuda()``) would mean another program elsewhere: its
text ends with the real indices, so it is shared on its own devices only.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.fx import Node

_DEVICE_STRING = re.compile(r"([a-z][a-z0-9_]*)(:\d+)?")
_UNPLACED = frozenset({"cpu", "meta"})
_AUTOCAST = "torch.amp.autocast_mode"


class Placement:
    """Numbers the devices of one piece, and notes what ties the piece to them."""

    def __init__(self) -> None:
        self._numbers: dict[torch.device, str] = {}
        self._counts: dict[str, int] = {}
        self._words: set[str] = set()
        self._tied: set[str] = set()
        self._tied_all = False

    def text(self, device: torch.device) -> str:
        """Canonical text of a device that the piece mentions."""
        if device.type in _UNPLACED:
            return str(device)
        if device.index is None:
            self._tied.add(device.type)
            return device.type
        if device not in self._numbers:
            number = self._counts.get(device.type, 0)
            self._counts[device.type] = number + 1
            self._numbers[device] = f"{device.type}#{number}"
        return self._numbers[device]

    def note_word(self, word: str) -> None:
        """Note a string constant: it may be the name of a device."""
        match = _DEVICE_STRING.fullmatch(word)
        if match is not None:
            self._words.add(match[1])

    def note_call(self, node: Node, target: str) -> None:
        """Note a call that may name a device by a number, or the current device by its very name.

        Args:
            target: the import path or method name of what ``node`` calls.
        """
        name = target.rpartition(".")[2]
        self._words.update(target.split("."))
        if "accelerator" in target or (name == "to" and any(map(_is_index, node.args[1:2]))):
            self._tied_all = True

    def note_argument(self, name: str, value: object) -> None:
        """Note an argument, empty ``name`` where it is not known: a number may be that of a device."""
        if "device" in name and _is_index(value):
            self._tied_all = True

    def line(self) -> str | None:
        """The real indices, for a piece that is tied to them; None for one that runs anywhere."""
        tied = self._tied | (self._words & self._counts.keys())
        shown = [
            f"{number}={device}"
            for device, number in self._numbers.items()
            if self._tied_all or device.type in tied
        ]
        return f"placed {' '.join(shown)}" if shown else None


def names_only_a_device_type(target: Any) -> bool:
    """Whether the strings a call takes name a kind of device and never one device (autocast)."""
    return getattr(target, "__module__", None) == _AUTOCAST


def _is_index(value: object) -> bool:
    return type(value) is int
