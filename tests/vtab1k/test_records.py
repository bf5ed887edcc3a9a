"""TFRecord files are read as TensorFlow reads them, and damage is found by the checksums."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from tests.vtab1k import fakes
from vpeft.vtab1k.archives import Stored
from vpeft.vtab1k.crc import crc32c
from vpeft.vtab1k.records import parse_example, read_record, records


def test_the_checksum_is_that_of_rfc_3720() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes([255] * 32)) == 0x62A8AB43


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1000, 4096, 5003])
def test_rows_side_by_side_give_the_checksum_bit_by_bit(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == fakes.crc32c(data)


def stored(path: Path) -> Stored:
    return Stored(path, "file", path.name, 0, path.stat().st_size)


def test_a_file_that_another_library_wrote_is_read(tmp_path: Path) -> None:
    writer = EventFileWriter(str(tmp_path))
    for step in range(3):
        writer.add_event(Event(step=step))
    writer.close()
    (path,) = tmp_path.iterdir()
    with path.open("rb") as stream:
        found = list(records(stream, "events"))
    steps = [Event.FromString(read_record(stored(path), *one)).step for one in found]
    assert steps[-3:] == [0, 1, 2]


def test_features_of_every_kind_are_parsed() -> None:
    given = {"image": [b"\x00png"], "x": [1.5, -2.0], "label": [3, 300, 2**40], "name": [b"a", b"b"]}
    assert parse_example(fakes.tf_example(given)) == given
    with pytest.raises(ValueError, match=r"is no tf\.train\.Example"):
        parse_example(b"\xff\xff\xff")


def test_damage_is_told_with_the_byte(tmp_path: Path) -> None:
    data = fakes.tfrecord([b"first", b"second" * 200])
    (first, second) = records(io.BytesIO(data), "x.tfrecord")
    assert data[first[0] : sum(first)] == b"first"
    with pytest.raises(ValueError, match=r"x.tfrecord is no TFRecord file, or damaged at byte 0"):
        list(records(io.BytesIO(b"\x01" + data[1:]), "x.tfrecord"))
    with pytest.raises(ValueError, match=r"x.tfrecord is cut short within the record at byte 21"):
        list(records(io.BytesIO(data[:-1]), "x.tfrecord"))
    path = tmp_path / "y.tfrecord"
    path.write_bytes(data.replace(b"secondsecond", b"secondSecond", 1))
    with pytest.raises(ValueError, match=rf"y.tfrecord is damaged at byte {second[0]} .* fetch or prepare it again"):
        read_record(stored(path), *second)
