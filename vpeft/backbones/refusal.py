"""What is said of a model whose blocks this project does not know, or whose config states too many of them."""

from typing import Any

from torch import nn

_MOST = 1000  # layers; the deepest published models have under two hundred, and a damaged number is built for ever


def refuse_block(block: nn.Module) -> TypeError:
    return TypeError(
        f"The blocks of this model are {type(block).__module__}.{type(block).__name__}, which is not one of the "
        "pre-norm blocks x + f(norm(x)) that methods attach to. Known are timm's ViT, EVA and Swin blocks, open_clip's "
        "ResidualAttentionBlock, and the ViT, DINOv2, CLIP and SigLIP layers of transformers. To add one, describe "
        "its two branches in a file of vpeft/backbones/."
    )


def check_depth(config: Any, what: str) -> None:
    """Refuse a config of transformers with a number of layers that nobody has.

    Raises:
        ValueError: It has none, or over a thousand.
    """
    layers = getattr(config, "num_hidden_layers", 1)
    if not (isinstance(layers, int) and 1 <= layers <= _MOST):
        raise ValueError(
            f"{what} has num_hidden_layers {layers}; a number from 1 to {_MOST:,} is expected. Copy it again."
        )
