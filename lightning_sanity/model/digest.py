"""Fingerprints of what a ``state_dict`` holds: tensors of every layout, and plain values beside them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.model.weights import gathered

PARTIAL = "partial-"
"""Begins a digest that leaves something out, so that equal ones do not prove equal weights."""

_DEEPEST = 64
_MOST = 1 << 20  # values in one entry; one that holds itself has no end


class UnhashableError(ValueError):
    """A value whose contents cannot be told."""


def state_digest(state: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and contents of a ``state_dict``, wherever its tensors lie.

    A pruned weight counts as the product with its mask, which is what a checkpoint may hold in its place. Sharded
    tensors count as the whole ones, for which every process must ask. Where an entry cannot be told (an object as
    extra state), the digest leaves its contents out and begins with ``PARTIAL``.
    """
    effective = dict(state)
    for name in [name[: -len("_mask")] for name in state if name.endswith("_mask") and f"{name[:-5]}_orig" in state]:
        original, mask = effective.pop(f"{name}_orig"), effective.pop(f"{name}_mask")
        effective[name] = gathered(mask).to(original.dtype) * gathered(original)
    sha, whole = hashlib.sha256(), True
    for name, value in sorted(effective.items()):
        sha.update(name.encode("utf-8", "surrogatepass"))
        try:
            if isinstance(value, Tensor):
                update_digest(sha, value)
            else:
                sha.update(_plain_digest(value))
        except UnhashableError:
            whole = False
    return sha.hexdigest() if whole else PARTIAL + sha.hexdigest()


def unhashable(state: Mapping[str, Any]) -> tuple[str, ...]:
    """The entries of a ``state_dict`` that its digest leaves out, each with the reason."""
    found = []
    for name, value in state.items():
        try:
            if not isinstance(value, Tensor):
                _plain_digest(value)
            elif value.is_meta or value.is_nested or value.layout is not torch.strided:
                update_digest(hashlib.sha256(), value)
        except UnhashableError as error:
            found.append(f"'{name}' ({error})")
    return tuple(found)


def unsaved_buffers(module: nn.Module) -> dict[str, str]:
    """Digests of the buffers that a module computes with and no checkpoint holds, by name."""
    found = {}
    for path, child in getattr(module, "_orig_mod", module).named_modules():
        for name in sorted(child._non_persistent_buffers_set):
            buffer = child._buffers.get(name)
            if buffer is not None:
                full = f"{path}.{name}" if path else name
                found[full] = state_digest({full: buffer})
    return found


def update_digest(sha: hashlib._Hash, tensor: Tensor) -> None:
    """Feed type, shape and contents of a tensor, the same on every device and for shards of it.

    Raises:
        UnhashableError: If it has no contents to be read.
    """
    sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if tensor.is_meta or tensor.is_nested:
        raise UnhashableError("a tensor without contents" if tensor.is_meta else "a nested tensor")
    for part in _parts(gathered(tensor.detach())):
        flat = part.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        sha.update(flat.view(torch.uint8).numpy().data)


def _parts(tensor: Tensor) -> Iterable[Tensor]:
    """Ordinary tensors that say all of one; of an ordinary one, itself."""
    if tensor.is_quantized:
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            return tensor.int_repr(), torch.tensor([tensor.q_scale(), tensor.q_zero_point()], dtype=torch.float64)
        scales = tensor.q_per_channel_scales().double(), tensor.q_per_channel_zero_points().double()
        return tensor.int_repr(), *scales, torch.tensor([tensor.q_per_channel_axis()])
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        return tensor.indices(), tensor.values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    if tensor.layout is not torch.strided:
        raise UnhashableError(f"a tensor of layout {tensor.layout}")
    return (tensor,)


def _plain_digest(value: Any) -> bytes:
    """SHA-256 of plain values: their kinds, lengths and contents, so that no two read alike.

    Raises:
        UnhashableError: If there is an object among them, or no end.
    """
    left = _MOST

    def fed(value: Any, depth: int) -> bytes:
        nonlocal left
        left -= 1
        if left < 0 or depth > _DEEPEST:
            raise UnhashableError("nested too deep, or without end")
        if isinstance(value, Tensor):
            sha = hashlib.sha256(b"tensor ")
            update_digest(sha, value)
            return sha.digest()
        if isinstance(value, Mapping):
            pairs = [fed(key, depth + 1) + fed(item, depth + 1) for key, item in value.items()]
            return _of("mapping", b"".join(sorted(pairs)))
        if isinstance(value, (list, tuple)):
            return _of("list", b"".join(fed(item, depth + 1) for item in value))
        if isinstance(value, (set, frozenset)):
            return _of("set", b"".join(sorted(fed(item, depth + 1) for item in value)))
        return _of(*_scalar(value))

    return fed(value, 0)


def _of(kind: str, raw: bytes) -> bytes:
    return hashlib.sha256(kind.encode() + b" " + raw).digest()


def _scalar(value: Any) -> tuple[str, bytes]:
    kind = type(value)  # of subclasses nobody knows what else they hold
    if value is None or kind is bool or kind is int or kind in (torch.dtype, torch.device, torch.layout):
        return "word" if kind is not int else "int", (hex(value) if kind is int else str(value)).encode()
    if kind is float:
        return "float", struct.pack("<d", value)
    if kind is complex:
        return "complex", struct.pack("<dd", value.real, value.imag)
    if kind is str:
        return "text", value.encode("utf-8", "surrogatepass")
    if kind in (bytes, bytearray):
        return "bytes", bytes(value)
    raise UnhashableError(f"{value if isinstance(value, Unread) else kind.__qualname__} is no plain value")


class Unread:
    """Something in a file that was not built; nothing can be asked of it but its name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<{self.name}, not built>"
