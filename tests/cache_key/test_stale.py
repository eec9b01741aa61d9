"""What went stale is a miss that names exactly that, from the store's look-up to the one line in the log."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import textwrap

import pytest
import torch
from torch import nn

from torch_piecewise.cache_key import (
    Key,
    compiler_ingredient,
    config_ingredient,
    explain_miss,
    function_ingredients,
    library_ingredient,
    module_tree_ingredients,
    nearest,
    passes_ingredient,
    source_ingredients,
    tag_ingredient,
    threads_ingredient,
    torch_ingredient,
    variables_ingredient,
)
from torch_piecewise.store import Draft, Hit, MemoryStore, Miss

SOURCE = """
    import torch

    class Norm(torch.nn.Module):
        def __init__(self, eps):
            super().__init__()
            self.eps = eps

        def forward(self, x):
            return x + self.eps

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = torch.nn.ModuleList(Norm(1e-5) for _ in range(4))
            self.fc = torch.nn.Linear(3, 3)

        def forward(self, x):
            for norm in self.norms:
                x = norm(x)
            return self.fc(x)
"""


def op_body(x):
    return x


def edited_body(x):
    return x + 1


@dataclasses.dataclass
class Start:
    """All that a start depends on."""

    model: nn.Module
    files: list
    op: object = op_body
    passes: tuple = (("noop", "uuid 1"),)
    sizes: tuple = (1, 8)
    threads: int = 2
    options: dict = dataclasses.field(default_factory=dict)
    variables: dict = dataclasses.field(default_factory=dict)

    def key(self) -> Key:
        return Key.of(
            [
                tag_ingredient("backbone"),
                library_ingredient(),
                torch_ingredient(),
                compiler_ingredient("inductor", self.options),
                config_ingredient({"sizes": self.sizes}),
                passes_ingredient(self.passes),
                threads_ingredient(self.threads),
                *module_tree_ingredients(self.model),
                source_ingredients(self.files),
                function_ingredients("custom_ops", {"ns::attention": self.op}),
                variables_ingredient(["SWITCH"], self.variables),
            ]
        )


@pytest.fixture
def load(tmp_path, monkeypatch):
    def load(source: str, folder: str = "here") -> Start:
        path = tmp_path / folder / "net_of_a_user.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source))
        sys.modules.pop("net_of_a_user", None)
        importlib.invalidate_caches()
        monkeypatch.syspath_prepend(str(path.parent))
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return Start(importlib.import_module("net_of_a_user").Net(), [path])

    yield load
    sys.modules.pop("net_of_a_user", None)


def kept_then(load, change, source: str = SOURCE, folder: str = "here") -> tuple[object, str]:
    """What the store says of the changed start, and the explanation."""
    store = MemoryStore()
    first = load(SOURCE).key()
    store.put(first.digest(), Draft(first.as_json()))
    later = load(source, folder)
    change(later)
    key = later.key()
    return store.get(key.digest()), explain_miss("program 'backbone'", nearest(key, store.entries()))


def keep(start: Start) -> None:
    """Change nothing."""


def weights(start: Start) -> None:
    with torch.no_grad():
        start.model.fc.weight.fill_(5.0)


@pytest.mark.parametrize(("change", "folder"), [(keep, "here"), (keep, "other checkout"), (weights, "here")])
def test_what_is_unchanged_or_only_moved_or_has_other_weights_is_a_hit(load, change, folder):
    found, _ = kept_then(load, change, folder=folder)
    assert isinstance(found, Hit)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda start: setattr(start.model.norms[2], "eps", 1e-6), "module.norms.2.eps: 1e-05 -> 1e-06"),
        (lambda start: start.model.fc.half(), "module.fc.weight: float32"),
        (lambda start: setattr(start, "op", edited_body), "custom_ops.ns::attention: sha256:"),
        (lambda start: setattr(start, "passes", (("noop", "uuid 2"),)), "passes.0:noop: uuid 1 -> uuid 2"),
        (lambda start: setattr(start, "sizes", (1, 16)), "config.sizes: (1, 8) -> (1, 16)"),
        (lambda start: setattr(start, "threads", 4), "threads: 2 -> 4"),
        (lambda start: start.options.update(max_autotune=True), "compiler.max_autotune: (none) -> True"),
        (lambda start: start.variables.update(SWITCH="on"), "environment.SWITCH: None -> on"),
    ],
)
def test_what_changed_is_a_miss_that_names_exactly_that(load, change, named):
    found, text = kept_then(load, change)
    assert isinstance(found, Miss)
    assert f"differs in {named}" in text
    assert "more" not in text
    assert text.count(";") == (1 if "fc.weight" in named else 0)


def test_edited_source_is_a_miss_that_names_the_class_and_the_file(load):
    found, text = kept_then(load, keep, SOURCE.replace("x + self.eps", "x - self.eps"))
    assert isinstance(found, Miss)
    assert "classes.net_of_a_user.Norm.(code): sha256:" in text
    assert "sources.net_of_a_user: sha256:" in text
    assert text.count(";") == 1


def test_another_version_of_the_library_is_a_miss_that_names_it(load, monkeypatch):
    import importlib.metadata

    def newer(start: Start) -> None:
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "99")

    found, text = kept_then(load, newer)
    assert isinstance(found, Miss)
    assert "differs in library.version: " in text
    assert text.endswith("-> 99")
