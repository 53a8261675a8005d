"""One eager forward pass, recorded: what each operation reads, which rectifiers ran, where the maps are spatial.

Module hooks miss what a network does by function call (an attention's in-projection, ``F.conv2d(x, self.weight)``,
``F.relu``) and symbolic tracers refuse data-dependent control flow. So the pass is watched one level below, where
every operation arrives with the very tensors it reads, whatever the Python code above looks like. Nothing is
executed differently; the model needs no support for tracing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from lightning_sanity.model.weights import part_of, told_of_gathering

_RECTIFIER = re.compile(r"aten\.(relu|relu6|hardtanh|threshold|clamp_min|clamp)_?\.")


@dataclass(frozen=True)
class SpatialMap:
    """A module whose output is a feature map ``(N, C, H, W)`` with more than one position."""

    module: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """What one forward pass did.

    Attributes:
        uses: Per parameter or buffer that reached the data, the indices of the operations that combined it with
            something that depends on the input, in order. A parameter that is first folded into others (weight
            normalisation, a scaled or concatenated weight) is used where the product meets the data.
        spatial: Modules with a spatial output, in order of completion.
        rectifiers: Number of operations that rectified something that depends on the input.
        operations: Number of recorded operations that depend on the input.
        outputs: What the model returned.
    """

    uses: dict[str, tuple[int, ...]]
    spatial: tuple[SpatialMap, ...]
    rectifiers: int
    operations: int
    outputs: Any

    def order(self) -> tuple[str, ...]:
        """Used tensors by their last use, first operation first; those of one operation as the model lists them."""
        return tuple(sorted(self.uses, key=lambda name: self.uses[name][-1]))


def trace(model: nn.Module, inputs: tuple[Any, ...], run: Callable[..., Any] | None = None) -> Graph:
    """Run one forward pass with gradients enabled and record it.

    Args:
        model: The module whose parameters and buffers are looked for.
        inputs: Its positional arguments; tensors among them, however nested, are what "the data" means.
        run: Called as ``run(*inputs)`` instead of ``model(*inputs)``.

    Returns:
        The recording. Tied tensors appear under the first of their names.
    """
    # Nobody goes back through this pass, so it need not keep what going back would read; unless the model does.
    keeps_nothing = _KeepsNothing()
    try:
        with saved_tensors_hooks(keeps_nothing.pack, keeps_nothing.unpack):
            return _traced(model, inputs, run or model)
    except Exception:
        if not keeps_nothing.asked:
            raise
    return _traced(model, inputs, run or model)


def _traced(model: nn.Module, inputs: tuple[Any, ...], run: Callable[..., Any]) -> Graph:
    names: dict[int, str] = {}
    _learn(model, names)
    recorder = _Recorder(names)
    spatial: list[SpatialMap] = []
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor):
                recorder.mark_data(leaf)
        stack.enter_context(_spatial_outputs(model, spatial, recorder))
        stack.enter_context(told_of_gathering(model, lambda: _learn(model, names)))
        stack.enter_context(recorder)
        outputs = run(*inputs)
    return Graph(
        uses={name: tuple(recorder.uses[name]) for name in names.values() if name in recorder.uses},
        spatial=tuple(spatial),
        rectifiers=recorder.rectifiers,
        operations=recorder.index,
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


def _learn(model: nn.Module, names: dict[int, str]) -> None:
    """Note which tensors stand for which name now; sharded parameters are others during a pass."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        names.setdefault(id(tensor), name)


class _Recorder(TorchDispatchMode):
    """Follows two kinds of tensors: those that depend on the data, and those made of parameters alone."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.uses: dict[str, list[int]] = defaultdict(list)
        self.index = 0
        self.rectifiers = 0
        self._data: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._made_of: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def mark_data(self, tensor: Tensor) -> None:
        self._data[tensor] = True

    def depends_on_data(self, tensor: Tensor) -> bool:
        return tensor in self._data

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = _tensors((*args, *kwargs.values()))
        touches_data = any(tensor in self._data for tensor in read)
        sources: dict[str, None] = {}  # a set that keeps its order: nothing may depend on string hashing
        for tensor in read:
            name = self.names.get(id(tensor))
            if name is not None:
                sources[name] = None
            sources.update(self._made_of.get(tensor, {}))
        result = func(*args, **kwargs)
        written = _tensors((result,))
        if touches_data:
            for name in sources:
                self.uses[name].append(self.index)
            self.rectifiers += _rectifies(func, args, kwargs)
            self.index += 1
            for tensor in written:
                # A running statistic that the pass updates in place stays a buffer, not data.
                if id(tensor) not in self.names:
                    self._data[tensor] = True
        elif sources:
            for tensor in written:
                if id(tensor) not in self.names:
                    self._made_of[tensor] = sources
        return result


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


def _rectifies(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an aten operation is ReLU or a bounded ReLU, under any of its names."""
    match = _RECTIFIER.match(str(func) + ".")
    if match is None:
        return False
    kind, positional = match.group(1), args[1:]
    if kind in ("relu", "relu6"):
        return True
    low = positional[0] if positional else kwargs.get("min", kwargs.get("min_val", kwargs.get("threshold")))
    if kind == "hardtanh" and low is None:
        low = -1.0
    return isinstance(low, (int, float)) and low == 0


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
