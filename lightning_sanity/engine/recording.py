"""An untraced run of a network, watched: which module reads which weight, where rows lie, what depends on all rows.

Values are followed by the memory they lie in, because they may be written through a view. A value that has no row per
sample although it was computed from the samples belongs to all of them together; whoever reads one mixes samples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from lightning_sanity.engine.path import NotTraceable
from lightning_sanity.engine.rows import alike, same, stretched

TWO, SIX = [0, 1], [2, 0, 1, 3, 4, 5]
"""The samples of two runs. In the second others stand before and behind the first two, one before and three behind, so
that it shows whether a sample depends on any: turned round, rolled or paired, the two do not meet again."""
TIMES = len(SIX) // len(TWO)
_MADE_LIKE = {"new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"}
_MADE_LIKE |= {"zeros_like", "ones_like", "full_like", "empty_like"}
"""What reads of a tensor nothing but its shape and type."""
_READ_OUT = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__}
"""What hands values on without an operation."""


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        module: The module.
        above: The call that it happened in.
        leaves: Of its arguments.
        given: How they hang together.
        returned: Leaves of its result.
        result: How they hang together.
        reads: Ids of the units' tensors that it read itself, or handed on.
        overwrites: Whether it changed an argument.
    """

    module: nn.Module
    above: Call | None
    leaves: list[Any]
    given: TreeSpec
    returned: list[Any] = field(default_factory=list)
    result: TreeSpec | None = None
    reads: set[int] = field(default_factory=set)
    overwrites: bool = False


Lying = tuple[int, int] | None
"""Where rows lie in a value: along which dimension, and how many of each sample; None of what holds no rows."""


@dataclass(frozen=True)
class CallRows:
    """Where the rows lie in all that a module is given and returns."""

    given: TreeSpec
    ranks: tuple[int | None, ...]
    taken: tuple[Lying, ...]
    returned: tuple[Lying, ...]


class Recording(TorchDispatchMode):
    """One run.

    Args:
        inputs: Its inputs; tensors among them are the data.
        watched: The units' tensors.
        before: The recording of a run with another number of samples, to compare shapes with.

    Attributes:
        calls: Of modules, in their order.
        shapes: Of what each operation on data made.
        size: Bytes of all values that depend on the data.
        largest: Bytes of the largest.

    Raises:
        NotTraceable: From within the run, if it looks at values, or mixes samples.
    """

    def __init__(self, inputs: Any, watched: Collection[Tensor], before: Recording | None = None) -> None:
        super().__init__()
        self._watched = {id(tensor) for tensor in watched}
        self._before = before
        self._data: dict[int, StorageWeakRef] = {}
        self._made_of: dict[int, tuple[StorageWeakRef, frozenset[int]]] = {}
        self._of_all: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._now: Call | None = None
        self.calls: list[Call] = []
        self.shapes: list[tuple[object, list[torch.Size]]] = []
        self.size = self.largest = 0
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor):
                self._mark(leaf)

    def depends_on_data(self, value: Any) -> bool:
        """Whether it is a tensor that was computed from the samples."""
        return isinstance(value, Tensor) and _storage(value) in self._data

    def around(self, module: nn.Module, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Note a call."""
        leaves, given = tree_flatten((args, kwargs))
        call = self._now = Call(module, self._now, leaves, given)
        if call.above is not None:  # what hands a weight to another module has read it
            call.above.reads |= self._sources(leaves)
        self.calls.append(call)
        versions = [leaf._version for leaf in leaves if isinstance(leaf, Tensor)]
        result = run(*args, **kwargs)
        call.overwrites = versions != [leaf._version for leaf in leaves if isinstance(leaf, Tensor)]
        call.returned, call.result = tree_flatten(result)
        self._now = call.above
        return result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        of_data = any(map(self.depends_on_data, read))
        if of_data and func.overloadpacket.__name__ in _MADE_LIKE:
            return func(*args, **(kwargs or {}))
        if of_data:
            self._refuse(func, args, read)
        sources = self._sources(read)
        if sources and torch.Tag.data_dependent_output in func.tags:  # random ones may lead elsewhere
            raise NotTraceable(f"it looks at values of its weights ({func})")
        if self._now is not None:
            self._now.reads |= sources
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if of_data:
            self._compare(func, made, read)
        elif sources:
            for tensor in made:
                self._made_of[_storage(tensor)] = StorageWeakRef(tensor.untyped_storage()), sources
        return result

    def _refuse(self, func: Any, args: Any, read: Sequence[Tensor]) -> None:
        looks = torch.Tag.data_dependent_output in func.tags
        looks |= torch.Tag.dynamic_output_shape in func.tags and func is not torch.ops.aten.index.Tensor
        if func is torch.ops.aten.index.Tensor:
            looks = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if looks:
            raise NotTraceable(f"it looks at values that depend on the inputs ({func})")
        if not func.is_view and any(tensor in self._of_all for tensor in read):  # a view may be had for its shape
            raise NotTraceable(f"{func} reads a value of all samples together: they depend on one another")

    def _sources(self, values: Sequence[Any]) -> frozenset[int]:
        """Ids of the units' tensors that some values are, or are made of."""
        tensors = [value for value in values if isinstance(value, Tensor)]
        own = {id(tensor) for tensor in tensors} & self._watched
        return frozenset(own).union(*(self._made_of[s][1] for t in tensors if (s := _storage(t)) in self._made_of))

    def _mark(self, tensor: Tensor) -> None:
        self._data.setdefault(_storage(tensor), StorageWeakRef(tensor.untyped_storage()))

    def _compare(self, func: Any, made: Sequence[Tensor], read: Sequence[Tensor]) -> None:
        place, shapes = len(self.shapes), [tensor.shape for tensor in made]
        self.shapes.append((func, shapes))
        memory = {_storage(tensor) for tensor in read}
        for tensor in made:
            if id(tensor) in self._watched:
                continue
            self._mark(tensor)
            self.largest = max(self.largest, tensor.nbytes)
            self.size += 0 if _storage(tensor) in memory else tensor.nbytes
        if self._before is None:
            return
        told = self._before.shapes[place : place + 1]
        if not told or told[0][0] is not func or len(told[0][1]) != len(shapes):
            raise NotTraceable("it computes something else for another number of samples")
        of_all = any(tensor in self._of_all for tensor in read)
        for tensor, before in zip(made, told[0][1], strict=True):
            if of_all or (tensor.numel() and stretched(before, tensor.shape, TIMES) is None):
                self._of_all[tensor] = True


class _ReadOut(TorchFunctionMode):
    """Refuses to hand out values that depend on the data."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READ_OUT and self.recording.depends_on_data(args[0]):
            raise NotTraceable(f"it looks at values that depend on the inputs ({func.__name__})")
        return func(*args, **(kwargs or {}))


class Trespass(TorchDispatchMode):
    """Refuses operations on tensors that should have been replaced.

    Args:
        names: Of the tensors.
    """

    def __init__(self, names: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {_storage(tensor): name for name, tensor in names.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and _storage(leaf) in self._names:
                name = self._names[_storage(leaf)]
                raise NotTraceable(f"'{name}' is read past the module that holds it")
        return func(*args, **(kwargs or {}))


@contextmanager
def calls_of(modules: Collection[nn.Module], around: Callable[..., Any]) -> Iterator[None]:
    """Every call of one of these, hooks included, becomes ``around(module, call, *args, **kwargs)``."""
    kept = [(module, vars(module).get("_call_impl")) for module in modules]
    try:
        for module, _ in kept:
            vars(module)["_call_impl"] = partial(around, module, module._call_impl)
        yield
    finally:
        for module, before in kept:
            if before is None:
                vars(module).pop("_call_impl", None)
            else:
                vars(module)["_call_impl"] = before


@torch.no_grad()
def record(
    model: nn.Module, run: Callable[[], Any], inputs: Any, watched: Collection[Tensor], before: Recording | None = None
) -> Recording:
    """Run a network and watch it; see ``Recording``."""
    recording = Recording(inputs, watched, before)
    with _ReadOut(recording), recording, calls_of(list(model.modules()), recording.around):
        run()
    if before is not None and len(recording.shapes) != len(before.shapes):
        raise NotTraceable("it computes something else for another number of samples")
    return recording


def rows_of_call(two: Call, six: Call) -> CallRows | str:
    """Where rows lie in a call's arguments and results, or why that cannot be told."""
    if two.overwrites or six.overwrites:
        return "overwrites what it is given"
    if two.given != six.given or two.result != six.result:
        return "is called in another way for another number of samples"
    try:
        taken, returned = (
            tuple(_lying(*pair) for pair in zip(ours, theirs, strict=True))
            for ours, theirs in ((two.leaves, six.leaves), (two.returned, six.returned))
        )
    except _Doubt as doubt:
        return str(doubt)
    return CallRows(two.given, ranks(two.leaves), taken, returned)


def ranks(leaves: Sequence[Any]) -> tuple[int | None, ...]:
    """Numbers of dimensions of the tensors."""
    return tuple(leaf.ndim if isinstance(leaf, Tensor) else None for leaf in leaves)


class _Doubt(Exception):
    """Why it cannot be told where rows lie."""


def _lying(two: Any, six: Any) -> Lying:
    tensors = isinstance(two, Tensor) and isinstance(six, Tensor)
    if not tensors or two.shape == six.shape:
        if alike(two, six) if tensors else same(two, six):
            return None
        raise _Doubt("is given or returns something else for another number of samples")
    dim = stretched(two.shape, six.shape, TIMES)
    each = 0 if dim is None or two.shape[dim] % 2 else two.shape[dim] // 2
    if dim is None or not each or not alike(two, six.narrow(dim, each, 2 * each)):
        raise _Doubt("has rows that depend on one another, or lie in no order")
    return dim, each


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
