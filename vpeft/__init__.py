"""Parameter-efficient fine-tuning of frozen vision backbones."""

from vpeft._torchvision import allow_import

allow_import()  # before anything imports torchvision, so before timm

__version__ = "0.1.0"
