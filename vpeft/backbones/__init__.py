"""Frozen backbones by name.

vit_base_patch16_224.orig_in21k            a timm model, with or without `timm:` before it
swin_base_patch4_window7_224+pad_first     a timm Swin that pads its maps before it shifts them, as the official one
open_clip:ViT-B-16/openai                  an open_clip visual tower and its tag
hf:google/vit-base-patch16-224-in21k       a transformers vision tower: hub name or local folder
vit_small_patch14_saliency                 real weights that come in a published Python package
"""

from vpeft.backbones.backbone import Backbone, Preprocessing
from vpeft.backbones.beside import Joint, classifier, joint
from vpeft.backbones.create import create, wrap

__all__ = ["Backbone", "Joint", "Preprocessing", "classifier", "create", "joint", "wrap"]
