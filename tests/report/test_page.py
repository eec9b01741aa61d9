"""The page, as text and in a real browser."""

from __future__ import annotations

import builtins
import re
from dataclasses import replace
from typing import Any

import pytest

from tests.report.browser import CHROMIUM, looked_at
from torch_piecewise.errors import ConfigError
from torch_piecewise.report.facts import Fold, Kind, Op, ProgramFacts, Report, Span, Step, Timed

pytest.importorskip("jinja2", reason="the page is made with jinja2, the extra 'report'")

from torch_piecewise.report.page import page

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture
def text(handle: Any, tmp_path: Any) -> str:
    handle.report(tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def many_kinds(count: int) -> Report:
    """``count`` pieces that are all different, a cut after each."""
    kinds = tuple(
        Kind(
            f"K{n}",
            f"linear · op_{n} · some_longer_operation",
            (f"submod_{2 * n}",),
            "",
            (),
            (Op("x", "t", "", ""),),
            "",
        )
        for n in range(count)
    )
    steps = tuple(
        step
        for kind in kinds
        for step in (
            Step(name=kind.pieces[0], letter=kind.letter),
            Step(calls=("a_long_namespace_of_operations::unified_attention_with_output",)),
        )
    )
    facts = ProgramFacts({}, "", (), (), kinds, steps, (Fold(steps, 1),))
    return Report("Wide", 0.0, {}, {}, (facts,))


def test_the_page_asks_nothing_of_the_network(text: str) -> None:
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)""", text)
    assert not re.findall(r"url\(|@import|https?://(?!www\.w3\.org)|fetch\(", text)


def test_text_of_the_model_cannot_become_markup() -> None:
    report = many_kinds(1)
    evil = Report("<script>alert(1)</script>", 0.0, {"a": "<b>"}, {"x": "</style>"}, report.programs)
    assert "<script>alert" not in page(evil)
    assert "&lt;script&gt;alert" in page(evil)


def test_a_model_that_was_never_called_has_a_page_that_says_so() -> None:
    assert "Nothing has been traced yet" in page(Report("Idle", 0.0, {}, {}, ()))


def test_figures_are_shown_for_each_trace_that_has_some_and_say_which() -> None:
    (facts,) = many_kinds(2).programs
    timed = Timed("[1, 8]", "5", 0.002, 0.003)
    measured = replace(facts, kinds=(replace(facts.kinds[0], timed=(timed,)), *facts.kinds[1:]))
    text = page(Report("Twice", 0.0, {}, {}, (facts, measured)))
    assert text.count("<h2>Run time of a piece <small>trace 1 of 2</small></h2>") == 1
    assert text.count("Run time of a piece") == 1


def test_what_nothing_is_known_of_has_no_column() -> None:
    assert "<th>result</th>" not in page(many_kinds(1))


def test_the_start_is_what_its_phases_took_not_what_was_loaded_later() -> None:
    spans = (Span("load", "", "phases", 0, 0.0, 0.25), Span("submod_0", "", "load", 0, 20.0, 0.5))
    text = page(replace(many_kinds(1), spans=spans))
    assert "<b>250 ms</b><span>to start</span>" in text


def test_without_jinja2_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "jinja2":
            raise ImportError("No module named 'jinja2'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"pip install 'torch-piecewise\[report\]'"):
        page(many_kinds(1))


@in_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_cut_graph_is_drawn_and_each_piece_can_be_clicked(text: str, width: int, tmp_path: Any) -> None:
    found = looked_at(text, width, tmp_path)
    assert found["errors"] == []
    assert found["width"] <= width, "the page scrolls sideways"
    assert found["pieces"] == ["A", "B", "C"]
    assert found["drawn"]
    assert found["outside"] == 0, "text runs out of its box"
    assert found["cells"] == 5
    assert found["first"] == ["A"]
    for letter, click in found["clicks"].items():
        assert click["shown"] == [letter]
        assert click["height"] > 100
    assert "Used 3 times" in found["clicks"]["B"]["text"]
    assert "linear" in found["clicks"]["B"]["text"]
    assert "[1, 8]" in found["clicks"]["B"]["text"]


@in_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_65_different_pieces_fit_the_screen(width: int, tmp_path: Any) -> None:
    found = looked_at(page(many_kinds(65)), width, tmp_path)
    assert found["errors"] == []
    assert found["width"] <= width
    assert len(found["pieces"]) == found["cells"] == 65
    assert found["outside"] == 0
    assert all(click["shown"] == [letter] for letter, click in found["clicks"].items())
