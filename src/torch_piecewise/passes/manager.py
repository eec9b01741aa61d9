"""Runs passes in order at Inductor's post-grad hook, checks after each, and says who did what."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from torch import fx

from torch_piecewise.events import Bus
from torch_piecewise.passes.base import GraphPass, PassRecord
from torch_piecewise.passes.context import pass_context, pass_context_or_none
from torch_piecewise.passes.dumps import DumpFolder
from torch_piecewise.passes.function import PassLike
from torch_piecewise.passes.plan import HoldsPasses, PassPlan, at_hook, checked, digest_of
from torch_piecewise.passes.run import PassRun
from torch_piecewise.ranges import UNBOUNDED, Range
from torch_piecewise.torch_private.inductor_pass import InductorGraphPass
from torch_piecewise.torch_private.passes import POST_GRAD_HOOK

EVERY_SIZE = Range(0, UNBOUNDED)
"""The range of a compile that nobody gave a range: the graph may be run at any size."""


class PassManager(HoldsPasses, InductorGraphPass):
    """A list of passes as one Inductor pass: ``options={"post_grad_custom_post_pass": manager}``.

    Every run ends with :class:`~torch_piecewise.passes.cleanup.CleanUp`. Runs on several threads may share a
    manager as long as nobody changes it meanwhile. Pickles and copies hold the passes, not the observers.

    Args:
        passes: what to run, in order; see :func:`~torch_piecewise.passes.function.as_pass`.
        debug_dump_path: folder for the graphs before and after each pass; None writes none.
        bus: gets a :class:`~torch_piecewise.passes.base.PassRecord` for each pass run or left out.

    Raises:
        ConfigError: a pass cannot be resolved.
        PassError: one of them is a pass manager.
    """

    def __init__(
        self,
        passes: Iterable[PassLike] = (),
        *,
        debug_dump_path: str | Path | None = None,
        bus: Bus | None = None,
    ) -> None:
        dumps = None if debug_dump_path is None else Path(debug_dump_path)
        self._plan = PassPlan(debug_dump_path=dumps).and_(passes)
        self._bus = bus or Bus()
        self._records: list[PassRecord] = []

    @classmethod
    def of(cls, plan: PassPlan) -> Self:
        """A manager that runs exactly ``plan``."""
        manager = cls()
        manager._plan = plan
        return manager

    @property
    def passes(self) -> tuple[GraphPass, ...]:
        """Everything that runs, in order, the closing passes included."""
        return self._plan.all

    @property
    def records(self) -> tuple[PassRecord, ...]:
        """What each pass did on each graph so far, oldest first."""
        return tuple(self._records)

    def add(self, given: PassLike, *, options: Mapping[str, Any] | None = None) -> None:
        """Append a pass; it runs after those there are and before the closing ones.

        Args:
            given: see :func:`~torch_piecewise.passes.function.as_pass`.
            options: fields, where ``given`` is a pass class or its dotted name.

        Raises:
            ConfigError: it cannot be resolved, or does not take the options.
            PassError: it is a pass manager.
        """
        self._plan = self._plan.and_([checked(given, options)])

    def configure(self, settings: object) -> None:
        """Hold exactly the passes that the settings ask for.

        Args:
            settings: a mapping or an object with any of

                - ``inductor_passes``: name -> pass or dotted name, run in this order;
                - ``pass_config``: name of a built-in pass or one of ``inductor_passes`` -> True, False, or a
                  mapping of its options. ``noop_elimination`` (on) runs first, ``defunctionalize`` (off)
                  last;
                - ``debug_dump_path``: as for the constructor; None leaves what there is.

        Raises:
            ConfigError: a name that is not known, a pass that cannot be resolved, an option it lacks.
            PassError: one of the passes is a pass manager.
        """
        plan = PassPlan.configured(settings)
        dumps = plan.debug_dump_path or self._plan.debug_dump_path
        self._plan = dataclasses.replace(plan, debug_dump_path=dumps)

    def install(self, inductor_config: Mapping[str, Any]) -> dict[str, Any]:
        """The Inductor config with this manager at its post-grad hook.

        A pass that the user has put there, or several, run after the manager's own. The manager itself is
        not changed; one with the appended passes takes its place, with the same records and observers.

        Raises:
            ConfigError: what is there is no pass.
            PassError: what is there is a pass manager.
        """
        extra = at_hook(inductor_config.get(POST_GRAD_HOOK))
        return {**inductor_config, POST_GRAD_HOOK: self._with(extra) if extra else self}

    def fingerprint(self) -> str:
        """What the passes do, and in which order, as a digest; does not hold the range.

        Raises:
            FingerprintError: a pass has no stable identity.
        """
        return self._plan.fingerprint()

    def uuid(self) -> str:
        """What Inductor puts into its key: :meth:`fingerprint`, and the range as far as it matters.

        Inside :func:`~torch_piecewise.passes.context.pass_context` it tells apart ranges for which different
        passes run, and any two ranges if some pass asks for the range. Outside it speaks of every size.

        Raises:
            FingerprintError: a pass has no stable identity.
        """
        range = _current_range()
        return digest_of(_keyed(graph_pass, range) for graph_pass in self.passes)

    def __call__(self, graph: fx.Graph) -> None:
        """Run all passes that apply to the current range on ``graph``, in place.

        Raises:
            PassError: a pass raised or left a broken graph; the graph is what it was before that pass.
        """
        with pass_context(_current_range()) as context:
            dumps = DumpFolder.under(self._plan.debug_dump_path, context.compile_range, self._plan.dump_label)
            PassRun(self._plan.labelled, context.compile_range, dumps, self._record).on(graph)

    def __getstate__(self) -> dict[str, Any]:
        return {"_plan": self._plan}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _bus=Bus(), _records=[])

    def _with(self, extra: Iterable[PassLike]) -> PassManager:
        other = PassManager(bus=self._bus)
        other._plan = self._plan.and_(extra)
        other._records = self._records
        return other

    def _record(self, record: PassRecord) -> None:
        self._records.append(record)
        self._bus.emit(record)


def _current_range() -> Range:
    context = pass_context_or_none()
    return EVERY_SIZE if context is None else context.compile_range


def _keyed(graph_pass: GraphPass, range: Range) -> str:
    applies = graph_pass.is_applicable_for_range(range)
    asked = str(range) if applies and graph_pass.reads_range() else ""
    return f"{graph_pass.uuid()} {applies} {asked}"
