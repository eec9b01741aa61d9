from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
from types import SimpleNamespace

import pytest
import torch

from torch_piecewise.cache_key import (
    Key,
    compiler_ingredient,
    config_ingredient,
    device_ingredient,
    differences,
    function_ingredients,
    library_ingredient,
    passes_ingredient,
    python_ingredient,
    tag_ingredient,
    threads_ingredient,
    topology_ingredient,
    torch_ingredient,
    variables_ingredient,
)


def whole_key() -> Key:
    return Key.of(
        [
            library_ingredient(),
            torch_ingredient(),
            python_ingredient(),
            compiler_ingredient("inductor", {"options": {"max_autotune": False}, "backend": "cpp"}),
            config_ingredient(Settings()),
            passes_ingredient([("noop", "uuid 1"), ("clean", "uuid 2")]),
            device_ingredient(torch.device("cpu")),
            threads_ingredient(),
            tag_ingredient("backbone"),
            topology_ingredient(),
            variables_ingredient(["MY_SWITCH"], {}),
        ]
    )


@dataclasses.dataclass(frozen=True)
class Settings:
    mode: str = "piecewise"
    sizes: tuple[int, ...] = (1, 8)
    cache_dir: str = "/somewhere"


def told(ours, theirs) -> list[str]:
    return [str(one) for one in differences([ours], [theirs])]


def test_a_whole_key_is_the_same_twice():
    assert whole_key().digest() == whole_key().digest()


def test_no_ingredient_holds_a_place_of_this_machine():
    text = str([library_ingredient(), torch_ingredient(), python_ingredient(), threads_ingredient(2)])
    for place in (sys.prefix, sys.base_prefix, torch.__path__[0]):
        assert place not in text


def test_another_version_of_the_library_is_named(monkeypatch):
    before = library_ingredient()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    (found,) = told(library_ingredient(), before)
    assert found.startswith("library.version: ")
    assert found.endswith("-> 9.9")


def test_another_version_or_build_of_torch_is_named(monkeypatch):
    before = torch_ingredient()
    monkeypatch.setattr(torch.version, "git_version", "abc")
    assert [one.split(":")[0] for one in told(torch_ingredient(), before)] == ["torch.git_version"]
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert [one.split(":")[0] for one in told(torch_ingredient(), before)] == [
        "torch.version",
        "torch.git_version",
    ]


def test_the_capability_that_torchs_build_text_mentions_does_not_count(monkeypatch):
    before = torch_ingredient()
    shown = torch.__config__.show()
    assert "CPU capability usage" in shown
    monkeypatch.setattr(torch.__config__, "show", lambda: shown.replace("usage: ", "usage: X"))
    assert told(torch_ingredient(), before) == []


def test_whether_asserts_run_is_named(monkeypatch):
    before = python_ingredient()
    monkeypatch.setattr(sys, "flags", SimpleNamespace(optimize=1))
    assert told(python_ingredient(), before) == ["python.optimize: 0 -> 1"]


def test_a_compilers_option_is_named():
    before = compiler_ingredient("inductor", {"options": {"max_autotune": False}})
    after = compiler_ingredient("inductor", {"options": {"max_autotune": True}})
    assert told(after, before) == [
        "compiler.options: {'max_autotune': False} -> {'max_autotune': True}",
    ]
    assert told(compiler_ingredient("a", "x"), compiler_ingredient("b", "x")) == ["compiler.name: b -> a"]


def test_a_config_field_is_named_and_places_can_be_left_out():
    before = config_ingredient(Settings(), without=["cache_dir"])
    assert told(config_ingredient(Settings(cache_dir="/else"), without=["cache_dir"]), before) == []
    assert told(config_ingredient(Settings(sizes=(1, 16)), without=["cache_dir"]), before) == [
        "config.sizes: (1, 8) -> (1, 16)"
    ]
    assert told(config_ingredient({"mode": "piecewise", "sizes": (1, 8)}), before) == []


def test_an_edited_pass_and_another_order_are_named():
    before = passes_ingredient([("noop", "1"), ("clean", "2")])
    assert told(passes_ingredient([("noop", "3"), ("clean", "2")]), before) == ["passes.0:noop: 1 -> 3"]
    assert told(passes_ingredient([("clean", "2"), ("noop", "1")]), before) != []


def test_the_kind_of_a_device_counts_and_not_which_of_several():
    def properties(device: torch.device):
        return SimpleNamespace(name="H200", major=9, minor=0, multi_processor_count=132)

    first = device_ingredient(torch.device("cuda", 0), properties=properties)
    assert device_ingredient(torch.device("cuda", 7), properties=properties) == first
    assert told(first, device_ingredient(torch.device("cpu"))) != []

    def older(device: torch.device):
        return SimpleNamespace(name="H200", major=8, minor=0, multi_processor_count=132)

    assert told(device_ingredient(torch.device("cuda"), properties=older), first) == [
        "device.capability: 9.0 -> 8.0"
    ]


def test_threads_tag_and_ranks_are_named():
    assert told(threads_ingredient(4), threads_ingredient(2)) == ["threads: 2 -> 4"]
    assert threads_ingredient().value == torch.get_num_threads()
    assert told(tag_ingredient("vision"), tag_ingredient("backbone")) == ["tag.name: backbone -> vision"]
    assert told(
        topology_ingredient(rank=1, world_size=4, groups={"tp": 4}),
        topology_ingredient(rank=1, world_size=2, groups={"tp": 2}),
    ) == ["ranks.world_size: 2 -> 4", "ranks.groups.tp: 2 -> 4"]


def test_a_declared_variable_is_named_and_unset_is_not_empty():
    before = variables_ingredient(["B", "A"], {"A": "1", "C": "2"})
    assert told(variables_ingredient(["A", "B"], {"A": "1", "C": "3"}), before) == []
    assert told(variables_ingredient(["A", "B"], {"A": "1", "B": ""}), before) == ["environment.B: None -> "]


def test_an_edited_custom_op_body_is_named():
    def body(x):
        return x + 1

    def edited(x):
        return x + 2

    before = function_ingredients("custom_ops", {"ns::attention": body, "ns::other": body})
    (found,) = told(function_ingredients("custom_ops", {"ns::attention": edited, "ns::other": body}), before)
    assert found.startswith("custom_ops.ns::attention: sha256:")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_cuda_device_is_described():
    parts = {part.name: part.value for part in device_ingredient(torch.device("cuda", 0)).value}
    assert parts["name"]
    assert parts["multi_processor_count"] > 0
