"""What is written down of one traced call of a block.

The frames and metadata of Dynamo's translators are private in all versions (2.11, 2.13).
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.variables.base import VariableTracker
from torch._guards import Guard, Source
from torch.fx import Node
from torch.fx import traceback as fx_traceback
from torch.fx.experimental.symbolic_shapes import uninteresting_files
from torch.nn import Module

from torch_piecewise.torch_private.block_views import (
    Arguments,
    NotAlike,
    Places,
)


@dataclass(frozen=True)
class Surroundings:
    """What a call's trace depends on beside its arguments and its module."""

    modes: str
    position: tuple[tuple[int, int], ...]
    outer_trace: str

    @staticmethod
    def of(tx: Any) -> Surroundings:
        """What surrounds the call that ``tx`` is about to make.

        Raises:
            NotAlike: something is active that copies could not follow.
        """
        if tx.symbolic_torch_function_state.mode_stack:
            raise NotAlike("a torch function mode is active")
        if fx_traceback.has_preserved_node_meta() and fx_traceback.get_current_meta():
            raise NotAlike("operations are being annotated")
        state: dict[str, Any] = {}
        tx.output.save_global_state(state)
        modes = {name: value[1] for name, value in state.items()}
        modes |= {"dtype": torch.get_default_dtype(), "fixed": torch.are_deterministic_algorithms_enabled()}
        frames = list(_frames(tx))
        return Surroundings(
            modes=repr(modes),
            position=tuple((id(one.f_code), one.instruction_pointer) for one in frames),
            outer_trace=_trace_text(frames),
        )


def _frames(tx: Any) -> Iterable[Any]:
    while tx:
        yield tx
        tx = getattr(tx, "parent", None)


def _trace_text(frames: Iterable[Any]) -> str:
    """The part of a node's stack trace that these frames make, as Dynamo writes it."""
    shown = [one.frame_summary() for one in frames if not one.is_co_filename_from_nn_modules()]
    kept = [one for one in shown if one.filename not in uninteresting_files()]
    return "".join(traceback.StackSummary.from_list(kept[::-1]).format())


@dataclass(frozen=True)
class Label:
    """A string that the block read and handed to operations as it was."""

    text: str
    source: Source


@dataclass(frozen=True)
class Inner:
    """One entry of a node's ``nn_module_stack`` below the block: which submodule, in which of its calls."""

    path: str
    name: str
    kind: type
    call: int


@dataclass(frozen=True)
class Origin:
    """Where in the block's code a node was made.

    Attributes:
        inside: submodules it ran in, the block first.
        trace: its stack trace.
        own_trace: the part of it within the block; None where it does not begin as the caller's does.
    """

    inside: tuple[Inner, ...]
    trace: str
    own_trace: str | None


@dataclass(frozen=True)
class Step:
    """One node as the trace made it, before the caller could rename it.

    Attributes:
        hint: the name it was given after its operation's; None where it kept that.
        function: what the metadata names as the function it came from; None for a change of grad mode.
        result: :func:`spec` of its value; None where it has none.
    """

    node: Node
    op: str
    target: Any
    args: Any
    kwargs: Any
    hint: str | None
    origin: Origin
    function: Any
    result: str | None


@dataclass(frozen=True)
class Tape:
    """One traced call of one block.

    Attributes:
        form: equal for two tapes where one is a copy of the other.
        inputs: for each node from outside that it uses, the argument's number or the source it was read from.
        input_specs: :func:`spec` of each when the call had returned.
        origins: of the inputs that were first read in it, where.
        guards: what the trace read of the block and its arguments.
        told: those of them that somebody reads when the trace is done.
        values: what was read there, but for what :func:`check_alike` compares; by source.
        labels: by ``id`` of the string object in the nodes.
        spoiled: strings that the code looked into.
        spoken: nodes that are handed a label; what they compute may depend on it.
        escaping: nodes whose values the call returns.
        plain_fakes: whether fake values can be copied without running the operations.
        calls: how often each submodule was called.
        epoch: how many changes of outside objects the whole trace had seen.
    """

    block: Module
    places: Places
    view: Arguments
    around: Surroundings
    form: tuple[str, ...]
    steps: tuple[Step, ...]
    inputs: dict[Node, int | Source | None]
    input_specs: dict[Node, str]
    origins: dict[Node, Origin]
    guards: tuple[Guard, ...]
    told: tuple[Guard, ...]
    values: dict[Source, Any]
    labels: dict[int, Label]
    spoiled: frozenset[str]
    spoken: frozenset[Node]
    escaping: frozenset[Node]
    plain_fakes: bool
    calls: dict[str, int]
    result: VariableTracker
    epoch: int
