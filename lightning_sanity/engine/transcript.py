"""A network taken apart while it runs: every call that torch sees is written down as an operation.

Symbolic tracing stops where a network asks for a value: at the branches of ``nn.TransformerEncoder``, at the masks and
the named outputs of a language model. Here it runs on real samples instead, twice, with other numbers of them. The two
runs must make the same calls. A whole number among their arguments that differs is a number of rows; a value that the
network reads out decides which way it goes, and may depend on neither the explained input nor a weight that becomes
random.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from lightning_sanity.engine.path import NotTraceable
from lightning_sanity.engine.recording import calls_of
from lightning_sanity.engine.rows import same

_ABOUT = {
    *("size", "dim", "ndimension", "numel", "nelement", "element_size", "stride", "storage_offset", "get_device"),
    *("is_contiguous", "is_floating_point", "is_complex", "is_signed", "is_inference", "type", "has_names", "__len__"),
    *("__hash__", "__get__", "is_same_size", "is_tensor", "result_type", "can_cast"),
}
"""What tells of a tensor's shape and type, and nothing of its values."""
_ABOUT_THE_FIRST = {"_nested_tensor_from_mask_left_aligned"}
"""What reads values of its other arguments, and of its first the shape."""
_SHAPING = {"view", "reshape"}
_NOTHING = object()


@dataclass(frozen=True)
class _Result:
    """A tensor that a call returned: which call, and where in what it returned."""

    call: int
    path: tuple[Any, ...] = ()


@dataclass(frozen=True)
class _Given:
    """A tensor among the inputs."""

    place: int


@dataclass(frozen=True)
class _Held:
    """A parameter or buffer, by its name."""

    name: str


@dataclass(frozen=True, eq=False)
class _Constant:
    """A tensor from elsewhere."""

    value: Tensor


@dataclass
class _Call:
    """One call.

    Attributes:
        function: What was called.
        args: Its arguments, tensors among them by where they come from.
        kwargs: The same by name.
        graded: Whether gradients were wanted.
        shape: Of what it returned, if that is a tensor.
        read: What it read out of a tensor; ``_NOTHING`` for a call that made tensors.
        in_place: Whether it wrote into its first argument.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    graded: bool
    shape: torch.Size | None = None
    read: Any = _NOTHING
    in_place: bool = False


class _Run(TorchFunctionMode):
    """A run of a network, written down.

    Args:
        model: The network.
        given: Its arguments.

    Attributes:
        calls: In their order.
        returned: What each module returned, per call of it; None for what is no tensor.
        output: What the model returned.
        ends: Where that comes from.
    """

    def __init__(self, model: nn.Module, given: Sequence[Any]) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.returned: dict[str, list[_Result | None]] = defaultdict(list)
        named = [*model.named_parameters(), *model.named_buffers()]
        self._source: dict[int, Any] = {id(tensor): _Held(name) for name, tensor in named}
        data = [value for value in given if isinstance(value, Tensor)]
        self._source |= {id(tensor): _Given(place) for place, tensor in enumerate(data)}
        self._alive: list[Tensor] = []  # so that an identity means one tensor
        self._sharing: dict[int, list[Tensor]] = defaultdict(list)
        self._stale: set[int] = set()
        names = {module: name for name, module in model.named_modules()}

        def note(module: nn.Module, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = run(*args, **kwargs)
            found = self._source.get(id(result))
            self.returned[names[module]].append(found if isinstance(found, _Result) else None)
            return result

        with calls_of(names, note), self:
            self.output = model(*given)
        self.ends = self._source.get(id(self.output))
        if not isinstance(self.ends, _Result):
            raise NotTraceable("the model does not return a tensor that it computed")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Write a call down."""
        kwargs = kwargs or {}
        tensors = [tensor for _, tensor in _leaves((args, kwargs))]
        before = [tensor._version for tensor in tensors]
        taken, named = _mapped(tuple(args), self._from), _mapped(kwargs, self._from)
        result = func(*args, **kwargs)
        made = list(_leaves(result))
        written = [t for t, version in zip(tensors, before, strict=True) if t._version != version]
        if _name(func) == "register_hook":
            raise NotTraceable("it changes gradients by hooks of tensors")
        if not written and _only_tells(func, made, result):
            return result
        call = _Call(func, taken, named, graded=torch.is_grad_enabled())
        if written:
            self._note_writing(call, args, written)
        elif not made:
            call.read = result
        elif isinstance(result, Tensor):
            call.shape = result.shape
        for path, tensor in made:
            if not any(tensor is other for other in written):
                self._source[id(tensor)] = _Result(len(self.calls), path)
                self._sharing[tensor.untyped_storage()._cdata].append(tensor)
                self._alive.append(tensor)
        if written:
            self._source[id(written[0])] = _Result(len(self.calls))
        self.calls.append(call)
        return result

    def _from(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in self._stale:
            raise NotTraceable("it reads a view of what was overwritten")
        if id(value) not in self._source:
            self._alive.append(value)
            self._source[id(value)] = _Constant(value)
        return self._source[id(value)]

    def _note_writing(self, call: _Call, args: Any, written: Sequence[Tensor]) -> None:
        into = args[0] if args else None
        if any(tensor is not into for tensor in written) or not isinstance(self._source.get(id(into)), _Result):
            raise NotTraceable(f"it writes into what it did not make ({_name(call.function)})")
        call.in_place = True
        sharing = self._sharing[into.untyped_storage()._cdata]  # type: ignore[union-attr]
        self._stale |= {id(tensor) for tensor in sharing if tensor is not into}


class Transcript:
    """The graph of a network, from two runs.

    Args:
        model: The network.
        inputs: Its arguments, for two different numbers of samples; the first of them is explained.
        random: Whether a parameter or buffer, by its name, becomes random.

    Attributes:
        graph: Its placeholders are ``input_0``, ``input_1``, ... for the tensors among the inputs.
        returned: The node of what each module returned, per call of it; None for what is no tensor.
        constants: Tensors from elsewhere, by the names that the graph has for them.
        outputs: Of the model in the two runs.
        way: What it calls and what it reads out, one after the other; see ``way``.

    Raises:
        NotTraceable: If the runs cannot be told to be of one graph; says why.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Sequence[Any], Sequence[Any]],
        random: Callable[[str], bool],
    ) -> None:
        one, other = _Run(model, inputs[0]), _Run(model, inputs[1])
        self._samples, self._random = (len(inputs[0][0]), len(inputs[1][0])), random
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.way = [step for call in one.calls for step in (call.function, call.read)]
        self.outputs = one.output.detach(), other.output.detach()
        self._nodes: dict[Any, fx.Node] = {}
        self._touched: set[fx.Node] = set()
        for place in range(sum(isinstance(value, Tensor) for value in inputs[0])):
            self._nodes[_Given(place)] = self.graph.placeholder(f"input_{place}")
        self._explained = self._nodes[_Given(0)]
        self._touched.add(self._explained)
        if len(one.calls) != len(other.calls) or one.ends != other.ends:
            raise NotTraceable("it makes other calls for another number of samples")
        for place, pair in enumerate(zip(one.calls, other.calls, strict=True)):
            self._write(place, *pair)
        self.graph.output(self._node(one.ends))
        self.returned = {
            name: [None if found is None else self._node(found) for found in each]
            for name, each in one.returned.items()
        }

    def _write(self, place: int, one: _Call, other: _Call) -> None:
        """One more operation."""
        name = _name(one.function)
        if one.function != other.function or (one.in_place, one.graded) != (other.in_place, other.graded):
            raise NotTraceable("it makes other calls for another number of samples")
        args, kwargs = self._shaped(one, other) or self._merged((one.args, one.kwargs), (other.args, other.kwargs))
        function = partial(_on_a_copy, one.function) if one.in_place else one.function
        node = self._nodes[_Result(place)] = self._called(function, args, kwargs, name)
        told = node.all_input_nodes[1:] if name in _ABOUT_THE_FIRST else node.all_input_nodes
        touched = not self._touched.isdisjoint(told)
        if touched:
            self._touched.add(node)
            if not one.graded:
                raise NotTraceable(f"it computes without a gradient ({name})")
        if one.read is _NOTHING:
            return
        if touched:
            raise NotTraceable(f"it looks at values that become random ({name})")
        if not same(one.read, other.read):
            raise NotTraceable(f"it looks at values that differ between samples ({name})")

    def _called(self, function: Callable[..., Any], args: Any, kwargs: Any, name: str) -> fx.Node:
        return self.graph.create_node("call_function", function, tuple(args), kwargs, name.strip("_") or "call")

    def _shaped(self, one: _Call, other: _Call) -> Any:
        """Arguments of a change of shape that leave the number of rows open; None where that cannot be done."""
        sizes: Any = one.args[1:]
        sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
        numbers = one.args and sizes and not one.kwargs and all(type(size) is int for size in sizes)
        if _name(one.function) not in _SHAPING or not numbers or one.shape is None or other.shape is None:
            return None
        if len(one.shape) != len(other.shape):
            return None
        shape = [a if a == b else -1 for a, b in zip(one.shape, other.shape, strict=True)]
        return ((self._merged(one.args[0], other.args[0]), tuple(shape)), {}) if shape.count(-1) <= 1 else None

    def _merged(self, a: Any, b: Any) -> Any:
        """One argument for both of two."""
        if isinstance(a, (_Result, _Given, _Held)):
            if a != b:
                raise NotTraceable("it computes with other values for another number of samples")
            return self._node(a)
        if isinstance(a, _Constant):
            if not isinstance(b, _Constant) or a.value is not b.value:
                raise NotTraceable("it computes with a value that torch was not seen to make")
            return self._constant(a.value)
        if type(a) is not type(b):
            raise NotTraceable("it is called in another way for another number of samples")
        if isinstance(a, (tuple, list)) and len(a) == len(b):
            return type(a)(self._merged(x, y) for x, y in zip(a, b, strict=True))
        if isinstance(a, dict) and a.keys() == b.keys():
            return {key: self._merged(value, b[key]) for key, value in a.items()}
        if isinstance(a, slice):
            ends = zip((a.start, a.stop, a.step), (b.start, b.stop, b.step), strict=True)
            return slice(*(self._merged(x, y) for x, y in ends))
        if same(a, b):
            return a
        few, many = self._samples
        if type(a) is int and a * many == b * few and a % few == 0:
            return self.graph.call_function(_rows, (self._explained, a // few))
        raise NotTraceable("it computes with other numbers for another number of samples")

    def _node(self, source: Any) -> fx.Node:
        if source not in self._nodes:
            if isinstance(source, _Held):
                node = self.graph.create_node("get_attr", source.name)
                if self._random(source.name):
                    self._touched.add(node)
            else:
                above = self._node(_Result(source.call, source.path[:-1]))
                node = self.graph.call_function(operator.getitem, (above, source.path[-1]))
                if above in self._touched:
                    self._touched.add(node)
            self._nodes[source] = node
        return self._nodes[source]

    def _constant(self, value: Tensor) -> fx.Node:
        name = next((name for name, held in self.constants.items() if held is value), None)
        if name is None:
            name = f"_transcribed_{len(self.constants)}"
            self.constants[name] = value
            self._nodes[name] = self.graph.create_node("get_attr", name)
        return self._nodes[name]


def way(model: nn.Module, given: Sequence[Any]) -> list[Any]:
    """What a network calls and what it reads out, one after the other; nothing of it is kept."""
    steps: list[Any] = []

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            tensors = [tensor for _, tensor in _leaves((args, kwargs))]
            before = [tensor._version for tensor in tensors]
            result = func(*args, **kwargs)
            made = list(_leaves(result))
            written = before != [tensor._version for tensor in tensors]
            if written or not _only_tells(func, made, result):
                steps.extend((func, result if not made and not written else _NOTHING))
            return result

    with saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing), Watching():
        model(*given)
    return steps


def _only_tells(function: Any, made: Sequence[Any], result: Any) -> bool:
    """Whether a call made no tensor and told no values."""
    return not made and (result is None or _name(function) in _ABOUT)


def _rows(value: Tensor, each: int) -> int:
    """How many rows there are where every sample has so many."""
    return len(value) * each


def _on_a_copy(function: Callable[..., Any], value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What an operation in place makes of a value, which is left as it is."""
    copied = value.clone()
    made = function(copied, *args, **kwargs)
    return made if isinstance(made, Tensor) else copied


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", "an operation"))


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """The tensors in a structure, with the way to each."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, (tuple, list)):
        for place, each in enumerate(value):
            yield from _leaves(each, (*path, place))
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(each, (*path, key))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same structure of plain tuples, lists and dictionaries with its leaves changed."""
    if isinstance(value, (tuple, list)):
        return (list if isinstance(value, list) else tuple)(_mapped(each, change) for each in value)
    if isinstance(value, dict):
        return {key: _mapped(each, change) for key, each in value.items()}
    return change(value)
