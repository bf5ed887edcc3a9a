"""timm models, the original Google .npz checkpoints among their files, and the embedded backbones."""

from __future__ import annotations

import difflib
import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from vpeft.backbones.backbone import PAD_FIRST, Preprocessing, own_preprocessing
from vpeft.backbones.embedded import EMBEDDED, embedded_state_dict
from vpeft.backbones.weights import Weights, check_file, content_hash, hub_unreachable, load_file

Loaded = tuple[Any, Preprocessing, Weights]


def load(name: str, pretrained: str, image_size: tuple[int, int] | None, seed: int) -> Loaded:
    """Build timm's `name` (or an embedded backbone) without its classifier, and resample it to `image_size`."""
    resampled: dict[str, Tensor] = {}
    named, name = name, name.removesuffix(PAD_FIRST)
    architecture = EMBEDDED[name].architecture if name in EMBEDDED else known(name)
    if pretrained == "auto" and name not in EMBEDDED:
        model = _from_hub(architecture)
        source, origin = "hub", f"timm/{model.pretrained_cfg['architecture']}.{model.pretrained_cfg['tag']}"
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = timm.create_model(architecture, pretrained=False, num_classes=0)
        if pretrained == "none":
            source, origin = "random", f"seed {seed}"
        elif pretrained == "auto":
            model.load_state_dict(embedded_state_dict(name))
            source, origin = "embedded", EMBEDDED[name].requirement
        else:
            path = Path(pretrained).expanduser()
            resampled = _from_file(model, path)
            source, origin = "file", path.name
    preprocessing = own_preprocessing(model)
    # Of what was loaded, not of what was resampled: the last bits of an interpolation depend on the machine.
    weights = Weights(source, origin, content_hash(resampled or model))  # type: ignore[arg-type]
    if named != name:
        from vpeft.backbones.timm_swin import pad_first

        pad_first(model)  # before the size, to which timm's own windows may shrink
    if image_size is not None:
        resize(model, image_size, name)
    return model, preprocessing, weights


def classifier(name: str, pretrained: str, seed: int) -> tuple[Tensor, Tensor]:
    """Weight [S, C] and bias [S] of the classifier that was pretrained with a model.

    Raises:
        ValueError: there is none; the message says where there is one.
    """
    name = name.removesuffix(PAD_FIRST)
    config: Any = None if name in EMBEDDED else timm.get_pretrained_cfg(known(name))
    joint = config is not None and "_clip_" in name and "ft_in" not in (config.tag or "")
    if config is None or joint or (not config.num_classes and pretrained in ("auto", "none")):
        what = "projects into CLIP's joint space instead" if joint else "was trained without one, or without keeping it"
        raise ValueError(
            f"{name} has no classifier of its own: it {what}. Take a backbone that was fine-tuned on classes, such as "
            "vit_base_patch16_224.augreg_in21k_ft_in1k, or another kind of head (linear; text for open_clip's)."
        )
    if pretrained not in ("auto", "none"):
        return _classifier_in(Path(pretrained).expanduser(), config.classifier)
    if pretrained == "auto":
        try:
            model: Any = timm.create_model(name, pretrained=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise hub_unreachable(name, error) from error
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = timm.create_model(name, pretrained=False)
    head = model.get_classifier()
    return head.weight.detach(), head.bias.detach()


def _classifier_in(path: Path, key: str) -> tuple[Tensor, Tensor]:
    if path.suffix == ".npz":
        found, key = _google_classifier(path)
    else:
        state = load_file(path)
        found = [state[name] for name in (f"{key}.weight", f"{key}.bias") if name in state]
    if not found:
        raise ValueError(
            f"{path} holds no classifier for this backbone (no {key}). Give a file with the classes it was trained on, "
            "or choose another kind of head."
        )
    shapes = [list(one.shape) for one in found]
    if len(found) != 2 or len(shapes[0]) != 2 or shapes[1] != shapes[0][:1]:
        raise ValueError(
            f"{path} holds a classifier of {' and '.join(map(str, shapes))}, which is no map to classes with its bias; "
            "copy or download it again."
        )
    return found[0], found[1]


def _google_classifier(path: Path) -> tuple[list[Tensor], str]:
    """Weight and bias in a file of Google's, or none and what it lacks."""
    check_file(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            if "head/kernel" not in file:
                return [], "head/kernel"
            if "pre_logits/kernel" in file:
                return [], "features without the layer pre_logits"
            return [torch.from_numpy(file["head/kernel"].T.copy()), torch.from_numpy(file["head/bias"])], ""
    except Exception as error:  # zipfile, numpy and torch each raise their own
        raise ValueError(
            f"{path} is no whole .npz file ({type(error).__name__}: {error!s:.200}); download it again."
        ) from error


def known(name: str) -> str:
    """`name` as timm knows it, with or without a tag of pretrained weights.

    Raises:
        ValueError: timm has no such model or tag; near ones are named.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, [*timm.list_models(), *EMBEDDED], n=3, cutoff=0.7)
        hint = f"Did you mean {' or '.join(near)}?" if near else "See timm.list_models()."
        raise ValueError(f"There is no backbone '{name}'. {hint} Other libraries are named open_clip:... and hf:...")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ValueError(f"timm's {architecture} has no weights '{tag}'. It has {', '.join(tags) or 'none'}.")
    return name


def _from_hub(name: str) -> Any:
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:  # what huggingface_hub and timm raise without a network
        raise hub_unreachable(name, error) from error


def _from_file(model: Any, path: Path) -> dict[str, Tensor]:
    """Load a file; return its own state where its position embeddings had to be resampled, else nothing."""
    check_file(path)
    if path.suffix == ".npz":
        _from_npz(model, path)
        return {}
    stored = load_file(path)
    kernel = stored.get("patch_embed.proj.weight")
    patch = model.patch_embed.patch_size
    if kernel is not None and kernel.ndim == 4 and tuple(kernel.shape[2:]) != tuple(patch):
        raise ValueError(  # timm would resample the patches, and nobody would know
            f"{path} holds a model with patches of {kernel.shape[-1]} pixels; this backbone's are {patch[-1]}. "
            "Choose the backbone it was made for."
        )
    module = importlib.import_module(type(model).__module__)
    state = module.checkpoint_filter_fn(
        dict(stored), model
    )  # names of other releases; resampled to the model's own size
    classifier = model.pretrained_cfg.get("classifier", "head")
    state = {key: value for key, value in state.items() if not key.startswith(f"{classifier}.")}
    check_keys(model.state_dict(), state, path)
    model.load_state_dict(state)
    changed = "pos_embed" in stored and stored["pos_embed"].shape != model.state_dict()["pos_embed"].shape
    return stored if changed else {}


def _from_npz(model: Any, path: Path) -> None:
    if not hasattr(model, "load_pretrained"):
        raise ValueError(
            f"{path} is a .npz of the original Google ViTs, which {type(model).__name__} cannot read. "
            "Choose a plain ViT of timm."
        )
    try:
        _check_npz(model, path)
        model.load_pretrained(str(path))
    except _Misfit:
        raise
    except Exception as error:  # zipfile, numpy and timm each raise their own
        raise ValueError(
            f"{path} is not a complete .npz checkpoint of this model in Google's layout ({type(error).__name__}: "
            f"{error}). Download it again, or choose the model that it belongs to."
        ) from error


class _Misfit(ValueError):
    """A sound file of another model."""


def _check_npz(model: Any, path: Path) -> None:
    """Refuse what timm would bend into shape: another patch size, or more blocks than the model has."""
    with np.load(path, allow_pickle=False) as file:
        blocks = {match.group(1) for match in map(re.compile(r".*encoderblock_(\d+)/").match, file.files) if match}
        kernel = next(file[name].shape for name in file.files if name.endswith("embedding/kernel"))
    theirs = f"{len(blocks)} blocks, width {kernel[3]} and patches of {kernel[0]} pixels"
    patch = model.patch_embed.patch_size[0]
    ours = f"{len(model.blocks)} blocks, width {model.embed_dim} and patches of {patch} pixels"
    if theirs != ours:
        raise _Misfit(f"{path} holds a ViT of {theirs}; this backbone has {ours}. Choose the backbone it was made for.")


def check_keys(wanted: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    """Refuse a file that does not fit the model, saying where they differ first."""
    missing = [key for key in wanted if key not in given]
    extra = [key for key in given if key not in wanted]
    shaped = [key for key in wanted if key in given and wanted[key].shape != given[key].shape]
    if not (missing or extra or shaped):
        return
    differs = [f"{len(missing)} tensors are missing ({missing[0]}, ...)"] if missing else []
    differs += [f"{len(extra)} are not of this model ({extra[0]}, ...)"] if extra else []
    differs += [
        f"{key} is {list(given[key].shape)} in the file and {list(wanted[key].shape)} in the model"
        for key in shaped[:1]
    ]
    raise ValueError(f"{path} does not fit this backbone: {'; '.join(differs)}. Choose the backbone it was made for.")


def resize(model: Any, image_size: tuple[int, int], name: str) -> None:
    """Set the model to another image size; Swin keeps its window."""
    patch = model.patch_embed.patch_size
    if image_size[0] % patch[0] or image_size[1] % patch[1]:
        raise ValueError(
            f"image_size {image_size[0]}x{image_size[1]} is not a multiple of {name}'s patch of {patch[0]} pixels; "
            f"the nearest are {_nearest(image_size[0], patch[0])} and {_nearest(image_size[0], patch[0]) + patch[0]}."
        )
    if image_size == tuple(model.patch_embed.img_size):
        return
    windows = {"window_size": [stage.blocks[0].window_size for stage in model.layers]} if _is_swin(model) else {}
    model.set_input_size(img_size=image_size, **windows)


def _is_swin(model: Any) -> bool:
    return hasattr(model, "layers")


def _nearest(size: int, patch: int) -> int:
    return max(patch, size // patch * patch)
