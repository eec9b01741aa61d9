"""A whole call, captured for each size and replayed as a flat list.

This is the seam between the compile engine and static graphs. The engine hands over

* ``line_for(size)``: the straight-line callable that serves calls of ``size``. It takes all inputs by
  position, in the order in which ``inputs`` counts them, and returns tensors, numbers and None in tuples,
  lists or dicts. It must not read anything that changes from call to call, except in eager steps. Its
  steps are ordinary functions, marked with what they are (``torch_piecewise.cudagraphs.breakable``)::

      piece   opaque_call(compiled)   or ``compiled`` itself, where no recorder is ever used
      eager   cut_step(body)          cuts: eager under PIECEWISE, captured under FULL
      eager   runs_eagerly(body)      eager under both

  :func:`~torch_piecewise.cudagraphs.lines.straight_line` makes one of a list of steps that feed each other.
* ``inputs``: the positions of the inputs that change from call to call, each with the dims that follow the
  size, what to pad with, and whether the model writes to it. Every other input (weights, caches, numbers,
  None) is part of what is captured: a call that brings another one runs without graphs.
* ``numbers``: the positions of numbers among the inputs that follow the size.
* ``outputs``: for the positions of the outputs that follow the size, in the flattened result: which dims.
  A number among the outputs must be there too: with an extent (its dim does not matter) where it follows
  the size, with none where it is always the same.

A call of size ``n`` that a graph of size ``N >= n`` serves is: copy dynamic inputs to their buffers, pad
them to ``N``, replay the plan, cut the outputs back to ``n`` and copy them. Rows of a padded batch must
not depend on each other, and pad values must be harmless (a KV-cache slot of -1, say). Anything else runs
``line_for(n)`` as it is: sizes that nothing was captured for, calls that want gradients, inputs that are
not the captured ones, calls from inside a call, other devices. The table says how often, and why.

A tensor that is not dynamic and comes in other memory than the captured one (a weight that was replaced or
moved, a cache allocated anew) makes everything captured stale: it is given up and captured again, where the
options let calls capture. Where that happens again and again nothing is captured any more. Dynamic inputs
that are not copied may stray once; a second call in a row with the same other memory is captured on that.

Threads: calls that replay take turns; calls that do not run side by side.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch

from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.cudagraphs.base import StaticGraphBackend, Value
from torch_piecewise.cudagraphs.breakable import capture_in_progress
from torch_piecewise.cudagraphs.budget import BudgetReport
from torch_piecewise.cudagraphs.capture_failed import CaptureFailed
from torch_piecewise.cudagraphs.captured_sizes import CapturedSize, CapturedSizes, Line
from torch_piecewise.cudagraphs.context import in_capture_phase
from torch_piecewise.cudagraphs.decisions import Decisions, Refusal
from torch_piecewise.cudagraphs.dispatcher import CUDAGraphDispatcher, Dispatch
from torch_piecewise.cudagraphs.extents import DynamicInput, Extent
from torch_piecewise.cudagraphs.recaptures import Recaptures, Verdict
from torch_piecewise.cudagraphs.runner_options import CaptureWhen, RunnerOptions
from torch_piecewise.cudagraphs.table import ReplayTable
from torch_piecewise.cudagraphs.unattended import Example, Progress, Unattended
from torch_piecewise.errors import ConfigError, GuardError, StaticGraphError
from torch_piecewise.events import Bus

_log = logging.getLogger(__name__)

_UNCOPIED = "calls are not padded where inputs are not copied"


class StaticGraphRunner:
    """Pads, copies, replays and cuts back calls; runs them without graphs where none fits.

    Args:
        line_for: see the module's text.
        dispatcher: which sizes are to be captured, and what serves a batch.
        backend: where graphs live. One for all runners whose calls follow one another.
        inputs: dynamic inputs by position, at least one.
        outputs: dims and numbers of outputs that follow the size, by position in the flattened result.
        numbers: numbers among the inputs that follow the size, by position.
        size_at: input position and extent that tell the size of a call; None for the first extent of the
            first dynamic input that has one.
        uniform_when: whether a call, given its arguments, is a uniform decode batch. None: none is, unless a
            :func:`forward_context` says so.
        options: None for the defaults.
        bus: told of captures, evictions and refusals.
        names: what people call inputs, by position; None for their positions.
    """

    def __init__(
        self,
        line_for: Callable[[int], Line],
        dispatcher: CUDAGraphDispatcher,
        backend: StaticGraphBackend,
        inputs: Mapping[int, DynamicInput],
        outputs: Mapping[int, Sequence[Extent]] | None = None,
        *,
        numbers: Mapping[int, Extent] | None = None,
        size_at: tuple[int, Extent] | None = None,
        uniform_when: Callable[[Sequence[Any]], bool] | None = None,
        options: RunnerOptions | None = None,
        bus: Bus | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self._line_for = line_for
        self._names = names or {}
        self.dispatcher = self._dispatcher = dispatcher
        self._turn = backend.turn()
        self._options = options or RunnerOptions()
        self._size_at = size_at or _first_extent(inputs)
        dynamic = inputs if self._options.copy_inputs else {}
        self._sizes = CapturedSizes(
            line_for, backend, dynamic, numbers or {}, outputs or {}, self._options, bus or Bus(), names
        )
        self._table = self._sizes.table()
        in_place = {} if self._options.copy_inputs else inputs
        no_padding = self._options.no_padding or (_UNCOPIED if in_place else "")
        self._decisions = Decisions(dispatcher, uniform_when, no_padding)
        self._unattended = Unattended(self._sizes, dispatcher, in_place)
        self._recaptures = Recaptures(in_place)
        self._visits: dict[tuple[Dispatch, int], int] = {}
        self._is_busy = False
        self._has_new_code = False

    def __call__(self, *args: Value) -> Value:
        """Serve one call.

        Raises:
            ConfigError: no input tells the size of a call.
            StaticGraphError: results of the last call are still held under ``OutputPolicy.REFUSE``. Whatever
                the model raises comes through; the next call is served as if this one had not been.
        """
        if self._size_at is None:
            raise ConfigError(
                "No input tells the size of a call",
                expected="a dynamic input with a dim that follows the size",
                hint="declare one in `inputs`, name it with `size_at`, or call serve(size, args)",
            )
        position, extent = self._size_at
        return self.serve(extent.size_from(args[position].shape[extent.dim]), args)

    def serve(self, size: int, args: Sequence[Any], plain: Line | None = None) -> Value:
        """Serve a call whose size is known; see :meth:`__call__`.

        Args:
            plain: what runs without graphs; None for what ``line_for`` gives.
        """
        if capture_in_progress():
            return self._line_for(size)(*args)
        unstable = self._recaptures.are_over()
        key = Refusal(self._recaptures.why) if unstable else self._decisions.of(size, args)
        if isinstance(key, Refusal):
            return self._run_plain(size, args, key.why, plain)
        if torch.is_grad_enabled() and _wants_gradients(args):
            return self._run_plain(size, args, "gradients are wanted", plain)
        with self._turn:
            result = self._serve(key, size, args)
        return self._run_plain(size, args, result.why, plain) if isinstance(result, Refusal) else result

    def warmup(
        self,
        sizes: Iterable[int] | None = None,
        example: Example | None = None,
        *,
        progress: Progress | None = None,
    ) -> BudgetReport:
        """Capture sizes, largest first, as far as the budget goes.

        The model runs ``warmups + 1`` times for each kind of batch on inputs that are all padding. What it
        writes to inputs that are not dynamic (caches), it writes.

        Args:
            sizes: sizes to register and capture; None for all that the dispatcher knows.
            example: arguments of some call, of any size; or a function that makes them for a size (needed
                where inputs are not copied). None for those of an earlier warm-up or call.
            progress: called after each kind of batch with how many are done, how many there are, and which.

        Raises:
            StaticGraphError: there is no example. Whatever the model raises comes through; sizes captured
                before that stay.
        """
        wanted = None if sizes is None else sorted(set(sizes))
        with self._turn, self._occupied():
            self._notice_new_code()
            self._recaptures.forget()
            for size in wanted or ():
                self._dispatcher.add_size(size)
            self._decisions.forget()
            self._unattended.capture(wanted, example, progress)
            return self._sizes.report()

    def capture_pending(self) -> int:
        """Capture what calls have asked for since the last time, as :meth:`warmup` does; for between calls.

        Returns:
            How many kinds of batches were captured; later ones may have driven out earlier ones.
        """
        with self._turn, self._occupied():
            return self._unattended.capture_asked()

    def memory_changed(self, current: Mapping[int, torch.Tensor], name: str = "a tensor") -> None:
        """Give up what was captured: a tensor that is not dynamic is in other memory now.

        Args:
            current: such tensors as the next calls bring them, by position.
            name: of the one that is elsewhere.
        """
        with self._turn:
            self._forget_memory(name)
            self._unattended.renew(current)

    def saw(self, args: Sequence[Any]) -> None:
        """Learn from a call that was served elsewhere what calls look like."""
        with self._turn:
            self._unattended.saw(args)

    def code_changed(self) -> None:
        """There is other code to capture than before, that computes the same; on any thread.

        What was captured serves on until it is captured anew: by the calls to come, where those capture, else
        by :meth:`capture_pending` or :meth:`warmup`.
        """
        self._has_new_code = True

    def clear(self) -> None:
        """Give up all graphs and input buffers; counts stay."""
        with self._turn:
            self._recaptures.forget()
            self._sizes.clear()
            self._visits.clear()
            self._unattended.forget()

    def table(self) -> ReplayTable:
        """Counts of calls: size, padded to, mode, why no graph served it."""
        with self._turn:
            return self._sizes.table()

    def report(self) -> BudgetReport:
        """Where the budget stands."""
        with self._turn:
            return self._sizes.report()

    def captured(self) -> tuple[Dispatch, ...]:
        """What has graphs now."""
        return self._sizes.keys()

    def _serve(self, key: Dispatch, size: int, args: Sequence[Any]) -> Value:
        if self._is_busy:
            return Refusal("called from inside a call")
        self._is_busy = True
        try:
            self._notice_new_code()
            captured = self._sizes.use(key)
            if captured is not None:
                why = captured.refusal(args, size)
                if not why:
                    self._sizes.refuse_if_held()
                    self._ask_for_current(key, captured)
                    self._recaptures.fits(key)
                    return captured.serve(args, size)
                if not self._gave_up(key, captured, args):
                    return Refusal(why)
            return self._serve_uncaptured(key, size, args)
        finally:
            self._is_busy = False

    def _notice_new_code(self) -> None:
        if not self._has_new_code:
            return
        self._has_new_code = False
        self._sizes.code_changed()
        self._visits.clear()
        if self._options.capture is CaptureWhen.ON_CALL:
            self._sizes.drop_stale()

    def _gave_up(self, key: Dispatch, captured: CapturedSize, args: Sequence[Any]) -> bool:
        """Whether what was captured for ``key`` is given up, since memory has changed."""
        if self._options.capture is CaptureWhen.WARMUP:
            return False
        verdict = self._recaptures.judge(key, captured.inputs, args)
        if verdict is Verdict.GIVE_UP_ALL:
            self._forget_memory(self._named(captured.inputs.moved(args)))
            self._unattended.forget()
        elif verdict is Verdict.GIVE_UP_ONE:
            self._recaptures.note(self._named(captured.inputs.moved(args)))
            self._sizes.drop(key)
        return verdict is not Verdict.KEEP

    def _ask_for_current(self, key: Dispatch, captured: CapturedSize) -> None:
        if self._options.capture is CaptureWhen.BETWEEN_CALLS and not self._sizes.is_current(key):
            self._unattended.ask(key, captured.inputs.template)

    def _forget_memory(self, name: str) -> None:
        if self._sizes.keys():
            self._recaptures.note(name)
        self._sizes.drop_all()

    def _named(self, positions: AbstractSet[int]) -> str:
        names = [self._names.get(at, f"input {at}") for at in sorted(positions)[:1]]
        return names[0] if names else "a tensor"

    def _serve_uncaptured(self, key: Dispatch, size: int, args: Sequence[Any]) -> Value:
        why = self._sizes.why_not(key)
        if why:
            return Refusal(why)
        template = self._sizes.template(args)
        if template.refusal:
            return Refusal(template.refusal)
        self._unattended.looks_like(template)
        if not in_capture_phase() and self._options.capture is not CaptureWhen.ON_CALL:
            if self._options.capture is CaptureWhen.BETWEEN_CALLS:
                self._unattended.ask(key, template)
            return Refusal("not captured")
        self._unattended.make_room_for_the_largest()
        self._sizes.refuse_if_held()
        try:
            return self._warm_up_and_capture(key, size, args)
        except GuardError as error:
            # The line for the padded size refused, before anything ran.
            self._sizes.give_up(key, f"the model does not take size {key.descriptor.num_tokens}: {error.got}")
            return Refusal("the model does not take the padded size")

    def _warm_up_and_capture(self, key: Dispatch, size: int, args: Sequence[Any]) -> Value:
        # For each thread, since a thread's handles of libraries (cuBLAS) cannot be made in a capture.
        visit = (key, threading.get_ident())
        try:
            self._sizes.make_room(self._sizes.template(args))
        except CaptureFailed as error:
            return self._without(key, error)
        while self._visits.get(visit, 0) < self._options.warmups:
            self._visits[visit] = self._visits.get(visit, 0) + 1
            result = self._sizes.run_padded(key, args, size)
            if not in_capture_phase():
                self._table.count(size, key.descriptor.num_tokens, CUDAGraphMode.NONE, "warming up")
                return result
        try:
            return self._sizes.capture_call(key, args, size)
        except StaticGraphError as error:
            has_run = error.has_run if isinstance(error, CaptureFailed) else True
            if key.mode is not CUDAGraphMode.FULL and has_run:
                self._sizes.give_up(key, error.what)
                raise  # what came before the refused part has run, cuts among it
            return self._without(key, error)

    def _without(self, key: Dispatch, error: StaticGraphError) -> Refusal:
        self._sizes.give_up(key, error.what)
        _log.warning("%s stays without a static graph: %s", key.descriptor, error)
        return Refusal(error.what)

    def _run_plain(self, size: int, args: Sequence[Any], why: str, plain: Line | None) -> Value:
        self._table.count(size, None, CUDAGraphMode.NONE, why)
        self._unattended.saw(args)
        return (plain or self._line_for(size))(*args)

    @contextlib.contextmanager
    def _occupied(self) -> Iterator[None]:
        was_busy, self._is_busy = self._is_busy, True
        try:
            yield
        finally:
            self._is_busy = was_busy


def _first_extent(inputs: Mapping[int, DynamicInput]) -> tuple[int, Extent] | None:
    with_extents = [position for position in sorted(inputs) if inputs[position].extents]
    return (with_extents[0], inputs[with_extents[0]].extents[0]) if with_extents else None


def _wants_gradients(args: Sequence[Any]) -> bool:
    return any(isinstance(value, torch.Tensor) and value.requires_grad for value in args)
