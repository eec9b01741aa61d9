"""The captured kinds of batches of one runner: how they come, what they cost, how they go.

Nothing here is locked: the runner holds its backend's turn.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.cudagraphs.base import StaticGraphBackend, Value
from torch_piecewise.cudagraphs.breakable import capture_plan
from torch_piecewise.cudagraphs.budget import BudgetReport, Ledger
from torch_piecewise.cudagraphs.capture_failed import capture_failed
from torch_piecewise.cudagraphs.dispatcher import Dispatch
from torch_piecewise.cudagraphs.extents import DynamicInput, Extent
from torch_piecewise.cudagraphs.fixed_inputs import CallTemplate, FixedInputs, InputMemory
from torch_piecewise.cudagraphs.graph_events import CaptureRefused, SizeCaptured, SizeDropped, SizeEvicted
from torch_piecewise.cudagraphs.outputs import OutputPolicy, StaticOutputs
from torch_piecewise.cudagraphs.plan import ReplayPlan
from torch_piecewise.cudagraphs.runner_options import RunnerOptions
from torch_piecewise.cudagraphs.table import ReplayTable
from torch_piecewise.errors import GuardError, StaticGraphError
from torch_piecewise.events import Bus

_log = logging.getLogger(__name__)

Line = Callable[..., Any]

NO_BUDGET = "no budget left"


@dataclass(frozen=True)
class CapturedSize:
    """One captured kind of batch.

    Attributes:
        replays: how often each size of call was served.
    """

    key: Dispatch
    plan: ReplayPlan
    inputs: FixedInputs
    outputs: StaticOutputs
    replays: dict[int, int] = field(default_factory=dict)

    def refusal(self, args: Sequence[Any], size: int) -> str:
        """Why these arguments cannot be served; empty where they can."""
        return self.inputs.refusal(args) or self.inputs.bound(size).refusal(args)

    def serve(self, args: Sequence[Any], size: int) -> Value:
        """Copy in, replay, hand out."""
        bound = self.inputs.bound(size)
        bound.fill(args)
        self.plan.replay()
        bound.copy_back(args)
        self.replays[size] = self.replays.get(size, 0) + 1
        return self.outputs.hand_out(size)


class CapturedSizes:
    """See the module's text.

    Args:
        line_for: the callable that serves calls of a size.
        backend: where graphs live.
        dynamic: dynamic inputs by position.
        numbers: numbers among the inputs that follow the size, by position.
        extents: dims and numbers of outputs that follow the size.
        options: how to capture.
        bus: told of captures, evictions and refusals.
        names: what people call inputs, by position.
    """

    def __init__(
        self,
        line_for: Callable[[int], Line],
        backend: StaticGraphBackend,
        dynamic: Mapping[int, DynamicInput],
        numbers: Mapping[int, Extent],
        extents: Mapping[int, Sequence[Extent]],
        options: RunnerOptions,
        bus: Bus,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self._line_for = line_for
        self._backend = backend
        self._dynamic = dynamic
        self._numbers = numbers
        self._extents = extents
        self._options = options
        self._bus = bus
        self._names = names
        wanted = options.check_addresses
        self._check = backend.checks_addresses if wanted is None else wanted
        self._memory = InputMemory()
        self._ledger: Ledger[Dispatch] = Ledger(options.budget, options.spent)
        self._captured: dict[Dispatch, CapturedSize] = {}
        self._stale: set[Dispatch] = set()
        self._given_up: dict[Dispatch, str] = {}
        self._largest = 1
        self._table = ReplayTable()

    def __contains__(self, key: object) -> bool:
        return key in self._captured

    def keys(self) -> tuple[Dispatch, ...]:
        """What has graphs now."""
        return tuple(self._captured)

    def use(self, key: Dispatch) -> CapturedSize | None:
        """What was captured for ``key``, which counts as used now; None if nothing was."""
        if self._options.budget.max_bytes is not None:
            self._ledger.touch(key)
        return self._captured.get(key)

    def code_changed(self) -> None:
        """What was captured was captured of other code than there is now; it still computes the same."""
        self._stale.update(self._captured)
        self._given_up.clear()

    def is_current(self, key: Dispatch) -> bool:
        """Whether ``key`` was captured, of the code that there is now."""
        return key in self._captured and key not in self._stale

    def drop_stale(self) -> None:
        """Give up what was captured of other code."""
        for key in tuple(self._stale):
            self._drop(key)

    def table(self) -> ReplayTable:
        """Counts of calls; the caller counts those that no graph served."""
        for captured in self._captured.values():
            self._count(captured)
        return self._table

    def why_not(self, key: Dispatch) -> str:
        """Why ``key`` is not to be captured; empty where it may be tried."""
        if key in self._given_up:
            return self._given_up[key]
        return "" if self._ledger.has_time() else NO_BUDGET

    def expect_size(self, size: int) -> None:
        """Make input buffers large enough for calls of ``size`` when they are next made."""
        self._largest = max(self._largest, size)

    def make_room(self, template: CallTemplate) -> tuple[Dispatch, ...]:
        """Make input buffers that such calls of all expected sizes fit; what is given up for it."""
        try:
            outgrown = self._memory.reserve(template, self._largest)
        except torch.OutOfMemoryError as error:
            raise capture_failed(error) from error
        if not outgrown:
            return ()
        _log.info("an input outgrew its buffer; what was captured on the old one is given up")
        gone = self.keys()
        self.drop_all()
        return gone

    def template(self, args: Sequence[Any]) -> CallTemplate:
        """Everything about these arguments except size and dynamic values."""
        return CallTemplate(args, self._dynamic, self._numbers, self._names)

    def run_padded(self, key: Dispatch, args: Sequence[Any], size: int) -> Value:
        """Serve a call without capturing it, by the code and on the memory that are to be captured."""
        inputs = self._fixed_inputs(key, self.template(args))
        bound = inputs.bound(size)
        bound.fill(args)
        with torch.no_grad():
            result = self._line_for(key.descriptor.num_tokens)(*inputs.args)
        bound.copy_back(args)
        return self._outputs(key, result, inputs, OutputPolicy.COPY).hand_out(size)

    def capture_call(self, key: Dispatch, args: Sequence[Any], size: int) -> Value:
        """Serve a call and capture it; it is carried out once."""
        inputs = self._fixed_inputs(key, self.template(args))
        bound = inputs.bound(size)
        bound.fill(args)
        captured = self._capture(key, inputs, collect=False)
        bound.copy_back(args)
        captured.replays[size] = 1
        result = captured.outputs.hand_out(size)
        del captured  # its memory is to come back where it has to go
        self._settle(key, may_evict=True)
        return result

    def capture_unattended(
        self, key: Dispatch, template: CallTemplate, *, collect: bool, may_evict: bool
    ) -> None:
        """Capture without a call, on inputs that are all padding."""
        self._given_up.pop(key, None)
        if not self._ledger.has_time() or not (may_evict or self._ledger.has_room()):
            self._refuse(key, NO_BUDGET)
            return
        if template.refusal:
            self.give_up(key, template.refusal)
            return
        self.refuse_if_held()
        try:
            self._warm_up_and_capture(key, template, collect=collect)
        except GuardError as error:
            self.give_up(key, f"the model does not take size {key.descriptor.num_tokens}: {error.got}")
            return
        except StaticGraphError as error:
            self.give_up(key, error.what)
            raise
        self._settle(key, may_evict=may_evict)

    def _warm_up_and_capture(self, key: Dispatch, template: CallTemplate, *, collect: bool) -> None:
        inputs = self._fixed_inputs(key, template)
        line = self._line_for(key.descriptor.num_tokens)
        with torch.no_grad():
            for _ in range(self._options.warmups):
                inputs.fill_with_padding()
                line(*inputs.args)
            inputs.fill_with_padding()
        self._capture(key, inputs, collect=collect)

    def refuse_if_held(self) -> None:
        """Check that nobody holds results; those of one size may lie in buffers that all sizes share.

        Raises:
            StaticGraphError: the policy is REFUSE and somebody does.
        """
        if self._options.outputs is OutputPolicy.REFUSE:
            for captured in self._captured.values():
                captured.outputs.refuse_if_held()

    def drop_all(self) -> None:
        """Give up every graph; what is called again may be captured again."""
        for key in tuple(self._captured):
            self.drop(key)

    def drop(self, key: Dispatch) -> None:
        """Give up the graphs of ``key``, which has some; when it is called again it may be captured again."""
        freed = self._drop(key)
        self._bus.emit(SizeDropped(mode=key.mode, descriptor=key.descriptor, freed=freed))

    def give_up(self, key: Dispatch, reason: str) -> None:
        """Do not capture ``key`` any more until the next warm-up."""
        self._given_up[key] = reason
        self._bus.emit(CaptureRefused(mode=key.mode, descriptor=key.descriptor, reason=reason))
        _log.info("%s %s stays without static graphs: %s", key.mode, key.descriptor, reason)

    def clear(self) -> None:
        """Give up everything."""
        self.drop_all()
        self._memory = InputMemory()
        self._given_up.clear()

    def report(self) -> BudgetReport:
        """Where the budget stands."""
        return self._ledger.report()

    def _fixed_inputs(self, key: Dispatch, template: CallTemplate) -> FixedInputs:
        size = key.descriptor.num_tokens
        self.expect_size(size)
        self.make_room(template)
        always = self._options.always_check
        return FixedInputs(template, self._memory, size, check_addresses=self._check, always_check=always)

    def _capture(self, key: Dispatch, inputs: FixedInputs, *, collect: bool) -> CapturedSize:
        if key in self._captured:
            self._drop(key)
        line = self._line_for(key.descriptor.num_tokens)
        before, start = self._backend.memory_in_use(), time.monotonic()
        try:
            with torch.no_grad():
                plan = capture_plan(
                    lambda: line(*inputs.args),
                    self._backend,
                    captures_cuts=key.mode is CUDAGraphMode.FULL,
                    collect=collect,
                    weak_outputs=self._options.outputs is OutputPolicy.COPY,
                    only_marked=self._options.only_marked,
                )
        finally:
            seconds = time.monotonic() - start
            self._ledger.spend(seconds)
        try:
            outputs = self._outputs(key, plan.outputs, inputs, self._options.outputs)
        except BaseException:
            plan.reset()
            raise
        if not plan.graphs:
            _log.info("%s has no part that a graph could hold: it runs as it does without graphs", key)
        self._captured[key] = captured = CapturedSize(key, plan, inputs, outputs)
        cost = self._backend.memory_in_use() - before
        self._ledger.charge(cost)
        self._ledger.enter(key, cost)
        self._bus.emit(
            SizeCaptured(
                mode=key.mode,
                descriptor=key.descriptor,
                graphs=len(plan.graphs),
                seconds=seconds,
                memory=cost,
            )
        )
        return captured

    def _outputs(
        self, key: Dispatch, tree: Value, inputs: FixedInputs, policy: OutputPolicy
    ) -> StaticOutputs:
        size = key.descriptor.num_tokens
        return StaticOutputs(tree, policy, inputs.lasting_memory(), size, self._extents)

    def _settle(self, key: Dispatch, *, may_evict: bool) -> None:
        """Get back within the budget, at the cost of others where that is allowed."""
        while may_evict and self._ledger.is_over():
            victim = self._ledger.victim(spare=key)
            if victim is None:
                break
            freed = self._drop(victim, evicted=True)
            self._bus.emit(SizeEvicted(mode=victim.mode, descriptor=victim.descriptor, freed=freed))
        if self._ledger.is_over():
            self._drop(key)
            self._refuse(key, "it takes more memory than the budget has left")

    def _refuse(self, key: Dispatch, reason: str) -> None:
        self._ledger.refuse()
        self.give_up(key, reason)
        self._given_up[key] = NO_BUDGET

    def _drop(self, key: Dispatch, *, evicted: bool = False) -> int:
        before = self._backend.memory_in_use()
        captured = self._captured.pop(key)
        self._stale.discard(key)
        captured.plan.reset()
        self._count(captured)
        del captured  # a pool gives memory back when nobody holds its last graph
        freed = before - self._backend.memory_in_use()
        self._ledger.charge(-freed)
        self._ledger.leave(key, evicted=evicted)
        return freed

    def _count(self, captured: CapturedSize) -> None:
        for size, count in captured.replays.items():
            self._table.count(size, captured.key.descriptor.num_tokens, captured.key.mode, times=count)
        captured.replays.clear()
