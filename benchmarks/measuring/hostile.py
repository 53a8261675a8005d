"""Files made to hurt: huge, deep, full of aliases, or larger when read than their bytes."""

from __future__ import annotations

import base64
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator

LARGE, DEEP = 200_000_000, 10_000


def large_json(result: bytes) -> Iterator[bytes]:
    head = b'{"schema": "lightning_sanity.result", "version": 2, "settings": '
    yield head + b"[" * DEEP + b"]" * DEEP + b"}"
    yield head + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}"
    yield head + b"[" + b"0," * (LARGE // 2) + b"0]}"
    yield head + b'"' + b"x" * LARGE + b'"}'
    yield head + b"[" + b"0," * 500_000 + b"0]}"
    yield head + b"9" * 1_000_000 + b"}"
    yield b" " * LARGE
    yield head + b'"' + b"x" * 120_000_000 + b'"}'
    tree = json.loads(result)
    for megabytes in (200, 600):  # of zeros, which are a few kilobytes in a file
        packed = base64.b64encode(zlib.compress(bytes(megabytes << 20))).decode()
        tree["trained_maps"] = {"a": {"shape": [megabytes << 20], "dtype": "uint8", "zlib": packed}}
        yield json.dumps(tree).encode()


def large_yaml() -> Iterator[bytes]:
    aliases = [b"a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    aliases += [b"a%d: &a%d [%s]" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)]
    yield b"\n".join(aliases)
    yield b"model: &m {init_args: *m}"
    yield b"model: {init_args: &m {a: *m}}\n"
    yield b"require: " + b"[" * DEEP + b"]" * DEEP
    yield b"model: " + b"{a: " * DEEP + b"1" + b"}" * DEEP
    yield b"".join(b" " * i + b"a:\n" for i in range(2000))
    yield b"require: [" + b"a, " * (LARGE // 3) + b"a]"
    yield b"min_trials: " + b"9" * 30_000
    yield b"require: [" + b"a, " * 10_000 + b"a]"
    yield b"? [a, b]\n: 1\n"


def large_checkpoints() -> Iterator[bytes]:
    yield b"PK\x03\x04" + b"\x00" * LARGE
    yield b"\x80\x02" + b"(" * (LARGE // 4)
    yield _zipped({"a/data.pkl": b"\x80\x02" + b"]" * DEEP + b"a" * DEEP + b"."})
    yield _zipped({"a/data.pkl": b"\x80\x02" + b"X\xff\xff\xff\x7f" + b"x" * 100 + b"."})
    yield _zipped({"a/data.pkl": b"\x80\x02" + b"(" * 1_900_000 + b"."})
    yield _zipped({f"a/data/{i}": b"" for i in range(200_000)} | {"a/data.pkl": b"\x80\x02}."})
    double = b"\x80\x02]q\x00(" + b"".join(b"h\x00" for _ in range(1000)) + b"e."
    yield _zipped({"a/data.pkl": double})


def large_safetensors() -> Iterator[bytes]:
    yield struct.pack("<Q", LARGE) + b"{" + b" " * LARGE
    yield struct.pack("<Q", 1 << 62) + b"{}"
    deep = b'{"a":' * DEEP + b"1" + b"}" * DEEP
    yield struct.pack("<Q", len(deep)) + deep
    many = json.dumps(
        {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(200_000)}
    ).encode()
    yield struct.pack("<Q", len(many)) + many
    wide = json.dumps({"t": {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 4]}}).encode()
    yield struct.pack("<Q", len(wide)) + wide + b"1234"


def _zipped(records: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return made.getvalue()
