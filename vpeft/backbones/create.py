"""From a name to a backbone with verified weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from vpeft.backbones.backbone import PAD_FIRST, Backbone, Family, Preprocessing, Recipe, own_preprocessing
from vpeft.backbones.embedded import EMBEDDED
from vpeft.backbones.weights import SUFFIXES, Weights, content_hash
from vpeft.fetch import cache_dir


def create(
    name: str, pretrained: str = "auto", image_size: int | Sequence[int] | None = None, seed: int = 0
) -> Backbone:
    """Build the backbone called `name`, in eval mode.

    Args:
        name: A timm, `open_clip:` , `hf:` or embedded name (see this package's docstring). A timm Swin shifts its
            maps and pads them then, which the official code does in the other order; they differ where a map is
            no multiple of the window. `+pad_first` after its name is the official order, in which no window
            shrinks to a small map either.
        pretrained: `auto` loads the weights the name stands for: from a file `<name>.safetensors` (or
            .npz, .pth, ...; a `/` or `:` in the name is a `-`) under `weights/` of the cache if there is
            one, else from the embedded package or the model hub. `none` leaves them random, from `seed`;
            anything else is the path of a file.
        image_size: Side, or height and width, in pixels; None is the model's own. Position
            embeddings are resampled.
        seed: Of random weights; unused otherwise.

    Raises:
        ValueError: no such model, size or file; the message says what there is.
        RuntimeError: the weights could not be had (no hub within reach, say).
        TypeError: the model's blocks are not ones that methods can attach to.
    """
    size = _pair(image_size)
    library, _, rest = name.partition(":")
    if not rest:
        library, rest = "timm", name
    if library == "timm":
        from vpeft.backbones import load_timm as loader
    elif library == "open_clip":
        from vpeft.backbones import load_open_clip as loader
    elif library == "hf":
        from vpeft.backbones import load_hf as loader
    else:
        raise ValueError(
            f"Backbone '{name}' names the library '{library}'; known are timm (or no prefix), open_clip and hf."
        )
    if pretrained == "auto" and (file := local_weights(name)):
        pretrained = str(file)
    model, preprocessing, weights = loader.load(rest, pretrained, size, seed)
    body = wrap(model, name, preprocessing, weights)
    body.recipe = Recipe(library, rest, pretrained, seed)
    return body


def wrap(
    model: nn.Module,
    name: str | None = None,
    preprocessing: Preprocessing | None = None,
    weights: Weights | None = None,
) -> Backbone:
    """See a model that already exists through the seams.

    Args:
        model: A timm, open_clip or transformers vision model; used as it is, not copied.
        name: What to call it; None is its class.
        preprocessing: Its data config; None reads timm's, which is ImageNet's mean and deviation by default.
        weights: Where its weights come from; None says that the caller gave them.

    Raises:
        TypeError: its blocks are not ones that methods can attach to.
    """
    family, dim, size, patch = _family(model)
    return Backbone(
        name or type(model).__name__,
        model.eval(),
        family,
        dim,
        size,
        patch,
        preprocessing or own_preprocessing(model),
        weights or Weights("given", "built by the caller", content_hash(model)),
    )


def local_weights(name: str) -> Path | None:
    """The file for `name` that the user has put under `weights/` of the cache, if any."""
    if name in EMBEDDED:
        return None  # its converted file lies there too, and is verified by its own loader
    stem = name.removesuffix(PAD_FIRST).replace("/", "-").replace(":", "-")
    return next((file for suffix in SUFFIXES if (file := cache_dir() / "weights" / f"{stem}{suffix}").is_file()), None)


def _family(model: Any) -> tuple[Family, int, tuple[int, int], tuple[int, int]]:
    """The family that knows this model, with feature width, image size and patch size."""
    library = type(model).__module__.partition(".")[0]
    if library == "timm":
        return _timm_family(model)
    if library == "open_clip":
        from vpeft.backbones.open_clip_vit import OpenClipViT

        if hasattr(model, "transformer") and hasattr(model, "conv1"):
            return OpenClipViT(model), model.transformer.width, tuple(model.image_size), tuple(model.patch_size)
    if library == "transformers":
        from vpeft.backbones.hf_vit import HFViT

        family = HFViT(model)
        size, patch = model.config.image_size, model.config.patch_size
        size = tuple(size) if isinstance(size, list | tuple) else (size, size)
        return family, model.config.hidden_size, size, (patch, patch)
    raise TypeError(
        f"{type(model).__module__}.{type(model).__name__} is not a model of timm, open_clip or transformers that "
        "this project knows. Give one of those, without a wrapper around it; docs/architecture.md lists the families."
    )


def _timm_family(model: Any) -> tuple[Family, int, tuple[int, int], tuple[int, int]]:
    from timm.models.eva import Eva
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.vision_transformer import VisionTransformer

    from vpeft.backbones.timm_eva import TimmEva
    from vpeft.backbones.timm_swin import TimmSwin
    from vpeft.backbones.timm_vit import TimmViT

    known: dict[type, Any] = {VisionTransformer: TimmViT, Eva: TimmEva, SwinTransformer: TimmSwin}
    family = next((family for kind, family in known.items() if isinstance(model, kind)), None)
    if family is None:
        raise TypeError(
            f"timm's {type(model).__name__} is not a supported backbone; supported are its VisionTransformer, Eva "
            "(DINOv3) and SwinTransformer models."
        )
    embed = model.patch_embed
    return family(model), model.head_hidden_size, tuple(embed.img_size), tuple(embed.patch_size)


def _pair(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"image_size is {height}x{width}; it has to be positive.")
    return height, width
