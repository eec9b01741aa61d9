"""Which passes a compile runs, as a value: made from settings, named in keys, sent to worker processes.

Knows nothing of Inductor, so that a start from the store can name its passes without importing it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch_piecewise.errors import ConfigError, PassError, did_you_mean
from torch_piecewise.passes.base import GraphPass
from torch_piecewise.passes.cleanup import CleanUp
from torch_piecewise.passes.defunctionalize import Defunctionalize
from torch_piecewise.passes.function import InductorPass, PassLike, as_pass
from torch_piecewise.passes.noop_elimination import NoopElimination
from torch_piecewise.torch_private.passes import OTHER_HOOKS, POST_GRAD_HOOK

BUILT_IN: Mapping[str, tuple[type[GraphPass], bool]] = {
    "noop_elimination": (NoopElimination, True),
    "defunctionalize": (Defunctionalize, False),
}
"""Name in ``pass_config`` -> the pass, and whether :meth:`PassPlan.configured` turns it on by default."""


class HoldsPasses:
    """What every pass manager is, so that one is known without importing Inductor."""


@dataclass(frozen=True)
class PassPlan:
    """Passes in the order in which they run.

    Attributes:
        passes: what was asked for.
        labels: what records, dumps and messages call each of ``passes``, such as its name in
            ``inductor_passes``; passes beyond go by names of their own. No part of what the plan is.
        closing: run after them, the clean-up last.
        debug_dump_path: folder for the graphs before and after each pass; None writes none. No part of what
            the plan is.
        dump_label: what the folders of these graphs begin with: whose they are. No part of it either.
    """

    passes: tuple[GraphPass, ...] = ()
    closing: tuple[GraphPass, ...] = (CleanUp(),)
    labels: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    debug_dump_path: Path | None = dataclasses.field(default=None, compare=False)
    dump_label: str = dataclasses.field(default="", compare=False)

    @classmethod
    def configured(cls, settings: object) -> PassPlan:
        """The plan that settings ask for; see :meth:`torch_piecewise.PassManager.configure`.

        Raises:
            ConfigError: a name that is not known, a pass that cannot be resolved, an option it lacks.
            PassError: one of the passes is a pass manager.
        """
        own = dict(_setting(settings, "inductor_passes") or {})
        wanted = dict(_setting(settings, "pass_config") or {})
        _check_names(own, wanted)
        asked = _switched({"noop_elimination": BUILT_IN["noop_elimination"][0], **own}, wanted)
        last = _switched({"defunctionalize": BUILT_IN["defunctionalize"][0]}, wanted)
        dumps = _setting(settings, "debug_dump_path")
        return cls(
            tuple(asked.values()),
            (*last.values(), CleanUp()),
            tuple(asked),
            None if dumps is None else Path(dumps),
        )

    @classmethod
    def for_compile(cls, settings: object) -> PassPlan | None:
        """The plan of a whole compile: :meth:`configured`, and what the user put at Inductor's own hook.

        Args:
            settings: as for :meth:`configured`, with ``inductor_compile_config``.

        Returns:
            None where no pass is asked for: then Inductor runs as it comes.

        Raises:
            ConfigError, PassError: as for :meth:`configured`; also a pass manager at the hook.
        """
        hook = (_setting(settings, "inductor_compile_config") or {}).get(POST_GRAD_HOOK)
        asked = _setting(settings, "inductor_passes") or _setting(settings, "pass_config")
        if not asked and hook is None:
            return None
        plan = cls.configured(settings) if asked else cls()
        return plan.and_(at_hook(hook))

    @property
    def all(self) -> tuple[GraphPass, ...]:
        """Everything that runs, in order."""
        return (*self.passes, *self.closing)

    def and_(self, more: Iterable[PassLike]) -> PassPlan:
        """This plan with more passes before the closing ones."""
        added = [checked(given) for given in more]
        labels = [label for label, _pass in self.labelled[: len(self.passes)]]
        return dataclasses.replace(
            self,
            passes=(*self.passes, *added),
            labels=(*labels, *(graph_pass.name for graph_pass in added)),
        )

    @property
    def labelled(self) -> tuple[tuple[str, GraphPass], ...]:
        """Everything that runs, in order, each with what people call it."""
        own = [graph_pass.name for graph_pass in self.all[len(self.labels) :]]
        return tuple(zip((*self.labels, *own), self.all, strict=True))

    def named(self) -> list[tuple[str, str]]:
        """What people call each pass and its :meth:`~torch_piecewise.GraphPass.uuid`, in order; for keys.

        Raises:
            FingerprintError: a pass has no stable identity.
        """
        return [(label, graph_pass.uuid()) for label, graph_pass in self.labelled]

    def fingerprint(self) -> str:
        """What the passes do, and in which order, as a digest; does not hold the range.

        Raises:
            FingerprintError: a pass has no stable identity.
        """
        return digest_of(graph_pass.uuid() for graph_pass in self.all)


def at_hook(value: Any) -> list[Any]:
    """The passes in a value of Inductor's hook: none, one, or a list."""
    several = value if isinstance(value, (list, tuple)) else [value]
    return [given for given in several if given is not None]


def digest_of(lines: Iterable[str]) -> str:
    """SHA-256 of texts in their order."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def checked(given: PassLike, options: Mapping[str, Any] | None = None) -> GraphPass:
    """The pass that ``given`` stands for, if a manager can run it.

    Raises:
        ConfigError: see :func:`~torch_piecewise.passes.function.as_pass`.
        PassError: it is a pass manager, or wants to know what is not known here.
    """
    graph_pass = as_pass(given, options=options)
    if not isinstance(graph_pass, InductorPass):
        return graph_pass
    if isinstance(graph_pass.inner, HoldsPasses):
        raise PassError(
            "A pass manager was given as a pass",
            expected=f"passes; the one manager takes the hook {POST_GRAD_HOOK} itself",
            got="a second PassManager",
            hint="give its passes one by one, by inductor_passes or PassManager.add",
        )
    # Imported for its cost: it loads Inductor, which whoever wrote a pass for it has loaded already.
    from torch_piecewise.torch_private.inductor_pass import wants_is_inference

    if wants_is_inference(graph_pass.inner):
        raise PassError(
            f"The pass {graph_pass.name} wants to know is_inference, which is not known here",
            expected="a pass that is called with the graph alone",
            got="a CustomInferenceAwareGraphPass",
            hint="wrap it in a function (graph) that calls it with is_inference=True or False",
        )
    return graph_pass


def _switched(passes: Mapping[str, PassLike], wanted: Mapping[str, Any]) -> dict[str, GraphPass]:
    """Those passes that are on, with their options, by name."""
    switched = {}
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
            with _told_of(name):
                switched[name] = checked(given, options if isinstance(options, Mapping) else None)
    return switched


@contextlib.contextmanager
def _told_of(name: str) -> Iterator[None]:
    """Say of a setting that is wrong under which name it stands."""
    try:
        yield
    except ConfigError as error:
        setting = f"pass_config[{name!r}]" if name in BUILT_IN else f"inductor_passes[{name!r}]"
        what = f"{setting}: {error.what[0].lower()}{error.what[1:]}"
        raise ConfigError(what, expected=error.expected, got=error.got, hint=error.hint) from error


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
        hints = [hint for name in unknown if (hint := did_you_mean(name, (*BUILT_IN, *own)))]
        raise ConfigError(
            "pass_config names a pass that there is not",
            expected=f"one of {', '.join([*BUILT_IN, *own])}",
            got=", ".join(unknown),
            hint="; ".join(hints) or "name it in inductor_passes, or leave it out",
        )


def _setting(settings: object, name: str) -> Any:
    return settings.get(name) if isinstance(settings, Mapping) else getattr(settings, name, None)
