"""The backbones of this project in mmsegmentation's registry. (Its models under Lightning: vpeft.tasks.mmseg.)

mmsegmentation 1.2.2 runs with mmcv-lite, which has no compiled operators: what of mmseg needs one is importable and
raises when it is called. Everything of mmseg is imported when it is first used; it comes with the `dense` extra.

In an mmseg config:

    custom_imports = dict(imports=["vpeft.dense.mmseg_plugin"])
    model = dict(backbone=dict(type="VpeftBackbone", name="vit_base_patch16_224.augreg_in21k", image_size=512,
                               method=dict(name="lora", rank=8), neck=dict(name="layers")), ...)

Shapes: B images, C channels of a map, H W pixels.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from vpeft import methods
from vpeft.backbones import create
from vpeft.dense.unfit import unfit
from vpeft.tuned import Tuned

INSTALL = "pip install -c constraints.txt -e '.[dense]'"


class VpeftBackbone(nn.Module):
    """A frozen backbone with methods and a neck, as mmseg wants its backbones: images [B 3 H W] -> a tuple of maps.

    Args:
        name: Of the backbone (`vpeft.backbones.create`).
        method: A `method:` entry, or a list of them.
        neck: Its name and options.
        pretrained: `auto`, `none` or a file.
        image_size: Side, or height and width: mmseg's crop.

    Raises:
        ValueError: a backbone, method or neck that there is not, an option that it does not have, or a method that
            does not go with masks.
    """

    def __init__(
        self,
        name: str,
        method: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        neck: Mapping[str, Any],
        pretrained: str = "auto",
        image_size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        from vpeft.dense.necks import NECKS  # not at the top: readers of data use this module too, and no network

        options = dict(neck)
        kind = options.pop("name", None)
        if kind not in NECKS:
            raise ValueError(f"VpeftBackbone: there is no neck '{kind}'; there are {', '.join(NECKS)}.")
        for sentence in unfit(method, neck):
            raise ValueError(f"VpeftBackbone: {sentence}.")
        body = create(name, pretrained, image_size)
        built = NECKS[kind](body, **options)  # before the methods, which leave alone what it does not read
        self.tuned = Tuned(body, methods.build(method, body), nn.Identity(), neck=built)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.tuned(images))

    def frozen(self) -> set[str]:
        """Names in its state dict that training leaves as they are."""
        trained = {f"tuned.{name}" for name in self.tuned.delta()}
        return {name for name in self.state_dict() if name.startswith("tuned.") and name not in trained}


def register() -> None:
    """Make mmseg importable and `VpeftBackbone` known to its registry; again does nothing.

    Raises:
        ModuleNotFoundError: the `dense` extra is missing; says what to run.
    """
    _stand_in()
    need("mmseg.models")
    need("mmseg.registry").MODELS.register_module(name="VpeftBackbone", module=VpeftBackbone, force=True)


def build(model: Mapping[str, Any]) -> nn.Module:
    """mmseg's model of the `model` section of one of its configs, initialised."""
    register()
    config = need("mmengine.config").ConfigDict(model)
    with need("mmengine.registry").DefaultScope.overwrite_default_scope("mmseg"):  # mmengine looks for parts of it too
        built = need("mmseg.registry").MODELS.build(config)
        built.init_weights()
    return built


def need(module: str) -> Any:
    """A module of the `dense` extra.

    Raises:
        ModuleNotFoundError: it is not installed; says what to run.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise ModuleNotFoundError(
            f"{module} needs {missing}, which is not installed. It comes with the extra dense; from the root of this "
            f"project: {INSTALL}",
            name=error.name,
        ) from error


class _NoOperators(ModuleType):
    """Stands in for mmcv's compiled operators: they are all there, and raise when called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(name)


class _Missing:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"mmcv's compiled operator {self.name} is not there: mmcv-lite has none. Use a model without it, or "
            "install mmcv 2.1.0 in the place of mmcv-lite."
        )


def _stand_in() -> None:
    need("mmcv")
    name = "mmcv._ext"
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        module = _NoOperators(name)
        module.__spec__ = ModuleSpec(name, None)
        sys.modules[name] = module
