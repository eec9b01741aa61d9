"""The verbs as people type them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import torch_piecewise as tp
from tests.graphs import Stack
from torch_piecewise.cli import commands
from torch_piecewise.report import from_json

MODEL = """
import torch
from tests.graphs import Stack

model = Stack(3).eval()
example_inputs = (torch.randint(0, 50, (5,)),)
"""

COMPILED = """
import torch_piecewise as tp
tp.compile(model, backend="eager", splitting_ops=["tests::attention"], dynamic_arg_dims={"ids": 0},
           compile_ranges_endpoints=[8], disable_cache=True)
"""

BREAKS = """
import torch

class Model(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        print("size", y.shape[0])
        z = y + 1
        torch._dynamo.graph_break()
        return z.relu()

model = Model()
example_inputs = torch.randn(3, 4)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(commands, list(arguments))
        assert result.exit_code == code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.output

    return run


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a script; what running it added to the process is taken back."""
    monkeypatch.setattr("sys.path", __import__("sys").path[:])

    def write(text: str, name: str = "offered_model") -> str:
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(text)
        return f"{name}.py"

    return write


# explain


def test_explain_tells_pieces_cuts_and_what_would_be_compiled(run: Any, script: Any) -> None:
    assert run("explain", script(MODEL + COMPILED)).splitlines() == [
        "model: Stack: 4 pieces, 3 distinct",
        "  A  1 x  embedding · rms_norm · linear",
        "  B  2 x  linear · add · rms_norm",
        "  C  1 x  linear · add · rms_norm",
        "cut 3 times at tests::attention",
        "to compile: 6 (3 for [1, 8], 3 for [9, inf])",
    ]


def test_explain_neither_runs_nor_compiles_anything(run: Any, script: Any) -> None:
    text = MODEL + COMPILED.replace('"eager"', '"tests.seeing_cli.refusing.refuses"')
    text += "\nmodel.embed.weight.data.fill_(float('nan'))\n"
    assert "to compile: 6" in run("explain", script(text))


def test_explain_takes_a_function_that_returns_model_and_inputs(run: Any, script: Any) -> None:
    script(MODEL + COMPILED + "\ndef offer():\n    return model, example_inputs\n", "offering")
    assert "4 pieces, 3 distinct" in run("explain", "offering:offer")


def test_explain_takes_what_bake_takes_with_its_settings(run: Any, script: Any) -> None:
    settings = '{"backend": "eager", "splitting_ops": ["tests::attention"], "disable_cache": True}'
    script(f"{MODEL}\ndef make():\n    return model, example_inputs, {settings}\n")
    assert "cut 3 times at tests::attention" in run("explain", "offered_model:make")


def test_each_verb_says_in_one_whole_line_what_it_does(run: Any) -> None:
    for verbs in (("--help",), ("cache", "--help")):
        lines = run(*verbs).partition("Commands:\n")[2].splitlines()
        assert lines and not [line for line in lines if line.endswith("...")]


def test_explain_compiles_with_the_environments_settings_where_the_script_does_not(
    run: Any, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_PIECEWISE_DYNAMIC_ARG_DIMS", '{"ids": 0}')
    monkeypatch.setenv("TORCH_PIECEWISE_SPLITTING_OPS", "tests::attention")
    assert "cut 3 times at tests::attention\nto compile: 3 (3 for [1, inf])" in run("explain", script(MODEL))


def test_explain_names_the_first_break_with_file_line_and_what_to_do(run: Any, script: Any) -> None:
    output = run("explain", script(BREAKS), code=1)
    assert 'offered_model.py:7 (print("size", y.shape[0]))' in output
    assert "does not know how to trace builtin operator `print`" in output
    assert "to do: " in output
    assert "graph_break()" not in output


def test_explain_lists_every_break_when_asked(run: Any, script: Any) -> None:
    output = run("explain", "--every-break", script(BREAKS), code=1)
    assert "offered_model.py:7" in output
    assert "offered_model.py:9 (torch._dynamo.graph_break())" in output


NO_GRAPH_ENDS_THERE = """
import torch

class Model(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("first of all")
        x = self.helps(x * 2)
        for _ in range(2):
            x = x + 1
            print("in a loop")
        return x

    def helps(self, x: torch.Tensor) -> torch.Tensor:
        print("before any operation")
        return x.relu()

model = Model()
example_inputs = torch.randn(3, 4)
"""


def test_every_break_is_listed_also_where_no_graph_ends(run: Any, script: Any) -> None:
    path = script(NO_GRAPH_ENDS_THERE)
    (first,) = json.loads(run("explain", "--json", path, code=1))["obstacles"]
    output = run("explain", "--json", "--every-break", path, code=1)
    found = json.loads(output[output.index("{") :])  # behind what the model prints
    assert first in found["obstacles"]
    lines = sorted(int(one["where"].partition(".py:")[2].split()[0]) for one in found["obstacles"])
    assert lines == [6, 10, 14]
    assert all(one["reason"] and one["hint"] for one in found["obstacles"])


def test_explain_draws_what_it_explains(run: Any, script: Any, tmp_path: Path) -> None:
    run("explain", "-o", "plan.json", script(MODEL + COMPILED))
    (program,) = json.loads((tmp_path / "plan.json").read_text())["programs"]
    assert [kind["built"] for kind in program["kinds"]] == [[], [], []]
    assert len(program["steps"]) == 7


def test_a_script_without_a_model_says_what_is_expected(run: Any, script: Any) -> None:
    output = run("explain", script("number = 3"), code=1)
    assert "expected: a script that defines model and example_inputs" in output
    assert "got: only number" in output
    assert "There is no script missing.py" in run("explain", "missing.py", code=1)
    assert "nowhere:offer cannot be found" in run("explain", "nowhere:offer", code=1)


def test_a_script_without_inputs_says_so(run: Any, script: Any) -> None:
    text = MODEL.replace("example_inputs", "inputs") + COMPILED
    assert "defines no example_inputs" in run("explain", script(text), code=1)


# report


def test_report_runs_a_script_and_calls_its_model(run: Any, script: Any, tmp_path: Path) -> None:
    output = run("report", script(MODEL + COMPILED), "-o", "run.json", "--profile")
    assert output == "Stack: run.json\n"
    (program,) = json.loads((tmp_path / "run.json").read_text())["programs"]
    assert all(kind["timed"] for kind in program["kinds"])


def test_report_makes_the_page_from_a_recorded_run(run: Any, script: Any, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    run("report", script(MODEL + COMPILED), "-o", "run.json")
    assert run("report", "run.json") == "Stack: report.html\n"
    assert "<title>Stack in pieces</title>" in (tmp_path / "report.html").read_text()


def test_report_names_the_files_of_several_models_after_them(run: Any, script: Any, tmp_path: Path) -> None:
    text = MODEL + COMPILED + "encoder = tp.compile(Stack(1), backend='eager', dynamic_arg_dims={'ids': 0})\n"
    run("report", script(text), "-o", "run.json")
    assert {"model-run.json", "encoder-run.json"} <= {path.name for path in tmp_path.iterdir()}


def test_report_refuses_what_is_no_recorded_run(run: Any, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    assert "This is no recorded run" in run("report", "other.json", code=1)
    (tmp_path / "torn.json").write_text("{")
    assert "torn.json cannot be read" in run("report", "torn.json", code=1)
    assert "missing.json cannot be read" in run("report", "missing.json", code=1)


@pytest.mark.slow
@pytest.mark.inductor
def test_report_shows_a_program_of_the_store_as_its_cold_start_saw_it(run: Any, tmp_path: Path) -> None:
    model = Stack(1).eval()
    root = tmp_path / "root"
    fields = {"splitting_ops": ["tests::attention"], "dynamic_arg_dims": {"ids": 0}, "cache_dir": str(root)}
    tp.compile(model, tag="decoder", **fields)
    with torch.no_grad():
        model(torch.randint(0, 50, (5,)))
    run("report", "decoder", "--root", str(root), "-o", "kept.json")
    document = json.loads((tmp_path / "kept.json").read_text())
    first = document["programs"][0]["kinds"][0]
    assert first["ops"][0]["result"].startswith("float32[")
    assert first["built"][0]["compile_seconds"] > 0
    assert str(root) not in json.dumps(document)
    again = tp.compile(copy.deepcopy(model), tag="decoder", **fields)
    with torch.no_grad():
        again(torch.randint(0, 50, (5,)))
    warm = tp.program_of(again).report().programs[0]
    assert warm.steps == from_json(document).programs[0].steps
    assert {one.origin for kind in warm.kinds for one in kind.built} == {"store"}
    (file,) = root.rglob("report.json")
    file.write_text(file.read_text().replace("Stack", "Stock"))
    assert "is damaged" in run("report", "decoder", "--root", str(root), code=1)


def test_report_says_which_entries_there_are_none_of(run: Any, tmp_path: Path) -> None:
    assert "No entry is called 'decoder'" in run("report", "decoder", "--root", str(tmp_path), code=1)


# doctor


def test_doctor_prints_a_line_for_each_thing_it_checked(run: Any, tmp_path: Path) -> None:
    output = run("doctor", "--root", str(tmp_path / "root"))
    for what in ("python", "torch", "library", "compiler", "cpu", "cuda", "cache", "settings"):
        assert f" {what} " in output


def test_doctor_speaks_json_and_exits_with_1_where_something_fails(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    found = json.loads(run("doctor", "--json", "--root", str(tmp_path / "open"), code=1))
    (cache,) = [one for one in found if one["what"] == "cache"]
    assert cache["state"] == "fail"
    assert "chmod -R go-w" in cache["mend"]
