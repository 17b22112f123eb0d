"""TFRecord files and `tf.train.Example` messages, read without TensorFlow.

A TFRecord file is a sequence of records: the length of the data in 8 bytes, the checksum of the
length, the data, and the checksum of the data. A message is a map from names of features to lists
of bytes, floats or integers, in the wire format of protocol buffers. This module knows no image and
no label; `tfrecord.py` gives the features their meaning.

Reference: tensorflow/core/lib/io/record_writer.h and tensorflow/core/example/feature.proto;
  protobuf.dev/programming-guides/encoding; CRC-32C: RFC 3720, 12.1.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tl.storage import errors, open_file, read_range

Bytes = bytes | memoryview
# The polynomial of CRC-32C, least significant bit first.
_POLYNOMIAL = 0x82F63B78
# Bytes that are reduced to one CRC at a time, a power of two; chosen for tables that fit the cache.
_BLOCK = 64
# Data up to this length are faster byte by byte; measured.
_SHORT = 64
# Bytes of one vectorized pass, a multiple of `_BLOCK`; bounds its memory to 16 MB.
_CHUNK = 1 << 20
_HEADER = 12
_FOOTER = 4
# Bytes of the longest message that protocol buffers can write.
_LARGEST = 1 << 31
_KINDS = {1: "bytes", 2: "floats", 3: "integers"}


# ---- checksums ----


def crc32c(data: Bytes) -> int:
    """The CRC-32C of data.

    A CRC is linear. Therefore NumPy looks up each byte of a block by its position and adds them
    (XOR), and does the same with the CRCs of blocks: 0.25 ms for 100 kB on one core, 40 times as
    fast as Python.

    Example:
      >>> hex(crc32c(b"123456789"))
      '0xe3069283'
    """
    view = memoryview(data)
    crc = 0xFFFFFFFF
    for start in range(0, len(view), _CHUNK):
        crc = _extend(crc, view[start : start + _CHUNK])
    return crc ^ 0xFFFFFFFF


def _extend(crc: int, data: memoryview) -> int:
    """The register after more data, from the register before."""
    if len(data) <= _SHORT:
        table = _byte_list()
        for byte in data:
            crc = table[(crc ^ byte) & 255] ^ crc >> 8
        return crc
    # Zeros before the data have no effect on a register of 0; the register is added to the data.
    pad = -len(data) % _BLOCK
    level = np.zeros(pad + len(data), np.uint8)
    level[pad:] = np.frombuffer(data, np.uint8)
    level[pad : pad + 4] ^= np.frombuffer(struct.pack("<I", crc), np.uint8)
    width = 1
    while True:
        weights = _weights(width)
        n = len(weights) // 256
        places = np.arange(0, len(weights), 256)
        crcs = np.bitwise_xor.reduce(weights.take(level.reshape(-1, n) + places), axis=1)
        if len(crcs) == 1:
            return int(crcs[0])
        crcs = np.concatenate([np.zeros(-len(crcs) % _BLOCK, np.uint32), crcs])
        level, width = crcs.astype("<u4").view(np.uint8), width * _BLOCK


@functools.cache
def _byte_list() -> list[int]:
    return _byte_table().tolist()


@functools.cache
def _byte_table() -> np.ndarray:
    """u32[256]: the register after one byte, from 0."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = table >> np.uint32(1) ^ np.uint32(_POLYNOMIAL) * (table & np.uint32(1))
    return table


@functools.cache
def _weights(width: int) -> np.ndarray:
    """u32[n * 256]: what each byte of a block adds to the CRC of the block, by its position.

    Args:
      width: 1 for a block of `_BLOCK` bytes of data (n = 64); otherwise for `_BLOCK` CRCs, in 4
        bytes each (n = 256), of which each stands for `width` bytes.
    """
    if width == 1:
        rows = [_byte_table()]
        for _ in range(_BLOCK - 1):
            rows.append(_after_zeros(1, rows[-1]))
        return np.concatenate(rows[::-1])
    rows = [_identity()]
    for _ in range(_BLOCK - 1):
        rows.append(_after_zeros(width, rows[-1]))
    return np.concatenate(rows[::-1]).ravel()


def _identity() -> np.ndarray:
    """u32[4 256]: the value of each byte of a register."""
    return np.arange(256, dtype=np.uint32) << np.uint32(8) * np.arange(4, dtype=np.uint32)[:, None]


def _after_zeros(n: int, registers: np.ndarray) -> np.ndarray:
    """The registers, u32 of any shape, after `n` bytes of 0; `n` is a power of two."""
    table = _zeros_table(n)
    parts = (table[i][registers >> np.uint32(8 * i) & np.uint32(255)] for i in range(4))
    return functools.reduce(np.bitwise_xor, parts)


@functools.cache
def _zeros_table(n: int) -> np.ndarray:
    """u32[4 256]: each byte of a register, after `n` bytes of 0."""
    if n == 1:
        registers = _identity()
        return _byte_table()[registers & np.uint32(255)] ^ registers >> np.uint32(8)
    return _after_zeros(n // 2, _zeros_table(n // 2))


def _matches(data: Bytes, checksum: Bytes) -> bool:
    """Whether data have a checksum of TFRecord, 4 bytes: a CRC-32C that is rotated and shifted."""
    crc = crc32c(data)
    masked = (crc >> 15 | crc << 17) + 0xA282EAD8
    return struct.pack("<I", masked & 0xFFFFFFFF) == checksum


# ---- records ----


def records(path: Path) -> Iterator[tuple[int, bytes]]:
    """The records of a file from the first to the last, in one pass.

    The checksum of each length is checked, but not that of the data; see `read_record`.

    Args:
      path: an uncompressed TFRecord file.

    Returns:
      An iterator over (offset in bytes, data).

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not a TFRecord file, or is damaged or truncated.
    """
    offset = 0
    file = open_file(path)

    def read(size: int) -> bytes:
        with errors(path):
            return file.read(size)

    with file:
        while header := read(_HEADER):
            if len(header) == _HEADER and not _matches(header[:8], header[8:]):
                raise ValueError(f"{path} {_describe(header, offset)}")
            if len(header) < _HEADER:
                if not offset:
                    raise ValueError(f"{path} {_describe(header, 0)}")
                raise ValueError(
                    f"{path} is truncated: the record at byte {offset} has a header of {_HEADER} "
                    f"bytes, got {len(header)}; copy it again from where it is whole"
                )
            (length,) = struct.unpack("<Q", header[:8])
            data = read(min(length, _LARGEST) + _FOOTER)
            if len(data) < length + _FOOTER:
                raise ValueError(
                    f"{path} is truncated: the record at byte {offset} has "
                    f"{_HEADER + length + _FOOTER} bytes, got {_HEADER + len(data)}; copy it again "
                    "from where it is whole"
                )
            yield offset, data[:length]
            offset += _HEADER + length + _FOOTER


def read_record(path: Path, offset: int, length: int) -> bytes:
    """The data of one record, in one read; both checksums are checked.

    Args:
      path: an uncompressed TFRecord file, local or in a bucket.
      offset: where the record begins, in bytes.
      length: the length of the data, in bytes.

    Raises:
      OSError: the file cannot be read, or the record is damaged or truncated.
    """
    record = memoryview(read_range(path, offset, _HEADER + length + _FOOTER))
    if len(record) < _HEADER + length + _FOOTER:
        raise OSError(f"the file is truncated in the record at byte {offset}")
    header, data, checksum = record[:_HEADER], record[_HEADER:-_FOOTER], record[-_FOOTER:]
    if not _matches(header[:8], header[8:]) or struct.unpack("<Q", header[:8]) != (length,):
        raise OSError(
            f"the length of the record at byte {offset} does not match its checksum, because the "
            "file is damaged or has changed"
        )
    if not _matches(data, checksum):
        raise OSError(
            f"the data of the record at byte {offset} do not match their checksum, because the "
            "file is damaged or has changed"
        )
    return bytes(data)


def _describe(start: bytes, offset: int) -> str:
    """The end of a sentence on a header whose checksum is wrong."""
    if offset:
        return (
            f"is damaged at byte {offset}: the length of a record does not match its checksum; "
            "copy it again from where it is whole, or write it again"
        )
    for magic, kind, advice in (
        (b"\x1f\x8b", "gzip", "decompress it with gunzip"),
        (b"\x78", "zlib", "write it again without compression"),
    ):
        if start.startswith(magic):
            return (
                f"is compressed with {kind}, expected an uncompressed TFRecord file, because "
                f"images are read in any order; {advice}"
            )
    return (
        "is not a TFRecord file: it begins with "
        f"{start[:8]!r}, expected the length of a record and its checksum"
    )


# ---- messages ----


def features(message: Bytes) -> dict[str, memoryview]:
    """The features of a serialized `tf.train.Example` by name, to be read by `values`.

    Raises:
      ValueError: the data are not such a message.
    """
    by_name: dict[str, memoryview] = {}
    try:
        # Example.features = 1, Features.feature = 1: a map, whose entries have key = 1, value = 2.
        for part in _messages(memoryview(message), 1):
            for entry in _messages(part, 1):
                name, value = "", memoryview(b"")
                for number, content in _fields(entry):
                    if isinstance(content, memoryview) and number in (1, 2):
                        name, value = (
                            (str(content, "utf-8"), value) if number == 1 else (name, content)
                        )
                by_name[name] = value
    except ValueError as error:
        raise ValueError(f"the data are not a tf.train.Example: {error}") from None
    return by_name


def values(feature: Bytes) -> list[bytes] | list[float] | list[int]:
    """The list of a serialized `tf.train.Feature`; [] if it has none.

    Raises:
      ValueError: the data are not such a message.
    """
    kind, content = 0, []
    try:
        for number, message in _fields(memoryview(feature)):
            if number in _KINDS and isinstance(message, memoryview):
                # The three lists are a `oneof`: the last kind counts, and parts of one kind join.
                content = content if number == kind else []
                kind = number
                for field, value in _fields(message):
                    content += _list(kind, value) if field == 1 else []
    except ValueError as error:
        raise ValueError(f"the data are not a tf.train.Example: {error}") from None
    return content


def _list(kind: int, value: int | memoryview) -> list:
    """The values in one field of a list: one, or several that are packed."""
    if _KINDS[kind] == "bytes":
        if isinstance(value, int):
            raise ValueError("a number in a list of bytes")
        return [bytes(value)]
    if _KINDS[kind] == "floats":
        if isinstance(value, int) or len(value) % 4:
            raise ValueError("a list of floats of another size than 4 bytes each")
        return np.frombuffer(value, "<f4").tolist()
    if isinstance(value, int):
        return [_signed(value)]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(_signed(number))
    return numbers


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _messages(data: memoryview, number: int) -> Iterator[memoryview]:
    """The fields of a message that have a number and are messages themselves."""
    for field, value in _fields(data):
        if field == number and isinstance(value, memoryview):
            yield value


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: number, and an integer or the bytes of any other value."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if not number:
            raise ValueError("it has a field 0")
        if wire_type == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire_type == 2:
            length, at = _varint(data, at)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"it has a field of the type {wire_type}")
        if at + length > len(data):
            raise ValueError("it ends inside a field")
        yield number, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The integer that begins at a position, 7 bits per byte, and the position after it."""
    value = 0
    for i in range(10):
        if at + i >= len(data):
            raise ValueError("it ends inside a number")
        value |= (data[at + i] & 127) << 7 * i
        if data[at + i] < 128:
            return value & (1 << 64) - 1, at + i + 1
    raise ValueError("it has a number of more than 10 bytes")
