"""Inductor. Importing it costs a second that a start with the eager compiler or a bundle does not owe."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch._inductor
from torch._inductor.compile_fx import compile_fx
from torch._inductor.standalone_compile import AOTCompiledArtifact
from torch.compiler import config as compiler_config
from torch.fx import GraphModule

from torch_piecewise.torch_private.fake_inputs import FakeInputs, compile_under
from torch_piecewise.torch_private.nodes import ensure_example_values
from torch_piecewise.torch_private.settings import patched

# torch compiles one graph at a time in a process, under Dynamo's lock. That one cannot be taken here: who
# holds it may be waiting for what is compiled here. In 2.11 settings belong to the process, so that the cache
# tags of two compiles would meet.
_ONE_AT_A_TIME = threading.RLock()


def inductor_standalone(
    graph: GraphModule, fakes: FakeInputs, *, patches: Mapping[str, Any], cache_tag: str
) -> bytes | Callable[..., tuple[Any, ...]]:
    """Compile with ``torch._inductor.standalone_compile(aot=True)`` (2.11, 2.13) and serialise.

    Returns:
        The artifact's bytes; the compiled function itself where torch does not write it down: it leaves
        out what its caches refuse, such as autocast regions and ``torch.cond`` (2.11, 2.13).

    Args:
        cache_tag: set into torch's own cache keys: its graph cache does not hold the symbols' bounds, so
            that ranges of one piece would meet there (measured on 2.13).
    """
    with _ONE_AT_A_TIME, compile_under(fakes), patched(compiler_config, {"cache_key_tag": cache_tag}):
        # AOTAutograd keeps only graphs whose method calls are known to be on tensors.
        ensure_example_values(graph, fakes.values)
        artifact = torch._inductor.standalone_compile(
            graph,
            list(fakes.values),
            dynamic_shapes="from_tracing_context",
            aot=True,
            options={"config_patches": dict(patches)},
        )
    assert isinstance(artifact, AOTCompiledArtifact)
    run: Callable[..., tuple[Any, ...]] = artifact.inner_fn.compiled_fn
    return artifact.serialize() if getattr(run, "serialize", None) is not None else run


def load_inductor_standalone(payload: bytes) -> Callable[..., tuple[Any, ...]]:
    """The callable of :func:`inductor_standalone`'s bytes.

    ``AOTCompiledArtifact.deserialize`` unpickles: callers verify the bytes' digest first.
    """
    run: Callable[..., tuple[Any, ...]] = AOTCompiledArtifact.deserialize(payload).inner_fn.compiled_fn
    return run


def inductor_in_memory(
    graph: GraphModule, fakes: FakeInputs, *, patches: Mapping[str, Any], cache_tag: str
) -> Callable[..., tuple[Any, ...]]:
    """Compile with ``torch._inductor.compile_fx.compile_fx`` (2.11, 2.13); supports gradients."""
    with _ONE_AT_A_TIME, compile_under(fakes), patched(compiler_config, {"cache_key_tag": cache_tag}):
        run: Any = compile_fx(copy.deepcopy(graph), list(fakes.values), config_patches=dict(patches))
    compiled: Callable[..., tuple[Any, ...]] = run
    return compiled
