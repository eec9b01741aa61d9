"""Replays on other memory, or with other values, are found out."""

from __future__ import annotations

import pytest
import torch

from torch_piecewise.cudagraphs.addresses import AddressBook
from torch_piecewise.errors import StaticGraphError


def test_the_same_tensors_pass():
    x = torch.ones(3)
    book = AddressBook((x, 1), {"y": {"deep": [x]}})
    x.fill_(2)
    book.check((x, 1), {"y": {"deep": [x]}})


def test_another_tensor_object_on_the_same_memory_passes():
    x = torch.ones(3)
    AddressBook((x,), {}).check((x.view(3),), {})


@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        (lambda x: (x.clone(), 1), lambda x: {"y": {"deep": [x]}}, r"args\[0\]"),
        (lambda x: (x[:2], 1), lambda x: {"y": {"deep": [x]}}, r"args\[0\]"),
        (lambda x: (x, 2), lambda x: {"y": {"deep": [x]}}, r"args\[1\]"),
        (lambda x: (x, 1), lambda x: {"y": {"deep": [x.clone()]}}, r"y\['deep'\]\[0\]"),
        (lambda x: (x, 1), lambda x: {"y": {"deep": []}}, r"y\['deep'\]\[0\]"),
        (lambda x: (x, 1), lambda x: {"y": {"deep": [x]}, "z": None}, "z"),
    ],
)
def test_what_differs_is_named(args, kwargs, path):
    x = torch.ones(3)
    book = AddressBook((x, 1), {"y": {"deep": [x]}})
    with pytest.raises(StaticGraphError, match=f"^{path} of a replay"):
        book.check(args(x), kwargs(x))


def test_objects_count_by_identity():
    one, other = object(), object()
    book = AddressBook((one,), {})
    book.check((one,), {})
    with pytest.raises(StaticGraphError):
        book.check((other,), {})
