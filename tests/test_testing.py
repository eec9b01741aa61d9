from __future__ import annotations

from typing import Any

import pytest
import torch

import torch_piecewise as tp
from tests.graphs import Stack
from torch_piecewise.artifact import Artifact
from torch_piecewise.errors import CompilerError, PieceCompileError
from torch_piecewise.testing import RecordingCompiler

pytestmark = pytest.mark.usefixtures("no_grad")

FIELDS: dict[str, Any] = {
    "splitting_ops": ["tests::attention"],
    "dynamic_arg_dims": {"ids": 0},
    "disable_cache": True,
}


def test_the_recording_compiler_says_what_it_was_asked_and_computes_what_eager_computes() -> None:
    compiler = RecordingCompiler()
    model = Stack(4).eval()
    ids = torch.randint(0, 50, (5,))
    expected = model(ids)
    tp.compile(model, backend=compiler, compile_ranges_endpoints=[8], **FIELDS)
    assert torch.equal(model(ids), expected)
    wanted = [
        (f"submod_{n}", range)
        for range in tp.Config(compile_ranges_endpoints=[8]).compile_ranges()
        for n in (0, 2, 8)
    ]
    assert sorted(compiler.compiled) == sorted(wanted) == sorted(compiler.loaded)
    assert all(call.context_range == call.range for call in compiler.calls if call.verb == "compile")


def test_the_recording_compiler_fails_where_it_was_told_to() -> None:
    model = tp.compile(Stack(2).eval(), backend=RecordingCompiler(failing=["submod_2"]), **FIELDS)
    with pytest.raises(PieceCompileError, match=r"submod_2 failed to compile .* with 'recording'"):
        model(torch.randint(0, 50, (5,)))


def test_the_recording_compiler_takes_no_artifact_of_another() -> None:
    other = RecordingCompiler(name="other")
    with pytest.raises(CompilerError) as caught:
        other.load(Artifact("one", "submod_0", tp.Range(1, 8), b""))
    assert str(caught.value) == (
        "Compiler 'other' was handed an artifact it did not make\n"
        "  expected: an artifact of 'other'\n"
        "  got: one of 'one'"
    )
