"""Small archives in the official layout of CIFAR-100, SVHN, dSprites, small NORB and DMLab.

Numpy, Pillow and scipy only: tests/golden/make_tfds.py writes the same ones where TFDS's builders read them.
"""

from __future__ import annotations

import gzip
import io
import itertools
import struct
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

# What the goldens were made of: enough examples that no order agrees by chance.
SIZES = {
    "cifar100": {"train": 40, "test": 20},
    "svhn": {"train": 40, "test": 20},
    "dsprites": {"train": 320},
    "smallnorb": {"train": 30, "test": 20},
    "dmlab": {"train": 30, "validation": 20, "test": 10},
}


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w:gz") -> Path:
    """A tar file with these members."""
    with tarfile.open(path, mode) as opened:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return path


def colours(count: int, seed: int) -> np.ndarray:
    """N 3 uint8: one colour an image, all different in practice."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3), dtype=np.uint8)


def cifar100(folder: Path, sizes: dict[str, int]) -> Path:
    """cifar-100-binary.tar.gz; image i is of one colour, its fine label i % 100, its coarse label i % 20."""
    members = [("cifar-100-binary/fine_label_names.txt", "\n".join(f"fine{i}" for i in range(100)).encode())]
    members.append(("cifar-100-binary/coarse_label_names.txt", "\n".join(f"coarse{i}" for i in range(20)).encode()))
    for seed, (split, count) in enumerate(sizes.items()):
        rows = bytearray()
        for i, colour in enumerate(colours(count, seed)):
            rows += bytes([i % 20, i % 100]) + np.repeat(colour, 32 * 32).tobytes()
        members.append((f"cifar-100-binary/{split}.bin", bytes(rows)))
    return write_tar(folder / "cifar-100-binary.tar.gz", members)


def svhn(folder: Path, sizes: dict[str, int]) -> None:
    """train_32x32.mat and test_32x32.mat; image i shows the digit i % 10, stored as 10 where it is 0."""
    from scipy.io import savemat

    for seed, (split, count) in enumerate(sizes.items()):
        images = np.broadcast_to(colours(count, seed).T[None, None], (32, 32, 3, count))
        digits = np.array([[i % 10 or 10] for i in range(count)], np.uint8)
        savemat(folder / f"{split}_32x32.mat", {"X": images, "y": digits}, do_compression=True)


def dsprites_arrays(count: int) -> tuple[np.ndarray, np.ndarray]:
    """`imgs` and `latents_classes`: one of 1 x 1 x 1 x 40 x N/40 x 1 combinations each, a bar as the image."""
    classes = np.array(list(itertools.product([0], [0], [0], range(40), range(count // 40), [0])), np.int64)
    images = np.zeros((len(classes), 64, 64), np.uint8)
    for image, row in zip(images, classes, strict=True):
        image[row[3], : row[4] + 1] = 1
    return images, classes


def dsprites(folder: Path, sizes: dict[str, int]) -> Path:
    """The npz file, with the pickled metadata that the true one has."""
    images, classes = dsprites_arrays(sizes["train"])
    path = folder / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
    metadata = np.array({"title": "dSprites dataset"}, dtype=object)
    np.savez_compressed(
        path, metadata=metadata, imgs=images, latents_classes=classes, latents_values=classes.astype(np.float64)
    )
    return path


def _norb(data: np.ndarray) -> bytes:
    magic = {"u1": 0x1E3D4C55, "i4": 0x1E3D4C54}[data.dtype.str[1:]]
    sizes = list(data.shape) + [1] * (3 - data.ndim)
    return struct.pack(f"<ii{len(sizes)}i", magic, data.ndim, *sizes) + data.tobytes()


def smallnorb(folder: Path, sizes: dict[str, int]) -> None:
    """The six .mat.gz files; elevation is i % 9, azimuth 2 (i % 18), and the second camera shows the negative."""
    stems = {
        "train": "smallnorb-5x46789x9x18x6x2x96x96-training",
        "test": "smallnorb-5x01235x9x18x6x2x96x96-testing",
    }
    for split, count in sizes.items():
        grey = (np.arange(count) * 7 % 251).astype(np.uint8)
        pair = np.stack([grey, 255 - grey], 1)[:, :, None, None]
        info = np.array([[i % 10, i % 9, i % 18 * 2, i % 6] for i in range(count)], "<i4")
        category = np.array([i % 5 for i in range(count)], "<i4")
        for kind, data in (
            ("dat", np.broadcast_to(pair, (count, 2, 96, 96)).copy()),
            ("info", info),
            ("cat", category),
        ):
            (folder / f"{stems[split]}-{kind}.mat.gz").write_bytes(gzip.compress(_norb(data), mtime=0))


def jpeg(colour: np.ndarray, size: tuple[int, int]) -> bytes:
    """A JPEG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, tuple(colour.tolist())).save(buffer, "JPEG")
    return buffer.getvalue()


def crc32c(data: bytes) -> int:
    """CRC-32C bit by bit, as RFC 3720 writes it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def tfrecord(records: Iterable[bytes], crc: Callable[[bytes], int] = crc32c) -> bytes:
    """A TFRecord file."""

    def masked(data: bytes) -> bytes:
        value = crc(data)
        return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    stored = bytearray()
    for data in records:
        head = struct.pack("<Q", len(data))
        stored += head + masked(head) + data + masked(data)
    return bytes(stored)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def tf_example(features: dict[str, list[bytes] | list[int] | list[float]]) -> bytes:
    """A serialised tf.train.Example."""
    entries = b""
    for name, values in features.items():
        if isinstance(values[0], bytes):
            feature = _field(1, b"".join(_field(1, value) for value in values))  # type: ignore[arg-type]
        elif isinstance(values[0], float):
            feature = _field(2, _field(1, struct.pack(f"<{len(values)}f", *values)))
        else:
            feature = _field(3, _field(1, b"".join(_varint(int(value)) for value in values)))
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def dmlab(folder: Path, sizes: dict[str, int], crc: Callable[[bytes], int] = crc32c) -> Path:
    """dmlab.tar.gz: two TFRecord files a split; frame i has the label i % 6."""
    members = []
    for seed, (split, count) in enumerate(sizes.items()):
        frames = [
            tf_example(
                {
                    "image": [jpeg(colour, (480, 360))],
                    "filename": [f"dmlab_{split}_{i * 7919:08d}.jpg".encode()],
                    "label": [i % 6],
                }
            )
            for i, colour in enumerate(colours(count, seed))
        ]
        half = count // 2
        for shard, part in enumerate((frames[:half], frames[half:])):
            members.append((f"dmlab-{split}.tfrecord-0000{shard}-of-00002", tfrecord(part, crc)))
    return write_tar(folder / "dmlab.tar.gz", members)
