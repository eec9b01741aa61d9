"""Parts of a model: named by ``set_model_tag``, compiled apart, on one root without meeting."""

from __future__ import annotations

import asyncio
import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_piecewise as tp
from tests.graphs import Stack
from tests.models.checks import assert_same
from torch_piecewise.errors import ConfigError
from torch_piecewise.ranges import UNBOUNDED
from torch_piecewise.tags import current_tag

pytestmark = pytest.mark.usefixtures("no_grad")

SETTINGS: dict[str, Any] = {"backend": "eager", "splitting_ops": ["tests::attention"]}


class Tower(nn.Module):
    """What encodes, before a :class:`Stack` decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tanh(self.layer(pixels))


def tag_of(model: Any) -> str:
    return tp.program_of(model).tag.name


def test_without_a_block_a_model_is_the_backbone() -> None:
    assert tag_of(tp.compile(Tower(), **SETTINGS)) == "backbone"


def test_a_block_names_the_models_compiled_in_it_and_ends() -> None:
    with tp.set_model_tag("vision"):
        inside = tp.compile(Tower(), **SETTINGS)
    assert tag_of(inside) == "vision"
    assert tag_of(tp.compile(Tower(), **SETTINGS)) == "backbone"


def test_a_block_that_fails_ends_too() -> None:
    with pytest.raises(KeyError), tp.set_model_tag("vision"):
        raise KeyError
    assert current_tag().name == "backbone"


def test_blocks_may_be_nested() -> None:
    with tp.set_model_tag("outer"):
        with tp.set_model_tag("inner"):
            assert current_tag().name == "inner"
        assert current_tag().name == "outer"


def test_an_argument_beats_the_block() -> None:
    with tp.set_model_tag("vision"):
        assert tag_of(tp.compile(Tower(), tag="text", **SETTINGS)) == "text"


def test_a_decorated_class_is_named_where_its_instance_is_made() -> None:
    @tp.compile(**SETTINGS)
    class Made(Tower):
        pass

    with tp.set_model_tag("draft"):
        draft = Made()
    assert (tag_of(draft), tag_of(Made())) == ("draft", "backbone")


def test_a_decorated_function_is_named_by_the_block_around_it_else_where_it_is_first_called() -> None:
    def doubled(x: Tensor) -> Tensor:
        return x * 2

    with tp.set_model_tag("made"):
        made = tp.compile(doubled, **SETTINGS)
    called = tp.compile(doubled, **SETTINGS)
    with tp.set_model_tag("called"):
        made(torch.randn(3))
        called(torch.randn(3))
    assert (tag_of(made), tag_of(called)) == ("made", "called")


def test_a_tag_inside_itself_is_refused() -> None:
    with (
        tp.set_model_tag("vision"),
        pytest.raises(ConfigError) as caught,
        tp.set_model_tag("vision"),
    ):
        pass
    assert str(caught.value) == (
        "The model tag 'vision' is in force already\n"
        "  expected: a tag other than the one around it\n"
        "  got: set_model_tag('vision') where the tag is 'vision'\n"
        "  to do: give this part a name of its own, or leave this set_model_tag out"
    )


def test_the_tag_in_force_outside_of_any_block_is_refused_too() -> None:
    with pytest.raises(ConfigError, match="'backbone', as it is outside of any block"):
        tp.set_model_tag("backbone").__enter__()


@pytest.mark.parametrize("tag", ["", None, 3])
def test_a_tag_is_a_text(tag: Any) -> None:
    with pytest.raises(ConfigError, match="names a part of a model"):
        tp.set_model_tag(tag).__enter__()


def test_threads_do_not_see_each_others_tags() -> None:
    seen: dict[str, str] = {}
    both_inside = threading.Barrier(2, timeout=20)

    def work(tag: str) -> None:
        with tp.set_model_tag(tag):
            both_inside.wait()
            seen[tag] = current_tag().name
            both_inside.wait()

    threads = [threading.Thread(target=work, args=(tag,)) for tag in ("one", "two")]
    with tp.set_model_tag("main"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert current_tag().name == "main"
    assert seen == {"one": "one", "two": "two"}


def test_tasks_do_not_see_each_others_tags() -> None:
    async def work(tag: str) -> str:
        with tp.set_model_tag(tag):
            await asyncio.sleep(0)
            return current_tag().name

    async def both() -> list[str]:
        return await asyncio.gather(work("one"), work("two"))

    assert asyncio.run(both()) == ["one", "two"]


# -- encoders


def test_an_encoders_last_range_is_open_ended_and_its_time_is_counted_apart() -> None:
    with tp.set_model_tag("vision", is_encoder=True):
        encoder = tp.compile(Tower(), compile_ranges_endpoints=[4, 16], **SETTINGS)
    decoder = tp.compile(Tower(), compile_ranges_endpoints=[4, 16], **SETTINGS)
    for model in (encoder, decoder):
        model(torch.randn(3, 4))
    ranges = tp.program_of(encoder).entries[0].program.sizes.ranges
    assert (ranges[-1].start, ranges[-1].end) == (17, UNBOUNDED)
    assert tp.program_of(encoder).tag.is_encoder
    spent, other = tp.program_of(encoder).stats, tp.program_of(decoder).stats
    assert spent.encoder_compile_seconds > 0 == spent.compile_seconds
    assert other.compile_seconds > 0 == other.encoder_compile_seconds
    assert {"encoder_trace", "encoder_compile"} <= set(spent.phase_seconds)
    assert not [name for name in other.phase_seconds if name.startswith("encoder")]


def test_tags_and_encoders_stay_what_they_are_for_a_backend_object() -> None:
    with tp.set_model_tag("vision", is_encoder=True):
        backend = tp.PiecewiseCompileBackend(disable_cache=True, backend="eager")
    assert (backend.bus.tag.name, backend.bus.tag.is_encoder) == ("vision", True)


# -- one root


def namespaces(root: Path) -> set[str]:
    return {path.name.partition("@")[0] for path in (root / "entries").iterdir()}


def kept(root: Path) -> dict[str, Any]:
    return {"cache_dir": str(root), "backend": "tests.kept_compiler.KeptEager", "compile_threads": 1}


class Draft(Stack):
    """The smaller one of two models that are served together."""


def test_several_parts_share_a_root_without_meeting(tmp_path: Path) -> None:
    tower = Tower()
    parts = {}
    for tag in ("left eye", "right/eye", "../up"):
        with tp.set_model_tag(tag):
            parts[tag] = tp.compile(copy.deepcopy(tower), **kept(tmp_path))
    x = torch.randn(3, 4)
    for part in parts.values():
        with tp.program_of(part).counters.expect(graphs_captured=1):
            assert_same(part(x), tower(x))
    assert len(namespaces(tmp_path) - {"artifacts"}) == 3
    # What they compiled is the same code: made once, taken by the others.
    assert [tp.program_of(part).counters["artifacts_compiled"] for part in parts.values()] == [1, 0, 0]
    for tag in parts:
        again = tp.compile(copy.deepcopy(tower), tag=tag, **kept(tmp_path))
        with tp.program_of(again).counters.expect(graphs_captured=0, artifacts_compiled=0):
            assert_same(again(x), tower(x))


def test_a_draft_model_beside_a_main_one_in_one_process_and_one_root(tmp_path: Path) -> None:
    main, draft = Stack(4), Draft(1)
    reference = copy.deepcopy((main, draft))
    settings = {"splitting_ops": ["tests::attention"], **kept(tmp_path)}
    tp.compile(main, **settings)
    with tp.set_model_tag("draft"):
        tp.compile(draft, **settings)
    ids = torch.randint(0, 50, (5,))
    with tp.program_of(main).counters.expect(pieces=5, cuts=4, distinct_pieces=3, artifacts_compiled=3):
        assert_same(main(ids), reference[0](ids))
    # The draft's two pieces are the main model's first and last.
    with tp.program_of(draft).counters.expect(pieces=2, cuts=1, distinct_pieces=2, artifacts_compiled=0):
        assert_same(draft(ids), reference[1](ids))
    assert {"backbone", "draft"} < namespaces(tmp_path)
