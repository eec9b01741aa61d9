"""Compile with AOTInductor. Importing it loads Inductor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch._inductor import config
from torch._inductor.codecache import (
    _get_cpp_prefix_header,
    _get_cpp_wrapper_header,
    _precompile_header,
)
from torch._inductor.compile_fx import compile_fx_aot
from torch._inductor.cpp_builder import CppBuilder, CppTorchDeviceOptions
from torch._inductor.cpu_vec_isa import pick_vec_isa
from torch.compiler import config as compiler_config
from torch.fx import GraphModule

from torch_piecewise.torch_private.fake_inputs import FakeInputs, compile_under
from torch_piecewise.torch_private.settings import patched


def aoti_compile(
    graph: GraphModule,
    fakes: FakeInputs,
    values: list[Any],
    folder: Path,
    *,
    patches: Mapping[str, Any],
    cache_tag: str,
) -> list[Path]:
    """Compile ``graph`` into a shared object; what has to lie beside it to run comes with it.

    ``compile_fx_aot`` is what ``torch._inductor.aot_compile`` calls after it has exported (2.11, 2.13);
    ``torch.export`` would read sizes off the tensors a second time and know less about them than the trace.

    Args:
        graph: changed in place.
        values: the fake value of each of its inputs.
        folder: empty; whatever the compiler writes goes there.
    """
    settings = {**patches, "aot_inductor.output_path": str(folder / "piece.so")}
    with compile_under(fakes), patched(compiler_config, {"cache_key_tag": cache_tag}):
        made: Any = compile_fx_aot(graph, values, config_patches=settings)
    shared_object = Path(made)
    beside = shared_object.with_suffix(".json")
    return [shared_object, beside] if beside.exists() else [shared_object]


def build_aoti_headers(patches: Mapping[str, Any]) -> None:
    """Precompile the two headers that every piece for the CPU includes, which takes seconds each.

    As ``AotCodeCompiler.compile`` builds them for a graph without constants (2.11, 2.13). One that is built
    otherwise would be found missing later and built again.
    """
    with config.patch(dict(patches)):
        isa = pick_vec_isa()
        named = CppTorchDeviceOptions(vec_isa=isa, device_type="cpu", aot_mode=True)
        command = repr(CppBuilder(name="o", sources="i", BuildOption=named).get_command_line())
        options = {
            "aot_mode": True,
            "device_type": "cpu",
            "use_mmap_weights": False,
            "use_mmap_weights_external": False,
            "use_relative_path": False,
            "vec_isa": isa,
        }
        wrapper, prefix = _get_cpp_wrapper_header("cpu", aot_mode=True), _get_cpp_prefix_header("cpu")
        _precompile_header(wrapper, command, min_optimize=True, **options)
        if prefix is not None:
            _precompile_header(prefix, command, **options)
