"""Pixels are OpenCV's to the last bit: hashes made with opencv-python-headless 5.0.0.93, the same with 4.5.5.64.

cv2.resize(image, dsize=None, fx=factor, fy=factor) and cv2.GaussianBlur(image, (0, 0), sigma)
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from vpeft.data.opencv import blur, rescale


def image() -> np.ndarray:
    y, x = np.mgrid[:90, :131]
    return np.stack([(3 * x + 5 * y) % 256, (x * y // 7) % 256, (x * x + 11 * y) % 256], -1).astype(np.uint8)


def digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("factor", "shape", "expected"),
    [
        (0.37, (33, 48), "6407889240c02ad4"),
        (0.731, (66, 96), "c00869497d0df9d3"),
        (0.999, (90, 131), "75bc40ada598cee4"),  # keeps its size and so its pixels
        (1 / 3, (30, 44), "4a185b5ec8bfcaf1"),
        (1.7, (153, 223), "2f61d8fcd636e5fe"),
        (2.0, (180, 262), "ef3a7b4b6b59a43a"),
    ],
)
def test_rescaled_pixels_are_opencvs(factor: float, shape: tuple[int, int], expected: str) -> None:
    scaled = rescale(image(), factor)
    assert scaled.shape == (*shape, 3)
    assert digest(scaled) == expected


@pytest.mark.parametrize(
    ("sigma", "expected"),
    [(0.8, "1c2a3e8e6899f88e"), (2.5, "d956bef3c7f3b36c"), (10, "8ce8c286d533132a"), (20, "758f44db502366a5")],
)
def test_blurred_pixels_are_opencvs(sigma: float, expected: str) -> None:
    assert digest(blur(image(), sigma)) == expected
