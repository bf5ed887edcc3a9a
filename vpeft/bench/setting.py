"""On what is measured: backbone, batch, precision, device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PRECISIONS = ("fp32", "bf16", "bf16-frozen")


@dataclass(frozen=True)
class Setting:
    """What every case of a file has in common.

    Args:
        backbone: timm name; weights are random, which has no influence on time.
        batch: Images a training step.
        image_size: Side in pixels; None is the backbone's own.
        device: cpu or cuda.
        precision: fp32; bf16 for autocast; bf16-frozen for autocast with the frozen weights kept in bf16.
        threads: CPU threads of torch.
        inference_batch: Images a forward pass of inference.

    Raises:
        ValueError: A precision that is not known, or a number below 1.
    """

    backbone: str = "vit_base_patch16_224"
    batch: int = 16
    image_size: int | None = None
    device: str = "cpu"
    precision: str = "fp32"
    threads: int = 2
    inference_batch: int = 4

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is '{self.precision}'; there are {', '.join(PRECISIONS)}.")
        numbers: dict[str, Any] = {
            name: getattr(self, name) for name in ("batch", "threads", "inference_batch", "image_size")
        }
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; at least 1 is needed.")
