"""What ``Config`` promises: checked, frozen, comparable, readable from the environment."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torch_piecewise as tp
from torch_piecewise.capture_sizes import default_capture_sizes
from torch_piecewise.config import Config, env_var, settings
from torch_piecewise.cudagraph_mode import CUDAGraphMode
from torch_piecewise.errors import ConfigError, FingerprintError
from torch_piecewise.frozen_map import FrozenMap
from torch_piecewise.ranges import UNBOUNDED, Range


def cut_at_add(node: object) -> bool:
    return "add" in str(node)


class Block(torch.nn.Module):
    pass


class NamedPass:
    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, graph: object) -> None:
        raise NotImplementedError

    def uuid(self) -> str:
        return self.text


# One value other than the default for every field, and a second field where it needs one.
OTHER: dict[str, dict[str, object]] = {
    "mode": {"mode": "trace_once"},
    "backend": {"backend": "eager"},
    "splitting_ops": {"splitting_ops": ("aten::mm",)},
    "use_inductor_graph_partition": {"use_inductor_graph_partition": True},
    "dynamic_arg_dims": {"dynamic_arg_dims": {"x": {0: "n"}, "y": {1: None}}},
    "mark_unbacked_dims": {"mark_unbacked_dims": {"x": {1: None}}},
    "dynamic_shapes": {"dynamic_shapes": "backed"},
    "evaluate_guards": {"evaluate_guards": True},
    "assume_32_bit_indexing": {"assume_32_bit_indexing": True},
    "dispatch_on": {"dispatch_on": "x.1"},
    "compile_ranges_endpoints": {"compile_ranges_endpoints": (8, 64)},
    "compile_sizes": {"compile_sizes": (1, 4)},
    "guards": {"guards": "full"},
    "on_guard_failure": {"on_guard_failure": "error"},
    "cudagraph_mode": {"cudagraph_mode": CUDAGraphMode.FULL},
    "cudagraph_capture_sizes": {"cudagraph_capture_sizes": (1, 2)},
    "max_cudagraph_capture_size": {"max_cudagraph_capture_size": 64},
    "cudagraph_num_of_warmups": {"cudagraph_num_of_warmups": 3},
    "cudagraph_copy_inputs": {"cudagraph_copy_inputs": False},
    "cudagraph_capture": {"cudagraph_capture": "between_calls"},
    "cudagraph_padding": {"cudagraph_padding": "never"},
    "cudagraph_pad_values": {"cudagraph_pad_values": {"slots": -1}},
    "cudagraph_outputs": {"cudagraph_outputs": "refuse"},
    "cudagraph_lora_counts": {"cudagraph_lora_counts": (0, 2)},
    "cudagraph_tokens_per_request": {"cudagraph_tokens_per_request": 3},
    "cudagraph_uniform_when": {"cudagraph_uniform_when": "my.engine.is_decode"},
    "capture_only_in_warmup": {"capture_only_in_warmup": True},
    "check_addresses": {"check_addresses": True},
    "cudagraph_memory_budget": {"cudagraph_memory_budget": 2**30},
    "cudagraph_time_budget": {"cudagraph_time_budget": 2.5},
    "static_graph_class": {"static_graph_class": "my.npu.Graph"},
    "inductor_compile_config": {"inductor_compile_config": {"max_autotune": True}},
    "inductor_passes": {"inductor_passes": {"mine": "my.passes.Mine"}},
    "pass_config": {"pass_config": {"noop": False}},
    "cache_dir": {"cache_dir": "/srv/pieces"},
    "disable_cache": {"disable_cache": True},
    "cache_size_limit": {"cache_size_limit": 10},
    "key_environment": {"key_environment": ("MY_KERNELS",)},
    "signing_key_file": {"signing_key_file": "key"},
    "on_miss": {"on_miss": "eager"},
    "upgrade_to": {"upgrade_to": "aot_inductor"},
    "compile_threads": {"compile_threads": 2},
    "debug_dump_path": {"debug_dump_path": "dump"},
    "on_piece_error": {"on_piece_error": "eager"},
    "on_slow_piece": {"on_slow_piece": "eager"},
    "count_calls": {"count_calls": True},
}

NOT_IN_KEYS = {
    "on_guard_failure",
    "cudagraph_capture_sizes",
    "max_cudagraph_capture_size",
    "cudagraph_num_of_warmups",
    "cudagraph_copy_inputs",
    "cudagraph_capture",
    "cudagraph_padding",
    "cudagraph_outputs",
    "cudagraph_lora_counts",
    "cudagraph_tokens_per_request",
    "cudagraph_uniform_when",
    "static_graph_class",
    "capture_only_in_warmup",
    "check_addresses",
    "cudagraph_memory_budget",
    "cudagraph_time_budget",
    "cache_dir",
    "disable_cache",
    "cache_size_limit",
    "signing_key_file",
    "on_miss",
    "upgrade_to",
    "compile_threads",
    "debug_dump_path",
    "on_slow_piece",
    "count_calls",
}

some_fields = st.lists(st.sampled_from(sorted(OTHER)), unique=True, max_size=6)


def combined(names: list[str]) -> dict[str, object]:
    """The fields of ``OTHER`` for these names, less those that contradict one before them."""
    fields: dict[str, object] = {}
    for name in names:
        try:
            Config(**{**fields, **OTHER[name]})
        except ConfigError:
            continue
        fields.update(OTHER[name])
    return fields


def message(**fields: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Config(**fields)
    return str(caught.value)


# Defaults and the shape of the value


def test_every_field_has_an_other_value_in_these_tests():
    assert set(OTHER) == set(settings())


def test_defaults_are_the_documented_ones():
    config = Config()
    documented = {
        "mode": "piecewise",
        "backend": "inductor",
        "splitting_ops": None,
        "dynamic_shapes": "backed_size_oblivious",
        "guards": "inputs",
        "on_guard_failure": "recompile",
        "cudagraph_mode": CUDAGraphMode.NONE,
        "on_miss": "compile",
        "upgrade_to": None,
        "on_piece_error": "raise",
        "on_slow_piece": "keep",
        "count_calls": False,
        "compile_threads": None,
        "compile_ranges_endpoints": (),
        "compile_sizes": (),
    }
    assert {name: getattr(config, name) for name in documented} == documented


def test_a_config_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().mode = "none"


def test_fields_are_given_by_keyword_only():
    with pytest.raises(TypeError):
        Config("none")


@pytest.mark.parametrize("name", sorted(OTHER))
def test_repr_shows_the_field_that_differs_and_no_other(name):
    config = Config(**OTHER[name])
    value = getattr(config, name)
    shown = repr(value.name) if isinstance(value, CUDAGraphMode) else repr(value)
    assert repr(config) == f"Config({name}={shown})"


def test_repr_of_the_default_is_empty():
    assert repr(Config()) == "Config()"


@given(some_fields)
def test_repr_is_the_expression_that_makes_the_config(names):
    config = Config(**combined(names))
    assert eval(repr(config)) == config


@given(some_fields)
def test_equal_configs_have_one_hash(names):
    first, second = Config(**combined(names)), Config(**combined(names))
    assert first == second
    assert hash(first) == hash(second)


def test_a_config_with_an_unhashable_option_has_a_hash():
    options = {"flags": ["-O3"]}
    assert hash(Config(inductor_compile_config=options)) == hash(Config(inductor_compile_config=options))


@given(some_fields)
def test_pickled_and_copied_configs_are_equal_and_know_what_was_given(names):
    config = Config(**combined(names))
    for twin in (pickle.loads(pickle.dumps(config)), copy.copy(config), copy.deepcopy(config)):
        assert twin == config
        assert twin.explicit == config.explicit


def test_the_callers_list_and_dict_can_change_afterwards():
    sizes, options = [1], {"flags": ["-O3"]}
    config = Config(compile_sizes=sizes, inductor_compile_config=options)
    sizes.append(2)
    options["flags"].append("-g")
    options["new"] = 1
    assert config == Config(compile_sizes=[1], inductor_compile_config={"flags": ["-O3"]})


def test_the_settings_themselves_do_not_import_torch():
    # The package is replaced by an empty one, for its own door imports torch.
    code = (
        "import sys, types; door = types.ModuleType('torch_piecewise'); door.__path__ = [sys.argv[1]];"
        "sys.modules['torch_piecewise'] = door;"
        "import torch_piecewise.config as config; config.Config(); sys.exit('torch' in sys.modules)"
    )
    folder = str(Path(inspect.getfile(Config)).parents[1])
    assert subprocess.run([sys.executable, "-c", code, folder], check=False).returncode == 0


# replace, from_fields


def test_replace_changes_only_what_is_named():
    assert Config(mode="none", guards="full").replace(mode="trace_once") == Config(
        mode="trace_once", guards="full"
    )


def test_replace_checks_again():
    with pytest.raises(ConfigError, match="on_miss"):
        Config(on_miss="error").replace(disable_cache=True)


def test_dataclasses_replace_works_too():
    assert dataclasses.replace(Config(guards="full"), mode="none") == Config(guards="full", mode="none")


def test_from_fields_takes_the_options_of_torch_compile():
    assert Config.from_fields({"compile_sizes": [2, 1]}) == Config(compile_sizes=(1, 2))


# Normalisation


@given(st.lists(st.integers(1, 1000)))
def test_endpoints_are_sorted_and_each_kept_once(endpoints):
    assert Config(compile_ranges_endpoints=endpoints).compile_ranges_endpoints == tuple(
        sorted(set(endpoints))
    )


@given(st.lists(st.integers(1, 1000), max_size=5), st.integers(1, 2000))
def test_each_size_lies_in_exactly_one_compile_range(endpoints, size):
    ranges = Config(compile_ranges_endpoints=endpoints).compile_ranges()
    assert sum(size in part for part in ranges) == 1


def test_no_endpoints_give_one_open_range():
    assert Config().compile_ranges() == (Range(1, UNBOUNDED),)


def test_an_endpoint_without_bound_adds_no_range():
    config = Config(compile_ranges_endpoints=[8, sys.maxsize])
    assert config.compile_ranges() == (Range(1, 8), Range(9, UNBOUNDED))


def test_compile_sizes_are_sorted_numbers_before_the_word():
    config = Config(compile_sizes=[8, "cudagraph_capture_sizes", 0, 8])
    assert config.compile_sizes == (0, 8, "cudagraph_capture_sizes")


def test_the_word_stands_for_the_capture_sizes():
    config = Config(compile_sizes=["cudagraph_capture_sizes", 3, 2], cudagraph_capture_sizes=[4, 2])
    assert config.resolved_compile_sizes() == (2, 3, 4)


def test_the_word_stands_for_nothing_where_nothing_is_captured():
    assert Config(compile_sizes=["cudagraph_capture_sizes", 3]).resolved_compile_sizes() == (3,)


def test_default_capture_sizes_end_at_the_largest_asked_for():
    config = Config(cudagraph_mode="full", max_cudagraph_capture_size=19)
    assert config.resolved_capture_sizes() == (1, 2, 4, 8, 16, 19)


def test_default_capture_sizes_end_at_512():
    sizes = Config(cudagraph_mode="full").resolved_capture_sizes()
    assert (len(sizes), sizes[-1]) == (51, 512)


@given(st.integers(1, 3000), st.data())
def test_padding_to_a_default_size_wastes_fewer_rows_than_one_step(largest, data):
    size = data.draw(st.integers(1, largest))
    ladder = default_capture_sizes(largest)
    padded = min(step for step in ladder if step >= size)
    assert padded - size < (8 if size <= 256 else 16)
    assert list(ladder) == sorted(set(ladder))


@pytest.mark.parametrize(
    ("given", "held"),
    [
        (None, CUDAGraphMode.NONE),
        ("none", CUDAGraphMode.NONE),
        ("full_and_piecewise", CUDAGraphMode.FULL_AND_PIECEWISE),
        ("Full", CUDAGraphMode.FULL),
        (CUDAGraphMode.PIECEWISE, CUDAGraphMode.PIECEWISE),
    ],
)
def test_cudagraph_mode_takes_the_mode_its_name_in_any_case_or_none(given, held):
    assert Config(cudagraph_mode=given).cudagraph_mode is held


@pytest.mark.parametrize("dims", [0, [0], (0,), {0: None}])
def test_all_ways_to_write_a_dynamic_dim_are_equal(dims):
    config = Config(dynamic_arg_dims={"x": dims})
    assert config == Config(dynamic_arg_dims={"x": 0})
    assert config.dynamic_dims() == {"x": {0: None}}


def test_dynamic_dims_keep_their_symbol_names():
    config = Config(dynamic_arg_dims={"x": {0: "n", -1: "d"}, "y": [1, 2]})
    assert config.dynamic_dims() == {"x": {0: "n", -1: "d"}, "y": {1: None, 2: None}}


def test_unbacked_dims_are_tuples_of_dims():
    assert Config(mark_unbacked_dims={"x": 1, "y": [0, 2]}).unbacked_dims() == {"x": (1,), "y": (0, 2)}


def test_dims_are_empty_where_the_annotations_decide():
    config = Config()
    assert (config.dynamic_dims(), config.unbacked_dims(), config.dispatch_dim()) == ({}, {}, None)


def test_dispatch_dim_is_the_first_dynamic_dim_in_the_order_given():
    assert Config(dynamic_arg_dims={"z": [1, 0], "a": 0}).dispatch_dim() == ("z", 1)


def test_dispatch_on_beats_the_first_dynamic_dim():
    assert Config(dynamic_arg_dims={"z": 1, "a": -1}, dispatch_on="a.-1").dispatch_dim() == ("a", -1)


def test_splitting_ops_take_names_module_classes_and_predicates():
    ops = ["aten::mm", "aten::mm.out", "torch.nn.functional.relu", Block, cut_at_add, "aten::mm"]
    assert Config(splitting_ops=ops).splitting_ops == tuple(ops[:-1])


def test_no_places_to_cut_differ_from_the_default_places():
    assert Config(splitting_ops=[]).splitting_ops == ()
    assert Config(splitting_ops=None).splitting_ops is None


def test_torch_operations_given_as_objects_become_their_names():
    @torch.library.custom_op("config_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    config = Config(splitting_ops=[torch.ops.aten.mm, torch.ops.aten.mm.default, twice])
    assert config.splitting_ops == ("aten::mm", "aten::mm.default", "config_test::twice")


def test_an_operation_of_our_own_becomes_its_name():
    @tp.splitting_op("config_test::thrice", fake=torch.empty_like)
    def thrice(x: torch.Tensor) -> torch.Tensor:
        return x * 3

    assert Config(splitting_ops=[thrice]).splitting_ops == ("config_test::thrice",)


def test_a_set_gives_one_order_whatever_the_process():
    assert Config(splitting_ops={"b::b", "a::a"}).splitting_ops == ("a::a", "b::b")


def test_a_path_becomes_text_with_the_home_directory_in_it():
    assert Config(cache_dir=Path("a") / "b").cache_dir == str(Path("a/b"))
    assert Config(cache_dir="~/x").cache_dir == str(Path("~/x").expanduser())


def test_a_url_keeps_its_slashes():
    assert Config(cache_dir="s3://bucket/root").cache_dir == "s3://bucket/root"


# Errors


def test_an_unknown_field_names_itself_and_what_was_meant_and_all_there_are():
    text = message(compile_size=[1])
    assert text.splitlines()[0] == "Config has no field 'compile_size'"
    assert f"expected: one of {', '.join(settings())}" in text
    assert "did you mean 'compile_sizes'" in text


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("fullgraph", "leave fullgraph out: a model is always traced as one graph"),
        ("dynamic", "name the dims that change: dynamic_arg_dims={'x': 0}"),
        (
            "options",
            "give Inductor's options as inductor_compile_config={...}, and settings by their own names",
        ),
    ],
)
def test_what_people_bring_from_torch_compile_is_told_what_to_write_instead(field, hint):
    assert message(**{field: True}).splitlines()[-1] == f"  to do: {hint}"


def test_a_misspelt_variable_is_told_the_variable_that_was_meant():
    with pytest.raises(ConfigError) as caught:
        Config.from_env({"TORCH_PIECEWISE_CACHE_DIRR": "x"})
    lines = str(caught.value).splitlines()
    assert lines[0] == "the environment variable TORCH_PIECEWISE_CACHE_DIRR names no field of Config"
    assert lines[-1] == "  to do: did you mean TORCH_PIECEWISE_CACHE_DIR?"


def test_unknown_fields_are_named_through_every_door():
    for make in (lambda: Config.from_fields({"modes": 1}), lambda: Config.from_env({}, modes=1)):
        with pytest.raises(ConfigError, match="no field 'modes'"):
            make()
    with pytest.raises(ConfigError, match="no field 'modes'"):
        Config().replace(modes=1)


def test_a_bad_value_says_field_expected_got_and_what_to_do():
    assert message(mode="peicewise") == (
        "mode has a value it cannot have\n"
        "  expected: one of 'none', 'stock_torch_compile', 'trace_once', 'piecewise'\n"
        "  got: 'peicewise' (str)\n"
        "  to do: did you mean 'piecewise'?"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", None),
        ("backend", "inducter"),
        ("backend", 3),
        ("splitting_ops", "aten::mm"),
        ("splitting_ops", ["mm"]),
        ("splitting_ops", [int]),
        ("splitting_ops", [3]),
        ("splitting_ops", [torch.nn.functional.relu]),
        ("splitting_ops", [torch.mm]),
        ("use_inductor_graph_partition", 1),
        ("dynamic_arg_dims", ["x"]),
        ("dynamic_arg_dims", {"x": "0"}),
        ("dynamic_arg_dims", {"x": []}),
        ("dynamic_arg_dims", {"x": [[0]]}),
        ("dynamic_arg_dims", {"x": True}),
        ("dynamic_arg_dims", {"x": {0: 3}}),
        ("dynamic_arg_dims", {"not a name": 0}),
        ("mark_unbacked_dims", {"x": {0: "n"}}),
        ("dynamic_shapes", "static"),
        ("dispatch_on", "x"),
        ("dispatch_on", "x.y"),
        ("dispatch_on", ("x", 1)),
        ("compile_ranges_endpoints", [0]),
        ("compile_ranges_endpoints", [8, 1.5]),
        ("compile_ranges_endpoints", 8),
        ("compile_ranges_endpoints", [True]),
        ("compile_sizes", [-1]),
        ("compile_sizes", ["capture_sizes"]),
        ("cudagraph_mode", "partial"),
        ("cudagraph_mode", 1),
        ("cudagraph_capture_sizes", [0]),
        ("max_cudagraph_capture_size", 0),
        ("cudagraph_num_of_warmups", -1),
        ("cudagraph_time_budget", 0),
        ("cudagraph_time_budget", "1"),
        ("inductor_compile_config", [1]),
        ("inductor_compile_config", {1: 1}),
        ("inductor_passes", {"p": 3}),
        ("inductor_passes", {"p": "undotted"}),
        ("pass_config", {"p": 3}),
        ("cache_dir", ""),
        ("cache_dir", 3),
        ("key_environment", ["A=1"]),
        ("compile_threads", 0),
        ("on_miss", "fail"),
    ],
)
def test_a_bad_value_is_an_error_with_all_four_parts(field, value):
    text = message(**{field: value})
    first, *rest = text.splitlines()
    assert first.startswith(field)
    assert [line.split(":")[0].strip() for line in rest] == ["expected", "got", "to do"]


def test_a_bad_item_is_named_by_its_place():
    assert message(compile_sizes=[1, -2]).startswith("compile_sizes[1] ")
    assert message(inductor_passes={"mine": 3}).startswith("inductor_passes['mine'] ")


@pytest.mark.parametrize(
    ("first", "second", "fields"),
    [
        ("dispatch_on", "dynamic_arg_dims", {"dispatch_on": "y.0", "dynamic_arg_dims": {"x": 0}}),
        ("dispatch_on", "dynamic_arg_dims", {"dispatch_on": "x.1", "dynamic_arg_dims": {"x": 0}}),
        ("disable_cache", "on_miss", {"disable_cache": True, "on_miss": "error"}),
        ("disable_cache", "on_miss", {"disable_cache": True, "on_miss": "background"}),
        ("disable_cache", "on_miss", {"disable_cache": True, "on_miss": "eager"}),
        (
            "use_inductor_graph_partition",
            "backend",
            {"use_inductor_graph_partition": True, "backend": "eager"},
        ),
        ("cudagraph_mode", "mode", {"cudagraph_mode": "full", "mode": "none"}),
        ("cudagraph_mode", "mode", {"cudagraph_mode": "full_decode_only", "mode": "stock_torch_compile"}),
        ("cudagraph_mode", "mode", {"cudagraph_mode": "full_and_piecewise", "mode": "trace_once"}),
        ("cudagraph_mode", "splitting_ops", {"cudagraph_mode": "piecewise", "splitting_ops": []}),
        (
            "cudagraph_capture_sizes",
            "max_cudagraph_capture_size",
            {"cudagraph_capture_sizes": [1, 16], "max_cudagraph_capture_size": 8},
        ),
        ("evaluate_guards", "guards", {"evaluate_guards": True, "guards": "none"}),
        ("on_guard_failure", "guards", {"on_guard_failure": "error", "guards": "none"}),
    ],
)
def test_contradictory_fields_are_an_error_that_names_both(first, second, fields):
    text = message(**fields)
    assert text.splitlines()[0] == f"{first} and {second} contradict each other"
    assert "to do:" in text


@pytest.mark.parametrize(
    "fields",
    [
        {"cudagraph_mode": "full", "mode": "trace_once"},
        {"cudagraph_mode": "full", "splitting_ops": []},
        {"cudagraph_mode": "full", "splitting_ops": [], "use_inductor_graph_partition": True},
        {"dispatch_on": "x.1", "dynamic_arg_dims": {"x": -1}},
        {"dispatch_on": "x.1", "dynamic_arg_dims": {"x": 0}, "mark_unbacked_dims": {"x": 1}},
        {"guards": "none"},
        {"cudagraph_capture_sizes": [1, 8], "max_cudagraph_capture_size": 8},
    ],
)
def test_fields_that_fit_together_are_taken(fields):
    assert Config(**fields).explicit == set(fields)


# The environment


def env_text(value: object) -> str:
    if isinstance(value, CUDAGraphMode):
        return value.name.lower()
    if isinstance(value, str):
        return value
    return json.dumps(value)


@pytest.mark.parametrize("name", sorted(OTHER))
def test_every_field_is_read_from_its_variable(name):
    env = {f"TORCH_PIECEWISE_{field.upper()}": env_text(value) for field, value in OTHER[name].items()}
    assert Config.from_env(env) == Config(**OTHER[name])


@pytest.mark.parametrize("text", ["1,8, 64,", "[1, 8, 64]"])
def test_lists_are_comma_lists_or_json(text):
    config = Config.from_env({"TORCH_PIECEWISE_COMPILE_RANGES_ENDPOINTS": text})
    assert config.compile_ranges_endpoints == (1, 8, 64)


def test_a_comma_list_of_sizes_may_hold_the_word():
    config = Config.from_env({"TORCH_PIECEWISE_COMPILE_SIZES": "2,cudagraph_capture_sizes"})
    assert config.compile_sizes == (2, "cudagraph_capture_sizes")


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("true", True), ("True", True), ("0", False), ("false", False)]
)
def test_switches_are_true_false_1_or_0(text, value):
    assert Config.from_env({"TORCH_PIECEWISE_DISABLE_CACHE": text}).disable_cache is value


def test_none_is_none_where_the_field_takes_it_and_a_word_where_it_is_one():
    env = {"TORCH_PIECEWISE_SPLITTING_OPS": "none", "TORCH_PIECEWISE_MODE": "none"}
    config = Config.from_env(env)
    assert (config.splitting_ops, config.mode) == (None, "none")


def test_an_empty_variable_counts_as_not_set():
    assert Config.from_env({"TORCH_PIECEWISE_MODE": " "}).explicit == frozenset()


def test_explicit_arguments_beat_the_environment_even_at_their_default():
    config = Config.from_env({"TORCH_PIECEWISE_MODE": "none"}, mode="piecewise")
    assert config.mode == "piecewise"


def test_with_env_fills_only_what_was_not_given():
    env = {"TORCH_PIECEWISE_MODE": "none", "TORCH_PIECEWISE_GUARDS": "full"}
    assert Config(mode="piecewise").with_env(env) == Config(guards="full")


def test_a_config_made_by_hand_does_not_read_the_environment(monkeypatch):
    monkeypatch.setenv("TORCH_PIECEWISE_MODE", "none")
    assert Config().mode == "piecewise"
    assert Config.from_env().mode == "none"


def test_a_variable_that_names_no_field_is_an_error_with_the_field_meant():
    with pytest.raises(ConfigError, match="TORCH_PIECEWISE_COMPILE_SIZE names") as caught:
        Config.from_env({"TORCH_PIECEWISE_COMPILE_SIZE": "1"})
    assert "TORCH_PIECEWISE_COMPILE_SIZES" in caught.value.hint


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("compile_sizes", "1,two"),
        ("compile_threads", "many"),
        ("dynamic_arg_dims", "{x: 0}"),
        ("dynamic_arg_dims", '{"x": {"first": "n"}}'),
        ("disable_cache", "maybe"),
        ("mode", "fast"),
    ],
)
def test_a_bad_variable_is_an_error_that_names_variable_and_field(field, text):
    with pytest.raises(ConfigError) as caught:
        Config.from_env({env_var(field): text})
    assert f"the environment variable {env_var(field)} (field {field})" in caught.value.what
    assert None not in (caught.value.expected, caught.value.got, caught.value.hint)


def test_other_variables_are_left_alone():
    assert Config.from_env({"PATH": "x", "TORCH_LOGS": "+dynamo"}) == Config()


# Ingredients of cache keys


@pytest.mark.parametrize("name", sorted(OTHER))
def test_exactly_the_settings_that_can_change_code_change_the_ingredients(name):
    changed = Config(**OTHER[name]).as_ingredients() != Config().as_ingredients()
    assert changed == (name not in NOT_IN_KEYS)


@given(some_fields)
def test_equal_configs_have_equal_ingredients(names):
    fields = combined(names)
    assert Config(**fields).as_ingredients() == Config.from_fields(fields).as_ingredients()


def test_ingredients_are_texts_named_by_field_in_order():
    names = [name for name, text in Config().as_ingredients() if isinstance(text, str)]
    assert names == [name for name in settings() if name not in NOT_IN_KEYS]


def test_two_ways_to_name_the_same_sizes_have_equal_ingredients():
    by_word = Config(compile_sizes=["cudagraph_capture_sizes"], cudagraph_capture_sizes=[1, 2])
    assert by_word.as_ingredients() == Config(compile_sizes=[1, 2]).as_ingredients()


def test_the_order_of_options_does_not_count_and_that_of_passes_does():
    def options(**given: object) -> list[tuple[str, str]]:
        return Config(inductor_compile_config=given).as_ingredients()

    def passes(**given: object) -> list[tuple[str, str]]:
        return Config(inductor_passes=given).as_ingredients()

    assert options(a=1, b=2) == options(b=2, a=1)
    assert passes(a="m.A", b="m.B") != passes(b="m.B", a="m.A")


def test_a_pass_enters_by_its_uuid():
    one, same, other = (Config(inductor_passes={"p": NamedPass(text)}) for text in ("1", "1", "2"))
    assert one.as_ingredients() == same.as_ingredients()
    assert one.as_ingredients() != other.as_ingredients()


def test_a_predicate_of_a_module_and_a_class_have_names():
    text = dict(Config(splitting_ops=[cut_at_add, Block]).as_ingredients())["splitting_ops"]
    assert f"{__name__}.cut_at_add" in text
    assert f"{__name__}.Block" in text


def test_a_lambda_is_refused_because_nothing_names_it():
    config = Config(splitting_ops=[lambda node: False])
    with pytest.raises(FingerprintError, match="no stable identity"):
        config.as_ingredients()


def test_the_caller_can_name_objects_its_own_way():
    config = Config(splitting_ops=[lambda node: False])
    assert "mine" in dict(config.as_ingredients(lambda value: "mine"))["splitting_ops"]


def test_an_option_that_has_no_text_is_refused():
    with pytest.raises(FingerprintError, match="cannot be written"):
        Config(inductor_compile_config={"x": {("a", 1): 1}}).as_ingredients()


# The table of settings


def test_describe_tells_every_field_its_variable_and_what_it_means():
    rows = Config.describe()
    assert [row.name for row in rows] == list(settings())
    for row in rows:
        assert row.env_var == f"TORCH_PIECEWISE_{row.name.upper()}"
        assert row.doc.endswith(".")
        assert row.used_by and row.expected


def test_a_field_that_can_be_none_says_what_none_means():
    for name, setting in settings().items():
        if "None" in setting.kind.expected:
            assert "None:" in setting.doc, name


# FrozenMap


@given(st.dictionaries(st.text(), st.integers()))
def test_a_frozen_map_equals_its_dict_and_survives_pickling(items):
    frozen = FrozenMap(items)
    assert frozen == items
    assert pickle.loads(pickle.dumps(frozen)) == frozen
    assert hash(frozen) == hash(FrozenMap(items))
    assert repr(frozen) == repr(items)


def test_frozen_maps_in_another_order_differ_but_equal_the_same_dict():
    assert FrozenMap({1: 1, 2: 2}) != FrozenMap({2: 2, 1: 1})
    assert FrozenMap({2: 2, 1: 1}) == {1: 1, 2: 2}


def test_a_frozen_map_has_no_way_to_change():
    with pytest.raises(TypeError):
        FrozenMap({1: 1})[1] = 2
