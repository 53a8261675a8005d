"""Changes of files at random: of their bytes, and of what a format holds inside while the outside still fits."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

import yaml

NUMBERS = [
    b"0",
    b"-1",
    b"1",
    b"0.5",
    b"NaN",
    b"1e999",
    b"-0",
    b"99999999999999999999999",
    b"9" * 5000,
    b"true",
    b"null",
]


def changed_bytes(raw: bytes, draw: random.Random, words: list[bytes], sources: list[bytes]) -> bytes:
    """One change that knows nothing of the format but some words of it."""
    data = bytearray(raw)
    at = draw.randrange(len(data) + 1)
    stop = min(len(data), at + draw.choice([1, 2, 8, 64, 512, 1 << 14]))
    kind = draw.randrange(8)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        data[at:stop] = draw.randbytes(stop - at)
    elif kind == 2:
        del data[at:stop]
    elif kind == 3:
        data[at:at] = data[at:stop] * draw.choice([1, 1, 2, 100])
    elif kind == 4:
        del data[at:]
    elif kind == 5:
        data[at:at] = draw.choice(words + NUMBERS)
    elif kind == 6:
        other = draw.choice(sources)
        start = draw.randrange(len(other) + 1)
        data[at:stop] = other[start : start + draw.choice([8, 64, 4096])]
    elif kind == 7:
        word = draw.choice(words)
        data = bytearray(bytes(data).replace(word, draw.choice(words + NUMBERS), draw.choice([1, -1])))
    return bytes(data)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested dictionaries and lists but the outermost."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def changed_value(tree: Any, draw: random.Random) -> Any:
    """One value of nested dictionaries and lists changed, or one key."""
    found = list(places(tree))
    if not found:
        return tree
    *above, last = draw.choice(found)
    holder = tree
    for key in above:
        holder = holder[key]
    old = holder[last]
    others: list[Any] = [
        None,
        True,
        -1,
        0,
        0.05,
        0.99,
        1e308,
        10**30,
        "",
        "PASS",
        "x" * 10_000,
        [],
        {},
        [[]] * 50,
        "\x00",
    ]
    kind = draw.randrange(6)
    if kind == 0:
        del holder[last]
    elif kind == 1 and isinstance(holder, dict):
        holder[draw.choice(["", "passed", "outcome", "a" * 300, str(last) + "x"])] = holder.pop(last)
    elif kind == 2:
        node = tree
        for key in draw.choice(found):
            node = node[key]
        holder[last] = copy.deepcopy(node)
    elif kind == 3 and isinstance(old, (int, float)):
        holder[last] = draw.choice([-old, old + 1, old * 2, str(old), old * 1e9])
    elif kind == 4 and isinstance(old, (list, str)):
        holder[last] = draw.choice([old[:-1], old + old, old[::-1]])
    else:
        holder[last] = draw.choice(others)
    return tree


def changed_json(raw: bytes, draw: random.Random) -> bytes:
    return json.dumps(changed_value(json.loads(raw), draw)).encode()


def changed_yaml(raw: bytes, draw: random.Random) -> bytes:
    return yaml.safe_dump(changed_value(yaml.safe_load(raw), draw), sort_keys=False).encode()


def changed_pickle(raw: bytes, draw: random.Random) -> bytes:
    """A file of torch.save whose pickle, or one of whose records, is changed; the archive itself is whole."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        records = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    name = draw.choice(
        [*records, *(n for n in records if n.endswith(".pkl")), *(n for n in records if n.endswith(".pkl"))]
    )
    record = records[name]
    for _ in range(draw.choice([1, 1, 3])):
        at = draw.randrange(len(record) + 1)
        if draw.random() < 0.4 and at < len(record):
            record[at] = draw.choice(b"cRb\x81\x93(.Q}u)t\x85q0]eabK\x8a")
        elif draw.random() < 0.5:
            record[at : at + draw.choice([1, 4])] = struct.pack("<i", draw.choice([-1, 0, 1, 1 << 30]))
        else:
            record[at:at] = record[: draw.choice([1, 10, 1000])]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", draw.choice([zipfile.ZIP_STORED] * 5 + [zipfile.ZIP_DEFLATED])) as archive:
        for key, data in records.items():
            archive.writestr(draw.choice([key] * 20 + [f"../{key}", key + "x"]), bytes(data))
    return made.getvalue()


def changed_header(raw: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose header is changed and still is as long as it says."""
    (length,) = struct.unpack_from("<Q", raw, 0)
    head = json.dumps(changed_value(json.loads(raw[8 : 8 + length]), draw)).encode()
    return struct.pack("<Q", len(head)) + head + raw[8 + length :]
