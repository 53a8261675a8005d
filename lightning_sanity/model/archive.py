"""Where things lie in a checkpoint file: the records of a zip archive, the tensors of a safetensors file.

Nothing is unpacked and nothing is copied: every size that a file declares is compared with the bytes that are there.
"""

from __future__ import annotations

import json
import mmap
import struct
from typing import Any

_DIRECTORY = 1 << 24  # bytes of the list of records: some hundred thousand
_HEADER = 1 << 24  # bytes of the header of a safetensors file
_END, _END_64, _LOCATOR_64, _ENTRY, _LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
_SPILLED = 0xFFFFFFFF  # a size that stands in the 64-bit part

Place = tuple[int, int]
"""Offset and size in bytes."""


def is_zip(data: mmap.mmap) -> bool:
    """Whether a file begins like the archives that ``torch.save`` writes."""
    return data[:4] == _LOCAL


def records(data: mmap.mmap) -> dict[str, Place]:
    """The records of a zip archive, by name; names are never used as paths.

    Raises:
        ValueError: If it is damaged, or a record is compressed, which ``torch.save`` does to none.
    """
    try:
        return _records(data)
    except struct.error as error:
        raise ValueError("the archive is cut off") from error


def _records(data: mmap.mmap) -> dict[str, Place]:
    end = data.rfind(_END, max(0, len(data) - 22 - 0xFFFF))
    if end < 0:
        raise ValueError("the archive has no end: it is cut off")
    size, at = struct.unpack_from("<II", data, end + 12)
    if end >= 20 and data[end - 20 : end - 16] == _LOCATOR_64:
        (place,) = struct.unpack_from("<Q", data, end - 12)
        if data[place : place + 4] == _END_64:
            size, at = struct.unpack_from("<QQ", data, place + 40)
    if size > _DIRECTORY or at + size > end:
        raise ValueError(f"the archive lists records in {size} bytes, which cannot be")
    found: dict[str, Place] = {}
    stop = at + size
    while at < stop:
        if data[at : at + 4] != _ENTRY:
            raise ValueError("the archive's list of records is damaged")
        flags, method = struct.unpack_from("<HH", data, at + 8)
        packed, whole, long_name, long_extra, long_comment = struct.unpack_from("<IIHHH", data, at + 20)
        (local,) = struct.unpack_from("<I", data, at + 42)
        extra = at + 46 + long_name
        name = data[at + 46 : extra].decode("utf-8", "replace")
        whole, packed, local = _in_64_bits(data[extra : extra + long_extra], [whole, packed, local])
        if method != 0 or flags & 1 or packed != whole:
            raise ValueError(f"'{name[:60]}' is compressed or encrypted: of a scripted module save the state_dict")
        found[name] = _place(data, local, whole, name)
        at = extra + long_extra + long_comment
    return found


def _in_64_bits(extra: bytes, sizes: list[int]) -> list[int]:
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            for index, size in enumerate(sizes):
                if size == _SPILLED:
                    (sizes[index],) = struct.unpack_from("<Q", extra, position + 4)
                    position += 8
            break
        position += 4 + length
    return sizes


def _place(data: mmap.mmap, local: int, size: int, name: str) -> Place:
    if data[local : local + 4] != _LOCAL:
        raise ValueError(f"the record '{name[:60]}' is not where the archive says")
    start = local + 30 + sum(struct.unpack_from("<HH", data, local + 26))
    if start + size > len(data):
        raise ValueError(f"the record '{name[:60]}' claims {size} bytes, of which the file does not hold all")
    return start, size


def safetensors(data: mmap.mmap) -> dict[str, tuple[str, list[int], Place]] | None:
    """Type, shape and place of every tensor of a safetensors file; None of any other file.

    Raises:
        ValueError: If it is damaged.
    """
    if len(data) < 10 or data[8:9] != b"{":
        return None
    (length,) = struct.unpack_from("<Q", data, 0)
    if length > len(data) - 8:
        return None
    head = data[8 : 8 + length] if length <= _HEADER else b"," * (_HEADER + 1)
    if len(head) > _HEADER or head.count(b",") + head.count(b"[") > 1 << 20:
        raise ValueError(f"a header of {length} bytes is more than is read")
    try:
        entries: Any = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the header is not JSON: {str(error)[:100]}") from error
    found = {}
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (start, stop) = str(entry["dtype"]), entry["shape"], entry["data_offsets"]
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"the header says nothing of use about '{name[:60]}'") from error
        numbers = [*shape, start, stop] if isinstance(shape, list) else [None]
        if (
            any(type(number) is not int or number < 0 for number in numbers)
            or not start <= stop <= len(data) - 8 - length
        ):
            raise ValueError(f"'{name[:60]}' lies outside the file")
        found[name] = dtype, shape, (8 + length + start, stop - start)
    return found
