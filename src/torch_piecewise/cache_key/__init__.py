"""What a kept program is identified by, and why one was not found."""

from torch_piecewise.cache_key.base import Ingredient, Key, ingredients_from_json
from torch_piecewise.cache_key.cpu import CpuRequirement, architecture_ingredient, host_cpu
from torch_piecewise.cache_key.environment import (
    compiler_ingredient,
    config_ingredient,
    device_ingredient,
    library_ingredient,
    passes_ingredient,
    python_ingredient,
    tag_ingredient,
    threads_ingredient,
    topology_ingredient,
    torch_ingredient,
    variables_ingredient,
)
from torch_piecewise.cache_key.explain import (
    Absent,
    Difference,
    Nearest,
    differences,
    explain_miss,
    nearest,
    told_differences,
)
from torch_piecewise.cache_key.module_tree import LABELS, module_tree_ingredients, opaque_paths
from torch_piecewise.cache_key.sources import (
    function_ingredients,
    import_name,
    source_ingredients,
    sources_again,
)

__all__ = [
    "LABELS",
    "Absent",
    "CpuRequirement",
    "Difference",
    "Ingredient",
    "Key",
    "Nearest",
    "architecture_ingredient",
    "compiler_ingredient",
    "config_ingredient",
    "device_ingredient",
    "differences",
    "explain_miss",
    "function_ingredients",
    "host_cpu",
    "import_name",
    "ingredients_from_json",
    "library_ingredient",
    "module_tree_ingredients",
    "nearest",
    "opaque_paths",
    "passes_ingredient",
    "python_ingredient",
    "source_ingredients",
    "sources_again",
    "tag_ingredient",
    "threads_ingredient",
    "told_differences",
    "topology_ingredient",
    "torch_ingredient",
    "variables_ingredient",
]
