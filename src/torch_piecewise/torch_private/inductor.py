"""Inductor. Importing it costs a second that a start with the eager compiler or a bundle does not owe."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch._inductor
from torch._functorch import config as functorch_config
from torch._functorch._aot_autograd.aot_autograd_result import deserialize_bundled_cache_entry
from torch._inductor import config as inductor_config
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.standalone_compile import AOTCompiledArtifact
from torch.compiler import config as compiler_config
from torch.fx import GraphModule

from torch_piecewise.torch_private.fake_inputs import FakeInputs, compile_under
from torch_piecewise.torch_private.late_kernels import LateKernels, kernels_later, kernels_now
from torch_piecewise.torch_private.nodes import ensure_example_values
from torch_piecewise.torch_private.partitions import partition_functions, partitioned
from torch_piecewise.torch_private.settings import compiling, one_compile_at_a_time, patched
from torch_piecewise.torch_private.toolchain import build_shared_header


class Lowered:
    """A graph that Inductor has lowered, with kernels that are still to be built.

    Args:
        whole: the artifact's bytes; the compiled function itself where torch does not write it down: it
            leaves out what its caches refuse, such as autocast regions and ``torch.cond`` (2.11, 2.13).
    """

    def __init__(
        self, whole: bytes | Callable[..., tuple[Any, ...]], kernels: LateKernels, patches: Mapping[str, Any]
    ) -> None:
        self.whole = whole
        self._kernels = kernels
        self._patches = patches

    def build_kernels(self) -> None:
        """Build what the C++ compiler has to; from any thread, several at once."""
        if self._kernels.are_wanted:
            build_shared_header(self._patches)  # waits for it without keeping others from lowering
            with self.settings():
                self._kernels.submit()
            self._kernels.wait()

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """Inside: Inductor's settings are those that the graph was lowered under. One thread at a time."""
        with one_compile_at_a_time(), patched(inductor_config, self._patches):
            yield


def inductor_standalone(
    graph: GraphModule,
    fakes: FakeInputs,
    *,
    patches: Mapping[str, Any],
    cache_tag: str,
    partitions: bool = False,
) -> Lowered:
    """Lower with ``torch._inductor.standalone_compile(aot=True)`` (2.11, 2.13) and serialise.

    Args:
        cache_tag: set into torch's own cache keys: its graph cache does not hold the symbols' bounds, so
            that ranges of one piece would meet there (measured on 2.13).
        partitions: make partition functions.
    """
    with _compiling(fakes, cache_tag, partitions=partitions), kernels_later() as kernels:
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
    keepable = getattr(run, "serialize", None) is not None
    return Lowered(artifact.serialize() if keepable else run, kernels, patches)


def load_inductor_standalone(payload: bytes) -> Callable[..., tuple[Any, ...]]:
    """The callable of :func:`inductor_standalone`'s bytes.

    ``AOTCompiledArtifact.deserialize`` unpickles: callers verify the bytes' digest first.
    """
    run: Callable[..., tuple[Any, ...]] = AOTCompiledArtifact.deserialize(payload).inner_fn.compiled_fn
    return run


def load_inductor_partitioned(payload: bytes) -> Callable[..., tuple[Any, ...]]:
    """As :func:`load_inductor_standalone`, with partition functions that can be stood around.

    ``BundledAOTAutogradSerializableCallable.deserialize_compile_artifacts`` (2.11, 2.13) taken apart, since
    it hands out no ``CompiledFxGraph``.
    """
    entry, kernels, constants = pickle.loads(payload)
    if kernels or constants:
        load_inductor_standalone(payload)  # puts them into torch's table, where both callables look
    run: Callable[..., tuple[Any, ...]] = deserialize_bundled_cache_entry(entry)
    return partitioned(run, getattr(entry.compiled_fw, "result", None))


def inductor_in_memory(
    graph: GraphModule,
    fakes: FakeInputs,
    *,
    patches: Mapping[str, Any],
    cache_tag: str,
    partitions: bool = False,
) -> Callable[..., tuple[Any, ...]]:
    """Compile with ``torch._inductor.compile_fx.compile_fx`` (2.11, 2.13); supports gradients.

    Args:
        partitions: make partition functions, which can be stood around where no gradients are wanted.
    """
    graphs: list[Any] = []

    def inner(*args: Any, **kwargs: Any) -> Any:
        graphs.append(compile_fx_inner(*args, **kwargs))
        return graphs[-1]

    # A hit of AOTAutograd's cache would hand out a callable whose generated code nobody knows.
    no_hits = {"enable_autograd_cache": False} if partitions else {}
    with (
        _compiling(fakes, cache_tag, partitions=partitions),
        kernels_now(),
        patched(functorch_config, no_hits),
    ):
        run: Any = compile_fx(
            copy.deepcopy(graph),
            list(fakes.values),
            inner_compile=inner if partitions else compile_fx_inner,
            config_patches=dict(patches),
        )
    compiled: Callable[..., tuple[Any, ...]] = run
    return partitioned(compiled, graphs[0]) if len(graphs) == 1 else compiled


@contextlib.contextmanager
def _compiling(fakes: FakeInputs, cache_tag: str, *, partitions: bool) -> Iterator[None]:
    """What is in force around a compile."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_compile_at_a_time())
        stack.enter_context(compiling())
        stack.enter_context(compile_under(fakes))
        # Scheduling differs with partitions, and torch's key does not hold that (2.11, 2.13).
        tag = f"{cache_tag} partitions" if partitions else cache_tag
        stack.enter_context(patched(compiler_config, {"cache_key_tag": tag}))
        if partitions:
            stack.enter_context(partition_functions())
        yield
