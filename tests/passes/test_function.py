from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
from torch import fx

from torch_piecewise.errors import ConfigError, FingerprintError
from torch_piecewise.passes.base import GraphPass
from torch_piecewise.passes.function import FunctionPass, InductorPass, as_pass, resolve


def count_nodes(graph: fx.Graph) -> int:
    return len(graph.nodes)


@dataclass(frozen=True)
class Sized(GraphPass):
    size: int

    def __call__(self, graph: fx.Graph) -> int:
        return self.size


class Group:
    inner = Sized(3)


class ForInductor:
    def __init__(self, identity: object) -> None:
        self.identity = identity
        self.seen: list[fx.Graph] = []

    def __call__(self, graph: fx.Graph) -> None:
        self.seen.append(graph)

    def uuid(self) -> object:
        return self.identity


def graph() -> fx.Graph:
    made = fx.Graph()
    made.output(made.placeholder("x"))
    return made


def test_a_function_becomes_a_pass_of_its_name():
    made = as_pass(count_nodes)
    assert made == FunctionPass(count_nodes)
    assert made.name == "count_nodes"
    assert made(graph()) == 2


def test_a_functions_uuid_is_about_its_code():
    assert as_pass(count_nodes).uuid() == as_pass(count_nodes).uuid()
    assert as_pass(count_nodes).uuid() != as_pass(graph).uuid()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["lambda", "local"])
def test_a_lambda_or_local_function_runs_but_has_no_uuid(kind):
    def local(graph: fx.Graph) -> int:
        return 7

    made = as_pass((lambda graph: 7) if kind == "lambda" else local)
    assert made(graph()) == 7
    with pytest.raises(FingerprintError, match=r"The pass .* has no identity") as caught:
        made.uuid()
    assert str(caught.value.got).startswith("a lambda" if kind == "lambda" else "the local function")


def test_a_pass_stays_what_it_is():
    made = Sized(1)
    assert as_pass(made) is made


def test_a_class_is_made_with_its_options():
    assert as_pass(Sized, options={"size": 5}) == Sized(5)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        (f"{__name__}.count_nodes", FunctionPass(count_nodes)),
        (f"{__name__}.Group.inner", Sized(3)),
    ],
)
def test_a_dotted_name_is_resolved(name, made):
    assert as_pass(name) == made


def test_a_dotted_name_of_a_class_takes_options():
    assert as_pass(f"{__name__}.Sized", options={"size": 4}) == Sized(4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "fuse",
            "The name of a pass is not a dotted name\n  expected: package.module.Name\n  got: 'fuse'",
        ),
        (
            "not a.name",
            "The name of a pass is not a dotted name\n  expected: package.module.Name\n  got: 'not a.name'",
        ),
        (
            "no_such_package.passes.Fuse",
            (
                "The pass 'no_such_package.passes.Fuse' does not exist\n"
                "  expected: a module 'no_such_package.passes' that can be imported\n"
                "  got: no such module\n"
                "  to do: check the spelling, and that its folder is on the module search path"
            ),
        ),
        (
            "torch_piecewise.passes.base.Fuse",
            (
                "The pass 'torch_piecewise.passes.base.Fuse' does not exist\n"
                "  expected: an attribute 'Fuse' of torch_piecewise.passes.base\n"
                "  got: torch_piecewise.passes.base without it\n"
                "  to do: check the spelling; the name is package.module.Name"
            ),
        ),
        (
            "torch_piecewise.passes.base.GraphPass.Fuse",
            (
                "The pass 'torch_piecewise.passes.base.GraphPass.Fuse' does not exist\n"
                "  expected: an attribute 'Fuse' of torch_piecewise.passes.base.GraphPass\n"
                "  got: torch_piecewise.passes.base.GraphPass without it\n"
                "  to do: check the spelling; the name is package.module.Name"
            ),
        ),
    ],
)
def test_a_name_that_leads_nowhere_is_an_error_that_says_which_part(name, message):
    with pytest.raises(ConfigError) as caught:
        resolve(name)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("source", "got"),
    [
        ("raise ValueError('broken inside')", "ValueError: broken inside"),
        ("import another_missing_package", "ModuleNotFoundError: No module named 'another_missing_package'"),
    ],
)
def test_a_module_that_fails_to_import_is_not_called_missing(source, got, tmp_path, monkeypatch):
    (tmp_path / "failing_passes.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "failing_passes", raising=False)
    with pytest.raises(ConfigError) as caught:
        resolve("failing_passes.Fuse")
    assert str(caught.value) == (
        "The pass 'failing_passes.Fuse' cannot be loaded: importing failing_passes failed\n"
        f"  got: {got}\n"
        "  to do: import failing_passes in a Python shell to see where"
    )


@pytest.mark.parametrize("given", [3, None, {"a": 1}, int])
def test_something_else_is_no_pass(given):
    with pytest.raises(ConfigError, match="This is not a graph pass"):
        as_pass(given)


def test_options_that_a_class_does_not_take_are_an_error_that_shows_its_fields():
    with pytest.raises(ConfigError) as caught:
        as_pass(Sized, options={"width": 4})
    assert str(caught.value) == (
        "The pass Sized cannot be made from its options\n"
        "  expected: Sized(size: 'int') -> None\n"
        "  got: width=4\n"
        "  to do: give its fields in pass_config under the pass's name"
    )


def test_options_for_a_function_are_an_error():
    with pytest.raises(ConfigError, match="The pass count_nodes takes no options"):
        as_pass(count_nodes, options={"size": 4})


def test_a_pass_written_for_inductor_is_taken_with_its_own_identity():
    inner = ForInductor(b"version 1")
    made = as_pass(inner)  # type: ignore[arg-type]
    assert isinstance(made, InductorPass)
    assert made.name == "ForInductor"
    here = graph()
    assert made(here) is None
    assert inner.seen == [here]
    assert made.uuid() == as_pass(ForInductor(b"version 1")).uuid()  # type: ignore[arg-type]
    assert made.uuid() != as_pass(ForInductor(b"version 2")).uuid()  # type: ignore[arg-type]
    assert made.reads_range()


def test_a_class_written_for_inductor_is_made_with_its_options():
    made = as_pass(f"{__name__}.ForInductor", options={"identity": "here"})
    assert isinstance(made, InductorPass)
    assert made.inner.identity == "here"


def test_a_pass_written_for_inductor_without_identity_is_refused():
    with pytest.raises(FingerprintError) as caught:
        as_pass(ForInductor(None)).uuid()  # type: ignore[arg-type]
    assert str(caught.value) == (
        "The pass ForInductor has no identity: its uuid() is None\n"
        "  expected: bytes or text that change whenever the pass does something else\n"
        "  got: None\n"
        "  to do: return such a value, or compile with disable_cache"
    )
