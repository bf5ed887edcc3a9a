"""A merged visual tower in open_clip's own model, whose text tower stays as it was."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from vpeft.backbones import Backbone


def whole(backbone: Backbone, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Both towers under open_clip's names, or None where the file of the weights has no text tower.

    Args:
        backbone: Built by `create`.
        state: Of the merged visual tower.

    Raises:
        RuntimeError: The weights could not be had.
    """
    from vpeft.backbones import load_open_clip

    recipe = backbone.recipe
    assert recipe is not None, "an adapter's backbone is built by name"
    try:
        clip = load_open_clip.both(recipe.name, recipe.pretrained, recipe.seed)
    except load_open_clip.NoTextTower:
        return None
    start = "visual.trunk." if hasattr(clip.visual, "trunk") else "visual."
    return clip.state_dict() | {start + key: tensor for key, tensor in state.items()}


def loading(backbone: Backbone, file: Path) -> str:
    """The call that loads the file."""
    from vpeft.backbones import load_open_clip

    assert backbone.recipe is not None
    name, _, tag = backbone.recipe.name.partition("/")
    quick = ", force_quick_gelu=True" if load_open_clip.quick_gelu(name, tag) else ""
    return f"open_clip.create_model('{name}', pretrained='{file}', force_image_size={backbone.image_size}{quick})"
