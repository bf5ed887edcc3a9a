"""What is said of a model whose blocks this project does not know."""

from torch import nn


def refuse_block(block: nn.Module) -> TypeError:
    return TypeError(
        f"The blocks of this model are {type(block).__module__}.{type(block).__name__}, which is not one of the "
        "pre-norm blocks x + f(norm(x)) that methods attach to. Known are timm's ViT, EVA and Swin blocks, open_clip's "
        "ResidualAttentionBlock, and the ViT, DINOv2, CLIP and SigLIP layers of transformers. To add one, describe "
        "its two branches in a file of vpeft/backbones/."
    )
