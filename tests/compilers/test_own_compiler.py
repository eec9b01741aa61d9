"""A compiler of one's own, as ``backend``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import torch_piecewise as tp
from tests.graphs import Stack
from torch_piecewise.artifact import Artifact
from torch_piecewise.errors import CompilerError, ConfigError
from torch_piecewise.testing import RecordingCompiler

pytestmark = pytest.mark.usefixtures("no_grad")


def start(root: Path, backend: Any) -> dict[str, int]:
    """What a start with ``backend`` counts."""
    model = Stack(2).eval()
    ids = torch.randint(0, 50, (5,))
    expected = model(ids)
    tp.compile(
        model,
        backend=backend,
        splitting_ops=["tests::attention"],
        dynamic_arg_dims={"ids": 0},
        cache_dir=root,
        key_environment=[],
    )
    assert torch.equal(model(ids), expected)
    return tp.program_of(model).counters.as_dict()


def test_a_start_with_an_object_finds_what_one_with_the_same_fingerprint_kept(tmp_path: Path) -> None:
    assert start(tmp_path, RecordingCompiler("1"))["artifacts_compiled"] == 3
    warm = start(tmp_path, RecordingCompiler("1"))
    assert "artifacts_compiled" not in warm and "graphs_captured" not in warm


def test_another_fingerprint_is_a_miss_that_names_the_compiler(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(tmp_path, RecordingCompiler("1"))
    caplog.clear()
    assert start(tmp_path, RecordingCompiler("2"))["artifacts_compiled"] == 3
    assert "differs in compiler.fingerprint: '1' -> '2'\n" in caplog.text


def test_what_another_compiler_kept_is_no_news_to_a_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(tmp_path, RecordingCompiler("1"))
    caplog.clear()
    assert start(tmp_path, RecordingCompiler("1", name="another"))["artifacts_compiled"] == 3
    assert not [one for one in caplog.records if one.levelname == "WARNING"]


class Nameless:
    def fingerprint(self) -> str:
        return "1"

    def compile(self, piece: Any, range: Any, options: Any) -> Any:
        return None


def test_an_object_without_a_verb_is_told_which() -> None:
    compiler = Nameless()
    with pytest.raises(ConfigError) as caught:
        tp.Config(backend=compiler)
    assert str(caught.value) == (
        "backend has a value it cannot have\n"
        "  expected: one of 'inductor', 'inductor_memory', 'eager', 'aot_inductor', or a dotted name such as "
        "'package.module.Name', or a compiler: an object with name, fingerprint(), "
        "compile(piece, range, options), load(artifact)\n"
        f"  got: {compiler!r} (Nameless)\n"
        "  to do: a Nameless lacks name, load(artifact)"
    )
    with pytest.raises(ConfigError) as caught:
        tp.make_compiler(f"{__name__}.Nameless")
    assert str(caught.value) == (
        f"backend '{__name__}.Nameless' is not a compiler\n"
        "  expected: an object with name, fingerprint(), compile(piece, range, options), load(artifact)\n"
        "  got: Nameless without name, load\n"
        "  to do: see 'Writing a compiler' in docs/compilers.md"
    )


def test_a_class_in_place_of_an_object_is_told_so() -> None:
    with pytest.raises(
        ConfigError, match=r"to do: give an instance, RecordingCompiler\(\), or its dotted name"
    ):
        tp.Config(backend=RecordingCompiler)


def test_a_compiler_by_dotted_name_an_instance_and_a_class_are_one() -> None:
    name = "torch_piecewise.testing.RecordingCompiler"
    made = [tp.make_compiler(given) for given in (name, RecordingCompiler, RecordingCompiler())]
    assert {type(compiler) for compiler in made} == {RecordingCompiler}


def test_a_name_that_resolves_to_nothing_is_told_so() -> None:
    with pytest.raises(ConfigError, match=r"backend 'torch_piecewise\.nowhere\.Compiler' does not resolve"):
        tp.make_compiler("torch_piecewise.nowhere.Compiler")


def test_a_config_with_an_object_is_keyed_as_with_its_dotted_name() -> None:
    given = (RecordingCompiler(), "torch_piecewise.testing.RecordingCompiler", "eager")
    one, same, other = (tp.Config(backend=backend).as_ingredients() for backend in given)
    assert one == same != other


class Bare(RecordingCompiler):
    """Returns the output instead of a tuple of it."""

    def load(self, artifact: Artifact) -> Any:
        run = super().load(artifact)
        return lambda *inputs: run(*inputs)[0]


def test_a_piece_that_returns_no_tuple_is_an_error_that_names_it() -> None:
    call = tp.compile(
        lambda x: x * 2, backend=Bare("1"), dynamic_arg_dims={"x": 0}, splitting_ops=[], disable_cache=True
    )
    with pytest.raises(CompilerError, match="submod_0 returned no tuple"):
        call(torch.randn(1, 4))
