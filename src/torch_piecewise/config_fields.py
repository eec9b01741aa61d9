"""Every setting: its default, what values it takes, and what it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch_piecewise.config_kinds import (
    Bool,
    Choice,
    Dotted,
    Int,
    Items,
    Kind,
    Location,
    Name,
    OrNone,
    OrWord,
    Seconds,
    Table,
    in_order,
)
from torch_piecewise.config_own_kinds import (
    ArgumentDim,
    CompilerChoice,
    Dims,
    Function,
    GraphMode,
    SplittingOp,
    own_copy,
    pad_value,
    pass_entry,
    pass_options,
)
from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.frozen_map import FrozenMap

CAPTURE_SIZES = "cudagraph_capture_sizes"
"""The word that stands for the capture sizes among ``compile_sizes``."""


@dataclass(frozen=True)
class Setting:
    """What a field's metadata says about it.

    Attributes:
        kind: which values it takes.
        doc: what it means, its unit, and what None means.
        used_by: the module that acts on it.
        keyed: whether it can change what is compiled, and so belongs into cache keys.
    """

    kind: Kind
    doc: str
    used_by: str
    keyed: bool = True


def _is(kind: Kind, doc: str, used_by: str, *, keyed: bool = True) -> dict[str, Setting]:
    return {"setting": Setting(kind, doc, used_by, keyed)}


@dataclass(frozen=True, kw_only=True, repr=False)
class ConfigFields:
    """The fields of :class:`~torch_piecewise.config.Config`; each carries a :class:`Setting`."""

    # How the model becomes a program
    mode: str = field(
        default="piecewise",
        metadata=_is(
            Choice(("none", "stock_torch_compile", "trace_once", "piecewise")),
            "What is done with the model: 'none' runs it eagerly; 'stock_torch_compile' hands it to plain "
            "torch.compile, with backend, inductor_compile_config and the dynamic dims (the size of each is "
            "then torch's 'backed' or 'unbacked'); 'trace_once' traces it once and compiles it uncut; "
            "'piecewise' also cuts it.",
            "api",
        ),
    )
    backend: str | Any = field(
        default="inductor",
        metadata=_is(
            CompilerChoice(("inductor", "inductor_memory", "eager", "aot_inductor")),
            "What compiles a piece: 'inductor' (artifacts that can be kept), 'inductor_memory' (compile_fx, "
            "nothing kept), 'aot_inductor' (shared objects that start without a compiler), 'eager' (the "
            "reference), the dotted name of a class that meets the Compiler protocol, or an instance of one.",
            "backend",
        ),
    )
    splitting_ops: Sequence[str | type | Callable[..., Any]] | None = field(
        default=None,
        metadata=_is(
            OrNone(Items(SplittingOp(), "['mylib::attention']")),
            "Where the graph is cut: operations ('ns::op', 'ns::op.overload'), torch functions or module "
            "classes by dotted name, module classes, or predicates on a node. One operation is one thing "
            "however the model spells it: 'torch.matmul' is also x @ y, and 'aten::relu' also x.relu(). A "
            "module class is cut around every call of one, and of one derived from it. A name that does not "
            "exist is an error; one that never occurs is a warning with what the graph holds. None: the "
            "attention operations torch knows. Empty: do not cut.",
            "splitting",
        ),
    )
    use_inductor_graph_partition: bool = field(
        default=False,
        metadata=_is(
            Bool(),
            "Inductor partitions its own code instead of the graph being cut: the graph is one piece, and "
            "Inductor is told the splitting_ops, which have to be operations. With a cudagraph_mode that "
            "captures pieces, each partition is captured.",
            "inductor_partition",
        ),
    )

    # Which sizes change, and what is assumed about them
    dynamic_arg_dims: Mapping[str, int | Sequence[int] | Mapping[int, str | None]] | None = field(
        default=None,
        metadata=_is(
            OrNone(Dims(named=True)),
            "Dims whose size changes from call to call: argument name -> dim, list of dims, or "
            "{dim: symbol name}; dims with one symbol name always have equal sizes. A negative dim counts "
            "from the last. None: dim 0 of each argument annotated as a tensor.",
            "capture",
        ),
    )
    mark_unbacked_dims: Mapping[str, int | Sequence[int] | Mapping[int, None]] | None = field(
        default=None,
        metadata=_is(
            OrNone(Dims(named=False)),
            "Dims traced as sizes about which nothing may be assumed, whatever dynamic_shapes says: "
            "argument name -> dim or list of dims. None: no such dims.",
            "capture",
        ),
    )
    dynamic_shapes: str = field(
        default="backed_size_oblivious",
        metadata=_is(
            Choice(("backed", "unbacked", "backed_size_oblivious")),
            "What the trace may assume about dynamic sizes. 'backed': that they are not 0 or 1 and whatever "
            "else the example's size decides; sizes 0 and 1 get traces of their own. 'unbacked': nothing; "
            "code that asks fails to trace. "
            "'backed_size_oblivious': nothing about 0 and 1 unless the model's own code asks, and then a "
            "real guard is kept, so that size 1 is served by the same program without a wrong answer.",
            "capture",
        ),
    )
    evaluate_guards: bool = field(
        default=False,
        metadata=_is(
            Bool(),
            "Make a call an error whose size the model's own code treats apart, whatever on_guard_failure "
            "says: the error shows the line that asked. Finds code that fixes a dynamic size unnoticed. What "
            "torch itself assumes of 0 and 1 is not counted against the model.",
            "capture",
        ),
    )
    assume_32_bit_indexing: bool = field(
        default=False,
        metadata=_is(
            Bool(),
            "Let Inductor index every tensor with 32 bits. A promise that no tensor of the graph has 2**31 "
            "elements or more: a size for which one would have is an error, unless guards='none'.",
            "compilers",
        ),
    )
    dispatch_on: str | None = field(
        default=None,
        metadata=_is(
            OrNone(ArgumentDim()),
            "The 'argument.dim' that compile_ranges_endpoints and compile_sizes are about; other symbols "
            "stay symbolic. None: the first dynamic dim.",
            "capture",
        ),
    )
    compile_ranges_endpoints: Sequence[int] = field(
        default=(),
        metadata=_is(
            Items(Int(1), "[64, 512]", in_order),
            "Last sizes of the ranges that are compiled apart: e0, e1 give [1, e0], [e0+1, e1], and an open "
            "last range. Sorted, each once. Empty: one range for every size.",
            "manager",
        ),
    )
    compile_sizes: Sequence[int | str] = field(
        default=(),
        metadata=_is(
            Items(OrWord(Int(0), CAPTURE_SIZES), f"[1, 8, '{CAPTURE_SIZES}']", in_order),
            "Sizes that get code of their own, which beats the range they lie in; the word "
            f"'{CAPTURE_SIZES}' stands for those. Sorted, each once. Empty: ranges only.",
            "manager",
        ),
    )

    # What a call is checked against
    guards: str = field(
        default="inputs",
        metadata=_is(
            Choice(("inputs", "full", "none")),
            "What each call is checked against. 'inputs': rank, dtype, device, static dims, Python scalars "
            "and None-ness of the call's arguments, training flag, grad mode, autocast, replaced parameters, "
            "buffers and submodules; another attribute changed by hand is not noticed. 'full': these, and "
            "all of Dynamo's own guards; they compare objects of this process and cannot be kept, so that "
            "each process traces and only compiled pieces come from the store. 'none': nothing; the caller "
            "promises that every call is like the first but for its dynamic sizes, and one that is not gets "
            "a wrong answer.",
            "capture",
        ),
    )
    on_guard_failure: str = field(
        default="recompile",
        metadata=_is(
            Choice(("error", "recompile")),
            "What a call that the program was not made for gets: an error, or a new trace.",
            "capture",
            keyed=False,
        ),
    )

    # Static graphs
    cudagraph_mode: CUDAGraphMode = field(
        default=CUDAGraphMode.NONE,
        metadata=_is(
            GraphMode(),
            "Which calls replay static graphs, and of what: nothing, pieces, or whole calls. A CUDAGraphMode "
            "or its name in any case. None: NONE.",
            "cudagraphs",
        ),
    )
    cudagraph_capture_sizes: Sequence[int] | None = field(
        default=None,
        metadata=_is(
            OrNone(Items(Int(1), "[1, 2, 4, 8]", in_order)),
            "Sizes of the dispatch dim that are captured; a call is padded to the next one. Sorted, each "
            "once. None: 1, 2, 4, each 8 to 256 and each 16 beyond, up to max_cudagraph_capture_size; none "
            "where cudagraph_mode is NONE.",
            "cudagraphs",
            keyed=False,
        ),
    )
    max_cudagraph_capture_size: int | None = field(
        default=None,
        metadata=_is(
            OrNone(Int(1)),
            "Largest size that is captured; larger calls run without a static graph. None: the largest of "
            "cudagraph_capture_sizes, or 512 where that is None too.",
            "cudagraphs",
            keyed=False,
        ),
    )
    cudagraph_num_of_warmups: int = field(
        default=1,
        metadata=_is(Int(0), "Runs without capture before each capture.", "cudagraphs", keyed=False),
    )
    cudagraph_copy_inputs: bool = field(
        default=True,
        metadata=_is(
            Bool(),
            "Copy what changes from call to call into buffers of our own before a replay. False: the caller "
            "passes the same memory at each call, padded; other calls run without static graphs.",
            "cudagraphs",
            keyed=False,
        ),
    )
    cudagraph_capture: str = field(
        default="on_call",
        metadata=_is(
            Choice(("on_call", "between_calls")),
            "When a size is captured that warmup() did not capture. 'on_call': in a call of it, after "
            "cudagraph_num_of_warmups calls. 'between_calls': when the handle's capture_pending() is called. "
            "capture_only_in_warmup=True: never.",
            "cudagraphs",
            keyed=False,
        ),
    )
    cudagraph_padding: str = field(
        default="auto",
        metadata=_is(
            Choice(("auto", "always", "never")),
            "Whether calls are padded to the next captured size. 'auto': unless the traced graph shows that "
            "this would change results. 'always': you promise that it does not. 'never': only calls of a "
            "captured size replay.",
            "cudagraphs",
            keyed=False,
        ),
    )
    cudagraph_pad_values: Mapping[str, float | int | bool] = field(
        default=FrozenMap(),
        metadata=_is(
            Table("from an argument's name to a number", pad_value),
            "What named arguments are padded with, {'slots': -1}. Others are padded with 0.",
            "cudagraphs",
        ),
    )
    cudagraph_outputs: str = field(
        default="copy",
        metadata=_is(
            Choice(("copy", "refuse")),
            "What a replay hands out. 'copy': results of their own. 'refuse': the graph's memory; the next "
            "replay is an error while any of it is held.",
            "cudagraphs",
            keyed=False,
        ),
    )
    cudagraph_lora_counts: Sequence[int] = field(
        default=(),
        metadata=_is(
            Items(Int(0), "[0, 1, 4]", in_order),
            "Numbers of active adapters that get captures of their own, 0 for none; calls say theirs in "
            "forward_context. Empty: the model has no adapters.",
            "cudagraphs",
            keyed=False,
        ),
    )
    cudagraph_tokens_per_request: int = field(
        default=1,
        metadata=_is(
            Int(1),
            "Tokens of each request of a uniform decode batch; more than 1 with drafted tokens.",
            "cudagraphs",
            keyed=False,
        ),
    )
    cudagraph_uniform_when: str | Callable[..., Any] | None = field(
        default=None,
        metadata=_is(
            OrNone(Function()),
            "Tells a uniform decode batch from others where no forward_context does: gets the call's tensor "
            "arguments by name, returns a bool. None: no batch is.",
            "cudagraphs",
            keyed=False,
        ),
    )
    capture_only_in_warmup: bool = field(
        default=False,
        metadata=_is(
            Bool(),
            "Refuse a capture outside a declared capture phase, so that none happens while serving.",
            "cudagraphs",
            keyed=False,
        ),
    )
    check_addresses: bool = field(
        default=False,
        metadata=_is(
            Bool(),
            "Check before each replay that every tensor lies where it lay at capture.",
            "cudagraphs",
            keyed=False,
        ),
    )
    cudagraph_memory_budget: int | None = field(
        default=None,
        metadata=_is(
            OrNone(Int(1)),
            "Bytes of device memory that captured graphs may hold; beyond it the least recently used go. "
            "None: no limit.",
            "cudagraphs",
            keyed=False,
        ),
    )
    cudagraph_time_budget: float | None = field(
        default=None,
        metadata=_is(
            OrNone(Seconds()),
            "Seconds that captures may take in all; what is left then runs without a static graph. None: no "
            "limit.",
            "cudagraphs",
            keyed=False,
        ),
    )
    static_graph_class: str | None = field(
        default=None,
        metadata=_is(
            OrNone(Dotted()),
            "Dotted name of the class that captures and replays on this device. None: CUDA graphs on a GPU; "
            "elsewhere a warning, and calls run without static graphs.",
            "cudagraphs",
            keyed=False,
        ),
    )

    # What Inductor gets
    inductor_compile_config: Mapping[str, Any] = field(
        default=FrozenMap(),
        metadata=_is(
            Table("from Inductor's option names to values", own_copy),
            "Merged over Inductor's own settings for every piece.",
            "compilers",
        ),
    )
    inductor_passes: Mapping[str, Any] = field(
        default=FrozenMap(),
        metadata=_is(
            Table("from a name to a pass or the dotted name of one", pass_entry, ordered=True),
            "Graph passes run after Inductor's own post-grad passes, in this order.",
            "passes",
        ),
    )
    pass_config: Mapping[str, Any] = field(
        default=FrozenMap(),
        metadata=_is(
            Table("from a built-in pass's name to True, False or its options", pass_options),
            "Which built-in passes run, and with what options; those not named run as they come.",
            "passes",
        ),
    )

    # Keeping
    cache_dir: str | None = field(
        default=None,
        metadata=_is(
            OrNone(Location()),
            "Root of the store. None: the user's cache directory of this system.",
            "store",
            keyed=False,
        ),
    )
    disable_cache: bool = field(
        default=False,
        metadata=_is(Bool(), "Neither read nor write the store.", "manager", keyed=False),
    )
    cache_size_limit: int | None = field(
        default=None,
        metadata=_is(
            OrNone(Int(1)),
            "Bytes the store may hold; beyond it the least recently used entries go. None: no limit.",
            "store",
            keyed=False,
        ),
    )
    key_environment: Sequence[str] = field(
        default=(),
        metadata=_is(
            Items(Name(), "['MY_KERNELS']"),
            "Names of environment variables that change what the model computes: their values join the cache "
            "keys.",
            "cache_key",
        ),
    )
    signing_key_file: str | None = field(
        default=None,
        metadata=_is(
            OrNone(Location()),
            "File with the key that signs bundles; with it, an unsigned or wrongly signed one is refused. "
            "None: bundles are not signed.",
            "store",
            keyed=False,
        ),
    )
    on_miss: str = field(
        default="compile",
        metadata=_is(
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
        metadata=_is(
            OrNone(Dotted(("aot_inductor", "inductor"))),
            "Compiler that compiles every piece once more in the background, for later calls and starts: "
            "'aot_inductor' behind 'inductor'. None: what `backend` makes stays.",
            "backend",
            keyed=False,
        ),
    )
    compile_threads: int | None = field(
        default=None,
        metadata=_is(
            OrNone(Int(1)),
            "Worker processes that compile at once; 1 compiles in this process. None: as many as cores.",
            "pool",
            keyed=False,
        ),
    )

    # Finding out
    debug_dump_path: str | None = field(
        default=None,
        metadata=_is(
            OrNone(Location()),
            "Folder that gets a folder for each program: the graph before and after it is cut, each piece, "
            "the generated code, the settings, what its key is made of. None: nothing written.",
            "inspection",
            keyed=False,
        ),
    )
    on_piece_error: str = field(
        default="raise",
        metadata=_is(
            Choice(("raise", "eager")),
            "What happens when one piece fails to compile: an error that names it, or that piece runs "
            "eagerly.",
            "manager",
        ),
    )
    on_slow_piece: str = field(
        default="keep",
        metadata=_is(
            Choice(("keep", "eager")),
            "What happens with a piece that program.profile(inputs) finds slower than eager: it is kept, or "
            "runs eagerly for that range until the process ends.",
            "observing",
            keyed=False,
        ),
    )
    count_calls: bool = field(
        default=False,
        metadata=_is(
            Bool(),
            "Count calls by size, so that the report shows how much each range is used and what padding "
            "wastes; costs well under a microsecond a call.",
            "observing",
            keyed=False,
        ),
    )
