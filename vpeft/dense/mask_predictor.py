"""An adapter of segmentation at work: masks of image files, and a test on masks.

Shapes: H W pixels of an image.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from PIL import Image

from vpeft.checkpoint import load_adapter
from vpeft.config import resolve
from vpeft.data.augment import rescaled
from vpeft.data.images import decode
from vpeft.data.masks import ClassTable
from vpeft.data.opencv import resize
from vpeft.data.segmentation import SegmentationData
from vpeft.dense.segmentation_schema import InferenceConfig, SegmentationConfig
from vpeft.evaluation import check_classes, check_free
from vpeft.predict import find_device
from vpeft.quiet import quieten
from vpeft.schema import OptimConfig, TrainConfig
from vpeft.tasks.segmentation import Segmentation, Segmented

# What may differ from the training: where the images are, how they are read, and the way from crops to whole images.
FREE = {
    "data": ("task", "root", "format", "eval_batch_size", "workers", "reduce_zero_label", "absent"),
    "inference": tuple(item.name for item in fields(InferenceConfig)),
}


class MaskPredictor:
    """A trained adapter on its backbone, with the preprocessing and the inference it was trained with.

    Args:
        path: The adapter, of kind segmentation.
        weights: File of the backbone's weights, where they are no longer where training found them.
        device: Torch's name of a device; None is cuda where there is one, else cpu.

    Raises:
        ValueError: The adapter, its backbone or the device cannot be had; see `load_adapter`.
    """

    def __init__(self, path: Path | str, weights: str | None = None, device: str | None = None) -> None:
        quieten()
        self.device = find_device(device)
        tuned, self.manifest = load_adapter(path, weights)
        said = self.manifest
        self.table = ClassTable(tuple(said["classes"]), tuple((r, g, b) for r, g, b in said["colours"]))
        mean, std = (tuple(said["normalization"][name]) for name in ("mean", "std"))
        inference = InferenceConfig(**said["inference"])
        self.task = Segmentation(
            tuned, said["classes"], OptimConfig(), TrainConfig(), inference, mean, std, said["absent"], said["ignored"]
        )
        self.task.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, path: Path) -> np.ndarray:
        """The class of every pixel of an image file, int64 [H, W].

        An image is of any size: one that does not fit a network that was tested in one pass is taken in windows.

        Raises:
            UnreadableImage: It is missing or not a whole image.
        """
        image = np.asarray(decode(path))
        long, short = self.manifest["scale"]
        scaled = torch.from_numpy(resize(image, rescaled(image.shape, (long, short)))).permute(2, 0, 1)[None]
        inference = self.task.inference
        if inference.mode == "whole":  # of one window, sliding is the same to the bit
            inference = replace(inference, mode="slide", stride=None)
        shares = self.task(scaled.to(self.device), (image.shape[0], image.shape[1]), inference)
        return shares[0].argmax(dim=0).cpu().numpy()


def test(predictor: MaskPredictor, overrides: Sequence[tuple[str, str]], source: str) -> tuple[Segmented, Any]:
    """Measure an adapter on the test split of its own data, unless the overrides say another; and that data's facts.

    Args:
        predictor: The adapter.
        overrides: Dotted keys among FREE, and their values.
        source: Name of the adapter in errors.

    Raises:
        ConfigError: A key that cannot be changed, or a wrong value.
        ValueError: The data is missing, its classes are not the adapter's, or an image does not fit the inference.
    """
    check_free(overrides, FREE)
    said = predictor.manifest
    names = {"task": said["task"], "split": said["split"], "absent": said["absent"]}
    names["reduce_zero_label"] = said.get("reduce_zero_label")  # files of an earlier version do not say
    names |= {"long_side": said["scale"][0], "short_side": said["scale"][1]}
    config = resolve({"kind": "segmentation", "data": names, "inference": said["inference"]}, source, overrides)
    assert isinstance(config, SegmentationConfig)
    data = SegmentationData(config.data, predictor.task.tuned.backbone.image_size, seed=0)
    check_classes(source, said["classes"], config.data.root or config.data.task, data.classes.names)
    predictor.task.absent = config.data.absent
    predictor.task.infer_with(config.inference)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    kind = "gpu" if predictor.device.type == "cuda" else "cpu"
    # Of this process alone, also inside a job of Slurm, which Lightning would otherwise ask for the others.
    alone = LightningEnvironment()
    trainer = L.Trainer(accelerator=kind, devices=1, logger=False, use_distributed_sampler=False, plugins=alone)
    trainer.test(predictor.task, datamodule=data, verbose=False)
    assert predictor.task.evaluation is not None
    return predictor.task.evaluation, data.provenance


def save_mask(mask: np.ndarray, table: ClassTable, path: Path) -> None:
    """Write class ids [H W] as a PNG in the classes' colours that still holds the ids; of 16 bits above 255 classes."""
    if table.ignore > 255:
        Image.fromarray(mask.astype(np.uint16)).save(path)
        return
    picture = Image.fromarray(mask.astype(np.uint8))
    picture.putpalette([channel for colour in table.colours for channel in colour])
    picture.save(path)
