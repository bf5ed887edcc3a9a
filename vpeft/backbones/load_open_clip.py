"""Visual towers of open_clip. Where a tower is a timm model inside, it is treated as one."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import open_clip
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import nn

from vpeft.backbones.backbone import Preprocessing
from vpeft.backbones.load_timm import Loaded, check_keys
from vpeft.backbones.load_timm import resize as resize_timm
from vpeft.backbones.weights import Weights, content_hash, hub_unreachable, load_file


def load(name: str, pretrained: str, image_size: tuple[int, int] | None, seed: int) -> Loaded:
    """Build the visual tower of `MODEL/TAG`; `MODEL` alone for `pretrained: none` or a file."""
    architecture, _, tag = name.partition("/")
    _check_name(architecture, tag, pretrained)
    # The activation belongs to the weights: OpenAI's were trained with QuickGELU under the plain names.
    config = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            clip = open_clip.create_model(
                architecture,
                pretrained=tag if pretrained == "auto" else None,
                force_quick_gelu=bool(config.get("quick_gelu")),
            )
        except (OSError, RuntimeError) as error:
            raise hub_unreachable(f"open_clip:{name}", error) from error
    visual: Any = clip.visual
    model = visual.trunk if hasattr(visual, "trunk") else visual
    if pretrained == "auto":
        source, origin = "hub", f"open_clip/{name}"
    elif pretrained == "none":
        source, origin = "random", f"seed {seed}"
    else:
        path = Path(pretrained).expanduser()
        state = load_file(path)
        prefix = "visual.trunk." if hasattr(visual, "trunk") else "visual."
        tower = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)} or state
        check_keys(model.state_dict(), tower, path)
        model.load_state_dict(tower)
        source, origin = "file", path.name
    weights = Weights(source, origin, content_hash(model))  # type: ignore[arg-type]
    preprocess = open_clip.get_model_preprocess_cfg(clip)
    mean, std = tuple(preprocess["mean"]), tuple(preprocess["std"])
    preprocessing = Preprocessing(mean, std, "bilinear" if preprocess["interpolation"] == "bilinear" else "bicubic")
    if image_size is not None:
        (resize_timm if model is not visual else resize)(model, image_size, name)
    return model, preprocessing, weights


def _check_name(architecture: str, tag: str, pretrained: str) -> None:
    if architecture not in open_clip.list_models():
        near = difflib.get_close_matches(architecture, open_clip.list_models(), n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "See open_clip.list_models()."
        raise ValueError(f"open_clip has no model '{architecture}'. {hint}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags and (tag or pretrained == "auto"):
        asked = f"no weights '{tag}'" if tag else "to be told which weights (open_clip:MODEL/TAG)"
        raise ValueError(f"open_clip's {architecture} has {asked}. It has {', '.join(tags) or 'none'}.")


def resize(model: Any, image_size: tuple[int, int], name: str) -> None:
    """Set a tower to another image size, its position embeddings resampled."""
    patch = model.patch_size
    if image_size[0] % patch[0] or image_size[1] % patch[1]:
        raise ValueError(
            f"image_size {image_size[0]}x{image_size[1]} is not a multiple of {name}'s patch of {patch[0]} pixels."
        )
    grid = (image_size[0] // patch[0], image_size[1] // patch[1])
    if grid == tuple(model.grid_size):
        return
    resampled = resample_abs_pos_embed(
        model.positional_embedding.data[None], new_size=list(grid), old_size=list(model.grid_size), num_prefix_tokens=1
    )
    model.positional_embedding = nn.Parameter(resampled[0])
    model.image_size, model.grid_size = image_size, grid
