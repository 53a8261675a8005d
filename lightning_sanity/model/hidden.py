"""What a forward pass reads that is neither its input nor a registered parameter, and where that hangs.

A weight in a Python list, a bare tensor as an attribute, an int8 weight, the packed weight of a quantised layer: a pass
computes with them, and nothing that draws floating-point parameters reaches them. One pass is watched operation by
operation. Every value carries the tokens of what it was made of; what meets the data, and goes on to the explained
output, is told by its tokens there. Nothing is executed differently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_sanity.model.constants import Role, kind_of
from lightning_sanity.model.tensor_paths import Place, places_of
from lightning_sanity.model.weights import part_of, told_of_gathering

_MIXING = re.compile(r"mm|mv|dot|conv|linear|embedding|attention|transformer|lstm|gru|rnn|bilinear|cdist|vdot")
_SELECTING = {"index", "indices", "mask", "condition", "rois", "boxes", "dets", "offsets", "repeats"}
_ADDED = {"bias", "attn_mask", "attn_bias", "bias_defined", "B"}
_NORMALISING = {"running_mean", "running_var", "running_min", "running_max", "scale", "zero_point"}
_OF_LIBRARIES = ("torchaudio.transforms", "torchvision.transforms", "torchvision.models.detection.", "kornia.")
_FREE = frozenset[Any]()
_DATA, _WEIGHT = "data", "weight"


@dataclass(frozen=True)
class Hidden:
    """A tensor that a pass mixes with its data and that no step can re-initialise: no parameter, or whole numbers.

    Attributes:
        name: Where it hangs; where it is found nowhere, what it is like and which module reads it.
        shape: Its shape; empty for the packed weight of a quantised layer.
        count: Its number of values.
        kind: Why it is constant by nature, in a few words; None if nothing shows that it is.
        place: Where it hangs, if that was found.
        value: The tensor itself; None of a packed weight.
        whole: Whether it holds whole numbers, as the weights of a quantised layer do, or packs them.
    """

    name: str
    shape: tuple[int, ...]
    count: int
    kind: str | None
    place: Place | None = None
    value: Tensor | None = None
    whole: bool = False

    @property
    def described(self) -> str:
        """Name and size, for a sentence."""
        return f"'{self.name}'" + (f" ({' x '.join(map(str, self.shape))})" if self.shape else "")


@dataclass(frozen=True)
class Reads:
    """What one pass read beside its inputs.

    Attributes:
        parameters: Names of the parameters.
        hidden: What else reached the explained output, in the order of first use.
        output: What the pass returned.
    """

    parameters: frozenset[str]
    hidden: tuple[Hidden, ...]
    output: Any


@torch.no_grad()
def reads_of(
    model: nn.Module, inputs: Any, run: Callable[[], Any], constants: Sequence[str] = (), further: Sequence[Any] = ()
) -> Reads:
    """Watch one forward pass.

    Args:
        model: Whose parameters are known.
        inputs: What ``run`` feeds to it; tensors among them, however nested, are what "the data" means.
        run: The pass; returns the explained outputs.
        constants: Names or regular expressions of tensors that are declared constants.
        further: Functions that take part in the pass besides the model's own, which may hold tensors.
    """
    watch = _Watch(model, inputs)
    with watch.of_calls(), told_of_gathering(model, watch.learn), watch:
        output = run()
    reaching = frozenset[Any]().union(*(watch.tokens(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)))
    if _DATA not in reaching:  # the pass went through numpy, say, where no token follows
        reaching = frozenset(range(len(watch.sources)))
    return Reads(frozenset(watch.parameters), tuple(_named(model, watch, reaching, constants, further)), output)


def _named(
    model: nn.Module, watch: _Watch, reaching: frozenset[Any], constants: Sequence[str], further: Sequence[Any]
) -> Iterator[Hidden]:
    sources = [
        s for index, s in enumerate(watch.sources) if s.roles and (index in reaching or s.roles == {Role.SELECTS})
    ]
    places = places_of(model, [s.value for s in sources if isinstance(s.value, Tensor)], further) if sources else {}
    names: dict[str, int] = {}
    for source in sources:
        if isinstance(source.value, Tensor):
            place = places.get(source.value.data_ptr())
            shape, count = tuple(source.value.shape), source.value.numel()
            name = f"a tensor that {source.reader} reads" if place is None else place.name
            kind = _declared(name, constants) or _kind(source, place)
        else:
            place, shape, count = None, (), _packed_count(model, source.module)
            name = f"{source.module}: packed weight" if source.module else "packed weight"
            kind = _declared(name, constants)
        names[name] = names.get(name, 0) + 1
        if names[name] > 1 and place is None:
            name = f"{name} ({names[name]})"
        value = source.value if isinstance(source.value, Tensor) else None
        whole = value is None or not (value.is_floating_point() or value.is_complex())
        yield Hidden(name, shape, count, kind, place, value, whole)


def _declared(name: str, constants: Sequence[str]) -> str | None:
    return "declared" if any(name == each or re.fullmatch(each, name) for each in constants) else None


def _kind(source: _Source, place: Place | None) -> str | None:
    assert isinstance(source.value, Tensor)
    roles = set(source.roles)
    if place is not None:
        holder = place.holder
        if isinstance(holder, nn.Module) and place.key in holder._parameters and not roles <= {Role.SELECTS}:
            roles.add(Role.MIXES)  # whole numbers that are a parameter are a weight, whatever kernel unpacks them
        if isinstance(holder, nn.Module) and place.key in holder._buffers:
            if "parametrizations." in place.name or _iterates(holder, str(place.key)):
                return "state of a parametrisation"
            if isinstance(holder._buffers.get("running_mean"), Tensor) and source.value.squeeze().ndim <= 1:
                return "frozen normalisation"
        if type(place.owner).__module__.startswith(_OF_LIBRARIES):
            return "table of a library's own transform"
    return kind_of(source.value, roles)


def _iterates(module: nn.Module, buffer: str) -> bool:
    """Whether a buffer is a vector of the power iteration of ``torch.nn.utils.spectral_norm``."""
    named = buffer.rpartition("_")[0]
    return buffer.endswith(("_u", "_v")) and f"{named}_orig" in module._parameters


def _packed_count(model: nn.Module, path: str) -> int:
    """How many weights a quantised layer packs."""
    module = model.get_submodule(path)
    unpack = getattr(module, "get_weight", None) or getattr(module, "weight", None)
    try:
        return sum(leaf.numel() for leaf in tree_leaves(unpack())) if callable(unpack) else 1
    except Exception:  # a kind of layer that tells in another way
        return 1


class _Source:
    """Something that a pass read and did not make."""

    def __init__(self, value: Any, module: str, kind: str) -> None:
        self.value, self.module = value, module
        self.reader = f"'{module}'" if module else kind
        self.roles: set[Role] = set()


class _Watch(TorchDispatchMode):
    """Follows tokens of what values are made of: the data, a parameter, the number of a source."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.model = model
        self.sources: list[_Source] = []
        self.parameters: dict[str, None] = {}
        # Tensors that were loaded from one file may lie in one memory, so what is known goes by the stretch of it.
        self._names: dict[int, list[tuple[range, str]]] = {}
        self._outside: dict[int, list[tuple[range, int]]] = {}
        self._of: dict[int, tuple[StorageWeakRef, frozenset[Any]]] = {}
        self._packed: dict[tuple[str, int], int] = {}
        self._calls: list[str] = []
        self._arguments: dict[Any, list[str]] = {}
        self.learn()
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                self._mark(leaf, frozenset([_DATA]))

    def learn(self) -> None:
        """Note which memory holds parameters now; sharded ones are others during a pass.

        Parameters of whole numbers, quantised weights, are not among them: no step can re-initialise these.
        """
        for name, parameter in self.model.named_parameters():
            if not (parameter.is_floating_point() or parameter.is_complex()):
                continue
            for tensor in (parameter, part_of(parameter)):
                if tensor is not None and tensor.layout is torch.strided and not tensor.is_meta:
                    self._names.setdefault(_storage(tensor), []).append((_stretch(tensor), name))

    @contextmanager
    def of_calls(self) -> Iterator[None]:
        """Know inside the block which module is running."""

        def enter(name: str) -> Callable[..., None]:
            return lambda module, arguments: self._calls.append(name)

        def leave(module: nn.Module, arguments: Any, result: Any) -> None:
            self._calls.pop()

        handles = []
        for name, module in self.model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                continue
            handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def tokens(self, tensor: Tensor) -> frozenset[Any]:
        """What a tensor is made of, as far as this pass knows it."""
        if not _has_memory(tensor):
            return _FREE
        storage, found = _storage(tensor), set[Any]()
        if storage in self._names and (name := self._parameter(tensor)) is not None:
            self.parameters[name] = None
            return frozenset([_WEIGHT])
        if storage in self._outside:
            here = _stretch(tensor)
            found.update(index for there, index in self._outside[storage] if _overlap(here, there))
        known = self._of.get(storage)
        return frozenset(found) if known is None else known[1] | found

    def _parameter(self, tensor: Tensor) -> str | None:
        here = _stretch(tensor)
        return next((name for there, name in self._names.get(_storage(tensor), ()) if _overlap(here, there)), None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = [(name, self._read(value)) for name, value in self._bound(func, args, kwargs)]
        result = func(*args, **kwargs)
        made = self._combined(func, read)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _has_memory(leaf):
                self._mark(leaf, made)
        return result

    def _bound(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
        names = self._arguments.get(func)
        if names is None:
            names = self._arguments[func] = [argument.name for argument in func._schema.arguments]
        found: list[tuple[str, Any]] = []
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            found += [(name, each) for each in value] if isinstance(value, (list, tuple)) else [(name, value)]
        return found

    def _read(self, value: Any) -> frozenset[Any]:
        """The tokens of an argument; what was not made in this pass becomes a source."""
        if isinstance(value, Tensor):
            return self._token(value)
        if isinstance(value, (list, tuple)):
            return _FREE.union(*map(self._read, value))
        if isinstance(value, torch.ScriptObject):
            return self._pack()
        return _FREE

    def _token(self, tensor: Tensor) -> frozenset[Any]:
        known = self.tokens(tensor)
        if known or not _has_memory(tensor) or (_storage(tensor) in self._of and _storage(tensor) not in self._outside):
            return known
        index = len(self.sources)
        self.sources.append(_Source(tensor, self._module(), "the forward pass"))
        self._outside.setdefault(_storage(tensor), []).append((_stretch(tensor), index))
        return frozenset([index])

    def _pack(self) -> frozenset[Any]:
        """A packed weight: each access makes another object, so it goes by the module that runs."""
        key = self._module(), 0
        if key not in self._packed:
            self._packed[key] = len(self.sources)
            self.sources.append(_Source(None, key[0], "the forward pass"))
        return frozenset([self._packed[key]])

    def _module(self) -> str:
        return self._calls[-1] if self._calls else ""

    def _mark(self, tensor: Tensor, tokens: frozenset[Any]) -> None:
        if self._parameter(tensor) is not None:  # a running statistic that is one
            return
        storage = _storage(tensor)
        known = self._of.get(storage)
        if storage in self._outside and tokens <= self.tokens(tensor):  # a view
            return
        if known is None:
            self._of[storage] = StorageWeakRef(tensor.untyped_storage()), tokens
        else:  # written in place, or another view of the same memory
            self._of[storage] = known[0], known[1] | tokens

    def _combined(self, func: Any, read: Sequence[tuple[str, frozenset[Any]]]) -> frozenset[Any]:
        """What a result is made of; notes what sources do with the data they meet."""
        every = _FREE.union(*(tokens for _, tokens in read))
        if not every:
            return _FREE
        operation = func.overloadpacket.__name__
        mixing = bool(_MIXING.search(operation)) or func.namespace not in ("aten", "prims", "torchvision", "prim")
        touched = _FREE.union(*(tokens for _, tokens in read if _DATA in tokens))
        made = set(every)
        for name, tokens in read:
            sources = {token for token in tokens if isinstance(token, int)}
            if not sources:
                continue
            role = _role(name, operation, mixing)
            if role in (Role.SELECTS, Role.STATISTIC):
                made -= sources - touched
            if _DATA in tokens or not (touched or role is Role.SELECTS):
                continue
            if role is Role.SHIFTS and _WEIGHT not in touched and not mixing:
                role = Role.SHIFTS_INPUT
            for source in sources:
                self.sources[source].roles.add(role)
            if role is Role.MIXES:
                made.add(_WEIGHT)
        if operation in ("sin", "cos", "polar") and not touched:  # of constant angles: a table of positions
            made -= {token for token in made if isinstance(token, int)}
        return frozenset(made)


def _role(argument: str, operation: str, mixing: bool) -> Role:
    if argument in _SELECTING:
        return Role.SELECTS
    if argument in _NORMALISING and ("norm" in operation or "fake_quant" in operation or "_fq_" in operation):
        return Role.STATISTIC
    added = argument in _ADDED or (argument == "self" and operation.startswith(("addmm", "baddbmm", "addbmm", "addmv")))
    return Role.MIXES if mixing and not added else Role.SHIFTS


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _stretch(tensor: Tensor) -> range:
    """The bytes of its memory that a tensor spans."""
    if tensor.numel() == 0:
        return range(0)
    first, size = tensor.storage_offset(), tensor.element_size()
    last = first + sum((side - 1) * step for side, step in zip(tensor.shape, tensor.stride(), strict=True))
    return range(first * size, (last + 1) * size)


def _overlap(one: range, two: range) -> bool:
    return one.start < two.stop and two.start < one.stop


def _has_memory(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_nested) and part_of(tensor) is None
