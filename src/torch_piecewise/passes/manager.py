"""Runs passes in order at Inductor's post-grad hook, checks after each, and says who did what."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import fx

from torch_piecewise.errors import ConfigError, PassError
from torch_piecewise.events import Bus
from torch_piecewise.passes.base import GraphPass, PassRecord
from torch_piecewise.passes.cleanup import CleanUp
from torch_piecewise.passes.context import pass_context, pass_context_or_none
from torch_piecewise.passes.defunctionalize import Defunctionalize
from torch_piecewise.passes.dumps import DumpFolder
from torch_piecewise.passes.function import InductorPass, PassLike, as_pass
from torch_piecewise.passes.noop_elimination import NoopElimination
from torch_piecewise.passes.run import PassRun
from torch_piecewise.ranges import UNBOUNDED, Range
from torch_piecewise.torch_private.inductor_pass import (
    OTHER_HOOKS,
    POST_GRAD_HOOK,
    InductorGraphPass,
    wants_is_inference,
)

EVERY_SIZE = Range(0, UNBOUNDED)
"""The range of a compile that nobody gave a range: the graph may be run at any size."""

BUILT_IN: Mapping[str, tuple[type[GraphPass], bool]] = {
    "noop_elimination": (NoopElimination, True),
    "defunctionalize": (Defunctionalize, False),
}
"""Name in ``pass_config`` -> the pass, and whether :meth:`PassManager.configure` turns it on by default."""


class PassManager(InductorGraphPass):
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
        self._passes = [_checked(given) for given in passes]
        self._closing: tuple[GraphPass, ...] = (CleanUp(),)
        self._dumps = None if debug_dump_path is None else Path(debug_dump_path)
        self._bus = bus or Bus()
        self._records: list[PassRecord] = []

    @property
    def passes(self) -> tuple[GraphPass, ...]:
        """Everything that runs, in order, the closing passes included."""
        return (*self._passes, *self._closing)

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
        self._passes.append(_checked(given, options))

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
        own = dict(_setting(settings, "inductor_passes") or {})
        wanted = dict(_setting(settings, "pass_config") or {})
        _check_names(own, wanted)
        first = _switched({"noop_elimination": BUILT_IN["noop_elimination"][0]}, wanted)
        middle = _switched(own, wanted)
        last = _switched({"defunctionalize": BUILT_IN["defunctionalize"][0]}, wanted)
        self._passes = [*first, *middle]
        self._closing = (*last, CleanUp())
        dumps = _setting(settings, "debug_dump_path")
        self._dumps = self._dumps if dumps is None else Path(dumps)

    def install(self, inductor_config: Mapping[str, Any]) -> dict[str, Any]:
        """The Inductor config with this manager at its post-grad hook.

        A pass that the user has put there, or several, run after the manager's own. The manager itself is
        not changed; one with the appended passes takes its place, with the same records and observers.

        Raises:
            ConfigError: what is there is no pass.
            PassError: what is there is a pass manager.
        """
        theirs = inductor_config.get(POST_GRAD_HOOK)
        several = theirs if isinstance(theirs, (list, tuple)) else [theirs]
        extra = [given for given in several if given is not None]
        return {**inductor_config, POST_GRAD_HOOK: self._with(extra) if extra else self}

    def fingerprint(self) -> str:
        """What the passes do, and in which order, as a digest; does not hold the range.

        Raises:
            FingerprintError: a pass has no stable identity.
        """
        return _digest(graph_pass.uuid() for graph_pass in self.passes)

    def uuid(self) -> str:
        """What Inductor puts into its key: :meth:`fingerprint`, and the range as far as it matters.

        Inside :func:`~torch_piecewise.passes.context.pass_context` it tells apart ranges for which different
        passes run, and any two ranges if some pass asks for the range. Outside it speaks of every size.

        Raises:
            FingerprintError: a pass has no stable identity.
        """
        range = _current_range()
        return _digest(_keyed(graph_pass, range) for graph_pass in self.passes)

    def __call__(self, graph: fx.Graph) -> None:
        """Run all passes that apply to the current range on ``graph``, in place.

        Raises:
            PassError: a pass raised or left a broken graph; the graph is what it was before that pass.
        """
        with pass_context(_current_range()) as context:
            dumps = DumpFolder.under(self._dumps, context.compile_range)
            PassRun(self.passes, context.compile_range, dumps, self._record).on(graph)

    def __getstate__(self) -> dict[str, Any]:
        return {"_passes": self._passes, "_closing": self._closing, "_dumps": self._dumps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _bus=Bus(), _records=[])

    def _with(self, extra: Iterable[PassLike]) -> PassManager:
        other = PassManager((*self._passes, *extra), bus=self._bus, debug_dump_path=self._dumps)
        other._closing = self._closing
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


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _checked(given: PassLike, options: Mapping[str, Any] | None = None) -> GraphPass:
    graph_pass = as_pass(given, options=options)
    inner = graph_pass.inner if isinstance(graph_pass, InductorPass) else None
    if isinstance(inner, PassManager):
        raise PassError(
            "A pass manager was given as a pass",
            expected=f"passes; the one manager takes the hook {POST_GRAD_HOOK} itself",
            got="a second PassManager",
            hint="give its passes one by one, by inductor_passes or PassManager.add",
        )
    if wants_is_inference(inner):
        raise PassError(
            f"The pass {graph_pass.name} wants to know is_inference, which is not known here",
            expected="a pass that is called with the graph alone",
            got="a CustomInferenceAwareGraphPass",
            hint="wrap it in a function (graph) that calls it with is_inference=True or False",
        )
    return graph_pass


def _switched(passes: Mapping[str, PassLike], wanted: Mapping[str, Any]) -> list[GraphPass]:
    """Those passes that are on, with their options."""
    switched = []
    for name, given in passes.items():
        default = BUILT_IN[name][1] if name in BUILT_IN else True
        options = wanted.get(name, default)
        if not isinstance(options, (bool, Mapping)):
            raise ConfigError(
                f"pass_config has a value for {name} that it cannot have",
                expected="True, False, or a mapping of the pass's options",
                got=f"{options!r} ({type(options).__name__})",
            )
        if options is not False:
            switched.append(_checked(given, options if isinstance(options, Mapping) else None))
    return switched


def _check_names(own: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in own:
        if name in OTHER_HOOKS or name in BUILT_IN:
            raise ConfigError(
                f"inductor_passes cannot have a pass named {name}",
                expected="any other name: these passes all run at the post-grad hook",
                got=repr(name),
                hint="for another hook of Inductor's put the pass under its key in inductor_compile_config"
                if name in OTHER_HOOKS
                else "rename it, or switch the built-in pass by pass_config",
            )
    unknown = sorted(set(wanted) - set(own) - set(BUILT_IN))
    if unknown:
        raise ConfigError(
            "pass_config names a pass that there is not",
            expected=f"one of {', '.join([*BUILT_IN, *own])}",
            got=", ".join(unknown),
        )


def _setting(settings: object, name: str) -> Any:
    return settings.get(name) if isinstance(settings, Mapping) else getattr(settings, name, None)
