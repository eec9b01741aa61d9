from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import torch_piecewise as tp
from torch_piecewise.artifact import Artifact
from torch_piecewise.errors import CompilerError

NEEDED = ("onnxruntime", "onnx", "onnxscript")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.usefixtures("no_grad"),
    # The exporter's own.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    if "onnxruntime_compiler" in sys.modules:
        return sys.modules["onnxruntime_compiler"]
    file = Path(__file__).parents[2] / "examples" / "onnxruntime_compiler.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def test_the_example_runs_pieces_in_onnx_runtime_and_leaves_the_others_eager(
    example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main()
    said = capsys.readouterr().out
    assert "submod_6 stays eager: an input is written to" in said
    assert said.count("stays eager") == 1
    assert "4 pieces, 3 of them different; calls counted: 3" in said
    differences = [float(line.rsplit(" ", 1)[1]) for line in said.splitlines() if "rows" in line]
    assert len(differences) == 3 and max(differences) < 1e-5


@pytest.mark.slow
def test_a_model_in_onnx_runtime_starts_from_the_store(example: ModuleType, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "splitting_ops": ["example_ort::mix"],
        "dynamic_arg_dims": {"x": 0},
        "cache_dir": tmp_path,
    }
    counts = []
    for _ in range(2):
        model = example.Model(2).eval()
        x = torch.randn(6, 16)
        expected = model(x)
        tp.compile(model, backend=example.OnnxRuntimeCompiler(), **fields)
        torch.testing.assert_close(model(x), expected)
        assert model.calls == 2
        counts.append(tp.program_of(model).counters.as_dict())
    assert counts[0]["artifacts_compiled"] == 3
    assert "artifacts_compiled" not in counts[1] and "graphs_captured" not in counts[1]


def test_an_artifact_of_another_compiler_is_refused(example: ModuleType) -> None:
    with pytest.raises(CompilerError, match="onnxruntime was handed an artifact of inductor"):
        example.OnnxRuntimeCompiler().load(Artifact("inductor", "submod_0", tp.Range(1, 8), b""))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.relu_() + 1, "an input is written to"),
        (lambda x: x.view(-1, 2), "an output shares memory with an input or another output"),
        (lambda x: x.bfloat16().sum(0), "an output is no tensor, or one of a type that cannot be passed on"),
        (lambda x: torch.bernoulli(x.sigmoid()), "aten.bernoulli.default draws random numbers"),
        (lambda x: torch.linalg.svdvals(x), "ConversionError"),
    ],
    ids=["writes", "view", "type", "random", "unknown"],
)
def test_what_onnx_cannot_say_stays_eager(
    example: ModuleType, function: Any, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled = tp.compile(
        lambda x: function(x),
        backend=example.OnnxRuntimeCompiler(),
        dynamic_arg_dims={"x": 0},
        disable_cache=True,
    )
    for size in (6, 1):
        x = torch.randn(size, 4)
        torch.manual_seed(1)
        expected = function(x.clone())
        torch.manual_seed(1)
        assert torch.equal(compiled(x.clone()), expected)
    assert f"submod_0 stays eager: {reason}" in capsys.readouterr().out
