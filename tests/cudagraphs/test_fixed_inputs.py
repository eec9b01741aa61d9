"""Where a captured call's arguments lie, and which calls fit."""

from __future__ import annotations

import pytest
import torch

from torch_piecewise.cudagraphs import DynamicInput, Extent
from torch_piecewise.cudagraphs.fixed_inputs import CallTemplate, FixedInputs, InputMemory
from torch_piecewise.errors import ConfigError


def fixed(args, dynamic, size, memory=None, check_addresses=False):
    template = CallTemplate(args, dynamic)
    memory = memory or InputMemory()
    memory.reserve(template, size)
    return FixedInputs(template, memory, size, check_addresses=check_addresses)


def test_inputs_of_all_sizes_share_memory():
    memory, x = InputMemory(), torch.ones(2, 3)
    template = CallTemplate((x,), {0: DynamicInput()})
    assert not memory.reserve(template, 8)
    large, small = (FixedInputs(template, memory, size, check_addresses=False).args[0] for size in (8, 4))
    assert (large.shape, small.shape) == ((8, 3), (4, 3))
    assert large.data_ptr() == small.data_ptr()


def test_more_room_than_there_is_replaces_the_memory():
    memory, template = InputMemory(), CallTemplate((torch.ones(2),), {0: DynamicInput()})
    assert [memory.reserve(template, size) for size in (4, 4, 2, 5)] == [False, False, False, True]


def test_a_call_is_copied_in_and_padded():
    inputs = fixed((torch.ones(2),), {0: DynamicInput(pad_value=-1)}, 5)
    x = torch.tensor([7.0, 8.0, 9.0])
    inputs.bound(3).fill((x,))
    assert inputs.args[0].tolist() == [7, 8, 9, -1, -1]


def test_padding_can_be_left_alone():
    inputs = fixed((torch.ones(2),), {0: DynamicInput(pad_value=None)}, 3)
    inputs.bound(3).fill((torch.full((3,), 4.0),))
    inputs.bound(1).fill((torch.ones(1),))
    inputs.fill_with_padding()
    assert inputs.args[0].tolist() == [1, 4, 4]


def test_dims_that_are_not_the_first_and_follow_in_their_own_way():
    declared = DynamicInput(extents=(Extent(0), Extent(-1, scale=2, offset=1)))
    inputs = fixed((torch.ones(2, 3, 5),), {0: declared}, 4)
    assert inputs.args[0].shape == (4, 3, 9)
    assert inputs.args[0].is_contiguous()
    x = torch.randn(3, 3, 7)
    inputs.bound(3).fill((x,))
    assert torch.equal(inputs.args[0], torch.nn.functional.pad(x, (0, 2, 0, 0, 0, 1)))


def test_what_the_model_writes_comes_back():
    x, y = torch.ones(2), torch.ones(2)
    inputs = fixed((x, y), {0: DynamicInput(copy_back=True), 1: DynamicInput()}, 4)
    inputs.bound(2).fill((x, y))
    inputs.args[0].add_(5)
    inputs.args[1].add_(5)
    inputs.bound(2).copy_back((x, y))
    assert (x.tolist(), y.tolist()) == ([6, 6], [1, 1])


def test_what_is_not_dynamic_must_be_what_it_was():
    weight = torch.ones(3)
    inputs = fixed((torch.ones(2), weight, 5, None, "a"), {0: DynamicInput()}, 4)
    x = torch.ones(4)
    assert inputs.refusal((x, weight, 5, None, "a")) == ""
    assert inputs.refusal((x, weight.view(3), 5, None, "a")) == ""
    assert inputs.refusal((x, weight.clone(), 5, None, "a")) == "input 1 is not the captured one"
    assert inputs.refusal((x, weight, 6, None, "a")) == "input 2 is 6, captured with 5"
    assert inputs.refusal((x, weight, 5, 1, "a")) == "input 3 is 1, captured with None"
    assert inputs.refusal((x, weight, True, None, "a")) == "input 2 is True, captured with 5"
    assert inputs.refusal((x, weight, 5, None)) == "another number of inputs"


def test_dynamic_inputs_must_fit_in_everything_but_size():
    inputs = fixed((torch.ones(2, 3),), {0: DynamicInput()}, 4)
    assert inputs.bound(3).refusal((torch.ones(3, 3),)) == ""
    assert inputs.bound(3).refusal((torch.ones(3, 1),)) == "input 0 has another shape"
    assert inputs.bound(3).refusal((torch.ones(1, 3),)) == "input 0 has another shape"
    assert inputs.bound(3).refusal((None,)) == "input 0 has another shape"
    assert inputs.bound(3).refusal((torch.ones(3, 3).double(),)) == "input 0 has another dtype or device"


def test_memory_that_moved_under_the_same_tensor_is_found_when_addresses_are_checked():
    weight = torch.ones(3)
    args = (torch.ones(2), weight)
    checked = fixed(args, {0: DynamicInput()}, 2, check_addresses=True)
    trusting = fixed(args, {0: DynamicInput()}, 2)
    weight.set_(torch.zeros(3))
    assert checked.refusal(args) == "input 1 has moved"
    assert trusting.refusal(args) == ""


@pytest.mark.parametrize(
    ("args", "declared", "message"),
    [
        ((1,), DynamicInput(), "is no tensor"),
        ((), DynamicInput(), "is no tensor"),
        ((torch.ones(2),), DynamicInput((Extent(1),)), "a dim it does not have"),
        ((torch.ones(2),), DynamicInput((Extent(-2),)), "a dim it does not have"),
    ],
)
def test_declarations_that_do_not_fit_the_call_are_refused(args, declared, message):
    with pytest.raises(ConfigError, match=message):
        CallTemplate(args, {0: declared})
