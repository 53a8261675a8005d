"""A result as JSON: its fields as keys, tensors as text, read back strictly and never executed.

The file follows the dataclasses of ``result``: a field is a key, NaN is null. A reader ignores keys it does not know
and fills in those that an older writer left out, so that only a change of meaning raises the version. The same shape
for other programs: ``result.schema.json`` beside this module.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from lightning_sanity.resources.files import regular, write_whole

SCHEMA = "lightning_sanity.result"
VERSION = 3  # similarities may be rounded, see ``curve``; 1 had no grounds
UNROUNDED = 2  # of a file that readers from before can read
# What a file may hold, by what it says of itself: about three times the largest release test that we have seen.
MAX_FILE = 1 << 27  # bytes
MAX_VALUES = 1 << 20  # numbers, texts and objects
MAX_TENSORS = 1 << 28  # bytes of all tensors once unpacked
MAX_TEXT = 1 << 20  # characters of a text that is no tensor

_DTYPES = {"float32": torch.float32, "int8": torch.int8, "uint8": torch.uint8}
_PLAIN = {str: "text", bool: "true or false", int: "an integer", float: "a number or null"}


def encode(value: Any, tensor: Callable[[Tensor], Any] | None = None) -> Any:
    """Plain JSON types for dataclasses, mappings, sequences, enumerations, tensors and numbers.

    Args:
        value: Any of these.
        tensor: What stands for a tensor; text by default.
    """
    if isinstance(value, Tensor):
        return _encode_tensor(value) if tensor is None else tensor(value)
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return {field.name: encode(getattr(value, field.name), tensor) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(item, tensor) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item, tensor) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class _Packed:
    """A tensor as text: its bytes, little-endian, zlib-compressed, in base64."""

    shape: tuple[int, ...]
    dtype: str
    zlib: Any  # a text of any length


class Decoder:
    """Turns JSON types back into what an annotation says.

    Raises:
        ValueError: On whatever does not fit, naming the place.
    """

    def __init__(self) -> None:
        self._left = MAX_TENSORS

    def decode(self, kind: Any, data: Any, where: str) -> Any:
        """``data`` as an instance of the annotation ``kind``."""
        if kind is Any:
            return data
        if kind in _PLAIN:
            return _plain(kind, data, where)
        if kind is Tensor:
            return self._tensor(data, where)
        if is_dataclass(kind):
            return self.record(kind, data, where)
        if isinstance(kind, type) and issubclass(kind, Enum):
            return _choice(kind, data, where)
        return self._container(kind, data, where)

    def record(self, kind: Any, data: Any, where: str, **known: Any) -> Any:
        """A dataclass from an object: unknown keys ignored, absent ones by their default, ``known`` fields as given."""
        _expect(isinstance(data, Mapping), where, "an object", data)
        hints, given = _hints(kind), dict(known)
        for field in fields(kind):
            if field.name in known:
                continue
            if field.name in data:
                given[field.name] = self.decode(hints[field.name], data[field.name], _inside(where, field.name))
            elif field.default is MISSING and field.default_factory is MISSING:
                raise ValueError(f"'{_inside(where, field.name)}' is missing")
        return kind(**given)

    def _container(self, kind: Any, data: Any, where: str) -> Any:
        origin, arguments = get_origin(kind), get_args(kind)
        if NoneType in arguments:
            inner = next(argument for argument in arguments if argument is not NoneType)
            return None if data is None else self.decode(inner, data, where)
        if origin is tuple:
            _expect(isinstance(data, list), where, "a list", data)
            kinds = arguments[:1] * len(data) if arguments[-1] is Ellipsis else arguments
            _expect(len(kinds) == len(data), where, f"a list of {len(kinds)}", data)
            return tuple(
                self.decode(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, data, strict=True))
            )
        _expect(isinstance(data, Mapping), where, "an object", data)
        return {key: self.decode(arguments[1], item, _inside(where, key)) for key, item in data.items()}

    def _tensor(self, data: Any, where: str) -> Tensor:
        packed = self.record(_Packed, data, where)
        _expect(packed.dtype in _DTYPES, f"{where}.dtype", f"one of {', '.join(_DTYPES)}", packed.dtype)
        _expect(isinstance(packed.zlib, str), f"{where}.zlib", _PLAIN[str], packed.zlib)
        dtype, shape = _DTYPES[packed.dtype], packed.shape
        _expect(len(shape) <= 8 and all(size >= 0 for size in shape), f"{where}.shape", "up to 8 sizes", list(shape))
        expected = math.prod(shape) * dtype.itemsize
        # What the file claims bounds what it can make us allocate.
        if expected > self._left:
            raise ValueError(f"'{where}' claims {expected} bytes; all tensors may take {MAX_TENSORS}")
        self._left -= expected
        try:
            raw = zlib.decompressobj().decompress(base64.b64decode(packed.zlib, validate=True), max(expected, 1))
        except (binascii.Error, zlib.error, ValueError) as error:
            raise ValueError(f"'{where}' cannot be unpacked: {error}") from error
        if len(raw) != expected:
            raise ValueError(
                f"'{where}', a tensor of shape {list(shape)}, holds {len(raw)} bytes instead of {expected}"
            )
        if not expected:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


def header(data: Any, schema: str = SCHEMA, newest: int = VERSION) -> Mapping[str, Any]:
    """``data`` if it is a file of this schema that this version can read.

    Raises:
        ValueError: If it is foreign or too new.
    """
    kind = schema.rpartition(".")[2]
    if not isinstance(data, Mapping) or data.get("schema") != schema:
        raise ValueError(f"not a lightning_sanity {kind}: the key 'schema' is missing or foreign")
    version = data.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"damaged lightning_sanity {kind}: 'version' must be 1 or more, not {_short(version)}")
    if version > newest:
        raise ValueError(f"{kind} has schema version {_short(version)}; this library reads up to {newest}: upgrade it")
    return data


def write(data: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write what ``encode`` takes, tensor after tensor; the file appears whole or not at all.

    Raises:
        ValueError: If ``read`` or a ``Decoder`` would refuse it, because it is too large.
        OSError: If it cannot be written.
    """
    return write_whole(path, _within_limits(data, path))


def _within_limits(data: Mapping[str, Any], path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The file in pieces, as long as a reader takes it."""
    size = values = unpacked = 0

    def claimed(tensor: Tensor) -> Tensor:
        nonlocal unpacked
        unpacked += tensor.nbytes
        return tensor

    kept = encode(data, claimed)
    for text in json.JSONEncoder(indent=1, allow_nan=False, default=_encode_tensor).iterencode(kept):
        raw = text.encode()
        size += len(raw)
        values += sum(map(raw.count, _VALUES))
        for what, taken, most in (
            ("bytes", size, MAX_FILE), ("values", values, MAX_VALUES), ("bytes of tensors", unpacked, MAX_TENSORS),
        ):  # fmt: skip
            if taken > most:
                raise ValueError(
                    f"'{path}' is not written: it would have more than {most} {what}, and nothing could read it; test "
                    "fewer methods, steps (max_steps=), trials or samples at once"
                )
        yield raw


_VALUES = (b",", b"[", b"{")


def read(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: If it is not JSON, no regular file, or larger than a result is.
        OSError: If it cannot be read.
    """
    with regular(path, MAX_FILE).open("rb") as file:
        most = min(os.fstat(file.fileno()).st_size, MAX_FILE)
        raw = file.read(most + 1)  # it may have grown; a buffer is as large as what is asked for
    values = sum(map(raw.count, _VALUES))
    if len(raw) > MAX_FILE or values > MAX_VALUES:
        raise ValueError(f"'{path}' is larger than any result is: {len(raw)} bytes, about {values} values")
    try:
        text = raw.decode("utf-8-sig")
        del raw  # or there would be three copies of a large file
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # broken, not UTF-8, numbers of a thousand digits, nested without end
        raise ValueError(f"'{path}' is not JSON: {error}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _encode_tensor(tensor: Tensor) -> dict[str, Any]:
    array = tensor.detach().cpu().contiguous().numpy()
    # Bytes of rounded similarities repeat as runs alone; to look for more takes ten times as long and finds nothing.
    runs = array.dtype == "int8" and array.ndim == 3
    packer = zlib.compressobj(strategy=zlib.Z_RLE if runs else zlib.Z_DEFAULT_STRATEGY)
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "zlib": base64.b64encode(packer.compress(array.tobytes()) + packer.flush()).decode("ascii"),
    }


_hints = cache(get_type_hints)


def _plain(kind: type, data: Any, where: str) -> Any:
    if kind is float:
        if data is None:
            return math.nan
        fits = isinstance(data, (int, float)) and not isinstance(data, bool) and abs(data) <= 1e300
        _expect(fits, where, _PLAIN[kind], data)
        return float(data)
    if kind is int and isinstance(data, float) and data.is_integer():  # 3.0 is an integer in JSON
        data = int(data)
    _expect(isinstance(data, kind) and (kind is bool or not isinstance(data, bool)), where, _PLAIN[kind], data)
    if isinstance(data, str) and len(data) > MAX_TEXT:
        raise ValueError(f"'{where}' is a text of {len(data)} characters; at most {MAX_TEXT} are read")
    return data


def _choice(kind: type[Enum], data: Any, where: str) -> Enum:
    choices = [member.value for member in kind]
    _expect(isinstance(data, str) and data in choices, where, f"one of {', '.join(choices)}", data)
    return kind(data)


def _expect(condition: bool, where: str, what: str, data: Any) -> None:
    if not condition:
        raise ValueError(f"'{where}' must be {what}, not {_short(data)}")


def _short(data: Any) -> str:
    if isinstance(data, (Mapping, list)):
        return "a list" if isinstance(data, list) else "an object"
    if isinstance(data, int) and abs(data) >= 10**20:
        return "a huge integer"
    text = json.dumps(data[:60] if isinstance(data, str) else data)
    return text if len(text) <= 60 else text[:57] + "..."


def _inside(where: str, key: str) -> str:
    key = key if len(key) <= 60 else key[:57] + "..."
    return f"{where}.{key}" if where else key
