"""The weights in a file: a Lightning checkpoint or a saved ``state_dict``, read without executing anything in it.

Tensors are views of the file, so that a large one is never in memory twice, and plain values are built. In the place of
every other object (modules, functions, enumerations in hyper-parameters) stands nothing but its name.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_sanity.model import archive, folders, pickled, shards
from lightning_sanity.model.archive import Place
from lightning_sanity.model.digest import Unread, state_digest, unhashable
from lightning_sanity.model.pickled import Call, Global, Persistent
from lightning_sanity.resources.files import regular

_LARGEST = 1 << 50  # bytes of a file: what is read of it is bounded by other means
_LARGEST_PICKLE = 1 << 26
_VIEWED = 4  # so many times the file's size all tensors together may have: some share their memory
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files before torch 1.6
_NESTED = 64

_KEYS = ("state_dict", "model", "module", "model_state_dict")
"""Where checkpoints keep the weights."""

_DTYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    "QInt8": torch.int8, "QUInt8": torch.uint8, "QInt32": torch.int32,
}  # fmt: skip
_SAFETENSORS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
}  # fmt: skip
_NAMED = {
    f"torch {name}": value
    for name in dir(torch)
    if isinstance(value := getattr(torch, name), (torch.dtype, torch.qscheme))
}


def load(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The ``state_dict`` of a checkpoint file, on the CPU.

    Args:
        path: A Lightning checkpoint, another one that keeps the weights under one of a few usual keys, a file that
            holds nothing but them, a safetensors file, the folder of a sharded distributed checkpoint, or one whose
            index names the files of a large model, as transformers writes it.

    Raises:
        ValueError: If it is not such a file, or the weights hold something else than tensors and plain values.
        OSError: If it cannot be read.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no checkpoint file '{path}'")
    try:
        state = _of_folder(Path(path)) if Path(path).is_dir() else _state(_mapped(path))
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"'{path}' cannot be read as a checkpoint of tensors and plain values ({reason})") from error
    if state is None:
        raise ValueError(f"'{path}' {folders.way_out(Path(path))}")
    if not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"'{path}' holds no state_dict")
    unread = unhashable(state)
    if unread:
        raise ValueError(
            f"'{path}' cannot be compared: its weights hold {', '.join(unread[:3])}, of which nothing but the name can "
            "be told without running it"
        )
    return state


def without_wrapper(state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The same weights without the first part that all names share, such as ``model.``; None if they share none.

    The counter that torch's ``AveragedModel`` keeps beside the model goes with the wrapper.
    """
    inner = {name: value for name, value in state.items() if name != "n_averaged"}
    if len({name.partition(".")[0] for name in inner}) != 1 or not all("." in name for name in inner):
        return None
    return {name.partition(".")[2]: value for name, value in inner.items()}


def digests(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Digests that a result about these weights may carry.

    The module that was tested may have been the saved one, or what a wrapper (a LightningModule, ``torch.compile``)
    holds: one digest for each.

    Raises:
        ValueError: See ``load``.
        OSError: If the file cannot be read.
    """
    state: Mapping[str, Any] | None = load(path)
    found: list[str] = []
    while state is not None and len(found) < _NESTED:
        found.append(state_digest(state))
        state = without_wrapper(state)
    return tuple(found)


def _mapped(path: str | os.PathLike[str]) -> mmap.mmap:
    with regular(path, _LARGEST).open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise ValueError("the file is empty")
        # A copy on write, because torch makes tensors of writable memory only.
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _state(data: mmap.mmap) -> dict[str, Any]:
    tensors = archive.safetensors(data)
    if tensors is not None:
        return _of_safetensors(data, tensors)
    held, storages = _of_zip(data) if archive.is_zip(data) else _of_old_file(data)
    held = _weights_in(held)
    builder = _Builder(data, storages)
    return {_name(key): builder.built(value) for key, value in held.items()}


def _weights_in(held: Any) -> dict[Any, Any]:
    for key in _KEYS:
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
    if not isinstance(held, dict):
        raise ValueError("it holds no dictionary: of a whole module save the state_dict")
    return held


def _name(key: Any) -> str:
    return key if isinstance(key, str) else str(key) if isinstance(key, int) else repr(type(key))


# --------------------------------------------------------------------------------------------------------------- files

Storages = Callable[[Any], Place]
"""Where the storage of a key lies."""


def _of_safetensors(data: mmap.mmap, tensors: Mapping[str, tuple[str, list[int], Place]]) -> dict[str, Any]:
    builder = _Builder(data, lambda key: (0, 0))
    state = {}
    for name, (kind, shape, (start, size)) in tensors.items():
        dtype = _SAFETENSORS.get(kind)
        if dtype is None:
            raise ValueError(f"'{name[:60]}' has the type '{kind[:20]}', which is not known")
        if len(shape) > shards.AXES or math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"'{name[:60]}' has the shape {shape[:8]}, which {size} bytes do not hold")
        stride = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        state[name] = builder.view(dtype, (start, size), 0, shape, stride)
    return state


def _of_folder(folder: Path) -> dict[str, Any] | None:
    """What a folder holds; None if it is not known as one of weights."""
    if (folder / shards.METADATA).is_file():
        return _of_shards(folder)
    files = folders.indexed(folder)
    if files is None:
        return None
    held = {name: _state(_mapped(folder / name)) for name in sorted(set(files.values()))}
    if sum(map(len, held.values())) != len(files) or any(name not in held[file] for name, file in files.items()):
        raise ValueError("its files hold other tensors than its index says")
    return {name: held[file][name] for name, file in files.items()}


def _of_shards(folder: Path) -> dict[str, Any]:
    def read(raw: bytes) -> Any:
        data: Any = bytearray(raw)  # torch makes tensors of writable memory only
        if not archive.is_zip(data):
            raise ValueError("a piece is no file of torch.save")
        held, storages = _of_zip(data)
        return _Builder(data, storages).built(held)

    return dict(shards.values(_weights_in(shards.names(folder)), read))


def _of_zip(data: mmap.mmap) -> tuple[Any, Storages]:
    records = archive.records(data)
    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        advice = "" if pickles else ": of an exported module save the state_dict"
        raise ValueError(f"the archive holds {len(pickles)} records 'data.pkl', not one{advice}")
    folder = pickles[0].removesuffix("data.pkl")
    start, size = records.get(f"{folder}byteorder", (0, 0))
    if size and data[start : start + min(size, 10)] != b"little":
        raise ValueError("its numbers are not little-endian")
    start, size = records[pickles[0]]
    if size > _LARGEST_PICKLE:
        raise ValueError(f"its pickle has {size} bytes, more than is read")
    held, _ = pickled.read(io.BytesIO(data[start : start + size]))

    def place(key: Any) -> Place:
        found = records.get(f"{folder}data/{key}") if isinstance(key, str) else None
        if found is None:
            raise ValueError(f"the storage {str(key)[:20]!r} is missing")
        return found

    return held, place


def _of_old_file(data: mmap.mmap) -> tuple[Any, Storages]:
    """The format before torch 1.6: pickles one after the other, then the storages."""
    if data[:1] != b"\x80":
        raise ValueError("it is no file of torch.save, and no safetensors file")
    file: Any = data
    magic, protocol = pickled.read(file)[0], pickled.read(file)[0]
    if (magic, protocol) != (_MAGIC, _PROTOCOL):
        raise ValueError("it is a pickle, but no file of torch.save")
    pickled.read(file)  # of the system that wrote it
    held, references = pickled.read(file)
    storages = [reference.key for reference in references if _of_storage(reference)]
    sizes = {key: _storage_dtype(kind).itemsize for _, kind, key, *_ in storages}
    keys, _ = pickled.read(file)
    places: dict[Any, Place] = {}
    for key in keys if isinstance(keys, list) else ():
        (count,) = struct.unpack("<q", file.read(8))
        if key not in sizes or not 0 <= count * sizes[key] <= len(data) - file.tell():
            raise ValueError(f"the storage {str(key)[:20]!r} claims {count} numbers, which the file does not hold")
        places[key] = file.tell(), count * sizes[key]
        file.seek(sum(places[key]))

    def place(key: Any) -> Place:
        if key not in places:
            raise ValueError(f"the storage {str(key)[:20]!r} is missing")
        return places[key]

    return held, place


def _of_storage(reference: Any) -> bool:
    """Whether this is ``("storage", type, key, device, size)``; old files also refer to the source of modules."""
    key = reference.key if isinstance(reference, Persistent) else None
    return isinstance(key, tuple) and len(key) >= 5 and key[0] == "storage" and isinstance(key[2], str)


def _storage(reference: Any) -> tuple[Any, str]:
    """Type and key."""
    if not _of_storage(reference):
        raise ValueError("a tensor does not say where its numbers lie")
    kind, key = reference.key[1:3]
    return kind, key


def _storage_dtype(kind: Any) -> torch.dtype:
    name = kind.name if isinstance(kind, Global) else ""
    short = name.rpartition(" ")[2].removesuffix("Storage")
    if short == "Untyped":
        return torch.uint8
    if short not in _DTYPES or name.partition(" ")[0] not in ("torch", "torch.storage", "torch.cuda"):
        raise ValueError(f"a storage of the type '{name[:60]}' is not known")
    return _DTYPES[short]


# ------------------------------------------------------------------------------------------------------------- building


class _Builder:
    """Tensors and plain values from what a pickle describes.

    Args:
        data: The file.
        storages: Where storages lie in it.
    """

    def __init__(self, data: mmap.mmap, storages: Storages) -> None:
        self._data, self._storages = data, storages
        self._bytes = _VIEWED * len(data) + (1 << 26)
        self._values = pickled.MOST_OPERATIONS

    def built(self, value: Any, depth: int = 0) -> Any:
        """The value; ``Unread`` for what is neither a tensor nor plain."""
        self._values -= 1
        if depth > _NESTED or self._values < 0:
            return Unread("something without end")
        kind = type(value)
        if kind is dict:
            return {self.built(key, depth + 1): self.built(item, depth + 1) for key, item in value.items()}
        if kind in (list, tuple, set):
            return kind(self.built(item, depth + 1) for item in value)
        if kind is Global:
            return _NAMED.get(value.name, Unread(value.name))
        if kind is Call:
            return self._called(value, depth)
        return Unread("a reference") if kind is Persistent else value

    def view(self, dtype: torch.dtype, place: Place, offset: int, size: Any, stride: Any) -> Tensor:
        """A tensor over the file's bytes.

        Raises:
            ValueError: If it would reach outside its storage, or all tensors together are far larger than the file.
        """
        start, held = place
        numbers = [offset, *size, *stride]
        plain = all(type(number) is int and 0 <= number < 1 << 48 for number in numbers)
        if not plain or not len(size) == len(stride) <= shards.AXES:
            raise ValueError("a tensor has a size or stride that is none")
        count = math.prod(size)
        self._bytes -= count * dtype.itemsize
        if self._bytes < 0:
            raise ValueError(f"its tensors have more than {_VIEWED} times the size of the file")
        reach = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0
        if reach * dtype.itemsize > held:
            raise ValueError(f"a tensor of shape {list(size)[:8]} reaches outside its storage of {held} bytes")
        if not count:
            return torch.empty(tuple(size), dtype=dtype)
        if start % dtype.itemsize:
            flat = torch.frombuffer(bytearray(self._data[start : start + reach * dtype.itemsize]), dtype=dtype)
        else:
            flat = torch.frombuffer(self._data, dtype=dtype, count=reach, offset=start)
        return flat.as_strided(tuple(size), tuple(stride), offset)

    def _called(self, call: Call, depth: int) -> Any:
        make = _MAKERS.get(call.function)
        if make is None:
            return Unread(call.function.replace(" ", ".") or "an object")
        try:
            return make(self, depth + 1, *call.arguments)
        except (TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"{call.function} with arguments that it does not take") from error

    # ------------------------------------------- what torch.save writes for a tensor, by the function that rebuilds it

    def tensor(self, depth: int, storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Any:
        kind, key = _storage(storage)
        dtype, bits = _storage_dtype(kind), rest[2] if len(rest) > 2 else None
        made = self.view(dtype, self._storages(key), offset, _numbers(size), _numbers(stride))
        return made if not bits else Unread("a tensor with metadata")

    def typed_tensor(self, depth: int, storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Any:
        _, _, kind, *metadata = rest
        dtype = self.built(kind, depth)
        if not isinstance(dtype, torch.dtype) or any(metadata):
            return Unread("a tensor of unknown type")
        return self.view(dtype, self._storages(_storage(storage)[1]), offset, _numbers(size), _numbers(stride))

    def quantized(self, depth: int, storage: Any, offset: int, size: Any, stride: Any, scheme: Any, *rest: Any) -> Any:
        whole = self.tensor(depth, storage, offset, size, stride)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that torch will drop such tensors some day
            return self._quantized(whole, depth, scheme)

    def _quantized(self, whole: Tensor, depth: int, scheme: Any) -> Any:
        kind, *numbers = (self.built(part, depth) for part in scheme)
        if kind in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            scale, zero = numbers
            return torch._make_per_tensor_quantized_tensor(whole, float(scale), int(zero))
        scales, zeros, axis = numbers
        if kind is not torch.per_channel_affine or not 0 <= axis < whole.ndim or scales.shape != (whole.shape[axis],):
            return Unread("a quantised tensor of an unknown kind")
        return torch._make_per_channel_quantized_tensor(whole, scales, zeros, axis)

    def parameter(self, depth: int, value: Any, *rest: Any) -> Any:
        return self.built(value, depth)

    def typed(self, depth: int, function: Any, kind: Any, arguments: Any, *rest: Any) -> Any:
        if not isinstance(kind, Global) or kind.name not in _ORDINARY:
            return Unread(kind.name if isinstance(kind, Global) else "a tensor of a class of its own")
        return self.built(Call(function, arguments), depth)

    def size(self, depth: int, numbers: Any = ()) -> Any:
        return tuple(_numbers(numbers))

    def complex_number(self, depth: int, real: float, imaginary: float) -> Any:
        return complex(real, imaginary)

    def device(self, depth: int, kind: str, index: int | None = None) -> Any:
        return torch.device(kind if index is None else f"{kind}:{index}")


_ORDINARY = ("torch Tensor", "torch._tensor Tensor", "torch.nn.parameter Parameter", "torch.nn.parameter Buffer")
_MAKERS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor": _Builder.tensor,
    "torch._utils _rebuild_tensor_v2": _Builder.tensor,
    "torch._utils _rebuild_tensor_v3": _Builder.typed_tensor,
    "torch._utils _rebuild_qtensor": _Builder.quantized,
    "torch._utils _rebuild_parameter": _Builder.parameter,
    "torch._utils _rebuild_parameter_with_state": _Builder.parameter,
    "torch._tensor _rebuild_from_type_v2": _Builder.typed,
    "torch Size": _Builder.size,
    "torch device": _Builder.device,
    "builtins complex": _Builder.complex_number,
    "__builtin__ complex": _Builder.complex_number,
}


def _numbers(value: Any) -> Any:
    """The sizes in a tuple, a list, or the call of ``torch.Size`` with one."""
    if isinstance(value, Call) and value.function == "torch Size":
        value = value.arguments[0] if value.arguments else ()
    if not isinstance(value, (tuple, list)) or len(value) > 64:
        raise ValueError("a tensor has no size")
    return value
