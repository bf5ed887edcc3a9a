"""TFRecord files and the tf.train.Example messages in them, read without TensorFlow.

    length (8 bytes, little-endian) ‖ masked CRC-32C of length ‖ data ‖ masked CRC-32C of data

Format: tensorflow.org/tutorials/load_data/tfrecord. TensorBoard's reader checks byte by byte in Python and would
take hours for VTAB's records.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import IO, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from vpeft.vtab1k.archives import Stored
from vpeft.vtab1k.crc import masked_crc

_HEAD, _TAIL = 12, 4


def records(stream: IO[bytes], name: str) -> Iterator[tuple[int, int]]:
    """Offset and size of the data of every record, found by the lengths alone.

    Raises:
        ValueError: A length contradicts its checksum, or the file ends within a record.
    """
    offset = 0
    while head := stream.read(_HEAD):
        size = int.from_bytes(head[:8], "little")
        if len(head) < _HEAD or int.from_bytes(head[8:], "little") != masked_crc(head[:8]):
            raise ValueError(f"{name} is no TFRecord file, or damaged at byte {offset:,}; fetch or prepare it again.")
        yield offset + _HEAD, size
        end = offset + _HEAD + size + _TAIL
        # The last byte of the checksum is read, as a seek beyond the end of a file is no error.
        stream.seek(end - 1)
        if not stream.read(1):
            raise ValueError(f"{name} is cut short within the record at byte {offset:,}; fetch or prepare it again.")
        offset = end


def read_record(file: Stored, offset: int, size: int) -> bytes:
    """The data of one record.

    Args:
        file: The TFRecord file.
        offset: Of the data, as `records` gives it.
        size: Of the data.

    Raises:
        ValueError: The data contradicts its checksum.
    """
    both = file.part(offset, size + _TAIL).read()
    data, stored = both[:size], int.from_bytes(both[size:], "little")
    if masked_crc(data) != stored:
        raise ValueError(f"{file.name} is damaged at byte {offset:,} (a checksum differs); fetch or prepare it again.")
    return data


def parse_example(data: bytes) -> dict[str, list[Any]]:
    """The features of a tf.train.Example by name: bytes, floats or integers.

    Raises:
        ValueError: It is no such message.
    """
    try:
        message: Any = _example()()
        message.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"a record is no tf.train.Example ({error})") from error
    found = message.features.feature
    return {name: list(getattr(found[name], found[name].WhichOneof("kind") or "bytes_list").value) for name in found}


@cache
def _example() -> Any:
    """The message class of tensorflow/core/example/{example,feature}.proto, built from their fields."""
    file = descriptor_pb2.FileDescriptorProto(name="vpeft/example.proto", package="vpeft", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    lists = (("BytesList", field.TYPE_BYTES), ("FloatList", field.TYPE_FLOAT), ("Int64List", field.TYPE_INT64))
    feature = descriptor_pb2.DescriptorProto(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind) in enumerate(lists, start=1):
        values = file.message_type.add(name=name)
        values.field.add(name="value", number=1, label=field.LABEL_REPEATED, type=kind)
        one = {"BytesList": "bytes_list", "FloatList": "float_list", "Int64List": "int64_list"}[name]
        feature.field.add(
            name=one, number=number, label=1, type=field.TYPE_MESSAGE, type_name=f".vpeft.{name}", oneof_index=0
        )
    file.message_type.append(feature)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=field.TYPE_STRING)
    entry.field.add(name="value", number=2, label=1, type=field.TYPE_MESSAGE, type_name=".vpeft.Feature")
    features.field.add(
        name="feature", number=1, label=3, type=field.TYPE_MESSAGE, type_name=".vpeft.Features.FeatureEntry"
    )
    example = file.message_type.add(name="Example")
    example.field.add(name="features", number=1, label=1, type=field.TYPE_MESSAGE, type_name=".vpeft.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("vpeft.Example"))
