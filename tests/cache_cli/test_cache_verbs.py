from __future__ import annotations

import hashlib
import json
import os
import time

import pytest
import torch
from click.testing import CliRunner

import torch_piecewise as tp
from torch_piecewise.cache_cli import cache
from torch_piecewise.cache_cli.base import find_entry, parse_size, show_size, why
from torch_piecewise.cache_key import Ingredient, Key
from torch_piecewise.errors import ConfigError, MissError
from torch_piecewise.store import Draft, Namespace, open_store
from torch_piecewise.store.files import Files
from torch_piecewise.testing import RecordingCompiler


def key(eps: float, name: str = "net") -> Key:
    module = (Ingredient("layers.3", (Ingredient("eps", eps), Ingredient("dim", 4))),)
    return Key.of([Ingredient("name", name), Ingredient("torch", "2.13"), Ingredient("module", module)])


def put(opened, eps: float, name: str = "net", **meta: object) -> str:
    one = key(eps, name)
    draft = Draft(
        one.as_json(),
        {"artifact": f"{name} {eps}".encode() * 100},
        {"kind": "program", "name": name, **meta},
        {"computation_graph.py": "# graph\n"},
    )
    opened.store.put(one.digest(), draft)
    return one.digest()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def opened(root):
    opened = open_store(root, files=Files(durable=False))
    yield opened
    opened.close()


@pytest.fixture
def run(root):
    def run(*arguments: str, code: int = 0):
        result = CliRunner().invoke(cache, ["--root", str(root), *arguments])
        assert result.exit_code == code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.output

    return run


def test_a_compiled_model_is_found_by_its_name(root):
    model = tp.compile(
        torch.nn.Linear(4, 4), backend=RecordingCompiler(), dynamic_arg_dims={"input": 0}, cache_dir=root
    )
    with torch.no_grad():
        model(torch.randn(3, 4))
    assert find_entry(root, "Linear").meta["kind"] == "program"


def test_the_root_can_be_named_behind_the_verb_too(root, opened):
    put(opened, 1e-5)
    for words in (["list"], ["show", "net"], ["verify"], ["prune", "--dry-run"], ["why", "net"], ["path"]):
        ahead = CliRunner().invoke(cache, ["--root", str(root), *words]).output
        assert CliRunner().invoke(cache, [*words, "--root", str(root)]).output == ahead


def test_an_artifact_is_listed_with_its_piece(run, opened):
    opened.store.put("ab" * 32, Draft([["n", 1]], {}, {"kind": "artifact", "piece": "submod_0"}))
    assert json.loads(run("list", "--json"))[0]["name"] == "submod_0"


def test_path_prints_the_root(run, root):
    assert run("path") == f"{root}\n"
    assert json.loads(run("path", "--json")) == {"path": str(root), "exists": False}


def test_without_an_option_the_root_is_found_as_the_library_finds_it(tmp_path):
    runner = CliRunner(env={"TORCH_PIECEWISE_CACHE_DIR": str(tmp_path / "elsewhere")})
    assert runner.invoke(cache, ["path"]).output == f"{tmp_path / 'elsewhere'}\n"


@pytest.mark.parametrize("verb", ["list", "verify", "prune"])
def test_a_root_that_does_not_exist_is_empty_and_is_not_made(run, root, verb):
    run(verb)
    json.loads(run(verb, "--json"))
    assert not root.exists()


def test_list_shows_every_entry_of_every_namespace(run, opened):
    first = put(opened, 1e-5)
    second = put(opened.in_namespace(Namespace("vision", 1, 2)), 1e-6, "eyes")
    rows = {row["key"]: row for row in json.loads(run("list", "--json"))}
    assert set(rows) == {first, second}
    assert rows[second]["namespace"] == "vision@1of2"
    assert (rows[first]["kind"], rows[first]["name"]) == ("program", "net")
    assert rows[first]["size"] > 800
    assert rows[first]["problem"] is None
    lines = run("list").splitlines()
    assert lines[0].split("\t") == ["key", "namespace", "kind", "name", "size", "used"]
    assert any(line.startswith(f"{first[:12]}\tbackbone@0of1\tprogram\tnet\t") for line in lines)


def test_a_file_in_the_place_of_the_root_is_told(run, root):
    root.write_text("a file")
    for verb in (["list"], ["verify"], ["prune"]):
        told = run(*verb, code=1)
        assert "NotADirectoryError" in told
        assert "a file is in the place of a folder: remove or rename it" in told


def test_list_shows_a_damaged_entry_with_its_problem(run, opened, root):
    put(opened, 1e-5)
    next(root.rglob("manifest.json")).write_text("torn")
    (row,) = json.loads(run("list", "--json"))
    assert "torn" in row["problem"]
    cells = run("list").splitlines()[1].split("\t")
    assert cells[2:4] == ["unreadable", "its manifest is torn or not a manifest"]


def test_show_tells_all_of_an_entry(run, opened):
    digest = put(opened, 1e-5)
    told = json.loads(run("show", digest[:8], "--json"))
    assert told["key"] == digest
    assert told["ingredients"] == key(1e-5).as_json()
    assert told["companions"] == ["computation_graph.py"]
    assert set(told["blobs"]) == {"artifact"}
    text = run("show", "net")
    assert "module.layers.3.eps\t1e-05" in text
    assert "companion\tcomputation_graph.py" in text


def test_an_entry_is_found_by_digits_by_name_and_by_tag(opened, root):
    digest = put(opened, 1e-5)
    other = put(opened.in_namespace(Namespace("vision")), 1e-5, "eyes")
    assert find_entry(root, digest[:6]).key == digest
    assert find_entry(root, "net").key == digest
    assert find_entry(root, "vision").key == other


def test_of_a_models_entries_the_newest_program_counts(opened, root):
    put(opened, 1e-5)
    newest = put(opened, 1e-6)
    put(opened, 1e-7, kind="artifact")
    assert find_entry(root, "net").key == newest


def test_a_name_that_fits_nothing_or_too_much_is_an_error_that_says_so(opened, root, run):
    put(opened, 1e-5)
    with pytest.raises(MissError, match="'nothing'"):
        find_entry(root, "nothing")
    for number in range(2):
        digest = "abcd" + hashlib.sha256(str(number).encode()).hexdigest()[4:]
        opened.store.put(digest, Draft([["n", number]]))
    with pytest.raises(MissError, match="fits 2 entries"):
        find_entry(root, "abcd")
    assert "Error: No entry is called 'nothing'" in run("show", "nothing", code=1)


def test_why_names_the_ingredient_that_differs_from_the_earlier_entry(run, opened):
    first = put(opened, 1e-5)
    second = put(opened, 1e-6)
    text = run("why", "net")
    assert text == (
        f"program net was made because the nearest entry {first[:12]} differs in "
        "module.layers.3.eps: 1e-05 -> 1e-06\n"
    )
    told = json.loads(run("why", second[:10], "--json"))
    assert told["key"] == second
    assert told["nearest"] == first
    assert told["differences"] == [
        {"path": "module.layers.3.eps", "text": "module.layers.3.eps: 1e-05 -> 1e-06"}
    ]


def test_why_of_the_first_entry_says_that_nothing_was_there(run, opened):
    put(opened, 1e-5)
    assert run("why", "net") == "program net was made because the store had nothing of the kind yet\n"
    assert json.loads(run("why", "net", "--json"))["nearest"] is None


def test_why_lists_every_difference_when_there_are_several(run, opened):
    put(opened, 1e-5, "net")
    put(opened, 1e-6, "other")
    lines = run("why", "other").splitlines()
    assert lines[2:] == ["name: net -> other", "module.layers.3.eps: 1e-05 -> 1e-06"]


def test_why_calls_a_further_trace_by_its_name(run, root):
    model = tp.compile(
        torch.nn.Linear(4, 4), backend=RecordingCompiler(), dynamic_arg_dims={"input": 0}, cache_dir=root
    )
    with torch.no_grad():
        model(torch.randn(3, 4))
        model(torch.randn(3, 5, 4))
    assert "was made for calls that the entry before it, " in run("why", "Linear")


def test_why_tells_what_was_recorded_when_the_entry_was_made(opened, root):
    put(opened, 1e-5, miss="blob 0123 does not match its digest")
    assert "recorded when it was made: blob 0123" in why(root, "net").text


def test_why_compares_programs_with_programs(opened, root):
    put(opened, 1e-5)
    put(opened, 1e-6, kind="artifact")
    newest = put(opened, 1e-7)
    found = why(root, newest)
    assert [str(one) for one in found.differences] == ["module.layers.3.eps: 1e-05 -> 1e-07"]


def test_verify_passes_a_whole_root_and_fails_a_damaged_one(run, opened, root):
    digest = put(opened, 1e-5)
    assert run("verify").startswith("1 entries and 1 blobs, 0 problems")
    ref = opened.store.get(digest).value.blobs["artifact"]
    opened.disk.layout.blob(ref.digest).write_bytes(b"x")
    text = run("verify", code=1)
    assert f"blobs/{ref.digest[:2]}/{ref.digest[2:]}" in text
    told = json.loads(run("verify", "--json", code=1))
    assert [problem["harmful"] for problem in told["problems"]] == [True, True]


def test_verify_does_not_fail_for_a_companion(run, opened, root):
    put(opened, 1e-5)
    next(root.rglob("computation_graph.py")).write_text("changed")
    assert "harmless" in run("verify")


def test_prune_evicts_down_to_a_size(run, opened, root):
    digests = [put(opened, eps) for eps in (1e-5, 1e-6, 1e-7)]
    opened.close()
    for age, digest in enumerate(reversed(digests)):
        os.utime(opened.disk._place(digest).manifest, (0, time.time() - 1000 * (age + 1)))
    for path in (root / "blobs").rglob("*"):
        os.utime(path, (0, time.time() - 5000))
    foretold = json.loads(run("prune", "--limit", "3500", "--dry-run", "--json"))
    assert (foretold["entries"], foretold["dry_run"]) == (1, True)
    assert "would free" in run("prune", "--limit", "3500", "--dry-run")
    done = json.loads(run("prune", "--limit", "3500", "--json"))
    assert done["entries"] == 1
    assert {row["key"] for row in json.loads(run("list", "--json"))} == set(digests[1:])
    assert "freed" in run("prune", "--unused-days", "0.001")
    assert json.loads(run("list", "--json")) == []


def test_a_root_that_others_can_write_to_is_refused_with_the_mend(run, opened, root):
    put(opened, 1e-5)
    root.chmod(0o777)
    for verb in (["list"], ["show", "net"], ["verify"], ["why", "net"], ["prune"]):
        assert "chmod -R go-w" in run(*verb, code=1)


def test_a_root_that_cannot_be_read_is_told_with_the_mend(run, opened, root, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    put(opened, 1e-5)
    monkeypatch.setattr("torch_piecewise.store.layout.Path.iterdir", refuse)
    for verb in (["list"], ["show", "net"], ["verify"], ["why", "net"]):
        assert "chown" in run(*verb, code=1)


def test_a_size_that_cannot_be_read_is_an_error(run, opened):
    assert "such as 500M or 10GiB" in run("prune", "--limit", "big", code=1)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("12", 12), ("1K", 1024), ("1.5 MiB", 3 * 512 * 1024), ("2gb", 2 * 1024**3), ("1 T", 1024**4)],
)
def test_sizes_are_read_in_powers_of_1024(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1X", "M", "1.2.3", "nan"])
def test_other_texts_are_no_sizes(text):
    with pytest.raises(ConfigError):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 1024**3, "5.0 GiB")]
)
def test_sizes_are_shown_for_people(size, text):
    assert show_size(size) == text


def test_on_a_terminal_a_table_is_drawn(opened, root, monkeypatch):
    from torch_piecewise.cache_cli import commands

    put(opened, 1e-5)
    drawn: list[object] = []
    monkeypatch.setattr("rich.console.Console.print", lambda self, table: drawn.append(table))
    monkeypatch.setattr(commands.sys.stdout, "isatty", lambda: True, raising=False)
    commands._print_table(("a", "b"), [["1", "[red]2"]])
    (table,) = drawn
    assert [column.header for column in table.columns] == ["a", "b"]
    assert [str(cell) for cell in table.columns[1].cells] == ["[red]2"]
