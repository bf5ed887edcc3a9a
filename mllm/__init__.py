"""Connectors and training of parameter-efficient multimodal language models."""

from vpeft._torchvision import allow_import

allow_import()
