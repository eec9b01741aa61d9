"""What a model returns beside tensors is kept with its program, and comes back the same."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import torch_piecewise as tp
from tests.start import results, results_elsewhere

pytestmark = pytest.mark.usefixtures("no_grad")


def start(kind: type[nn.Module], root: Path) -> Any:
    settings = {"backend": "tests.kept_compiler.KeptEager", "cache_dir": str(root)}
    return tp.compile(kind(), dynamic_arg_dims={"x": 0}, **settings)


def parts(value: Any) -> list[Any]:
    """The leaves of a result; tensors as their numbers."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in (key, *parts(item))]
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in parts(item)]
    if dataclasses.is_dataclass(value):
        return [leaf for one in dataclasses.fields(value) for leaf in parts(getattr(value, one.name))]
    return [value]


@pytest.mark.parametrize("kind", results.MODELS, ids=lambda kind: kind.__name__)
def test_a_program_whose_result_is_more_than_tensors_starts_warm(
    kind: type[nn.Module], tmp_path: Path
) -> None:
    for traces in (1, 0):
        model = start(kind, tmp_path)
        for count in (3, 1, 7):
            x = torch.randn(count)
            got, expected = model(x), kind().forward(x)
            assert type(got) is type(expected)
            assert parts(got) == parts(expected)
        assert tp.program_of(model).counters["graphs_captured"] == traces


def test_a_results_class_that_was_edited_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program calls it with what the trace found out, so another order of fields would be wrong."""
    model = start(results.NamedElsewhere, tmp_path)
    model(torch.randn(3))
    edited = tmp_path / "results_elsewhere.py"
    source = Path(results_elsewhere.__file__).read_text()
    edited.write_text(
        source.replace("    out: Tensor\n    dtype", "    more: int\n    out: Tensor\n    dtype")
    )
    monkeypatch.setattr(results_elsewhere, "__file__", str(edited))
    again = start(results.NamedElsewhere, tmp_path)
    again(torch.randn(3))
    assert tp.program_of(again).counters["graphs_captured"] == 1


def test_a_result_of_a_class_that_cannot_be_imported_is_not_kept_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Local(NamedTuple):
        out: Tensor

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return Local(x.sin())

    with caplog.at_level(logging.WARNING, "torch_piecewise"):
        result = start(Model, tmp_path)(torch.randn(3))
    assert type(result) is Local
    assert "This program cannot be kept\n" in caplog.text
    assert "<locals>.Local'\n  to do: move what it refers to to the top of a module" in caplog.text
