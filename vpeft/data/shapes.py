"""Rendered scenes with exact labels for several dense tasks: a small stand-in, named synthetic, for tests and CPU runs.

Balls, ramps and figures of six parts stand before a wall under one light. What has a colour is salient; grey things
are not. Every scene follows from (seed, part, index) alone.

Shapes: H W pixels; y points down, the camera looks along -z, normals point at it.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

CLASSES = ("wall", "ball", "ramp", "figure")
PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")

# Of a figure of height 1 and width .6 around (0, 0): part, left, right, top, bottom; the head is a ball.
_FIGURE = (
    (2, -0.13, 0.13, -0.26, 0.10),
    (3, -0.24, -0.15, -0.26, -0.06),
    (3, 0.15, 0.24, -0.26, -0.06),
    (4, -0.24, -0.15, -0.06, 0.14),
    (4, 0.15, 0.24, -0.06, 0.14),
    (5, -0.13, -0.02, 0.10, 0.30),
    (5, 0.02, 0.13, 0.10, 0.30),
    (6, -0.13, -0.02, 0.30, 0.50),
    (6, 0.02, 0.13, 0.30, 0.50),
)
_LIGHT = np.array([0.45, -0.45, 0.77])


class Shapes:
    """Scenes {image: uint8 [3, H, W], semseg, human_parts, saliency: int64 [H, W], normals: float [3, H, W]}.

    Args:
        count: Of scenes.
        size: (H, W).
        part: Tells the scenes of one split from those of another.
        seed: With part and index it decides a scene.
    """

    outputs: ClassVar[dict[str, int]] = {"semseg": len(CLASSES), "human_parts": len(PARTS), "saliency": 1, "normals": 3}
    classes: ClassVar[dict[str, tuple[str, ...]]] = {"semseg": CLASSES, "human_parts": PARTS}

    def __init__(self, count: int, size: tuple[int, int], part: int, seed: int = 0) -> None:
        self.count, self.size, self.part, self.seed = count, size, part, seed

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> dict[str, Tensor]:
        """Render one scene."""
        canvas = _Canvas(self.size, np.random.default_rng([self.seed, self.part, index]))
        return canvas.finish()


class _Canvas:
    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        height, width = size
        self.rng = rng
        self.y, self.x = np.mgrid[0:height, 0:width] / min(height, width)
        self.semseg, self.parts, self.saliency = (np.zeros(size, np.int64) for _ in range(3))
        self.normals = np.zeros((3, *size), np.float32)
        self.normals[2] = 1
        self.colours = np.empty((3, *size))
        self.colours[:] = rng.uniform(0.3, 0.7)
        self.room = (width / min(size), height / min(size))
        for _ in range(rng.integers(2, 4)):
            (self._ball, self._ramp, self._figure)[rng.integers(3)]()

    def _place(self, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates around a random centre, in units of a random size."""
        size = self.rng.uniform(low, high)
        x0, y0 = (self.rng.uniform(0.5 * size, room - 0.5 * size) for room in self.room)
        return (self.x - x0) / size, (self.y - y0) / size

    def _look(self) -> tuple[np.ndarray, bool]:
        """A colour, and whether it is one."""
        coloured = bool(self.rng.random() < 0.7)
        if not coloured:
            return np.full(3, self.rng.uniform(0.3, 0.9)), False
        colour = self.rng.uniform(0.0, 0.25, 3)
        colour[self.rng.integers(3)] = self.rng.uniform(0.8, 1.0)
        return colour, True

    def _paint(
        self, mask: np.ndarray, kind: int, part: int, normals: np.ndarray, look: tuple[np.ndarray, bool]
    ) -> None:
        self.semseg[mask], self.parts[mask], self.saliency[mask] = kind, part, int(look[1])
        self.normals[:, mask] = (normals / np.linalg.norm(normals, axis=0))[:, mask]
        self.colours[:, mask] = look[0][:, None]

    def _ball(self) -> None:
        x, y = self._place(0.25, 0.55)
        self._sphere(2 * x, 2 * y, CLASSES.index("ball"), 0, self._look())

    def _sphere(self, x: np.ndarray, y: np.ndarray, kind: int, part: int, look: tuple[np.ndarray, bool]) -> None:
        inside = 1 - x**2 - y**2
        self._paint(inside > 0, kind, part, np.stack([x, y, np.sqrt(inside.clip(1e-6))]), look)

    def _ramp(self) -> None:
        x, y = self._place(0.3, 0.6)
        tilt = self.rng.uniform(-1, 1, 2)
        normals = np.stack([np.full_like(x, tilt[0]), np.full_like(x, tilt[1]), np.ones_like(x)])
        self._paint((abs(x) < 0.5) & (abs(y) < 0.35), CLASSES.index("ramp"), 0, normals, self._look())

    def _figure(self) -> None:
        x, y = self._place(0.6, 0.95)
        look, kind = self._look(), CLASSES.index("figure")
        self._sphere((x / 0.12), (y + 0.38) / 0.12, kind, 1, look)
        for part, left, right, top, bottom in _FIGURE:
            across = (2 * x - left - right) / (right - left)  # a cylinder that stands upright
            normals = np.stack([across, np.zeros_like(x), np.sqrt((1 - across**2).clip(1e-6))])
            self._paint((abs(across) < 1) & (y > top) & (y <= bottom), kind, part, normals, look)

    def finish(self) -> dict[str, Tensor]:
        shade = 0.25 + 0.75 * np.einsum("c,chw->hw", _LIGHT, self.normals).clip(0)
        noise = self.rng.normal(0, 0.02, self.colours.shape)
        image = ((self.colours * shade + noise).clip(0, 1) * 255).astype(np.uint8)
        labels = {"semseg": self.semseg, "human_parts": self.parts, "saliency": self.saliency, "normals": self.normals}
        found = {"image": image, **labels}
        if not self.parts.any():
            found["human_parts"] = np.full_like(self.parts, 255)  # as in PASCAL-Context: nobody is labelled there
        return {name: torch.from_numpy(array) for name, array in found.items()}
