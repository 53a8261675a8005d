"""A sharded distributed checkpoint: a folder of pieces, and the file ``.metadata`` that says where each belongs.

Written by ``torch.distributed.checkpoint``, and so by Lightning's FSDP and model-parallel strategies. The metadata are
read as data, as every pickle is; a name in them is used as the name of a file in the folder, never as a path.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_sanity.model import pickled
from lightning_sanity.model.pickled import Call
from lightning_sanity.resources.files import regular

METADATA = ".metadata"
AXES = 64  # that a tensor may have

_LARGEST = 1 << 26  # bytes of the metadata
_HELD = 4  # so many times the size of all files together the tensors may have
_MODULE = "torch.distributed.checkpoint"

Read = Callable[[bytes], Any]
"""What one piece holds: a tensor or a plain value, as ``torch.save`` wrote it."""


@dataclass(frozen=True)
class Piece:
    """Where a piece lies, and of a tensor where it belongs.

    Attributes:
        file: Its name.
        start: In bytes.
        length: In bytes.
        offsets: In the whole tensor; None for a plain value.
    """

    file: str
    start: int
    length: int
    offsets: tuple[int, ...] | None


def names(folder: Path) -> dict[str, Any]:
    """What a sharded checkpoint holds: nested names as they were saved, at their ends a ``Whole``.

    Raises:
        ValueError: If the metadata are none.
        OSError: If they cannot be read.
    """
    held, _ = pickled.read(io.BytesIO(regular(folder / METADATA, _LARGEST).read_bytes()))
    about = _attributes(held, "metadata Metadata")
    kinds, places, paths = (about.get(key) for key in ("state_dict_metadata", "storage_data", "planner_data"))
    if not isinstance(kinds, dict) or not isinstance(places, dict):
        raise ValueError("its metadata name no tensors and no files")
    pieces: dict[str, list[Piece]] = {}
    for index, place in places.items():
        name, piece = _piece(index, place)
        pieces.setdefault(name, []).append(piece)
    files = {each.name: each.stat().st_size for each in folder.iterdir() if each.is_file()}
    left = [_HELD * sum(files.values()) + (1 << 26)]
    found: dict[str, Any] = {}
    for name, kind in kinds.items():
        path = paths.get(name) if isinstance(paths, dict) else None
        parts = [str(part) for part in path] if isinstance(path, tuple) and path else [str(name)]
        inner = found
        for part in parts[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ValueError(f"'{part[:60]}' is a value and holds others")
        inner[parts[-1]] = Whole(str(name), folder, _size(kind), tuple(pieces.get(str(name), ())), files, left)
    return found


@dataclass(frozen=True)
class Whole:
    """A tensor or a value that lies in pieces.

    Attributes:
        name: As it was saved.
        folder: Of the checkpoint.
        size: Of a tensor; None for a plain value.
        pieces: All of them.
        files: Their sizes by name.
        left: One number: bytes that tensors may still take.
    """

    name: str
    folder: Path
    size: tuple[int, ...] | None
    pieces: tuple[Piece, ...]
    files: Mapping[str, int]
    left: list[int]

    def read(self, read: Read) -> Any:
        """The tensor, put together, or the value.

        Raises:
            ValueError: If pieces are missing, overlap, or do not fit.
        """
        if self.size is None:
            if len(self.pieces) != 1:
                raise ValueError(f"'{self.name[:60]}' lies in {len(self.pieces)} places")
            return read(self._bytes(self.pieces[0]))
        whole: Tensor | None = None
        filled = torch.empty(0)
        for piece in self.pieces:
            part = read(self._bytes(piece))
            if not isinstance(part, Tensor) or part.is_quantized:
                raise ValueError(f"a piece of '{self.name[:60]}' is no plain tensor")
            if whole is None:
                self._claim(part.dtype.itemsize + 1)
                whole, filled = torch.empty(self.size, dtype=part.dtype), torch.zeros(self.size, dtype=torch.bool)
            place = self._place(piece, part)
            if part.dtype != whole.dtype or bool(filled[place].any()):
                raise ValueError(f"the pieces of '{self.name[:60]}' overlap or are of several types")
            whole[place], filled[place] = part, True
        if whole is None or not bool(filled.all()):
            raise ValueError(f"pieces of '{self.name[:60]}' are missing")
        return whole

    def _claim(self, each: int) -> None:
        self.left[0] -= math.prod(self.size or ()) * each
        if self.left[0] < 0:
            raise ValueError(f"its tensors have more than {_HELD} times the size of its files")

    def _place(self, piece: Piece, part: Tensor) -> tuple[slice, ...]:
        size, offsets = self.size or (), piece.offsets or ()
        fits = len(offsets) == len(size) == part.ndim
        if not fits or any(o + n > most for o, n, most in zip(offsets, part.shape, size, strict=True)):
            raise ValueError(f"a piece of '{self.name[:60]}' lies outside of it")
        return tuple(slice(o, o + n) for o, n in zip(offsets, part.shape, strict=True))

    def _bytes(self, piece: Piece) -> bytes:
        if piece.start + piece.length > self.files.get(piece.file, -1):
            raise ValueError(f"'{piece.file[:60]}' is missing, or does not hold '{self.name[:60]}'")
        with (self.folder / piece.file).open("rb") as file:
            file.seek(piece.start)
            return file.read(piece.length)


def _attributes(value: Any, name: str) -> Mapping[str, Any]:
    """What an object of ``torch.distributed.checkpoint`` was given, if it is one."""
    if not isinstance(value, Call) or value.function != f"{_MODULE}.{name}" or not isinstance(value.state, dict):
        raise ValueError(f"its metadata hold no {name.rpartition(' ')[2]} where one belongs")
    return value.state


def _piece(index: Any, place: Any) -> tuple[str, Piece]:
    about, lies = _attributes(index, "metadata MetadataIndex"), _attributes(place, "filesystem _StorageInfo")
    name, file, start, length = about.get("fqn"), *(lies.get(key) for key in ("relative_path", "offset", "length"))
    offsets = about.get("offset")
    if not isinstance(name, str) or not isinstance(file, str) or Path(file).name != file:
        raise ValueError("its metadata name a file that is not in the folder")
    if type(start) is not int or type(length) is not int or min(start, length) < 0:
        raise ValueError(f"'{name[:60]}' lies nowhere")
    if lies.get("transform_descriptors"):
        raise ValueError(f"'{name[:60]}' is compressed or encrypted")
    return name, Piece(file, start, length, None if offsets is None else _numbers(offsets))


def _size(kind: Any) -> tuple[int, ...] | None:
    if isinstance(kind, Call) and kind.function == f"{_MODULE}.metadata BytesStorageMetadata":
        return None
    return _numbers(_attributes(kind, "metadata TensorStorageMetadata").get("size"))


def _numbers(size: Any) -> tuple[int, ...]:
    """Of a ``torch.Size``."""
    given = size.arguments[0] if isinstance(size, Call) and size.function == "torch Size" and size.arguments else size
    if not isinstance(given, (tuple, list)) or len(given) > AXES:
        raise ValueError("a tensor has a size that is none")
    if not all(type(number) is int and 0 <= number < 1 << 48 for number in given):
        raise ValueError("a tensor has a size that is none")
    return tuple(given)


def values(tree: Mapping[str, Any], read: Read) -> Iterator[tuple[str, Any]]:
    """Names and values of nested names: what was a dictionary in the end is one again."""
    for name, held in tree.items():
        yield name, held.read(read) if isinstance(held, Whole) else dict(values(held, read))
