"""Canonical text of values: same meaning, same text, in every process; another meaning, another text."""

from __future__ import annotations

import collections
import enum
import functools
import importlib.util
import itertools
import logging
import os
import pathlib
import subprocess
import sys
import threading
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend

from torch_piecewise.errors import FingerprintError
from torch_piecewise.fingerprint import stable_text

SOURCE = pathlib.Path(__file__).parent.parent / "src"


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Mask(enum.IntFlag):
    A = 1
    B = 2


@dataclass(frozen=True)
class Options:
    width: int
    names: tuple[str, ...] = ()


Point = collections.namedtuple("Point", "x y")


class Reducing:
    def __init__(self, value: object) -> None:
        self.value = value

    def __reduce__(self) -> tuple[object, ...]:
        return (Reducing, (self.value,))


class Plain:
    pass


def scale(x: int, by: int = 2) -> int:
    return x * by


UNLIKE = [
    None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, float("nan"), -float("nan"), float("inf"), -float("inf"),
    1j, complex(0.0, -0.0), complex(-0.0, 0.0), complex(1, 0), "", "1", "None", "True", b"", b"1", ...,
    NotImplemented, (), (1,), [1], [], {}, {1}, frozenset({1}), set(), {1: 2}, {"1": 2}, {1: 2.0}, (1, 2),
    (1, (2,)), ((1, 2),), ("1, 2",), ("1", "2"), ["', '"], slice(1), slice(1, None), slice(None, 1, 1),
    slice(0, 1), range(3), range(0, 3, 2), torch.float32, torch.float64, torch.strided, torch.sparse_coo,
    torch.channels_last, torch.contiguous_format, torch.device("cpu"), torch.device("cuda"),
    torch.device("cuda:0"), torch.device("cuda:1"), "cuda:1", torch.Size([1]), Colour.RED, Colour.BLUE,
    Mask.A, Mask.B, Mask.A | Mask.B, Options(1), Options(2), Options(1, ("a",)), Point(1, 2), Point(2, 1),
    collections.OrderedDict(a=1), collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1),
    {"a": 1, "b": 2}, collections.defaultdict(int, a=1), pathlib.PurePosixPath("a"), Reducing(1),
    Reducing(1.0), torch.ops.aten.add, torch.ops.aten.add.Tensor, torch.ops.aten.relu,
    torch.ops.aten.relu.default, torch.ops.aten.relu_.default, torch.ops.higher_order.cond, torch.relu,
    torch.relu_, torch.nn.functional.relu, torch.nn.functional.max_pool2d, torch.nn.functional.avg_pool2d,
    torch.Tensor.add, torch.Tensor.add_, torch.nn.Linear, torch.Tensor, int, float, len, scale, Options,
    functools.partial(scale, 1), functools.partial(scale, by=1), SDPBackend.MATH, SDPBackend.FLASH_ATTENTION,
    torch.tensor(1), torch.tensor(1.0), torch.tensor([1]), logging.getLogger("a"), torch,
]  # fmt: skip


@pytest.mark.parametrize("value", UNLIKE, ids=lambda value: type(value).__name__)
def test_a_text_is_one_line_and_the_same_each_time(value: object) -> None:
    assert stable_text(value) == stable_text(value)
    assert "\n" not in stable_text(value)


def test_unlike_values_have_unlike_texts() -> None:
    texts = [stable_text(value) for value in UNLIKE]
    assert [text for text, count in collections.Counter(texts).items() if count > 1] == []


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.binary(max_size=3),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=6,
)


def typed(value: object) -> object:
    """``value`` in a form in which == tells types and the sign of zero apart."""
    if isinstance(value, list | tuple):
        return (type(value), [typed(item) for item in value])
    if isinstance(value, dict):
        return (dict, {key: typed(item) for key, item in value.items()})
    return (type(value), repr(value))


@given(VALUES, VALUES)
def test_texts_are_equal_exactly_when_values_and_types_are(left: object, right: object) -> None:
    assert (stable_text(left) == stable_text(right)) == (typed(left) == typed(right))


def test_order_of_insertion_into_a_dict_or_set_does_not_count() -> None:
    assert stable_text({"a": 1, "b": [2]}) == stable_text({"b": [2], "a": 1})
    texts = {stable_text(frozenset(order)) for order in itertools.permutations(("aa", "bb", "cc", "dd"))}
    assert len(texts) == 1


def test_a_list_made_immutable_by_fx_is_a_list() -> None:
    graph = torch.fx.Graph()
    node = graph.call_function(torch.zeros, ([2, {"a": [1]}],))
    assert type(node.args[0]) is not list
    assert stable_text(node.args[0]) == stable_text([2, {"a": [1]}])


def local() -> object:
    def inner() -> None: ...

    class Inner: ...

    return inner, Inner


INNER, INNER_CLASS = local()
LAMBDA = lambda x: x  # noqa: E731
CYCLE: list[object] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (LAMBDA, "lambda"),
        ([{"a": (LAMBDA,)}], "lambda"),
        (INNER, "inside another function"),
        (INNER_CLASS, "local.<locals>.Inner"),
        (functools.partial(INNER), "inside another function"),
        (functools.partial(scale, LAMBDA), "lambda"),
        (Plain(), "Plain"),
        (SimpleNamespace().__init__, "method-wrapper"),
        ([].append, "append"),
        (threading.Lock(), "lock"),
        (torch.Generator(), "Generator"),
        (torch.nn.Linear(1, 1), "Linear"),
        (CYCLE, "contains itself"),
        ((i for i in ()), "generator"),
        (functools.wraps(torch.relu)(lambda x: x), "not what its module has"),
        (torch.empty(2, device="meta"), "meta"),
        (torch.ones(1, requires_grad=True) * 2, "autograd"),
        (torch.nn.Buffer(torch.ones(1)).as_subclass(type("Sub", (torch.Tensor,), {})), "Sub"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_stable_identity_is_refused_with_what_to_do(value: object, names: str) -> None:
    with pytest.raises(FingerprintError) as caught:
        stable_text(value)
    assert names in str(caught.value)
    assert caught.value.hint


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_a_sparse_constant_is_refused() -> None:
    with pytest.raises(FingerprintError, match="sparse_csr"):
        stable_text(torch.ones(2, 2).to_sparse_csr())


def module_from(source: str, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module named ``made`` with this source, importable for the rest of the test."""
    folder.mkdir()
    path = folder / "made.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("made", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "made", module)
    spec.loader.exec_module(module)
    return module


FUNCTION = """
import functools
FACTOR = 2
def helper(x):
    return x * FACTOR
def decorate(inner):
    @functools.wraps(inner)
    def wrapper(*args):
        return inner(*args)
    return wrapper
@decorate
@decorate
def f(x, y=1):
    return again(x) if x else helper(x) in {"a", "b", "c"}
def again(x):
    return f(x - 1)
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return x * FACTOR", "return x + FACTOR"),
        ("FACTOR = 2", "FACTOR = 2.0"),
        ("y=1", "y=2"),
        ("x - 1", "x - 2"),
        ("return inner(*args)", "return inner(*args[:1])"),
        ("@decorate\n@decorate", "@decorate"),
        ('"c"', '"d"'),
        ("helper(x) in", "helper(x) not in"),
    ],
)
def test_a_change_of_what_a_function_or_anything_it_reaches_does_counts(
    old: str, new: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert old in FUNCTION
    before = stable_text(module_from(FUNCTION, tmp_path / "a", monkeypatch).f)
    after = stable_text(module_from(FUNCTION.replace(old, new), tmp_path / "b", monkeypatch).f)
    assert before != after
    assert before.startswith("made.f[")


def test_comments_lines_and_folders_of_a_function_do_not_count(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stable_text(module_from(FUNCTION, tmp_path / "a", monkeypatch).f)
    moved = "# moved\n\n\n" + FUNCTION.replace("return x *", "# why\n    return x *")
    assert stable_text(module_from(moved, tmp_path / "b", monkeypatch).f) == before


CLASS = """
class Base:
    def run(self): return 1
class Made(Base):
    def stop(self): return 2
"""


@pytest.mark.parametrize(("old", "new"), [("return 1", "return 3"), ("return 2", "return 3")])
def test_the_source_of_a_class_and_of_its_bases_counts(
    old: str, new: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stable_text(module_from(CLASS, tmp_path / "a", monkeypatch).Made)
    same = stable_text(module_from(CLASS, tmp_path / "b", monkeypatch).Made)
    after = stable_text(module_from(CLASS.replace(old, new), tmp_path / "c", monkeypatch).Made)
    assert before == same != after


WRAPPED = """
import torch
def hooked(x): return x{}
f = torch.compiler.disable(hooked)
f.__qualname__ = "f"
"""


def test_a_users_function_inside_a_wrapper_of_torch_counts_or_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = set()
    for number, change in enumerate((" + 1", " + 2")):
        made = module_from(WRAPPED.format(change), tmp_path / str(number), monkeypatch)
        try:
            texts.add(stable_text(made.f))
        except FingerprintError:
            texts.add(number)
    assert len(texts) == 2


def test_a_method_counts_with_what_it_is_bound_to() -> None:
    assert stable_text(Options.__init__) != stable_text(Reducing.__init__)
    assert stable_text(Reducing(1).__reduce__) != stable_text(Reducing(2).__reduce__)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor + 1,
        lambda tensor: tensor.double(),
        lambda tensor: tensor.t(),
        lambda tensor: tensor.t().contiguous().t(),
        lambda tensor: tensor[1:],
        lambda tensor: tensor.clone().requires_grad_(),
        lambda tensor: torch.nn.Parameter(tensor, requires_grad=False),
        lambda tensor: tensor.view(4, 3, 1),
        lambda tensor: -0.0 * tensor,
    ],
)
def test_everything_about_a_tensor_constant_counts(change: object) -> None:
    tensor = torch.arange(12.0).view(4, 3)
    assert stable_text(change(tensor)) != stable_text(tensor)
    assert stable_text(tensor.clone()) == stable_text(tensor)


def test_the_sign_of_zero_in_a_tensor_counts() -> None:
    assert stable_text(torch.tensor([0.0])) != stable_text(torch.tensor([-0.0]))


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.bfloat16, torch.complex64, torch.int8, torch.float8_e4m3fn]
)
def test_tensors_of_every_kind_of_element_are_read(dtype: torch.dtype) -> None:
    assert stable_text(torch.zeros(3).to(dtype)) != stable_text(torch.ones(3).to(dtype))


def test_a_tensor_is_hashed_in_chunks_whatever_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.randn(shape) for shape in ((), (0, 3), (64, 3), (1, 1, 77, 5), (3, 100), (129,))]
    tensors += [
        torch.randn(40, 30).t(),
        torch.randn(1, 30).expand(50, 30),
        torch.randn(8, 8, 8)[::2, 1:, ::3],
    ]
    whole = [stable_text(tensor) for tensor in tensors]
    monkeypatch.setattr("torch_piecewise.fingerprint.tensors.CHUNK", 64)
    assert [stable_text(tensor) for tensor in tensors] == whole


def test_a_numpy_scalar_is_no_python_number() -> None:
    numpy = pytest.importorskip("numpy")
    values = [1.0, numpy.float64(1), numpy.float32(1), numpy.array(1.0), numpy.array([1.0]), numpy.int64(1)]
    assert len({stable_text(value) for value in values}) == len(values)


SCRIPT = """
import torch
from torch_piecewise.fingerprint import fingerprint, stable_text
from torch_piecewise.piece import Piece, Symbol, TensorSpec
import made
values = [{"a", "b", "c", "d"}, frozenset("xyz"), {"k": 1, "j": {"m", "n"}}, made.f, made.Made, torch.relu]
print([stable_text(value) for value in values])
graph = torch.fx.Graph()
x = graph.placeholder("x")
graph.output((graph.call_function(made.f, (x,), {"options": {"a": {1: 2}}, "b": (1.0, None)}),))
spec = TensorSpec(torch.float32, torch.device("cpu"), ("s0", "Max(s1, s0 + 2*s1)"), (1, 1))
piece = Piece("p", 0, torch.fx.GraphModule({}, graph), (spec,),
              (Symbol("s1", 0, 9, 3), Symbol("s0", 2, 9, 3)), ("Ne(s0, s1)", "s0 < s1"), "s0")
print(fingerprint(piece))
"""


def test_texts_and_fingerprints_are_the_same_in_every_process(tmp_path: pathlib.Path) -> None:
    (tmp_path / "made.py").write_text(FUNCTION + CLASS)
    outputs = []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": f"{SOURCE}{os.pathsep}{tmp_path}"}
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        outputs.append(run.stdout)
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()[-1]) == 64
