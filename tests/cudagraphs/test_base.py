"""Classes of static graphs are found by name, and refused with reasons."""

from __future__ import annotations

import pytest

from torch_piecewise.cudagraphs import CUDAStaticGraph, resolve_static_graph
from torch_piecewise.errors import ConfigError
from torch_piecewise.testing import GraphRecorder


class Halfway:
    def capture(self):
        pass


def test_cuda_has_a_short_name():
    assert resolve_static_graph("cuda") is CUDAStaticGraph


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
