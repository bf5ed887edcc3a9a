"""From a name to a frozen causal language model with verified weights, and its tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mllm.shapes import TextShape
from mllm.stored import Shards
from vpeft.backbones.refusal import check_depth
from vpeft.backbones.weights import Weights, content_hash
from vpeft.nearest import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOKENIZER = ["*.json", "*.jinja", "*.txt", "tokenizer.model"]  # files of one; settings are among them


@dataclass
class Language:
    """A causal language model of transformers and what belongs to it.

    Args:
        model: Frozen, in eval mode; its own dropout is off, as that of a vision backbone is.
        tokenizer: Its tokenizer.
        name: What `load` was called with.
        weights: Where its weights come from, and the hash of what is stored, whatever dtype it is loaded in.
        shape: What it is made of.
        context: Most positions it was made for.
        prefix: Keys and values of prefix tuning, where that is what learns.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    name: str
    weights: Weights
    shape: TextShape
    context: int
    prefix: nn.Module | None = None

    @property
    def ends(self) -> list[int]:
        """Ids that end a text: those of the tokenizer and of the model's own generation settings."""
        own = self.model.generation_config.eos_token_id
        ids = [self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
        return sorted({one for one in ids if one is not None})


def load(name: str, pretrained: str = "auto", dtype: str = "float32", seed: int = 0) -> Language:
    """Load a language model and its tokenizer, on the CPU.

    Args:
        name: An embedded one (`mllm.embedded.EMBEDDED`), or `hf:` and a folder or hub id. A folder holds config.json,
            the tokenizer's files and weights as safetensors; no pickle and no code in it is ever opened.
        pretrained: `auto` loads the weights; `none` leaves them random, from `seed`.
        dtype: Of the frozen weights, `float32` or `bfloat16`. What learns is kept in float32 (`mllm.adapt`).
        seed: Of random weights; unused otherwise.

    Raises:
        ValueError: No such model, or one that cannot be loaded as it should be; the message says why.
        RuntimeError: The model could not be fetched.
    """
    if dtype not in DTYPES:
        raise ValueError(f"language: dtype is '{dtype}'; give one of {', '.join(DTYPES)}.")
    if pretrained not in ("auto", "none"):
        raise ValueError(
            f"language: pretrained is '{pretrained}'; give auto or none. Weights in another place are named "
            "by language.name, as hf:FOLDER."
        )
    folder, source, origin = _find(name)
    _check_folder(folder, pretrained)
    config = _config(folder)
    tokenizer = _tokenizer(folder)
    if pretrained == "none":
        model, sha256 = _random(config, seed, DTYPES[dtype])
        weights = Weights("random", f"seed {seed}", sha256)
    else:
        weights = Weights(source, origin, content_hash(Shards(folder)))  # type: ignore[arg-type]
        model = _pretrained(folder, config, DTYPES[dtype])
    model = model.eval().requires_grad_(False)
    shape = text_shape(model)
    if len(tokenizer) > shape.vocab:
        raise ValueError(
            f"The tokenizer of {name} has {len(tokenizer)} tokens and its model embeds {shape.vocab}; they do not "
            "belong together. Give a folder to which save_pretrained wrote both."
        )
    return Language(model, tokenizer, name, weights, shape, getattr(model.config, "max_position_embeddings", 2**31))


def text_shape(model: Any) -> TextShape:
    """The sizes of a causal language model of transformers.

    Raises:
        ValueError: its embeddings have another width than its layers.
    """
    config = model.config.get_text_config()
    dim, heads = config.hidden_size, config.num_attention_heads
    embedding = model.get_input_embeddings()
    if embedding.embedding_dim != dim:
        raise ValueError(
            f"{type(model).__name__} embeds words in {embedding.embedding_dim} channels and has layers of {dim}; image "
            "tokens could stand in neither. Choose a model whose widths agree."
        )
    hidden = next((int(size) for key in _HIDDEN if (size := getattr(config, key, None))), 4 * dim)
    return TextShape(
        dim=dim,
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or dim // heads,
        hidden=hidden,
        vocab=embedding.num_embeddings,
    )


_HIDDEN = ("intermediate_size", "ffn_dim", "n_inner")  # what families call the width inside their MLPs


def tokenizer_hash(tokenizer: Any) -> str:
    """Hex sha256 of what a tokenizer does: its vocabulary and rules, special tokens and chat template.

    Padding and truncation that earlier calls have left in it do not count.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    rules |= {"padding": None, "truncation": None}
    special = {key: str(token) for key, token in tokenizer.special_tokens_map.items()}
    text = json.dumps([rules, special, tokenizer.chat_template], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _find(name: str) -> tuple[Path, str, str]:
    """The folder of a model, the kind of place it came from, and which."""
    from mllm.embedded import EMBEDDED, embedded_folder

    if name in EMBEDDED:
        return embedded_folder(name), "embedded", EMBEDDED[name].requirement
    library, _, rest = name.partition(":")
    if library != "hf" or not rest:
        raise ValueError(
            f"There is no language model '{name}' (causal language models of transformers are written hf:FOLDER or "
            f"hf:HUB-ID); {did_you_mean(name, sorted(EMBEDDED))}"
        )
    folder = Path(rest).expanduser()
    if folder.is_dir():
        return folder, "file", f"hf/{folder.name}"
    return downloaded(rest, [*TOKENIZER, "*.safetensors"]), "hub", f"hf/{rest}"


def downloaded(hub_id: str, files: Sequence[str]) -> Path:
    """The folder of what a model hub holds under this name, of files that fit these patterns.

    Raises:
        RuntimeError: it could not be fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(files)))
    except Exception as error:  # the hub's client lets errors of several HTTP libraries through
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise RuntimeError(
            f"hf:{hub_id} is no folder here, and no model hub delivered it ({type(error).__name__}: {reason}). Give a "
            "folder that holds it (hf:FOLDER), or take the embedded one, which needs no hub (smollm2_135m_instruct)."
        ) from error


def _check_folder(folder: Path, pretrained: str) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(
            f"{folder} holds no config.json, so it is not a model of transformers; give a folder that save_pretrained "
            "wrote."
        )
    if "auto_map" in _json(config):
        raise ValueError(
            f"{config} asks for code of its own (auto_map), which is not run. Choose a model whose architecture is in "
            "transformers."
        )
    if pretrained == "auto" and not any(folder.glob("*.safetensors")):
        other = sorted(file.name for suffix in ("bin", "pt", "pth") for file in folder.glob(f"*.{suffix}"))
        found = f"; {other[0]} is a pickle, which can run any code and is not opened" if other else ""
        raise ValueError(
            f"{folder} holds no weights as safetensors{found}. Save the model with save_pretrained of a current "
            "transformers, or set pretrained to none."
        )


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); copy or download it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__} and no settings; copy or download it again.")
    return found


def _config(folder: Path) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # what is wrong decides which of transformers' checks fails, and how
        raise ValueError(
            f"transformers cannot read {folder / 'config.json'} ({error}); choose a model that this version knows."
        ) from error
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"{folder} is a '{config.model_type}', which is not a causal language model; choose one that is, as Llama, "
            "Qwen2 or OPT."
        )
    check_depth(config.get_text_config(), str(folder / "config.json"))
    for key, value in vars(config).items():
        if isinstance(value, float) and ("dropout" in key or key.endswith("_pdrop") or key == "layerdrop"):
            setattr(config, key, 0.0)  # a frozen model computes the same in training as in use
    return config


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder; code in it is never run.

    Raises:
        ValueError: there is none that transformers can read without such code.
    """
    from transformers import AutoTokenizer

    file = folder / "tokenizer_config.json"
    if file.is_file() and "auto_map" in _json(file):
        raise ValueError(
            f"The tokenizer in {folder} comes with code of its own (auto_map in tokenizer_config.json), which is not "
            "run. Take a model whose tokenizer transformers knows."
        )
    try:
        # Said and not left out: transformers would ask on the terminal.
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # what is missing decides which of transformers' readers fails, and how
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{folder} holds no tokenizer that transformers can read ({reason}). It needs tokenizer.json and "
            "tokenizer_config.json, or vocab.txt."
        ) from error


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer = read_tokenizer(folder)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer in {folder} has no end-of-sequence token, so that an answer would never end. Set eos_token "
            "in its tokenizer_config.json."
        )
    return tokenizer


def _random(config: Any, seed: int, dtype: torch.dtype) -> tuple[Any, str]:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except Exception as error:  # what a config asks for decides which part of transformers fails, and how
            raise ValueError(
                f"The model that {config.name_or_path}/config.json describes cannot be made ({error}); copy or "
                "download the folder again."
            ) from error
    sha256 = content_hash(model)
    for parameter in model.parameters():  # buffers, as those of rotary positions, stay as exact as they are
        parameter.data = parameter.data.to(dtype)
    return model, sha256


def _pretrained(folder: Path, config: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # what a config asks for decides which part of transformers fails, and how
        raise ValueError(
            f"The weights in {folder} cannot be loaded ({error}); copy or download the folder again."
        ) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"The weights in {folder} lack {len(missing)} tensors of the model that its config.json describes "
            f"({missing[0]}, ...); they would be random. Copy or download it again."
        )
    return model
