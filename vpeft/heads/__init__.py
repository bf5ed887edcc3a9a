"""From features to predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from vpeft.heads.active_features import ActiveFeatures
from vpeft.heads.label_mapping import Classifier, LabelMapping
from vpeft.heads.linear import LinearHead
from vpeft.heads.text import TextHead
from vpeft.schema import HeadConfig

if TYPE_CHECKING:
    from vpeft.backbones import Backbone

__all__ = ["ActiveFeatures", "Classifier", "LabelMapping", "LinearHead", "TextHead", "build"]


def build(spec: Mapping[str, Any], backbone: Backbone, width: int, classes: Sequence[str]) -> nn.Module:
    """Build the head of a `head:` entry.

    Args:
        spec: Fields of `HeadConfig`; those that are missing have their defaults.
        backbone: Whose pretrained classes or texts a frozen head uses.
        width: Of the features, `vpeft.methods.feature_dim`.
        classes: Names of the classes.

    Raises:
        ValueError: this backbone has no classifier or text tower, or the head does not fit its features.
        RuntimeError: what the head needs of the pretrained model could not be had.
    """
    config = HeadConfig(**spec)
    if config.kind == "linear":
        return LinearHead(width, len(classes), init=config.init, batch_norm=config.batch_norm)
    if width != backbone.dim:
        raise ValueError(
            f"head.kind {config.kind} reads the {backbone.dim} features of the backbone, and the methods make {width} "
            "of them. Use head.kind linear."
        )
    if config.kind == "active_features":
        return ActiveFeatures(width, len(classes))
    return _mapping(config, backbone, classes) if config.kind == "label_mapping" else _text(config, backbone, classes)


def _mapping(config: HeadConfig, backbone: Backbone, classes: Sequence[str]) -> LabelMapping:
    from vpeft import backbones

    if config.source == "text":
        source: nn.Module = _text(config, backbone, classes, apart=True)
    else:
        try:
            source = Classifier(*backbones.classifier(backbone))
        except ValueError as error:
            raise ValueError(f"label_mapping: {error}") from error
    return LabelMapping(source, len(classes), config.sources, config.every)


def _text(config: HeadConfig, backbone: Backbone, classes: Sequence[str], apart: bool = False) -> TextHead:
    from vpeft import backbones

    try:
        return TextHead(backbones.joint(backbone), classes, config.templates, apart)
    except ValueError as error:
        raise ValueError(f"text: {error}") from error
