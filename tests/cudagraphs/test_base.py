"""Classes of static graphs are found by name, and refused with reasons."""

from __future__ import annotations

import pytest

from torch_piecewise.config import Config
from torch_piecewise.cudagraphs import CUDAStaticGraph, resolve_static_graph
from torch_piecewise.errors import ConfigError
from torch_piecewise.testing import GraphRecorder


class Halfway:
    def capture(self):
        pass


def test_cuda_has_a_short_name():
    assert resolve_static_graph("cuda") is CUDAStaticGraph


def test_a_class_stands_for_itself():
    assert resolve_static_graph(GraphRecorder) is GraphRecorder
    with pytest.raises(ConfigError, match="Halfway is no static-graph class"):
        resolve_static_graph(Halfway)


def test_the_settings_take_a_class_and_key_it_as_its_name():
    given, named = (
        Config(static_graph_class=one) for one in (GraphRecorder, "torch_piecewise.testing.GraphRecorder")
    )
    assert given.static_graph_class is GraphRecorder
    assert given.as_ingredients() == named.as_ingredients()
    for wrong, hint in (
        (Halfway, "Halfway lacks weak, memory_in_use, turn"),
        (GraphRecorder(), "give the class itself"),
    ):
        with pytest.raises(ConfigError, match=hint):
            Config(static_graph_class=wrong)


def test_another_class_goes_by_its_dotted_name():
    assert resolve_static_graph("torch_piecewise.testing.GraphRecorder") is GraphRecorder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("xpu", "no dotted name"),
        ("no_such_package.module.Class", "cannot be imported"),
        ("torch_piecewise.testing.NoSuchClass", "does not exist"),
        ("torch_piecewise.testing.__doc__", "does not exist"),
        ("collections.OrderedDict", "is no static-graph class"),
    ],
)
def test_a_name_that_leads_nowhere_is_an_error_that_says_where_it_ended(name, message):
    with pytest.raises(ConfigError, match=message):
        resolve_static_graph(name)


def test_a_class_that_lacks_verbs_is_told_which():
    with pytest.raises(ConfigError, match="without weak, memory_in_use, turn"):
        resolve_static_graph(f"{__name__}.Halfway")
