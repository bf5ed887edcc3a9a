"""Vision towers of transformers, by hub name or local folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import nn
from transformers import (
    AutoConfig,
    CLIPModel,
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    SiglipVisionModel,
    ViTModel,
)
from transformers.utils.hub import cached_file

from vpeft import failures
from vpeft.backbones.backbone import Preprocessing
from vpeft.backbones.beside import Joint, TextTower
from vpeft.backbones.hf_vit import grid_of
from vpeft.backbones.load_timm import Loaded
from vpeft.backbones.refusal import check_depth
from vpeft.backbones.weights import Weights, content_hash, hub_unreachable, load_file
from vpeft.json_file import NUMBER, fits, read_json

_INCEPTION = (0.5, 0.5, 0.5)
_TOWERS: dict[str, Any] = {
    "vit": ViTModel,
    "dinov2": Dinov2Model,
    "dinov2_with_registers": Dinov2WithRegistersModel,
    "clip": CLIPVisionModel,
    "clip_vision_model": CLIPVisionModel,
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
}
# What each family was trained with, for a folder that has no preprocessor_config.json.
_OWN = {
    "vit": Preprocessing(_INCEPTION, _INCEPTION, "bilinear"),
    "dinov2": Preprocessing(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, "bicubic"),
    "dinov2_with_registers": Preprocessing(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, "bicubic"),
    "clip": Preprocessing(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, "bicubic"),
    "clip_vision_model": Preprocessing(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, "bicubic"),
    "siglip": Preprocessing(_INCEPTION, _INCEPTION, "bicubic"),
    "siglip_vision_model": Preprocessing(_INCEPTION, _INCEPTION, "bicubic"),
}
_PIL_BILINEAR = 2
_HUB = (OSError, RuntimeError, ValueError)  # what transformers raises where a hub cannot be reached
_UNREAD = {"embeddings.mask_token"}  # of masked training alone


def load(name: str, pretrained: str, image_size: tuple[int, int] | None, seed: int) -> Loaded:
    """Build the vision tower of `name`, a hub name or a folder with a config.json."""
    config = _config(name)
    if config.model_type not in _TOWERS:
        raise ValueError(
            f"hf:{name} is a '{config.model_type}'; supported vision towers are {', '.join(sorted(_TOWERS))}."
        )
    tower = _TOWERS[config.model_type]
    options: dict[str, Any] = {"add_pooling_layer": False} if tower is ViTModel else {}
    vision = getattr(config, "vision_config", config)
    model: Any
    if pretrained == "none":
        model = _random(tower, vision, options, seed, name)
        source, origin = "random", f"seed {seed}"
    elif pretrained == "auto":
        model = _stored(tower, vision, options, name)
        source, origin = ("file" if _is_folder(name) else "hub"), f"hf/{name}"
    else:
        path = Path(pretrained).expanduser()
        model = _from_file(tower, vision, options, path)
        source, origin = "file", path.name
    model.set_attn_implementation("sdpa")
    weights = Weights(source, origin, content_hash(model))  # type: ignore[arg-type]
    if image_size is not None:
        resize(model, image_size, name)
    return model, _preprocessing(name, config.model_type), weights


def joint(name: str, pretrained: str, seed: int) -> Joint:
    """The joint space of a CLIP of transformers: the projection into it, and its text tower.

    Its tokenizer is open_clip's, which has the same words and needs no hub.

    Raises:
        ValueError: no CLIP with a text tower.
        RuntimeError: the weights could not be had.
    """
    config = _config(name)
    if config.model_type != "clip":
        raise ValueError(
            f"hf:{name} is a '{config.model_type}', and the text towers read here are those of CLIP ('clip'). Take the "
            "model from open_clip, or another kind of head."
        )
    model: Any
    if pretrained == "none":
        model = _random(CLIPModel, config, {}, seed, name)
    elif pretrained == "auto":
        model = _stored(CLIPModel, config, {}, name)
    else:
        model = _from_file(CLIPModel, config, {}, Path(pretrained).expanduser())
    model = model.eval().requires_grad_(False)
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=config.text_config.max_position_embeddings)
    encode = TextTower(_TextFeatures(model), tokenizer)
    return Joint(model.visual_projection.weight.detach(), encode, model.logit_scale.exp().item(), 0.0)


class _TextFeatures:
    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.get_text_features(input_ids=tokens).pooler_output


def _is_folder(name: str) -> bool:
    return Path(name).expanduser().is_dir()


def _config(name: str) -> Any:
    config = _read(name)
    for part in (config, getattr(config, "vision_config", None), getattr(config, "text_config", None)):
        check_depth(part, f"The config of hf:{name}")
    return config


def _read(name: str) -> Any:
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        if failures.out_of_memory(error):
            raise
        if _is_folder(name):  # damaged files make transformers and safetensors raise anything
            raise ValueError(
                f"The folder {name} holds no config.json that transformers can read: {error!s:.400}"
            ) from error
        if not isinstance(error, _HUB):
            raise
        raise RuntimeError(
            f"The config of hf:{name} could not be fetched ({type(error).__name__}), and without it the model cannot "
            "be built, not even with random weights. Give a local folder that holds its config.json (hf:FOLDER), or "
            "take a timm model, which needs none."
        ) from error


def _random(tower: Any, config: Any, options: dict[str, Any], seed: int, name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return tower(config, **options)
        except Exception as error:  # whatever sizes that fit no layer lead to
            if failures.out_of_memory(error):
                raise
            raise ValueError(f"The config of hf:{name} describes no model ({error!s:.400}); correct it.") from error


def _stored(tower: Any, config: Any, options: dict[str, Any], name: str) -> Any:
    try:
        model, info = tower.from_pretrained(name, config=config, output_loading_info=True, **options)
    except Exception as error:
        if failures.out_of_memory(error):
            raise
        if _is_folder(name):  # damaged files make transformers and safetensors raise anything
            raise ValueError(
                f"The folder {name} holds no weights that fit its config.json ({error!s:.400}); save both again with "
                "save_pretrained, or copy them again."
            ) from error
        if not isinstance(error, _HUB):
            raise
        raise hub_unreachable(f"hf:{name}", error) from error
    if missing := _missing(info):  # transformers would leave them random
        raise ValueError(
            f"The weights of hf:{name} lack tensors of this model: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''} ({len(missing)} in all). Copy or save them again; if they never "
            "had them, let config.json describe a model without."
        )
    return model


def _missing(info: Mapping[str, Any]) -> list[str]:
    return sorted(set(info["missing_keys"]) - _UNREAD)


def _from_file(tower: Any, config: Any, options: dict[str, Any], path: Path) -> Any:
    """Through `from_pretrained`, which knows the names that earlier releases of transformers saved under."""
    state = load_file(path)
    model, info = tower.from_pretrained(
        None, config=config, state_dict=state, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    wrong = [*_missing(info), *(key for key, *_ in info["mismatched_keys"])]
    blocks = {int(m[1]) for key in state if "text_model" not in key and (m := re.search(r"\blayers?\.(\d+)\.", key))}
    layers = getattr(config, "vision_config", config).num_hidden_layers
    if len(blocks) > layers:
        raise ValueError(
            f"{path} holds {len(blocks)} blocks; this backbone has {layers}. Choose the backbone it was made for."
        )
    if wrong:
        raise ValueError(
            f"{path} does not fit this backbone: {len(wrong)} tensors are missing or of another shape "
            f"({sorted(wrong)[0]}, ...). Choose the backbone it was made for."
        )
    return model


def _preprocessing(name: str, kind: str) -> Preprocessing:
    try:
        found = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    except OSError:
        found = None
    if found is None:
        return _OWN[kind]
    advice = "copy it again, or delete it, and the family's own mean and deviation are taken"
    stored = read_json(Path(found), dict, advice)
    if "image_mean" not in stored:
        return _OWN[kind]
    if not all(fits(stored.get(key), [NUMBER]) and len(stored[key]) == 3 for key in ("image_mean", "image_std")):
        raise ValueError(f"{found}: image_mean and image_std must be three numbers each; {advice}.")
    if not all(stored["image_std"]):
        raise ValueError(f"{found}: image_std is {stored['image_std']}, and images are divided by it; {advice}.")
    interpolation = "bilinear" if stored.get("resample") == _PIL_BILINEAR else "bicubic"
    return Preprocessing(tuple(stored["image_mean"]), tuple(stored["image_std"]), interpolation)


def resize(model: Any, image_size: tuple[int, int], name: str) -> None:
    """Set a tower to another image size, its position embeddings resampled."""
    patch = model.config.patch_size
    side = image_size[0]
    if image_size[0] != image_size[1] or side % patch:
        raise ValueError(
            f"image_size {image_size[0]}x{image_size[1]} does not suit hf:{name}: transformers' towers take square "
            f"images whose side is a multiple of the patch of {patch} pixels. timm's towers take any shape."
        )
    old, prefix = grid_of(model), 0 if model.config.model_type == "siglip_vision_model" else 1
    if old == (side // patch, side // patch):
        return
    model.config.image_size = side
    embeddings = model.embeddings
    learned = hasattr(embeddings, "position_embedding")  # CLIP and SigLIP look positions up in an nn.Embedding
    table = embeddings.position_embedding.weight.data[None] if learned else embeddings.position_embeddings.data
    resampled = resample_abs_pos_embed(
        table, new_size=[side // patch] * 2, old_size=list(old), num_prefix_tokens=prefix
    )
    if not learned:
        embeddings.position_embeddings = nn.Parameter(resampled)
        embeddings.patch_embeddings.image_size = (side, side)
        embeddings.patch_embeddings.num_patches = resampled.shape[1] - prefix
        embeddings.image_size = (side, side)
        return
    embeddings.position_embedding = nn.Embedding.from_pretrained(resampled[0], freeze=False)
    embeddings.position_ids = torch.arange(len(resampled[0])).expand(1, -1)
    embeddings.image_size, embeddings.num_patches, embeddings.num_positions = (
        side,
        len(resampled[0]) - prefix,
        len(resampled[0]),
    )
