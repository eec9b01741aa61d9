"""Static graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch_piecewise.config.fields_setting import setting
from torch_piecewise.config.kinds import Bool, Choice, Int, Items, OrNone, Seconds, Table, in_order
from torch_piecewise.config.own_kinds import Function, GraphMode, StaticGraphChoice, pad_value
from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.frozen_map import FrozenMap


@dataclass(frozen=True, kw_only=True, repr=False)
class GraphFields:
    """Static graphs."""

    cudagraph_mode: CUDAGraphMode = field(
        default=CUDAGraphMode.NONE,
        metadata=setting(
            GraphMode(),
            "Which calls replay static graphs, and of what: nothing, pieces, or whole calls. A CUDAGraphMode "
            "or its name in any case. None: NONE.",
            "cudagraphs",
        ),
    )
    cudagraph_capture_sizes: Sequence[int] | None = field(
        default=None,
        metadata=setting(
            OrNone(Items(Int(1), "[1, 2, 4, 8]", in_order)),
            "Sizes of the dispatch dim that are captured; a call is padded to the next one. Sorted, each "
            "once. None: 1, 2, 4, each 8 to 256 and each 16 beyond, up to max_cudagraph_capture_size. "
            "Without a cudagraph_mode nothing is captured, and these are only what the word "
            "'cudagraph_capture_sizes' among compile_sizes stands for; sizes that stand for nothing are told "
            "in the log.",
            "cudagraphs",
            keyed=False,
        ),
    )
    max_cudagraph_capture_size: int | None = field(
        default=None,
        metadata=setting(
            OrNone(Int(1)),
            "Largest size that is captured; larger calls run without a static graph. None: the largest of "
            "cudagraph_capture_sizes, or 512 where that is None too.",
            "cudagraphs",
            keyed=False,
        ),
    )
    cudagraph_num_of_warmups: int = field(
        default=1,
        metadata=setting(Int(0), "Runs without capture before each capture.", "cudagraphs", keyed=False),
    )
    cudagraph_copy_inputs: bool = field(
        default=True,
        metadata=setting(
            Bool(),
            "Copy what changes from call to call into buffers of our own before a replay. False: the caller "
            "passes the same memory at each call, padded; other calls run without static graphs.",
            "cudagraphs",
            keyed=False,
        ),
    )
    cudagraph_capture: str = field(
        default="on_call",
        metadata=setting(
            Choice(("on_call", "between_calls")),
            "When a size is captured that warmup() did not capture. 'on_call': in a call of it, after "
            "cudagraph_num_of_warmups calls. 'between_calls': when the handle's "
            "static_graphs.capture_pending() is called. "
            "capture_only_in_warmup=True: never.",
            "cudagraphs",
            keyed=False,
        ),
    )
    cudagraph_padding: str = field(
        default="auto",
        metadata=setting(
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
        metadata=setting(
            Table("from an argument's name to a number", pad_value),
            "What named arguments are padded with, {'slots': -1}. Others are padded with 0.",
            "cudagraphs",
        ),
    )
    cudagraph_outputs: str = field(
        default="copy",
        metadata=setting(
            Choice(("copy", "refuse")),
            "What a replay hands out. 'copy': results of their own. 'refuse': the graph's memory; the next "
            "replay is an error while any of it is held.",
            "cudagraphs",
            keyed=False,
        ),
    )
    cudagraph_lora_counts: Sequence[int] = field(
        default=(),
        metadata=setting(
            Items(Int(0), "[0, 1, 4]", in_order),
            "Numbers of active adapters that get captures of their own, 0 for none; calls say theirs in "
            "forward_context. Empty: the model has no adapters.",
            "cudagraphs",
            keyed=False,
        ),
    )
    cudagraph_tokens_per_request: int = field(
        default=1,
        metadata=setting(
            Int(1),
            "Tokens of each request of a uniform decode batch; more than 1 with drafted tokens.",
            "cudagraphs",
            keyed=False,
        ),
    )
    cudagraph_uniform_when: str | Callable[..., Any] | None = field(
        default=None,
        metadata=setting(
            OrNone(Function()),
            "Tells a uniform decode batch from others where no forward_context does: gets the call's tensor "
            "arguments by name, returns a bool. None: no batch is.",
            "cudagraphs",
            keyed=False,
        ),
    )
    capture_only_in_warmup: bool = field(
        default=False,
        metadata=setting(
            Bool(),
            "Refuse a capture outside a declared capture phase, so that none happens while serving.",
            "cudagraphs",
            keyed=False,
        ),
    )
    check_addresses: bool = field(
        default=False,
        metadata=setting(
            Bool(),
            "Check before each replay that every tensor lies where it lay at capture.",
            "cudagraphs",
            keyed=False,
        ),
    )
    cudagraph_memory_budget: int | None = field(
        default=None,
        metadata=setting(
            OrNone(Int(1)),
            "Bytes of device memory that captured graphs may hold; beyond it the least recently used go. "
            "None: no limit.",
            "cudagraphs",
            keyed=False,
        ),
    )
    cudagraph_time_budget: float | None = field(
        default=None,
        metadata=setting(
            OrNone(Seconds()),
            "Seconds that captures may take in all; what is left then runs without a static graph. None: no "
            "limit.",
            "cudagraphs",
            keyed=False,
        ),
    )
    static_graph_class: str | type[Any] | None = field(
        default=None,
        metadata=setting(
            OrNone(StaticGraphChoice()),
            "The class that captures and replays on this device, or its dotted name. None: CUDA graphs on a "
            "GPU; elsewhere a warning, and calls run without static graphs.",
            "cudagraphs",
            keyed=False,
        ),
    )
