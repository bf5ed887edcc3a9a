"""Visual towers of open_clip. Where a tower is a timm model inside, it is treated as one."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from vpeft.backbones.backbone import Preprocessing
from vpeft.backbones.beside import Joint, TextTower, linear_map
from vpeft.backbones.load_timm import Loaded, check_keys
from vpeft.backbones.load_timm import resize as resize_timm
from vpeft.backbones.weights import Weights, content_hash, hub_unreachable, load_file


def load(name: str, pretrained: str, image_size: tuple[int, int] | None, seed: int) -> Loaded:
    """Build the visual tower of `MODEL/TAG`; `MODEL` alone for `pretrained: none` or a file."""
    clip = _whole(name, pretrained, seed)
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


def _whole(name: str, pretrained: str, seed: int) -> Any:
    """Both towers; random ones where the weights come from a file."""
    architecture, _, tag = name.partition("/")
    _check_name(architecture, tag, pretrained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return open_clip.create_model(
                architecture,
                pretrained=tag if pretrained == "auto" else None,
                force_quick_gelu=quick_gelu(architecture, tag),
            )
        except (OSError, RuntimeError) as error:
            raise hub_unreachable(f"open_clip:{name}", error) from error


class NoTextTower(ValueError):
    """The file of the weights holds the visual tower alone."""


def both(name: str, pretrained: str, seed: int) -> Any:
    """Both towers of `MODEL/TAG`, frozen and in eval mode.

    Raises:
        NoTextTower: the file has none.
        ValueError: no such model.
        RuntimeError: the weights could not be had.
    """
    clip = _whole(name, pretrained, seed).eval().requires_grad_(False)
    if pretrained not in ("auto", "none"):
        path = Path(pretrained).expanduser()
        state = load_file(path)
        if not any(key.startswith(("text.", "token_embedding.")) for key in state):
            raise NoTextTower(f"{path} holds no text tower. Give the file of the whole CLIP, or another kind of head.")
        check_keys(clip.state_dict(), state, path)
        clip.load_state_dict(state)
    return clip


def quick_gelu(architecture: str, tag: str) -> bool:
    """Whether the weights were trained with another activation than the architecture's: OpenAI's, under plain names."""
    return bool(tag and open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu"))


def whole(name: str, pretrained: str, seed: int) -> tuple[Any, Callable[[list[str]], Tensor]]:
    """Both towers of `MODEL/TAG`, frozen and in eval mode, and their tokenizer.

    Raises:
        ValueError: no such model, or the file has no text tower.
        RuntimeError: weights or tokenizer could not be had.
    """
    clip = both(name, pretrained, seed)
    try:
        return clip, open_clip.get_tokenizer(name.partition("/")[0])
    except (OSError, RuntimeError) as error:  # those of SigLIP come from a hub
        raise hub_unreachable(f"open_clip:{name}", error) from error


def joint(name: str, pretrained: str, seed: int) -> Joint:
    """The joint space of `MODEL/TAG`: the projection into it, and its text tower.

    Raises:
        ValueError: the file has no text tower; the projection is no linear map.
        RuntimeError: weights or tokenizer could not be had.
    """
    clip, tokenizer = whole(name, pretrained, seed)
    visual: Any = clip.visual
    if hasattr(visual, "trunk"):
        weight = linear_map(nn.Sequential(visual.trunk.get_classifier(), visual.head), visual.trunk.num_features)
    else:
        weight = torch.eye(visual.transformer.width) if visual.proj is None else visual.proj.detach().T
    bias = 0.0 if getattr(clip, "logit_bias", None) is None else clip.logit_bias.item()
    return Joint(weight, TextTower(clip.encode_text, tokenizer), clip.logit_scale.exp().item(), bias)


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
