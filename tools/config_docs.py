"""Write docs/config.md from the fields of ``Config``; with ``--check`` only say whether it is current.

``python tools/config_docs.py`` exits with 0; with ``--check``, 1 where the page is not what it would write.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch_piecewise.config import Config
from torch_piecewise.config.fields import THEMES
from torch_piecewise.config.table import FieldDoc

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "config.md"

EXAMPLES: dict[str, dict[str, Any]] = {
    "mode": {"mode": "trace_once"},
    "backend": {"backend": "aot_inductor"},
    "splitting_ops": {
        "splitting_ops": ["mylib::attention", "torch.nn.functional.scaled_dot_product_attention"]
    },
    "use_inductor_graph_partition": {"use_inductor_graph_partition": True},
    "dynamic_arg_dims": {"dynamic_arg_dims": {"input_ids": 0, "positions": {0: "tokens"}}},
    "mark_unbacked_dims": {"mark_unbacked_dims": {"input_ids": 0}},
    "dynamic_shapes": {"dynamic_shapes": "unbacked"},
    "evaluate_guards": {"evaluate_guards": True},
    "assume_32_bit_indexing": {"assume_32_bit_indexing": True},
    "dispatch_on": {"dispatch_on": "input_ids.0"},
    "compile_ranges_endpoints": {"compile_ranges_endpoints": [64, 512]},
    "compile_sizes": {"compile_sizes": [1, 8, "cudagraph_capture_sizes"]},
    "guards": {"guards": "full"},
    "on_guard_failure": {"on_guard_failure": "error"},
    "cudagraph_mode": {"cudagraph_mode": "piecewise"},
    "cudagraph_capture_sizes": {"cudagraph_capture_sizes": [1, 2, 4, 8]},
    "max_cudagraph_capture_size": {"max_cudagraph_capture_size": 256},
    "cudagraph_num_of_warmups": {"cudagraph_num_of_warmups": 2},
    "cudagraph_copy_inputs": {"cudagraph_copy_inputs": False},
    "cudagraph_capture": {"cudagraph_capture": "between_calls"},
    "cudagraph_padding": {"cudagraph_padding": "never"},
    "cudagraph_pad_values": {"cudagraph_pad_values": {"slots": -1}},
    "cudagraph_outputs": {"cudagraph_outputs": "refuse"},
    "cudagraph_lora_counts": {"cudagraph_lora_counts": [0, 1, 4]},
    "cudagraph_tokens_per_request": {"cudagraph_tokens_per_request": 2},
    "cudagraph_uniform_when": {"cudagraph_uniform_when": "my_engine.batches.is_decode"},
    "capture_only_in_warmup": {"capture_only_in_warmup": True},
    "check_addresses": {"check_addresses": True},
    "cudagraph_memory_budget": {"cudagraph_memory_budget": 2 * 2**30},
    "cudagraph_time_budget": {"cudagraph_time_budget": 30.0},
    "static_graph_class": {"static_graph_class": "my_device.graphs.StaticGraph"},
    "inductor_compile_config": {"inductor_compile_config": {"max_autotune": True}},
    "inductor_passes": {"inductor_passes": {"mine": "my_passes.FuseNorm"}},
    "pass_config": {"pass_config": {"noop_elimination": False}},
    "cache_dir": {"cache_dir": "/srv/pieces"},
    "disable_cache": {"disable_cache": True},
    "cache_size_limit": {"cache_size_limit": 20 * 2**30},
    "key_environment": {"key_environment": ["MY_KERNELS"]},
    "signing_key_file": {"signing_key_file": "/etc/pieces.key"},
    "on_miss": {"on_miss": "error"},
    "upgrade_to": {"upgrade_to": "aot_inductor"},
    "compile_threads": {"compile_threads": 4},
    "debug_dump_path": {"debug_dump_path": "dumps"},
    "on_piece_error": {"on_piece_error": "eager"},
    "on_slow_piece": {"on_slow_piece": "eager"},
    "count_calls": {"count_calls": True},
}
"""Field -> settings of an example. A new field needs one."""

HEAD = """\
<!-- Written by tools/config_docs.py from src/torch_piecewise/config/fields_*.py; edit those. -->

<!-- setup
import os

import torch
import torch_piecewise as tp

os.environ["TORCH_PIECEWISE_BACKEND"] = "inductor"


class Model(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor, positions=None, slots=None):
        return input_ids


model = Model()
-->

# Settings

Every setting is a field of `tp.Config`. It can be given to `tp.compile`, to a `tp.Config` that several models
share, as an option of `torch.compile(backend="piecewise")`, or in the environment; what is given in code
beats the environment. `print(tp.Config.describe())` shows what applies here and where each value comes from,
`print(config.describe())` the same of one `Config`.

In the environment a list is written with commas (`1,8,64`), a mapping as JSON (`{"input_ids": 0}`), a flag
as `true` or `false`, and `none` stands for None where a field takes it. Unknown fields, contradictory fields
and bad values are errors that name the field, what was expected, what was given, and what to do.
"""


def page() -> str:
    """The whole of docs/config.md."""
    rows = {row.name: row for row in Config().rows()}
    parts = [HEAD, "\n".join(_contents(rows))]
    for title, names in _groups().items():
        parts.append(f"## {title}")
        parts += [_section(rows[name]) for name in names]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _contents(rows: Mapping[str, FieldDoc]) -> Iterator[str]:
    yield "| field | default | meaning |"
    yield "|---|---|---|"
    for row in rows.values():
        yield f"| [`{row.name}`](#{row.name}) | `{_written(row.default)}` | {row.meaning} |"


def _groups() -> dict[str, list[str]]:
    """Title -> fields, as the classes of fields group them."""
    return {str(theme.__doc__).rstrip("."): list(theme.__annotations__) for theme in THEMES}


def _section(row: FieldDoc) -> str:
    settings = EXAMPLES[row.name]
    given = ", ".join(f"{name}={_written(value)}" for name, value in settings.items())
    lines = [
        f"### {row.name}",
        "",
        *textwrap.wrap(row.doc, 110, break_long_words=False, break_on_hyphens=False),
        "",
        f"- takes: {row.expected}",
        f"- default: `{_written(row.default)}`",
        f"- environment: `{row.env_var}`",
        "",
        "```python",
        f"tp.compile(model, {given})",
        "```",
    ]
    return "\n".join([*lines, "", "```sh", f"export {row.env_var}={_quoted(settings[row.name])}", "```"])


def in_environment(value: Any) -> str:
    """``value`` as the text of an environment variable."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return json.dumps(value)
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _quoted(value: Any) -> str:
    text = in_environment(value)
    return f"'{text}'" if isinstance(value, Mapping) else text


def _written(value: Any) -> str:
    """``value`` as Python, with the quotes that the formatter of this repository wants."""
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_written(key)}: {_written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return repr(getattr(value, "name", value))


def main(arguments: list[str]) -> int:
    """Write the page, or check it; the exit status."""
    text = page()
    if "--check" not in arguments:
        PAGE.write_text(text)
        return 0
    if PAGE.exists() and PAGE.read_text() == text:
        return 0
    print(f"{PAGE.relative_to(ROOT)} is not current: run python tools/config_docs.py")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
