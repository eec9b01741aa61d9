"""What Inductor gets, what is kept, and what is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch_piecewise.config.fields_setting import setting
from torch_piecewise.config.kinds import Bool, Choice, Dotted, Int, Items, Location, Name, OrNone, Table
from torch_piecewise.config.own_kinds import own_copy, pass_entry, pass_options
from torch_piecewise.frozen_map import FrozenMap


@dataclass(frozen=True, kw_only=True, repr=False)
class InductorFields:
    """What Inductor gets."""

    inductor_compile_config: Mapping[str, Any] = field(
        default=FrozenMap(),
        metadata=setting(
            Table("from Inductor's option names to values", own_copy),
            "Merged over Inductor's own settings for every piece.",
            "compilers",
        ),
    )
    inductor_passes: Mapping[str, Any] = field(
        default=FrozenMap(),
        metadata=setting(
            Table("from a name to a pass or the dotted name of one", pass_entry, ordered=True),
            "Graph passes run after Inductor's own post-grad passes, in this order.",
            "passes",
        ),
    )
    pass_config: Mapping[str, Any] = field(
        default=FrozenMap(),
        metadata=setting(
            Table("from a built-in pass's name to True, False or its options", pass_options),
            "Which built-in passes run, and with what options. Of those not named 'noop_elimination' runs "
            "and 'defunctionalize' does not. Empty, and inductor_passes too: none runs.",
            "passes",
        ),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class KeepingFields:
    """Keeping."""

    cache_dir: str | None = field(
        default=None,
        metadata=setting(
            OrNone(Location()),
            "Root of the store. None: the user's cache directory of this system.",
            "store",
            keyed=False,
        ),
    )
    disable_cache: bool = field(
        default=False,
        metadata=setting(Bool(), "Neither read nor write the store.", "manager", keyed=False),
    )
    cache_size_limit: int | None = field(
        default=None,
        metadata=setting(
            OrNone(Int(1)),
            "Bytes the store may hold; beyond it the least recently used entries go. None: no limit.",
            "store",
            keyed=False,
        ),
    )
    key_environment: Sequence[str] = field(
        default=(),
        metadata=setting(
            Items(Name(), "['MY_KERNELS']"),
            "Names of environment variables that change what the model computes: their values join the cache "
            "keys.",
            "cache_key",
        ),
    )
    signing_key_file: str | None = field(
        default=None,
        metadata=setting(
            OrNone(Location()),
            "File with the key that signs bundles; with it, an unsigned or wrongly signed one is refused. "
            "None: bundles are not signed.",
            "store",
            keyed=False,
        ),
    )
    on_miss: str = field(
        default="compile",
        metadata=setting(
            Choice(("compile", "error", "eager", "background")),
            "What happens when the store has no entry. 'compile': compile, then serve. 'error': an error "
            "that says why. 'eager': serve eagerly. 'background': serve eagerly, and swap each piece in when "
            "it is ready.",
            "backend",
            keyed=False,
        ),
    )
    upgrade_to: str | None = field(
        default=None,
        metadata=setting(
            OrNone(Dotted(("aot_inductor", "inductor"))),
            "Compiler that compiles every piece once more in the background, for later calls and starts: "
            "'aot_inductor' behind 'inductor'. None: what `backend` makes stays.",
            "backend",
            keyed=False,
        ),
    )
    compile_threads: int | None = field(
        default=None,
        metadata=setting(
            OrNone(Int(1)),
            "Processes that compile at once, this one and workers, where there are pieces enough to be worth "
            "a worker; 1 starts none. None: as many as cores.",
            "pool",
            keyed=False,
        ),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class FindingFields:
    """Finding out."""

    debug_dump_path: str | None = field(
        default=None,
        metadata=setting(
            OrNone(Location()),
            "Folder that gets a folder for each program: the graph before and after it is cut, each piece, "
            "the generated code, the settings, what its key is made of. None: nothing written.",
            "inspection",
            keyed=False,
        ),
    )
    on_piece_error: str = field(
        default="raise",
        metadata=setting(
            Choice(("raise", "eager")),
            "What happens when one piece fails to compile: an error that names it, or that piece runs "
            "eagerly.",
            "manager",
        ),
    )
    on_slow_piece: str = field(
        default="keep",
        metadata=setting(
            Choice(("keep", "eager")),
            "What happens with a piece that program.profile(inputs) finds slower than eager: it is kept, or "
            "runs eagerly for that range until the process ends.",
            "observing",
            keyed=False,
        ),
    )
    count_calls: bool = field(
        default=False,
        metadata=setting(
            Bool(),
            "Count calls by size, so that the report shows how much each range is used and what padding "
            "wastes; costs well under a microsecond a call.",
            "observing",
            keyed=False,
        ),
    )
