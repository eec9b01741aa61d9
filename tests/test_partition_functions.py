"""Inductor makes functions of its partitions here as well, and nobody else notices."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from torch_piecewise.torch_private.partitions import partition_functions

utils = pytest.importorskip("torch._inductor.utils")


def in_another_thread(ask: Any) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(ask()))
    thread.start()
    thread.join()
    return found[0]


def test_a_wrapper_is_there_but_not_in_force_while_this_thread_compiles() -> None:
    place = utils._unstable_customized_partition_wrapper
    with partition_functions():
        assert place.wrapper is not None
        assert not place.wrapper
    assert place.wrapper is None


def test_what_others_set_stays_in_force_for_them_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    place = utils._unstable_customized_partition_wrapper

    def theirs(part: Any, metadata: Any) -> Any:
        return ("wrapped", part, metadata)

    monkeypatch.setattr(place, "wrapper", theirs)
    with pytest.raises(ValueError, match="no"), partition_functions():
        assert not place.wrapper
        assert in_another_thread(lambda: bool(place.wrapper))
        assert in_another_thread(lambda: place.wrapper("part", 3)) == ("wrapped", "part", 3)
        raise ValueError("no")
    assert place.wrapper is theirs


def test_what_is_set_meanwhile_is_not_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    place = utils._unstable_customized_partition_wrapper
    monkeypatch.setattr(place, "wrapper", None)

    def new(part: Any, metadata: Any) -> Any:
        return part

    with partition_functions():
        utils.set_customized_partition_wrappers(new)
    assert place.wrapper is new


class Node:
    """As the scheduler has it: not on a GPU."""

    def __init__(self, device: str, *parts: Node) -> None:
        self.device, self.parts = torch.device(device), parts

    def get_device(self) -> torch.device:
        return self.device

    def is_gpu(self) -> bool:
        return self.device.type == "cuda"


class Scheduler:
    def should_partition(self, node: Node) -> str | None:
        if node.parts:
            return next(filter(None, map(self.should_partition, node.parts)), None)
        return None if node.is_gpu() else f"{node.device} ops"


def test_operations_on_the_named_device_belong_into_partitions_and_no_node_is_changed() -> None:
    from torch._inductor.virtualized import V

    from torch_piecewise.torch_private.partition_pass import HOOK, partition_patches

    passes = partition_patches("cpu")[HOOK]
    scheduler: Any = Scheduler()
    plain, fused, other = Node("cpu"), Node("cpu", Node("cpu"), Node("cpu")), Node("meta")
    with V.set_graph_handler(type("Graph", (), {"scheduler": scheduler})()):
        assert passes([plain, fused]) == [plain, fused]
    assert [scheduler.should_partition(node) for node in (plain, fused)] == [None, None]
    assert scheduler.should_partition(other) == "meta ops"
    assert not plain.is_gpu()
    assert "is_gpu" not in vars(plain)
    assert Scheduler().should_partition(plain) == "cpu ops"


def test_a_gpu_needs_no_pass_and_devices_have_identities_of_their_own() -> None:
    from torch_piecewise.torch_private.partition_pass import HOOK, partition_patches

    assert partition_patches("cuda") == {}
    assert partition_patches("cpu")[HOOK].uuid() != partition_patches("privateuseone")[HOOK].uuid()
