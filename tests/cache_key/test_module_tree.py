"""What of a model counts: its code and its instances' state, never the values of its weights."""

from __future__ import annotations

import copy
import enum
import functools
import os
import subprocess
import sys
import textwrap
import threading
from collections import OrderedDict

import pytest
import torch
from torch import nn

from torch_piecewise.cache_key import Key, differences, module_tree_ingredients, opaque_paths


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


class Settings:
    def __init__(self, dim: int = 4) -> None:
        self.dim = dim
        self._name_or_path = f"/somewhere/{id(self)}"


class Slotted:
    __slots__ = ("__private", "value")

    def __init__(self, value: int, private: int = 0) -> None:
        self.value = value
        self.__private = private


class Number(int):
    pass


class Block(nn.Module):
    scale = 2.0

    def __init__(self, dim: int = 4, eps: float = 1e-05) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.register_buffer("positions", torch.arange(dim))
        self.eps = eps
        self.thing: object = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.scale + self.eps


class Model(nn.Module):
    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.config = Settings()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def key_of(module: nn.Module) -> Key:
    return Key.of(module_tree_ingredients(module))


def told(module: nn.Module, before: Key) -> list[str]:
    return [str(one) for one in differences(key_of(module).ingredients, before.ingredients)]


def changed(change) -> list[str]:
    model = Model()
    before = key_of(model)
    change(model)
    return told(model, before)


def test_two_models_made_alike_are_equal():
    assert key_of(Model()).digest() == key_of(Model()).digest()


def test_the_same_module_described_twice_is_equal():
    model = Model()
    assert key_of(model) == key_of(model)


def test_values_of_weights_and_buffers_do_not_count():
    def change(model: Model) -> None:
        with torch.no_grad():
            model.layers[0].linear.weight.fill_(7.0)
            model.layers[0].positions.fill_(7)

    assert changed(change) == []


def test_describing_leaves_the_module_as_it_was():
    model = Model()
    before = {name: sorted(vars(module)) for name, module in model.named_modules()}
    key_of(model)
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == before


def test_a_python_number_of_one_instance_is_exactly_one_difference():
    def change(model: Model) -> None:
        model.layers[2].eps = 1e-06

    assert changed(change) == ["module.layers.2.eps: 1e-05 -> 1e-06"]


def test_an_attribute_of_the_root_has_the_shortest_path():
    assert changed(lambda model: setattr(model, "eps", 1)) == ["module.eps: (none) -> 1"]


SET = "module.layers.1.thing: None -> "


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (3.0, "3.0"),
        (True, "True"),
        ("gelu", "'gelu'"),
        ("None", "'None'"),
        (float("inf"), "inf"),
        (complex(1, 2), "(1+2j)"),
        (torch.float16, "torch.float16"),
        (torch.device("cuda", 1), "device cuda:1"),
        (torch.Size([1, 2]), "torch.Size([1, 2])"),
        (torch.channels_last, "torch.channels_last"),
        ((3, 3), "(3, 3)"),
        ([1, [2, "x"]], "[1, [2, 'x']]"),
        ({"a": 1, "b": None}, "{'a': 1, 'b': None}"),
        ({3, 1, 2}, "set(1, 2, 3)"),
        (frozenset({"b", "a"}), "frozenset('a', 'b')"),
        ((), "()"),
        ((1,), "(1,)"),
        (Colour.RED, f"{__name__}.Colour.RED = 1"),
        (range(3), "range(0, 3)"),
        (slice(1, None), "slice(1, None, None)"),
        (torch.nn.functional.gelu, "function torch._C._nn.gelu"),
        (torch.ops.aten.add, "operator aten.add"),
        (torch.ops.aten.add.Tensor, "operator aten.add.Tensor"),
        (nn.ReLU, "class torch.nn.modules.activation.ReLU"),
        (functools, "module functools"),
    ],
)
def test_a_plain_attribute_counts_by_its_value(value, text):
    assert changed(lambda model: setattr(model.layers[1], "thing", value)) == [SET + text]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("torch.float32", torch.float32),
        (1, 1.0),
        (1, True),
        ([1], (1,)),
        ({1}, frozenset({1})),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (OrderedDict(a=1), {"a": 1}),
        ("1", 1),
        (None, "None"),
        (Number(1), Number(2)),
        (Number(1), 1),
        (b"a", b"b"),
        (10**100, 10**100 + 1),
        ("x" * 5000, "x" * 4999 + "y"),
        (list(range(5000)), [*range(4999), 0]),
        (Slotted(1), Slotted(2)),
        (Slotted(1, private=1), Slotted(1, private=2)),
        ([Settings(1)], [Settings(2)]),
        ({"a": Settings(1)}, {"a": Settings(2)}),
        (functools.partial(max, 1), functools.partial(max, 2)),
        (functools.partial(max, key=len), functools.partial(max, key=abs)),
        (nn.Linear(2, 2), nn.Linear(2, 3)),
        ([nn.Linear(2, 2)], [nn.Linear(2, 2, bias=False)]),
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2, 3), torch.zeros(3, 2).t()),
    ],
)
def test_attributes_that_could_be_confused_are_told_apart(left, right):
    model = Model()
    model.layers[1].thing = left
    before = key_of(model)
    model.layers[1].thing = right
    found = told(model, before)
    assert found
    assert any(one.startswith("module.layers.1.thing") for one in found)
    assert all(one.startswith(("module.layers.1.thing", f"classes.{__name__}.Number")) for one in found)


def test_a_numpy_array_counts_by_its_content():
    numpy = pytest.importorskip("numpy")
    model = Model()
    model.layers[1].thing = numpy.zeros(3)
    before = key_of(model)
    model.layers[1].thing = numpy.zeros(3)
    assert told(model, before) == []
    model.layers[1].thing = numpy.ones(3)
    assert len(told(model, before)) == 1
    model.layers[1].thing = numpy.float64(2.5)
    assert told(model, before)[0].endswith("numpy float64 [] 2.5")


def test_the_state_of_an_object_is_named_within_it():
    assert changed(lambda model: setattr(model.config, "dim", 8)) == ["module.config.dim: 4 -> 8"]


def test_labels_do_not_count():
    assert changed(lambda model: setattr(model.config, "_name_or_path", "/other/home")) == []
    assert changed(lambda model: setattr(model, "name_or_path", "x")) == []


def test_what_to_ignore_can_be_said():
    model = Model()
    before = Key.of(module_tree_ingredients(model, ignore={"eps"}))
    model.layers[0].eps = 3.0
    assert Key.of(module_tree_ingredients(model, ignore={"eps"})) == before


def test_a_changed_class_attribute_is_named_once_for_all_instances(monkeypatch):
    model = Model()
    before = key_of(model)
    monkeypatch.setattr(Block, "scale", 3.0)
    assert told(model, before) == [f"classes.{__name__}.Block.scale: 2.0 -> 3.0"]


def test_a_method_exchanged_on_the_class_is_named_once(monkeypatch):
    model = Model()
    before = key_of(model)
    monkeypatch.setattr(Block, "forward", lambda self, x: x)
    (found,) = told(model, before)
    assert found.startswith(f"classes.{__name__}.Block.(code): sha256:")


def test_a_method_exchanged_on_one_instance_is_named(monkeypatch):
    def change(model: Model) -> None:
        model.layers[0].forward = lambda x: x + 1

    (found,) = changed(change)
    assert found.startswith("module.layers.0.forward: (none) -> ")


def make_scaler(factor: float):
    def scaler(x: object) -> object:
        return (x, factor)

    return scaler


def test_what_a_closure_holds_is_named():
    model = Model()
    model.layers[0].thing = make_scaler(2.0)
    before = key_of(model)
    model.layers[0].thing = make_scaler(2.0)
    assert told(model, before) == []
    model.layers[0].thing = make_scaler(3.0)
    assert told(model, before) == ["module.layers.0.thing.(closure factor): 2.0 -> 3.0"]


def test_defaults_of_a_function_are_named():
    def make(factor: float):
        def scaler(x: object, by: float = factor, *, also: float = factor) -> object:
            return (x, by, also)

        return scaler

    model = Model()
    model.layers[0].thing = make(2.0)
    before = key_of(model)
    model.layers[0].thing = make(3.0)
    assert [one.split(":")[0] for one in told(model, before)] == [
        "module.layers.0.thing.(default also)",
        "module.layers.0.thing.(default by)",
    ]


def test_a_function_that_refers_to_itself_is_described():
    def make():
        def loop(x: int) -> int:
            return loop(x - 1) if x else 0

        return loop

    model = Model()
    model.layers[0].thing = make()
    assert key_of(model) == key_of(model)


def test_a_bound_method_counts_by_its_function_and_its_owner():
    model = Model()
    model.layers[0].thing = model.layers[1].forward
    before = key_of(model)
    model.layers[0].thing = model.layers[2].forward
    assert told(model, before) == [
        "module.layers.0.thing.(self): same object as module.layers.1 -> same object as module.layers.2"
    ]


def test_a_custom_op_counts_by_its_body():
    def make(number: float):
        @torch.library.custom_op(f"test_module_tree::op{int(number)}", mutates_args=())
        def op(x: torch.Tensor) -> torch.Tensor:
            return x * number

        return op

    model = Model()
    model.layers[0].thing = make(1.0)
    before = key_of(model)
    model.layers[0].thing(torch.ones(1))
    assert told(model, before) == []
    model.layers[0].thing = make(2.0)
    assert len(told(model, before)) == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda layer: layer.linear.half(), ["weight", "bias"]),
        (lambda layer: layer.linear.weight.requires_grad_(False), ["weight"]),
        (lambda layer: setattr(layer.linear, "weight", nn.Parameter(torch.zeros(4, 4).t())), ["weight"]),
        (lambda layer: setattr(layer.linear, "bias", None), ["bias"]),
        (lambda layer: layer.linear.to("meta"), ["weight", "bias"]),
        (lambda layer: setattr(layer.linear, "weight", nn.Parameter(torch.zeros(5, 4))), ["weight"]),
    ],
)
def test_a_changed_tensor_is_named_by_its_own_name(change, expected):
    found = changed(lambda model: change(model.layers[1]))
    assert [one.split(":")[0] for one in found] == [f"module.layers.1.linear.{name}" for name in expected]


def test_a_buffer_counts_by_shape_and_dtype():
    found = changed(lambda model: setattr(model.layers[0], "positions", torch.zeros(5)))
    assert found == ["module.layers.0.positions: int64 [4] stride [1] cpu -> float32 [5] stride [1] cpu"]


def test_training_mode_counts():
    assert changed(lambda model: model.layers[0].linear.eval()) == [
        "module.layers.0.linear.training: True -> False"
    ]


def test_tied_weights_are_named():
    def tie(model: Model) -> None:
        model.layers[2].linear.weight = model.layers[0].linear.weight

    (found,) = changed(tie)
    assert found.startswith("module.layers.2.linear.weight: ")
    assert found.endswith("-> same tensor as module.layers.0.linear.weight")


def test_tensors_that_share_memory_without_being_one_are_named():
    def share(model: Model) -> None:
        model.layers[2].linear.weight = nn.Parameter(model.layers[0].linear.weight.detach())

    assert changed(share) == [
        "module.(shared memory): (none) -> (1 values)",
    ]


def test_weights_that_lie_side_by_side_in_one_storage_count_as_separate_ones():
    def flatten(model: Model) -> None:
        flat = torch.zeros(32)
        model.layers[0].linear.weight = nn.Parameter(flat[:16].view(4, 4))
        model.layers[1].linear.weight = nn.Parameter(flat[16:].view(4, 4))

    assert changed(flatten) == []


def test_a_module_in_two_places_is_named():
    def share(model: Model) -> None:
        model.layers[2] = model.layers[0]

    found = changed(share)
    assert "module.layers.2: (5 values) -> same module as module.layers.0" in found


def test_added_removed_and_exchanged_modules_are_named():
    assert "module.extra: (none) -> " in changed(lambda model: model.add_module("extra", nn.ReLU()))[0]
    found = changed(lambda model: setattr(model.layers[0], "linear", nn.Identity()))
    assert found[0] == (
        "module.layers.0.linear.(class): torch.nn.modules.linear.Linear -> torch.nn.modules.linear.Identity"
    )


def test_the_order_of_submodules_counts():
    left, right = nn.Module(), nn.Module()
    for name in "ab":
        left.add_module(name, nn.ReLU())
    for name in "ba":
        right.add_module(name, nn.ReLU())
    assert [one.path for one in differences(key_of(left).ingredients, key_of(right).ingredients)] == [
        "module.(order)"
    ]


def test_hooks_count_by_their_code():
    def change(model: Model) -> None:
        model.layers[0].register_forward_hook(lambda module, args, output: output + 1)

    (found,) = changed(change)
    assert found.startswith("module.layers.0.(forward_hooks): (none) -> ")


def test_cycles_are_named_by_where_they_lead():
    class Node:
        def __init__(self) -> None:
            self.back: object = self
            self.items = [self]

    def change(model: Model) -> None:
        model.layers[0].thing = Node()
        model.layers[1].thing = [model]
        ring: list[object] = [1]
        ring.append(ring)
        model.layers[2].thing = ring

    model = Model()
    change(model)
    assert key_of(model) == key_of(model)
    text = str(key_of(model).as_json())
    assert "same object as module.layers.0.thing" in text
    assert "same object as module'" in text
    assert "same as module.layers.2.thing" in text


def test_what_is_nested_too_deep_is_named_opaque():
    model = Model()
    thing: object = Settings()
    for _ in range(100):
        outer = Settings()
        outer.inner = thing
        thing = outer
    model.layers[0].thing = thing
    (path,) = opaque_paths(module_tree_ingredients(model))
    assert path.startswith("module.layers.0.thing.inner.inner")


def test_what_cannot_be_looked_into_is_named_opaque():
    model = Model()
    model.layers[0].thing = threading.Lock()
    model.layers[1].thing = torch.Generator()
    assert list(opaque_paths(module_tree_ingredients(model))) == [
        "module.layers.0.thing",
        "module.layers.1.thing",
    ]


def test_no_text_can_be_taken_for_an_opaque_value():
    model = Model()
    model.layers[0].thing = "opaque _thread.lock"
    assert list(opaque_paths(module_tree_ingredients(model))) == []


def test_a_copied_model_is_equal():
    model = Model()
    assert key_of(copy.deepcopy(model)) == key_of(model)


def test_lazy_sparse_and_wrapped_tensors_are_described():
    model = nn.Module()
    model.lazy = nn.LazyLinear(3)
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    text = str(key_of(model).as_json())
    assert "uninitialized" in text
    assert "sparse_coo" in text


SCRIPT = """
    import importlib, sys
    from torch_piecewise.cache_key import Key, module_tree_ingredients
    for folder in sys.argv[1:]:
        sys.path.insert(0, folder)
        module = importlib.import_module("model_of_a_user")
        print(Key.of(module_tree_ingredients(module.make())).digest())
        sys.path.remove(folder)
        del sys.modules["model_of_a_user"]
        importlib.invalidate_caches()
"""

SOURCE = """
    import torch

    NAMES = {"x", "y", "zz", "a", "b"}

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(2, 2)
            self.names = set(NAMES)
            self.nested = {"a": {"b", "c", "dd"}, "f": helper}

        def forward(self, x):
            if "x" in {"x", "y", "zz"}:
                return self.fc(x) + 1
            return x

    def helper(x, names=frozenset({"p", "q", "rr"})):
        return x in {"k", "l", "mm"}

    def make():
        return Net()
"""


def digests_in_another_process(place, seed: str, *sources: str) -> list[str]:
    folders = []
    for number, source in enumerate(sources):
        folder = place / str(number)
        folder.mkdir(parents=True)
        (folder / "model_of_a_user.py").write_text(textwrap.dedent(source))
        folders.append(str(folder))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), *folders],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    return done.stdout.split()


def test_a_model_is_the_same_in_other_processes_and_folders_and_not_when_its_code_changed(tmp_path):
    commented = SOURCE.replace("return x\n", "return x  # the same\n").replace("NAMES =", "\n\n    NAMES =")
    changed = [
        SOURCE.replace("+ 1", "+ 2"),
        SOURCE.replace('"mm"', '"mn"'),
        SOURCE.replace('"zz", "a"', '"zy", "a"'),
    ]
    (first,) = digests_in_another_process(tmp_path / "here", "1", SOURCE)
    same, also_same, *others = digests_in_another_process(
        tmp_path / "else where", "2", SOURCE, commented, *changed
    )
    assert (same, also_same) == (first, first)
    assert len({first, *others}) == 4
