"""One eager forward pass, recorded: what each operation reads, which rectifiers ran, where the maps are spatial.

Module hooks miss what a network does by function call (an attention's in-projection, ``F.conv2d(x, self.weight)``,
``F.relu``) and symbolic tracers refuse data-dependent control flow. So the pass is watched one level below, where
every operation arrives with the very tensors it reads, whatever the Python code above looks like. Nothing is
executed differently; the model needs no support for tracing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from lightning_sanity.model.operations import changed, is_view, looks_up, mixes, rectifies
from lightning_sanity.model.weights import part_of, told_of_gathering


@dataclass(frozen=True)
class SpatialMap:
    """A module whose output is a feature map ``(N, C, H, W)`` with more than one position."""

    module: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """What one forward pass did.

    Operations are counted in the order in which they ran: those that read something that depends on the input, and
    those that read what was looked up in a table of parameters, such as the layers of a text tower on fixed tokens.

    Attributes:
        uses: Per parameter or buffer that reached the data, the operations that combined it with something that depends
            on the input, in order. A parameter that is first folded into others (weight normalisation, a scaled or
            concatenated weight) is used where the product meets the data.
        mixing: Those of the uses that mix channels by it; the others scale, shift, normalise or join.
        reads: Per operation, those whose results it reads.
        explained: The operations whose results reach the explained output.
        spatial: Modules with a spatial output, in order of completion.
        rectifiers: Number of operations that rectified something that depends on the input.
        outputs: What the model returned.
        apart: Whether some samples were seen to have the same outputs among others.
        known: What was found of the same structure before; see ``structure``.
    """

    uses: dict[str, tuple[int, ...]]
    mixing: dict[str, tuple[int, ...]]
    reads: tuple[tuple[int, ...], ...]
    explained: frozenset[int]
    spatial: tuple[SpatialMap, ...]
    rectifiers: int
    outputs: Any
    apart: bool = False
    known: dict[Any, Any] = field(default_factory=dict, compare=False)

    def reaching(self, name: str) -> tuple[int, ...]:
        """The uses of a parameter or buffer that reach the explained output, in order."""
        return tuple(use for use in self.uses.get(name, ()) if use in self.explained)


def trace(
    model: nn.Module,
    inputs: tuple[Any, ...],
    run: Callable[..., Any] | None = None,
    explained: Callable[[Any], Any] | None = None,
) -> Graph:
    """Run one forward pass with gradients enabled and record it.

    Args:
        model: The module whose parameters and buffers are looked for.
        inputs: Its positional arguments; tensors among them, however nested, are what "the data" means.
        run: Called as ``run(*inputs)`` instead of ``model(*inputs)``.
        explained: Takes what is explained out of the outputs; all of them if None.

    Returns:
        The recording. Tied tensors appear under the first of their names.
    """
    # Nobody goes back through this pass, so it need not keep what going back would read; unless the model does.
    keeps_nothing = _KeepsNothing()
    run, explained = run or model, explained or _all
    try:
        with saved_tensors_hooks(keeps_nothing.pack, keeps_nothing.unpack):
            return _traced(model, inputs, run, explained)
    except Exception:
        if not keeps_nothing.asked:
            raise
    return _traced(model, inputs, run, explained)


def _all(outputs: Any) -> Any:
    return outputs


def _traced(
    model: nn.Module, inputs: tuple[Any, ...], run: Callable[..., Any], explained: Callable[[Any], Any]
) -> Graph:
    names: dict[int, str] = {}
    held: list[Tensor] = []  # a cache that is emptied meanwhile must not leave its identity to another tensor
    _learn(model, names, held)
    recorder = _Recorder(names)
    spatial: list[SpatialMap] = []
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor):
                recorder.mark_data(leaf)
        stack.enter_context(in_single_operations())
        stack.enter_context(_spatial_outputs(model, spatial, recorder))
        stack.enter_context(told_of_gathering(model, lambda: _learn(model, names, held)))
        stack.enter_context(recorder)
        outputs = run(*inputs)
        reached = recorder.above(explained(outputs))

    def listed(found: dict[str, list[int]]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(found[name]) for name in dict.fromkeys(names.values()) if name in found}

    return Graph(
        uses=listed(recorder.uses),
        mixing=listed(recorder.mixing),
        reads=tuple(recorder.reads),
        explained=reached,
        spatial=tuple(spatial),
        rectifiers=recorder.rectifiers,
        outputs=outputs,
    )


class _KeepsNothing:
    """Hooks that drop what autograd saves; ``asked`` says whether a gradient was wanted after all."""

    def __init__(self) -> None:
        self.asked = False

    def pack(self, tensor: Tensor) -> None:
        return None

    def unpack(self, nothing: None) -> Tensor:
        self.asked = True
        raise RuntimeError("the pass was recorded without what a gradient needs")


@contextmanager
def in_single_operations() -> Iterator[None]:
    """Attention runs operation by operation, as it does where a gradient is wanted, not several layers as one."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _learn(model: nn.Module, names: dict[int, str], held: list[Tensor]) -> None:
    """Note which tensors stand for which name now; sharded parameters are others during a pass."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        names.setdefault(id(tensor), name)
        held.append(tensor)


@dataclass(frozen=True)
class _Value:
    """What is known of a tensor's memory: the last operations that wrote to it, and whether it depends on the data."""

    writers: frozenset[int]
    of_data: bool


class _Values:
    """Values by memory, which a tensor shares with its views: what is written through one is read through another."""

    def __init__(self) -> None:
        # A weak reference keeps the address from being given to another storage.
        self._by_address: dict[int, tuple[StorageWeakRef, _Value]] = {}
        self._by_tensor: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __getitem__(self, tensor: Tensor) -> _Value | None:
        storage = _storage(tensor)
        if storage is None:
            found: _Value | None = self._by_tensor.get(tensor)
            return found
        return self._by_address.get(storage._cdata, (None, None))[1]

    def __setitem__(self, tensor: Tensor, value: _Value) -> None:
        storage = _storage(tensor)
        if storage is None:
            self._by_tensor[tensor] = value
        else:
            self._by_address[storage._cdata] = StorageWeakRef(storage), value


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse and opaque tensors have none
        return None


class _Recorder(TorchDispatchMode):
    """Follows two kinds of tensors: those that operations on the data wrote, and those made of parameters alone."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.uses: dict[str, list[int]] = defaultdict(list)
        self.mixing: dict[str, list[int]] = defaultdict(list)
        self.reads: list[tuple[int, ...]] = []
        self.rectifiers = 0
        self._values = _Values()
        self._made_of: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def mark_data(self, tensor: Tensor) -> None:
        self._values[tensor] = _Value(frozenset(), of_data=True)

    def depends_on_data(self, tensor: Tensor) -> bool:
        value = self._values[tensor]
        return value is not None and value.of_data

    def above(self, explained: Any) -> frozenset[int]:
        """The operations that an explained output comes from; all of them where no operation on the data wrote it."""
        values = [self._values[leaf] for leaf in tree_leaves(explained) if isinstance(leaf, Tensor)]
        if not any(value is not None and value.of_data for value in values):
            return frozenset(range(len(self.reads)))
        found = set().union(*(value.writers for value in values if value is not None))
        for index in range(len(self.reads) - 1, -1, -1):  # nothing is read before it is written
            if index in found:
                found.update(self.reads[index])
        return frozenset(found)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = [(place, tensor) for place, each in [*enumerate(args), *kwargs.items()] for tensor in _tensors((each,))]
        moving = [(value, tensor.numel()) for _, tensor in read if (value := self._values[tensor]) is not None]
        values, widest = [value for value, _ in moving], max((size for _, size in moving), default=0)
        result = func(*args, **kwargs)
        written = _tensors((result,))
        sources: dict[str, bool] = {}  # keeps its order: nothing may depend on string hashing
        for place, tensor in read:
            for name in self._names_of(tensor):
                enlarges = any(tensor.numel() > widest for tensor in written)
                sources[name] = sources.get(name, False) or mixes(func, place, tensor, enlarges)
        if not sources and is_view(func):
            self._look(values, written)
        elif values or (sources and looks_up(func) and not self._is_parametrised(sources)):
            self._note(sources, values, written + changed(func, args, kwargs))
            if any(value.of_data for value in values):
                self.rectifiers += rectifies(func, args, kwargs)
        else:
            for tensor in written if sources else ():
                if id(tensor) not in self.names:
                    self._made_of[tensor] = tuple(sources)
        return result

    def _look(self, values: list[_Value], views: list[Tensor]) -> None:
        """A view of what is known is known by its memory, unless it is a wrapper with none of its own."""
        for value in values:
            for view in views:
                if self._values[view] is None:
                    self._values[view] = value

    def _names_of(self, tensor: Tensor) -> tuple[str, ...]:
        """The parameters and buffers that a tensor is or is made of."""
        name = self.names.get(id(tensor))
        made_of: tuple[str, ...] = self._made_of.get(tensor, ())
        return made_of if name is None else (name, *made_of)

    def _is_parametrised(self, sources: dict[str, bool]) -> bool:
        return any("parametrizations." in name for name in sources)

    def _note(self, sources: dict[str, bool], values: list[_Value], written: list[Tensor]) -> None:
        """One more operation: what it combines with the data, and what it writes."""
        index = len(self.reads)
        for name, mixed in sources.items():
            self.uses[name].append(index)
            if mixed:
                self.mixing[name].append(index)
        self.reads.append(tuple(sorted({writer for value in values for writer in value.writers})))
        value = _Value(frozenset((index,)), any(value.of_data for value in values))
        for tensor in written:
            # A running statistic that the pass updates in place stays a buffer, not data.
            if id(tensor) not in self.names:
                self._values[tensor] = value


def _tensors(values: tuple[Any, ...]) -> list[Tensor]:
    """Tensors among an operation's arguments or results: bare, or in one list."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, Tensor)]
    # What is sharded is handed on by its parts, too: wrapping them and collecting them are no operations.
    return found + [part for part in map(part_of, found) if part is not None]


@contextmanager
def _spatial_outputs(model: nn.Module, found: list[SpatialMap], recorder: _Recorder) -> Iterator[None]:
    """Note every module that returns ``(N, C, H, W)`` with H * W > 1 and depends on the data."""

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if (
                isinstance(output, Tensor)
                and output.ndim == 4
                and output.shape[2] * output.shape[3] > 1
                and output.is_floating_point()
                and recorder.depends_on_data(output)
            ):
                found.append(SpatialMap(name, tuple(output.shape)))

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if name and not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_tensor(structure: Any, kinds: Any = Tensor) -> Any:
    """The first tensor in a nested structure, or None; ``kinds`` are the types that count as one."""
    return next((leaf for leaf in tree_leaves(structure) if isinstance(leaf, kinds)), None)
