from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx

from torch_piecewise.errors import ConfigError, FingerprintError, PassError
from torch_piecewise.events import Bus, Event
from torch_piecewise.passes.base import GraphPass, PassRecord
from torch_piecewise.passes.cleanup import CleanUp
from torch_piecewise.passes.context import get_pass_context, pass_context
from torch_piecewise.passes.defunctionalize import Defunctionalize
from torch_piecewise.passes.function import FunctionPass
from torch_piecewise.passes.manager import EVERY_SIZE, PassManager
from torch_piecewise.passes.noop_elimination import NoopElimination
from torch_piecewise.passes.plan import PassPlan
from torch_piecewise.ranges import Range
from torch_piecewise.torch_private.inductor_pass import InductorGraphPass
from torch_piecewise.torch_private.passes import POST_GRAD_HOOK

from .graphs import lines, text_of

aten = torch.ops.aten


def graph() -> fx.Graph:
    made = fx.Graph()
    x = made.placeholder("x")
    sin = made.create_node("call_function", aten.sin.default, (x,), name="sin")
    made.output((made.create_node("call_function", aten.cos.default, (sin,), name="cos"),))
    return made


GRAPH = lines("""
    x = placeholder
    sin = aten.sin.default(x)
    cos = aten.cos.default(sin)
    return (cos,)
""")


@dataclass(frozen=True)
class Append(GraphPass):
    """Puts one more operator before the output."""

    target: Any = aten.exp.default
    only: Range = EVERY_SIZE

    def __call__(self, graph: fx.Graph) -> int:
        output = next(iter(reversed(graph.nodes)))
        with graph.inserting_before(output):
            output.args = ((graph.call_function(self.target, (output.args[0][0],)),),)
        return 1

    def is_applicable_for_range(self, range: Range) -> bool:
        return self.only.start <= range.start and range.end <= self.only.end


@dataclass(frozen=True)
class Note(GraphPass):
    """Remembers the range it ran in."""

    seen: list[object] = field(default_factory=list, compare=False)

    def __call__(self, graph: fx.Graph) -> None:
        self.seen.append(get_pass_context().compile_range)


def refuse(graph: fx.Graph) -> None:
    raise ValueError("not this graph")


def nothing(graph: fx.Graph) -> int:
    return 0


def raises(graph: fx.Graph) -> int:
    graph.find_nodes(op="call_function", target=aten.cos.default)[0].args = ()
    raise ValueError("no such kernel")


def breaks(graph: fx.Graph) -> int:
    sin, cos = list(graph.nodes)[1:3]
    sin.prepend(cos)
    return 1


def drops_output(graph: fx.Graph) -> int:
    next(iter(reversed(graph.nodes))).args = ((),)
    return 1


def drops_input(graph: fx.Graph) -> int:
    x, sin = list(graph.nodes)[:2]
    sin.args = ()
    graph.erase_node(x)
    return 1


def gives_graph(graph: fx.Graph) -> object:
    return graph


def gives_true(graph: fx.Graph) -> bool:
    return True


def test_passes_run_in_order_and_clean_up_is_last():
    manager = PassManager([Append(aten.exp.default), Append(aten.tan.default)])
    here = graph()
    assert manager(here) is None
    assert text_of(here) == lines("""
        x = placeholder
        sin = aten.sin.default(x)
        cos = aten.cos.default(sin)
        exp_default = aten.exp.default(cos)
        tan_default = aten.tan.default(exp_default)
        return (tan_default,)
    """)
    assert manager.passes == (Append(aten.exp.default), Append(aten.tan.default), CleanUp())


def test_what_a_pass_left_unread_is_removed():
    def shortcut(graph: fx.Graph) -> int:
        nodes = list(graph.nodes)
        nodes[-1].args = ((nodes[0],),)
        return 1

    here = graph()
    PassManager([shortcut])(here)
    assert text_of(here) == "x = placeholder\nreturn (x,)\n"


def test_an_added_pass_runs_after_the_others():
    manager = PassManager([Append(aten.exp.default)])
    manager.add(nothing)
    manager.add(f"{__name__}.Append", options={"target": aten.tan.default})
    assert manager.passes == (
        Append(aten.exp.default),
        FunctionPass(nothing),
        Append(aten.tan.default),
        CleanUp(),
    )


def test_passes_know_the_range():
    note = Note()
    manager = PassManager([note])
    with pass_context(Range(1, 8)):
        manager(graph())
    manager(graph())
    assert note.seen == [Range(1, 8), EVERY_SIZE]


def test_a_pass_runs_only_for_its_ranges():
    manager = PassManager([Append(only=Range(1, 8)), nothing])
    with pass_context(Range(9, 64)):
        manager(here := graph())
    assert text_of(here) == GRAPH
    assert [(record.name, record.ran) for record in manager.records] == [
        ("append", False),
        ("nothing", True),
        ("clean_up", True),
    ]


def test_records_say_what_each_pass_did_and_how_long_it_took():
    events: list[Event] = []
    manager = PassManager([Append(), nothing, Note()], bus=Bus(events.append))
    with pass_context(Range(1, 8)):
        manager(graph())
    assert list(manager.records) == events
    seen = [(r.name, r.range, r.matches, r.nodes_before, r.nodes_after) for r in manager.records]
    assert seen == [
        ("append", Range(1, 8), 1, 4, 5),
        ("nothing", Range(1, 8), 0, 5, 5),
        ("note", Range(1, 8), None, 5, 5),
        ("clean_up", Range(1, 8), 0, 5, 5),
    ]
    assert all(isinstance(record, PassRecord) and record.seconds > 0 for record in events)


def test_graphs_are_dumped_before_and_after_each_pass(tmp_path):
    manager = PassManager([Append()], debug_dump_path=tmp_path)
    with pass_context(Range(1, 8)):
        manager(here := graph())
    files = {file.name: file.read_text() for file in (tmp_path / "passes" / "1-8.0").iterdir()}
    assert sorted(files) == [
        "00_append.after.txt",
        "00_append.before.txt",
        "01_clean_up.after.txt",
        "01_clean_up.before.txt",
    ]
    assert files["00_append.before.txt"] == GRAPH
    assert files["01_clean_up.after.txt"] == text_of(here)


EXPECTED = (
    "  expected: a rewrite in place: values defined before use, operators with their arguments, "
    "the same inputs, as many outputs\n"
)
HINT = (
    "  to do: mend the pass; the graph is again what it was before it, and debug_dump_path shows both as text"
)


@pytest.mark.parametrize(
    ("broken", "deed", "got"),
    [
        (raises, "raised an error", "ValueError: no such kernel"),
        (
            breaks,
            "left a broken graph",
            (
                "Argument 'sin' of Node 'cos' was used before it has been defined! "
                "Please check that Nodes in the graph are topologically ordered"
            ),
        ),
        (drops_output, "left a broken graph", "its outputs had the structure (*) and have ()"),
        (drops_input, "left a broken graph", "its inputs were (x) and are ()"),
    ],
)
def test_a_pass_that_breaks_the_graph_is_named_with_those_before_it(broken, deed, got):
    manager = PassManager([nothing, Note(), broken, Append()])
    here = graph()
    with pass_context(Range(1, 8)), pytest.raises(PassError) as caught:
        manager(here)
    assert str(caught.value) == (
        f"The pass {broken.__name__} {deed} (range [1, 8]; passes before it: nothing, note (Note))\n"
        f"{EXPECTED}  got: {got}\n{HINT}"
    )
    assert text_of(here) == GRAPH
    assert [record.name for record in manager.records] == ["nothing", "note"]


def test_a_pass_that_raises_is_the_cause():
    with pytest.raises(PassError, match="passes before it: none") as caught:
        PassManager([raises])(graph())
    assert isinstance(caught.value.__cause__, ValueError)


def test_what_earlier_passes_did_is_kept_when_a_later_one_fails():
    here = graph()
    with pytest.raises(PassError):
        PassManager([Append(), raises])(here)
    assert "exp" in text_of(here)


def test_the_broken_graph_is_dumped(tmp_path):
    with pytest.raises(PassError):
        PassManager([drops_output], debug_dump_path=tmp_path)(graph())
    file = tmp_path / "passes" / "0-inf.0" / "00_drops_output.broken.txt"
    assert file.read_text().endswith("return ()\n")


def test_a_pass_that_returns_a_graph_is_told_to_work_in_place():
    with pytest.raises(PassError, match=r"gives_graph returned neither a number of matches nor None"):
        PassManager([gives_graph])(graph())  # type: ignore[list-item]


def test_a_truth_value_counts_as_a_number_of_matches():
    manager = PassManager([gives_true])
    manager(graph())
    assert manager.records[0].matches == 1


def test_a_graph_that_comes_unsorted_is_sorted_first():
    here = graph()
    breaks(here)
    PassManager([nothing])(here)
    assert text_of(here) == GRAPH


def test_a_graph_that_comes_broken_is_not_blamed_on_a_pass():
    here = graph()
    here.find_nodes(op="call_function", target=aten.sin.default)[0].args = (fx.Graph().placeholder("z"),)
    with pytest.raises(PassError) as caught:
        PassManager([nothing])(here)
    assert str(caught.value).splitlines()[:2] == [
        "The graph was broken before any pass ran",
        "  expected: every value defined before its use, and one output",
    ]


# Keys


def test_the_uuid_is_about_passes_options_and_order():
    one, two = Append(aten.exp.default), Append(aten.tan.default)
    uuids = [
        PassManager(passes).uuid()
        for passes in ([], [one], [two], [one, two], [two, one], [one, nothing], [one, one])
    ]
    assert len(set(uuids)) == len(uuids)
    assert PassManager([one, two]).uuid() == PassManager([Append(), two]).uuid()


def test_the_uuid_is_about_the_range_only_where_a_pass_asks_for_it():
    def uuids(*passes: object) -> list[str]:
        manager = PassManager(passes)  # type: ignore[arg-type]
        found = []
        for range in (Range(1, 4), Range(5, 8), Range(9, 64)):
            with pass_context(range):
                found.append(manager.uuid())
        return found

    assert len(set(uuids(nothing))) == 1
    assert len(set(uuids(Note()))) == 3
    small = uuids(Append(only=Range(1, 8)))
    assert small[0] == small[1] != small[2]


def test_the_fingerprint_is_the_same_for_all_ranges():
    manager = PassManager([Note(), Append(only=Range(1, 8))])
    with pass_context(Range(1, 8)):
        inside = manager.fingerprint()
    assert inside == manager.fingerprint()
    assert inside != PassManager([Append(only=Range(1, 8)), Note()]).fingerprint()


def test_a_lambda_has_no_uuid():
    manager = PassManager([lambda graph: None])
    manager(graph())
    with pytest.raises(FingerprintError, match="a lambda"):
        manager.uuid()


def test_it_is_what_inductor_takes_for_a_pass():
    assert isinstance(PassManager(), InductorGraphPass)


def test_copies_and_pickles_hold_the_passes():
    manager = PassManager([NoopElimination(), nothing], bus=Bus(lambda event: None))
    for other in (copy.deepcopy(manager), pickle.loads(pickle.dumps(manager))):
        assert other.passes == manager.passes
        assert other.uuid() == manager.uuid()
        other(graph())
        assert len(other.records) == 3
    assert manager.records == ()


# Settings


def test_without_settings_no_op_elimination_is_on():
    manager = PassManager([nothing])
    manager.configure({})
    assert manager.passes == (NoopElimination(), CleanUp())


def test_settings_name_passes_and_their_options():
    manager = PassManager()
    manager.configure(
        {
            "inductor_passes": {"tangent": f"{__name__}.Append", "count": nothing, "ready": Append()},
            "pass_config": {"tangent": {"target": aten.tan.default}, "defunctionalize": True, "count": False},
        }
    )
    assert manager.passes == (
        NoopElimination(),
        Append(aten.tan.default),
        Append(),
        Defunctionalize(),
        CleanUp(),
    )


def test_records_dumps_and_errors_call_passes_as_the_settings_do(tmp_path):
    manager = PassManager()
    passes = {"tangent": Append(aten.tan.default), "ours": Append(), "breaks": refuse}
    manager.configure({"inductor_passes": passes, "debug_dump_path": tmp_path})
    manager.add(nothing)
    with pytest.raises(PassError) as caught:
        manager(graph())
    assert caught.value.what == (
        "The pass breaks (refuse) raised an error (range [0, inf]; passes before it: "
        "noop_elimination (NoopElimination), tangent (Append), ours (Append))"
    )
    assert [record.name for record in manager.records] == ["noop_elimination", "tangent", "ours"]
    dumps = sorted(path.name for path in (tmp_path / "passes" / "0-inf.0").glob("*.before.txt"))
    assert dumps == [f"0{i}_{name}.before.txt" for i, name in enumerate(["noop_elimination", *passes])]
    plan = PassPlan.configured({"inductor_passes": passes}).and_([nothing])
    assert [name for name, _uuid in plan.named()] == ["noop_elimination", *passes, "nothing", "clean_up"]


def test_another_name_for_a_pass_does_nothing_else():
    one, other = (PassPlan.configured({"inductor_passes": {name: Append()}}) for name in ("a", "b"))
    assert one == other
    assert one.fingerprint() == other.fingerprint()


def test_settings_may_be_an_object():
    manager = PassManager()
    manager.configure(SimpleNamespace(inductor_passes=None, pass_config={"noop_elimination": False}))
    assert manager.passes == (CleanUp(),)


def test_settings_say_where_to_dump(tmp_path):
    manager = PassManager()
    manager.configure({"debug_dump_path": str(tmp_path)})
    manager(graph())
    assert (tmp_path / "passes" / "0-inf.0" / "00_noop_elimination.before.txt").exists()


def test_a_pass_added_after_configuring_runs_before_the_closing_ones():
    manager = PassManager()
    manager.configure({"pass_config": {"defunctionalize": True}})
    manager.add(nothing)
    assert manager.passes == (NoopElimination(), FunctionPass(nothing), Defunctionalize(), CleanUp())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pass_config": {"fuse": True}},
            (
                "pass_config names a pass that there is not\n"
                "  expected: one of noop_elimination, defunctionalize\n"
                "  got: fuse\n"
                "  to do: name it in inductor_passes, or leave it out"
            ),
        ),
        (
            {
                "pass_config": {"noop_eliminaton": True, "tangnt": True},
                "inductor_passes": {"tangent": nothing},
            },
            (
                "pass_config names a pass that there is not\n"
                "  expected: one of noop_elimination, defunctionalize, tangent\n"
                "  got: noop_eliminaton, tangnt\n"
                "  to do: did you mean 'noop_elimination'?; did you mean 'tangent'?"
            ),
        ),
        (
            {"inductor_passes": {"tangent": "torch_piecewise.passes.cleanup.CleanUpp"}},
            (
                "inductor_passes['tangent']: "
                "the pass 'torch_piecewise.passes.cleanup.CleanUpp' does not exist\n"
                "  expected: an attribute 'CleanUpp' of torch_piecewise.passes.cleanup\n"
                "  got: torch_piecewise.passes.cleanup without it\n"
                "  to do: did you mean 'CleanUp'?"
            ),
        ),
        (
            {
                "inductor_passes": {"tangent": f"{__name__}.Append"},
                "pass_config": {"tangent": {"targt": aten.tan.default}},
            },
            (
                "inductor_passes['tangent']: the pass Append cannot be made from its options\n"
                f"  expected: Append{inspect.signature(Append)}\n"
                "  got: targt=<OpOverload(op='aten.tan', overload='default')>\n"
                "  to do: did you mean 'target'?"
            ),
        ),
        (
            {"pass_config": {"noop_elimination": "yes"}},
            (
                "pass_config has a value for noop_elimination that it cannot have\n"
                "  expected: True, False, or a mapping of the pass's options\n"
                "  got: 'yes' (str)"
            ),
        ),
        (
            {"inductor_passes": {"joint_custom_pre_pass": nothing}},
            (
                "inductor_passes cannot have a pass named joint_custom_pre_pass\n"
                "  expected: any other name: these passes all run at the post-grad hook\n"
                "  got: 'joint_custom_pre_pass'\n"
                "  to do: for another hook of Inductor's put the pass under its key "
                "in inductor_compile_config"
            ),
        ),
        (
            {"inductor_passes": {"defunctionalize": nothing}},
            (
                "inductor_passes cannot have a pass named defunctionalize\n"
                "  expected: any other name: these passes all run at the post-grad hook\n"
                "  got: 'defunctionalize'\n"
                "  to do: rename it, or switch the built-in pass by pass_config"
            ),
        ),
    ],
)
def test_settings_that_cannot_be_are_errors(settings, message):
    with pytest.raises(ConfigError) as caught:
        PassManager().configure(settings)
    assert str(caught.value) == message


# Inductor's hook


def test_the_manager_takes_the_hook():
    manager = PassManager()
    config = {"max_autotune": True}
    assert manager.install(config) == {"max_autotune": True, POST_GRAD_HOOK: manager}
    assert config == {"max_autotune": True}


class TheirPass(InductorGraphPass):
    def __call__(self, graph: fx.Graph) -> None:
        Append(aten.tan.default)(graph)

    def uuid(self) -> str:
        return "theirs"


def tangent(graph: fx.Graph) -> int:
    return Append(aten.tan.default)(graph)


@pytest.mark.parametrize(
    "theirs",
    [TheirPass(), [TheirPass()], Append(aten.tan.default), tangent, f"{__name__}.tangent"],
    ids=["inductor pass", "list", "pass", "function", "dotted name"],
)
def test_a_users_pass_at_the_hook_runs_after_ours(theirs):
    manager = PassManager([Append(aten.exp.default)])
    installed = manager.install({POST_GRAD_HOOK: theirs})[POST_GRAD_HOOK]
    installed(here := graph())
    text = text_of(here)
    assert text.index("exp") < text.index("tan")
    assert manager.passes == (Append(aten.exp.default), CleanUp())
    assert manager.records == installed.records != ()
    assert installed.uuid() != manager.uuid()


def test_installing_twice_appends_once():
    manager = PassManager()
    config = {POST_GRAD_HOOK: TheirPass()}
    first, second = manager.install(config), manager.install(config)
    assert len(first[POST_GRAD_HOOK].passes) == len(second[POST_GRAD_HOOK].passes) == 2


SECOND = (
    "A pass manager was given as a pass\n"
    "  expected: passes; the one manager takes the hook post_grad_custom_post_pass itself\n"
    "  got: a second PassManager\n"
    "  to do: give its passes one by one, by inductor_passes or PassManager.add"
)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PassManager().install({POST_GRAD_HOOK: PassManager()}),
        lambda: PassManager().install({POST_GRAD_HOOK: [nothing, PassManager()]}),
        lambda: PassManager([PassManager()]),
        lambda: PassManager().add(PassManager()),
        lambda: PassManager().configure({"inductor_passes": {POST_GRAD_HOOK: PassManager()}}),
    ],
)
def test_a_second_manager_is_an_error(wrong: Callable[[], object]):
    with pytest.raises(PassError) as caught:
        wrong()
    assert str(caught.value) == SECOND


def test_a_pass_that_wants_to_know_is_inference_is_an_error():
    module = pytest.importorskip("torch._inductor.custom_graph_pass")
    base = getattr(module, "CustomInferenceAwareGraphPass", None)
    if base is None:
        pytest.skip("this torch has no such passes")

    class Aware(base):
        def __call__(self, graph: fx.Graph, is_inference: bool) -> None:
            pass

        def uuid(self) -> str:
            return "aware"

    with pytest.raises(PassError, match="The pass Aware wants to know is_inference"):
        PassManager([Aware()])
