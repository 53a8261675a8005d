"""A network taken apart into operations, each of which can run with trained or with random weights."""

from __future__ import annotations

import copy
import inspect
import operator
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from lightning_sanity.attribution.batching import rows_of
from lightning_sanity.engine.path import NotTraceable, Path, named_tensors
from lightning_sanity.engine.rows import alike, same, stretched
from lightning_sanity.engine.transcript import Transcript, way
from lightning_sanity.model.structure import Known
from lightning_sanity.randomization.unit import Unit

_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


class _Tracer(fx.Tracer):
    """Symbolic tracing with as many arguments as there are inputs; remembers which value each module returned."""

    proxy_buffer_attributes = True

    def __init__(self, inputs: tuple[Any, ...]) -> None:
        super().__init__()
        self.inputs = inputs
        self.returned: dict[str, list[Any]] = defaultdict(list)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Tensors become placeholders; what else the model is called with, its defaults included, stays as it is."""
        given = [
            self.create_proxy("placeholder", f"input_{index}", (), {}) if isinstance(value, Tensor) else value
            for index, value in enumerate(self.inputs)
        ]
        return (lambda root, *arguments: root.forward(*arguments)), [self.root, *given]

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Note what the module returned."""
        made = super().call_module(m, forward, args, kwargs)
        self.returned[self.path_of_module(m)].append(made.node if isinstance(made, fx.Proxy) else None)
        return made


@dataclass
class _Operation:
    """One node of the graph and what is known of it.

    Attributes:
        node: The node.
        reads: Units whose tensors it reads itself.
        above: Units that its value depends on, with all its ancestors.
        of_data: Whether its value depends on the inputs.
        dim: Dimension along which samples are stacked; None where the value holds no row per sample.
        fixed: Whether the value is the same for any number of samples.
        several: Whether it is no tensor but holds some.
        per_sample: Bytes of one sample's rows.
        ndim: Of the value, where it holds rows.
    """

    node: fx.Node
    reads: frozenset[int] = frozenset()
    above: frozenset[int] = frozenset()
    of_data: bool = False
    dim: int | None = None
    fixed: bool = False
    several: bool = False
    per_sample: int = 0
    ndim: int = 0


class Network(Path):
    """A network taken apart into operations, with trained and with random weights.

    Args:
        model: See ``Path``.
        inputs: Its inputs.
        units: See ``Path``.
        owner: See ``Path``.
        watched: See ``Path``.
        known: See ``Path``; how the network comes apart is kept there, and not found again.

    Raises:
        NotTraceable: If its operations cannot be told: control flow that depends on the data, for example.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        units: Sequence[Unit],
        owner: nn.Module,
        watched: Collection[str] = (),
        known: Known | None = None,
    ) -> None:
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        if any(
            isinstance(leaf, Tensor) for value in given if not isinstance(value, Tensor) for leaf in tree_leaves(value)
        ):
            raise NotTraceable("an input is a collection of tensors")
        super().__init__(model, inputs, units, owner, watched, known)
        self._mixed: dict[tuple[str, frozenset[int]], nn.Module] = {}
        self._pairs_by_name: dict[str, tuple[nn.Module, nn.Module, frozenset[int]]] = {}
        key = type(self), tuple(units), _kinds(given)
        if key in self._structure:
            self._take(self._structure[key])
            return
        reasons = []
        for take_apart in (self._traced, self._written_down):
            try:
                take_apart(given)
                self._keep(key)
                return
            except NotTraceable as error:
                reasons.append(str(error))
            except Exception as error:  # whatever the model's own code makes of it
                reasons.append(f"{type(error).__name__}: {error}")
        raise NotTraceable("; ".join(reasons))

    def _keep(self, key: Any) -> None:
        """Let another network of this structure know how it comes apart, if all that its operations hold is its own."""
        named = {str(node.target) for node in self.operations if node.op == "get_attr"}
        if all(_has(self.trained, name) for name in named):
            self._structure[key] = self.graph, _copied(self.operations), dict(self.returned)

    def _take(self, kept: Any) -> None:
        """Come apart as another network of this structure did."""
        graph, operations, returned = kept
        self._connect(graph, _copied(operations), returned)

    def _traced(self, given: tuple[Any, ...]) -> None:
        """Take it apart by symbolic tracing."""
        try:
            tracer = _Tracer(given)
            graph = tracer.trace(self.random)
        except Exception as error:  # whatever the model's own code makes of symbolic values
            raise NotTraceable(f"symbolic tracing failed ({type(error).__name__}: {error})") from error
        self._know(graph, self._rewritten(graph.nodes), tracer.returned)
        few, more = [0, 1], [2, 0, 1]
        self._measure(_some(given, few), _some(given, more), Fraction(len(more), len(few)))

    def _written_down(self, given: tuple[Any, ...]) -> None:
        """Take it apart by what it does with samples: with few, or with all where those would go another way."""
        total = len(given[0])
        everyone = list(range(total))
        whole = everyone, [total - 1, *everyone]
        try:
            runs, found = self._transcribed(given, [0, 1], [2, 0, 1])
            if total > 2 and found.way != way(self.trained, _wanting_gradients(_some(given, everyone))):
                runs, found = self._transcribed(given, *whole)
        except NotTraceable:  # two samples may go another way than a third
            if total <= 2:
                raise
            runs, found = self._transcribed(given, *whole)
        for name, value in found.constants.items():
            setattr(self.random, name, value)
        output = next(node for node in found.graph.nodes if node.op == "output")
        needed = {output, *_above(output)}
        nodes = [node for node in found.graph.nodes if node in needed or node.op == "placeholder"]
        self._know(found.graph, nodes, found.returned)
        last = self._measure(*runs, Fraction(len(runs[1][0]), len(runs[0][0])))
        if not all(map(alike, found.outputs, last)):
            raise NotTraceable("what it does cannot be repeated call by call")

    def _transcribed(
        self, given: tuple[Any, ...], few: Sequence[int], more: Sequence[int]
    ) -> tuple[tuple[tuple[Any, ...], tuple[Any, ...]], Transcript]:
        """Arguments of two numbers of samples, and what the network does with them."""
        unit_of = {name: self._unit_of.get(id(tensor)) for name, tensor in named_tensors(self.trained)}
        runs = _wanting_gradients(_some(given, few)), _wanting_gradients(_some(given, more))
        with self.out_of_place(), torch.enable_grad():
            return runs, Transcript(self.trained, runs, lambda name: unit_of[name] is not None)

    def _know(self, graph: fx.Graph, nodes: Iterable[fx.Node], returned: Mapping[str, Sequence[Any]]) -> None:
        """Note of every operation what it reads and what it comes from."""
        self.operations: dict[fx.Node, _Operation] = {}
        for node in nodes:
            self.operations[node] = self._operation(node)
        once = {name: each[0] for name, each in returned.items() if len(each) == 1 and each[0] in self.operations}
        self._connect(graph, self.operations, once)

    def _connect(self, graph: fx.Graph, operations: dict[fx.Node, _Operation], returned: Mapping[str, fx.Node]) -> None:
        """Note where the network begins and ends, and for how long each value is read."""
        self.graph, self.operations, self.returned = graph, operations, returned
        output = next(node for node in self.operations if node.op == "output").args[0]
        if not isinstance(output, fx.Node):
            raise NotTraceable("the model does not return a tensor")
        self.output: fx.Node = output
        self.inputs = [node for node in self.operations if node.op == "placeholder"]
        if self.inputs[0].target != "input_0":
            raise NotTraceable("the explained input is no tensor")
        if self.inputs[0] not in {output, *_above(output)}:
            raise NotTraceable("the explained input does not reach the output")
        self.last_use = {argument: node for node in self.operations for argument in node.all_input_nodes}

    def _rewritten(self, nodes: Iterable[fx.Node]) -> Iterator[fx.Node]:
        """The graph's nodes, those that work in place replaced by their out-of-place equals."""
        for node in nodes:
            if node.op == "call_function":
                name = getattr(node.target, "__name__", "")
                if node.target in _OUT_OF_PLACE:
                    node.target = _OUT_OF_PLACE[node.target]
                elif name.endswith("_") and not name.startswith("_"):
                    node.target = _twin_of(node.target, name)
                elif node.target is operator.setitem or node.kwargs.get("out") is not None:
                    raise NotTraceable("it assigns into a tensor")
                else:
                    _not_in_place(node)
            elif node.op == "call_method" and (name := str(node.target)).endswith("_") and not name.endswith("__"):
                if not hasattr(Tensor, name[:-1]):
                    raise NotTraceable(f"it calls {name} in place")
                node.target = name[:-1]
            yield node

    def _operation(self, node: fx.Node) -> _Operation:
        reads: set[int] = set()
        if node.op == "get_attr":
            reads = self._units_among([_attribute(self.trained, self.random, node.target)])
        elif node.op == "call_module":
            module = self.trained.get_submodule(str(node.target))
            reads = self._units_among([*module.parameters(), *module.buffers()])
            if len(reads) > 1 and any(parametrize.is_parametrized(child) for child in module.modules()):
                raise NotTraceable(f"'{node.target}' mixes units and parametrised weights")
        made = _Operation(node, frozenset(reads), of_data=node.op == "placeholder")
        parents = [self.operations[argument] for argument in node.all_input_nodes]
        made.of_data |= any(parent.of_data for parent in parents)
        made.above = made.reads.union(*(parent.above for parent in parents))
        if made.of_data:  # a weight read by another node is read here
            made.reads = made.reads.union(*(parent.above for parent in parents if not parent.of_data))
        return made

    def _units_among(self, tensors: Sequence[Any]) -> set[int]:
        return {self._unit_of[id(tensor)] for tensor in tensors if id(tensor) in self._unit_of}

    @torch.no_grad()
    def _measure(self, few: tuple[Any, ...], more: tuple[Any, ...], by: Fraction) -> tuple[Tensor, Tensor]:
        """Run two numbers of samples, to see where rows lie in every value and that no sample depends on another.

        Args:
            few: Arguments of some samples.
            more: Of the same ones behind others.
            by: How many times as many these are.

        Returns:
            The outputs.
        """
        runs = []
        for given in (few, more):
            values: dict[fx.Node, Any] = {}
            rows = iter([value for value in given if isinstance(value, Tensor)])
            with self.out_of_place():
                for node in self.operations:
                    if node.op == "placeholder":
                        values[node] = next(rows)
                    elif node.op != "output":
                        values[node] = self.call(node, frozenset(), values.__getitem__)
            runs.append(values)
        for node, operation in self.operations.items():
            if operation.of_data and node.op != "output":
                _tell_rows(operation, runs[0][node], runs[1][node], by, len(few[0]))
        if self.operations[self.output].dim != 0:
            raise NotTraceable("the output has no row per sample")
        return runs[0][self.output], runs[1][self.output]

    # ------------------------------------------------------------------------------------------------------ weights

    def start_trial(self) -> None:
        """See ``Path``."""
        self._mixed.clear()
        super().start_trial()

    def call(self, node: fx.Node, key: frozenset[int], value_of: Callable[[fx.Node], Any]) -> Any:
        """Run a node with the units in ``key`` random."""
        if node.op == "get_attr":
            return _attribute(self.random if key else self.trained, self.random, node.target)
        args = fx.node.map_arg(node.args, value_of)
        kwargs = fx.node.map_arg(node.kwargs, value_of)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return self._module(str(node.target), key)(*args, **kwargs)

    def _module(self, name: str, key: frozenset[int]) -> nn.Module:
        if name not in self._pairs_by_name:
            trained, random = self.trained.get_submodule(name), self.random.get_submodule(name)
            own = frozenset(self._units_among([*trained.parameters(), *trained.buffers()]))
            self._pairs_by_name[name] = trained, random, own
        trained, random, own = self._pairs_by_name[name]
        key = key & own
        if not key:
            return trained
        if key == own:
            return random
        if (name, key) not in self._mixed:
            mixed = copy.deepcopy(trained)
            self._mix(mixed, trained, random, key)
            self._mixed[name, key] = mixed
        return self._mixed[name, key]


def _copied(operations: Mapping[fx.Node, _Operation]) -> dict[fx.Node, _Operation]:
    """What is known of each node, to be changed by itself."""
    return {node: replace(operation) for node, operation in operations.items()}


def _kinds(given: Sequence[Any]) -> tuple[Any, ...]:
    """What tells arguments apart but for their values."""
    return tuple((value.shape, value.dtype) if isinstance(value, Tensor) else repr(value) for value in given)


def _has(model: nn.Module, path: str) -> bool:
    """Whether an attribute hangs on a model itself."""
    value: Any = model
    for part in path.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def _attribute(model: nn.Module, other: nn.Module, target: Any) -> Any:
    """An attribute by its path; constants that tracing found hang on the traced copy alone."""
    for root in (model, other):
        value: Any = root
        try:
            for part in str(target).split("."):
                value = getattr(value, part)
        except AttributeError:
            continue
        return value
    raise NotTraceable(f"'{target}' is not to be found")


def _twin_of(function: Any, name: str) -> Any:
    """The out-of-place function behind an in-place one."""
    for room in (torch.nn.functional, torch):
        if getattr(room, name, None) is function and hasattr(room, name[:-1]):
            return getattr(room, name[:-1])
    raise NotTraceable(f"it calls {name} in place")


def _not_in_place(node: fx.Node) -> None:
    """Switch off ``inplace`` among a function's arguments, by name or by position."""
    if "inplace" in node.kwargs:
        node.kwargs = {**node.kwargs, "inplace": False}
        return
    try:
        names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return
    at = names.index("inplace") if "inplace" in names else len(node.args)
    if at < len(node.args):
        node.args = (*node.args[:at], False, *node.args[at + 1 :])


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _alike(a: Tensor, b: Tensor) -> bool:
    if torch.equal(a, b):  # a mask may be infinite, and the same
        return True
    if not bool(a.isfinite().all()):
        raise NotTraceable("a value is not finite, so that rows cannot be told from one another")
    return alike(a, b)


def _tell_rows(operation: _Operation, few: Any, more: Any, by: Fraction, samples: int) -> None:
    """Note where the rows of samples lie in a value, told from those of two numbers of samples."""
    if not isinstance(few, Tensor) or not isinstance(more, Tensor):
        operation.several = _holds_tensor(few)
        operation.fixed = not operation.several and same(few, more)
    elif few.shape == more.shape:
        operation.fixed = _alike(few, more)
    else:
        dim = stretched(few.shape, more.shape, by)
        length = 0 if dim is None else few.shape[dim]
        operation.per_sample = few.numel() * few.element_size() // samples
        if dim is not None and _alike(few, more.narrow(dim, more.shape[dim] - length, length)):
            operation.dim, operation.ndim = dim, few.ndim
        elif dim is None or not _alike(few, more.narrow(dim, 0, length)):
            raise NotTraceable(f"rows of {operation.node} depend on one another or lie in no order")
        # What numbers the rows of a batch suits no other: it stays without rows.


def _some(given: tuple[Any, ...], places: Sequence[int]) -> tuple[Any, ...]:
    """Arguments of some samples, as often as the batch must be gone round for them."""
    index = torch.tensor(places, device=given[0].device) % len(given[0])
    found: tuple[Any, ...] = rows_of(given, index)
    return found


def _wanting_gradients(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same: some modules go another way where nobody wants a gradient."""
    given[0].requires_grad_(given[0].is_floating_point())
    return given


def _above(node: fx.Node) -> set[fx.Node]:
    """What a node comes from."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        for argument in waiting.pop().all_input_nodes:
            if argument not in found:
                found.add(argument)
                waiting.append(argument)
    return found
