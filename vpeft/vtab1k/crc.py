"""CRC-32C (Castagnoli, RFC 3720 appendix B.4), the checksum of TFRecord files, fast enough for gigabytes."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np

_POLYNOMIAL = 0x82F63B78  # reflected
_LONG = 512  # bytes, below which the plain loop is faster


def masked_crc(data: bytes) -> int:
    """The checksum rotated and shifted as TFRecord files store it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """The checksum of some bytes.

    The code is linear. Long data is split into equal rows whose remainders are computed side by side; the remainder
    of what lies before is carried across a row by four look-ups.
    """
    table, crc, done = _table(), 0xFFFFFFFF, 0
    if len(data) >= _LONG:
        width = 1 << (len(data).bit_length() // 2)
        rows = np.frombuffer(data, np.uint8, len(data) // width * width).reshape(-1, width)
        remainders = np.zeros(len(rows), np.uint32)
        for column in np.ascontiguousarray(rows.T):
            remainders = table[(remainders ^ column) & 255] ^ (remainders >> 8)
        first, second, third, fourth = _across(width)
        for own in remainders.tolist():
            carried = first[crc & 255] ^ second[crc >> 8 & 255] ^ third[crc >> 16 & 255] ^ fourth[crc >> 24]
            crc = carried ^ own
        done = rows.size
    plain = _plain_table()
    for byte in data[done:]:
        crc = plain[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@cache
def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table.astype(np.uint32)


@cache
def _plain_table() -> list[int]:
    return _table().tolist()


@lru_cache(maxsize=32)
def _across(width: int) -> list[list[int]]:
    """What `width` zero bytes make of a remainder: a table for each of its four bytes."""
    shifted = (np.arange(256, dtype=np.uint32)[None] << np.arange(0, 32, 8, dtype=np.uint32)[:, None]).reshape(-1)
    for _ in range(width):
        shifted = _table()[shifted & 255] ^ shifted >> 8
    return shifted.reshape(4, 256).tolist()
