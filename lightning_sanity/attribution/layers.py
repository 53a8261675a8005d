"""Feature maps inside a network: which module makes them, how they lie on the input, their values and gradients.

"Image" means whatever has positions: a signal or a sentence ``(N, C, L)``, an image ``(N, C, H, W)``, a volume
``(N, C, D, H, W)``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import combinations, count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from lightning_sanity.attribution.batching import of_few
from lightning_sanity.attribution.method import first, leaf, outputs_of, replaced, select
from lightning_sanity.model.graph import first_tensor
from lightning_sanity.resources.suggestions import alike

_CHANNELS_LAST = (nn.LayerNorm, nn.Linear)
_SEQUENTIAL = (*_CHANNELS_LAST, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
_SIMILAR = 0.1
"""Distortion with which a grid still has the image's shape."""


@dataclass(frozen=True)
class Layout:
    """How a module's output lies on the image.

    Attributes:
        kind: "channels first" ``(N, C, h, w)``, "channels last" ``(N, h, w, C)``, or "tokens"
            ``(N, prefix + h * w, C)``; with as many sides as the image has.
        sides: Positions along each side of the image.
        prefix: Tokens before the grid: the class token.
    """

    kind: str
    sides: tuple[int, ...]
    prefix: int = 0

    def grid(self, value: Tensor) -> Tensor:
        """The value as ``(N, C, *sides)``."""
        if self.kind == "channels first":
            return value
        if self.kind == "channels last":
            return value.movedim(-1, 1)
        return value[:, self.prefix :].transpose(1, 2).unflatten(2, self.sides)


@dataclass(frozen=True)
class Layer:
    """A feature map: of which module, how it lies on the image, how many channels it has.

    Attributes:
        name: The module's.
        layout: Of its output.
        channels: See above.
        activated: Whether the map is what an activation function makes of the module's output, called as a function
            where another network would have a module.
        call: Which of its calls in one pass makes the map, of a module that has several: an encoder of two images, of
            which one is explained.
    """

    name: str
    layout: Layout
    channels: int
    activated: bool = False
    call: int | None = None

    @property
    def shown(self) -> str:
        """The module by its name in the user's model, and whether an activation follows."""
        return self.name.removeprefix("model.") + (" and the activation after it" if self.activated else "")


def layout_of(shape: tuple[int, ...], image: tuple[int, ...], module: nn.Module | None = None) -> Layout | None:
    """The layout of an output of this shape over an image with these sides, or None if it is no map of it.

    >>> layout_of((2, 17, 64), (32, 32))
    Layout(kind='tokens', sides=(4, 4), prefix=1)
    """
    if len(shape) == len(image) + 2:
        across, along = _distortion(shape[2:], image), _distortion(shape[1:-1], image)
        last = _SEQUENTIAL if len(image) == 1 else _CHANNELS_LAST
        if along < _SIMILAR and (along < across or (along == across and isinstance(module, last))):
            return Layout("channels last", tuple(shape[1:-1]))
        return Layout("channels first", tuple(shape[2:])) if across < math.inf else None
    if len(shape) == 3 and len(image) == 2:
        for prefix in (1, 0):
            grid = token_grid(shape[1] - prefix, (image[0], image[1]))
            if grid is not None:
                return Layout("tokens", grid, prefix)
    return None


def token_grid(tokens: int, image: tuple[int, int]) -> tuple[int, int] | None:
    """Height and width of a grid of so many patches that has the image's shape, or None."""
    if tokens < 2:
        return None
    height = round((tokens * image[0] / image[1]) ** 0.5)
    if height < 1 or tokens % height:
        return None
    width = tokens // height
    return (height, width) if _distortion((height, width), image) < _SIMILAR else None


def _distortion(sides: tuple[int, ...], image: tuple[int, ...]) -> float:
    """By how much a grid's shape differs from the image's; infinite for what is no grid of it."""
    if math.prod(sides) < 2 or any(side > whole for side, whole in zip(sides, image, strict=True)):
        return math.inf
    if len(image) == 1:  # any length is a scale of any other: what kept the whole length is the likelier
        return 0.0 if sides == image else _SIMILAR / 2
    scales = [side / whole for side, whole in zip(sides, image, strict=True)]
    return max(abs(a - b) / (a + b) for a, b in combinations(scales, 2))


def sides_of(value: Tensor) -> tuple[int, ...]:
    """The sides along which a batch ``(N, C, ...)`` has positions; none for a table ``(N, F)``."""
    return tuple(value.shape[2:])


def no_positions(value: Tensor) -> str | None:
    """Why no feature map can lie on such an input, or None."""
    if 3 <= value.ndim <= 5:
        return None
    return f"the input has shape {tuple(value.shape)}, not (N, C, H, W), nor (N, C, L) or (N, C, D, H, W)"


def submodule(model: nn.Module, name: str) -> nn.Module:
    """The module of that name, also where the model has been wrapped meanwhile.

    Raises:
        ValueError: If there is none; names similar ones.
    """
    modules = dict(model.named_modules())
    if name in modules:
        return modules[name]
    inner = [module for full, module in modules.items() if full.endswith(f".{name}")]
    if name and len(inner) == 1:
        return inner[0]
    names = [full for full in modules if full]
    close = [full for full in names if full.split(".")[-1] == name.split(".")[-1]] or alike(name, names)
    meant = f"did you mean {' or '.join(close[:5])}?" if close else f"there are {', '.join(names[-5:])} and others"
    raise ValueError(f"layer '{name}' is not a module of the model; {meant}")


@contextmanager
def _watching(model: nn.Module, see: Callable[[str, nn.Module, Tensor, bool], None]) -> Iterator[None]:
    """Show every module's output, and whether it is all that the module returns, or the first of a tuple.

    The model goes on with a copy, so that in-place operations leave it alone.
    """

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            tensor = first_tensor(output)
            if tensor is None or not tensor.is_floating_point():
                return None
            see(name, module, tensor, tensor is output or (type(output) is tuple and tensor is output[0]))
            return output.clone() if isinstance(output, Tensor) else None

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def maps_of(model: nn.Module, inputs: Any) -> list[Layer]:
    """The maps that the model's output depends on, of modules that run once, in order of completion.

    Channel maps before, token maps only where there is no other: a vision transformer's patch embedding is a
    convolution, but its tokens are the features.
    """
    return _maps_of(model, inputs)


def _maps_of(model: nn.Module, inputs: Any, again: bool = False) -> list[Layer]:
    # A few samples tell, but for a network that gives these no gradient.
    found = of_few(lambda few: _made_maps(model, few, again), inputs) or _made_maps(model, inputs, again)
    tokens = [layer for layer in found if layer.layout.kind == "tokens"]
    maps = [layer for layer in found if layer.layout.kind != "tokens"]
    # A patch embedding alone is no feature map.
    return tokens if len(tokens) > len(maps) else maps


def _made_maps(model: nn.Module, inputs: Any, again: bool) -> list[Layer]:
    """Modules whose output is a map of the image that the model's output depends on, in order of completion.

    Of what returns several things in a structure of its own only the whole network counts, so that its scores are seen.
    The last tokens that only the class token's output follows from have no gradient, and do not count.

    ``again`` takes modules that run several times instead: those of which one call, and no other, leads from the
    explained input to the output.
    """
    value = first(inputs)
    image = sides_of(value)
    seen: list[tuple[Layer, Tensor]] = []
    total = len(list(model.parameters()))
    calls: Counter[str] = Counter()

    def see(name: str, module: nn.Module, tensor: Tensor, alone: bool) -> None:
        calls[name] += 1
        if not alone and len(list(module.parameters())) < total:
            return
        layout = layout_of(tuple(tensor.shape), image, module)
        if layout is not None and len(tensor) == len(value) and tensor.requires_grad:
            seen.append((Layer(name, layout, layout.grid(tensor).shape[1], call=calls[name] - 1), tensor))

    with torch.enable_grad(), _watching(model, see):
        start = leaf(value)
        outputs = outputs_of(model, replaced(inputs, start))
        seen = [each for each in seen if (calls[each[0].name] > 1) == again]
        if again or sum(isinstance(each, Tensor) for each in tree_leaves(inputs)) > 1:  # made of another input?
            seen = [each for each in seen if _depends(each[1], start)]
        # Every class weighs differently: the plain sum of probabilities would not depend on anything.
        weights = torch.linspace(1, 2, outputs[0].numel(), device=outputs.device, dtype=outputs.dtype)
        if not seen or not outputs.requires_grad:
            return []
        slopes = torch.autograd.grad(
            (outputs.reshape(len(outputs), -1) * weights).sum(), [tensor for _, tensor in seen], allow_unused=True
        )
    found = [
        layer
        for (layer, _), slope in zip(seen, slopes, strict=True)
        if slope is not None and bool((layer.layout.grid(slope) != 0).any())
    ]
    times = Counter(layer.name for layer in found)
    return [layer if again else replace(layer, call=None) for layer in found if times[layer.name] == 1]


def _depends(value: Tensor, start: Tensor) -> bool:
    (slope,) = torch.autograd.grad(value.sum(), start, retain_graph=True, allow_unused=True)
    return slope is not None


def last_map(model: nn.Module, inputs: Any) -> Layer | None:
    """The module whose feature map a class activation map is made of if none is named, or None if there is none.

    It is the last map that the output depends on, after its activation, whether that is a module of its own or a
    function. A network that scores positions, as a segmenter does, ends in a map
    of scores, which say where a class was found and not what for: there it is the last of the coarsest maps before
    them, a U-Net's bottleneck, as in Vinogradova et al. 2020 (arXiv:2002.11434). What runs several times is only taken
    where nothing runs once.
    """
    found = maps_of(model, inputs) or _maps_of(model, inputs, again=True)
    if not found:
        return None
    before = _before_scores(model, found)
    taken = min(reversed(before), key=lambda layer: math.prod(layer.layout.sides)) if before else found[-1]
    return replace(taken, activated=of_few(lambda few: is_activated(model, few, taken), inputs))


def _before_scores(model: nn.Module, found: Sequence[Layer]) -> list[Layer]:
    """The maps that later weights read, where the network's own output is a map; empty where it is none.

    It is one where the last map comes from a module that holds all weights: nothing is learned from it any more.
    """
    modules = dict(model.named_modules())
    held = {id(parameter) for parameter in modules[found[-1].name].parameters()}
    if any(id(parameter) not in held for parameter in model.parameters()):
        return []
    own = [next(iter(modules[layer.name].parameters(recurse=False)), None) is not None for layer in found]
    scores = max((place for place, weighted in enumerate(own) if weighted), default=0)
    return list(found[:scores])


def layer_named(model: nn.Module, inputs: Any, name: str) -> Layer:
    """The module of that name with the layout of its output.

    Raises:
        ValueError: If there is no such module or its output is no map of the image.
    """
    submodule(model, name)
    return of_few(lambda few: _layer_named(model, few, name), inputs)


def _layer_named(model: nn.Module, inputs: Any, name: str) -> Layer:
    module, value = submodule(model, name), first(inputs)
    outputs: list[Tensor | None] = []
    handle = module.register_forward_hook(lambda _, args, output: outputs.append(first_tensor(output)))
    try:
        with torch.no_grad():
            outputs_of(model, inputs)
    finally:
        handle.remove()
    if len(outputs) > 1:
        made = [layer for layer in _made_maps(model, inputs, True) if submodule(model, layer.name) is module]
        if made:
            return made[0]
    if len(outputs) != 1:
        raise ValueError(
            f"layer '{name}' ran {len(outputs)} times in one forward pass: what is explained must depend on one of them"
        )
    output = outputs[0]
    shape = tuple(output.shape) if output is not None else ()
    layout = layout_of(shape, sides_of(value), module)
    if layout is None or output is None:
        raise ValueError(f"the output of layer '{name}' has shape {shape}, which is no feature map of the input")
    return Layer(name, layout, layout.grid(output).shape[1])


def activation_and_gradient(
    model: nn.Module, inputs: Any, target: Tensor | None, layer: Layer, *, gradient: bool = True
) -> tuple[Tensor, Tensor]:
    """A layer's feature map and the explained output's gradient there, both ``(N, C, *sides)``.

    The pass back stops at the layer. Without ``gradient``, zeros take its place.
    """
    kept: list[Tensor] = []

    def cut(tensor: Tensor) -> Tensor:
        kept.append(leaf(tensor) if gradient else tensor.detach().clone())
        return kept[-1].clone() if gradient else tensor  # what follows may work in place

    with torch.set_grad_enabled(gradient), _exchanging(model, layer, cut):
        outputs = outputs_of(model, inputs)
    if len(kept) != 1:
        raise ValueError(f"layer '{layer.name}' ran {len(kept)} times in one forward pass, it must run once")
    if not gradient:
        return layer.layout.grid(kept[0]), torch.zeros_like(layer.layout.grid(kept[0]))
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(select(outputs, target).sum(), kept[0])
    return layer.layout.grid(kept[0].detach()), layer.layout.grid(slope)


@contextmanager
def _exchanging(model: nn.Module, layer: Layer, cut: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block the network goes on with what ``cut`` makes of a layer's feature map."""
    activations, calls = _Activations(cut) if layer.activated else None, count()

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if next(calls) != layer.call and layer.call is not None:
            return None
        tensor = first_tensor(output)
        if tensor is None:
            raise ValueError(f"layer '{layer.name}' returns no tensor")
        if activations is not None:
            activations.awaited = tensor
            return None
        return _exchanged(output, tensor, cut(tensor))

    handle = submodule(model, layer.name).register_forward_hook(hook)
    try:
        with activations or nullcontext():
            yield
    finally:
        handle.remove()


_NAMES: tuple[str, ...] = (
    "relu",
    "relu6",
    "leaky_relu",
    "rrelu",
    "prelu",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
    "hardswish",
)
_NAMES += ("hardtanh", "hardsigmoid", "softplus", "softsign", "threshold", "logsigmoid", "clamp", "clamp_min")
_NAMES += ("tanh", "sigmoid")
_WRITTEN = [name + end for name in _NAMES for end in ("", "_")]
_FUNCTIONS = {getattr(at, name) for at in (torch, Tensor, F) for name in _WRITTEN if hasattr(at, name)}


class _Activations(TorchFunctionMode):
    """Exchanges what an activation function returns for the awaited tensor."""

    def __init__(self, exchange: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.exchange = exchange
        self.awaited: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.awaited is None or not args or args[0] is not self.awaited or func not in _FUNCTIONS:
            return result
        return self.exchange(result)


def is_activated(model: nn.Module, inputs: Any, layer: Layer) -> bool:
    """Whether an activation function is the only thing that reads a module's output, and what it returns is used."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def see(activated: Tensor) -> Tensor:
        assert mode.awaited is not None
        seen.append((mode.awaited, activated, activated.clone()))
        return seen[-1][2]

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if next(calls) == layer.call or layer.call is None:
            mode.awaited = output if isinstance(output, Tensor) else None

    calls = count()
    mode = _Activations(see)
    handle = submodule(model, layer.name).register_forward_hook(hook)
    try:
        with torch.enable_grad(), mode:
            outputs = outputs_of(model, replaced(inputs, leaf(first(inputs))))
    finally:
        handle.remove()
    if len(seen) != 1 or not seen[0][0].requires_grad:
        return False
    (before, after, used), weights = seen[0], torch.linspace(1, 2, outputs.numel()).to(outputs).reshape(outputs.shape)
    total, slope = torch.autograd.grad((outputs * weights).sum(), (before, used), retain_graph=True, allow_unused=True)
    if total is None or slope is None:
        return False
    (through,) = torch.autograd.grad(after, before, slope)  # with respect to itself where it was overwritten
    return torch.allclose(through, total, rtol=1e-3, atol=1e-6 * float(total.abs().max()))


def _exchanged(output: Any, old: Tensor, new: Tensor) -> Any:
    """What a module returned, with another tensor in the place of one."""
    leaves, structure = tree_flatten(output)
    place = next(place for place, each in enumerate(leaves) if each is old)
    return tree_unflatten([*leaves[:place], new, *leaves[place + 1 :]], structure)


LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""What torch calls linear interpolation, by the number of sides."""


def resized(maps: Tensor, like: Tensor) -> Tensor:
    """Maps ``(N, 1, *sides)`` at the input's size, interpolated linearly along every side."""
    maps = maps.detach().to(like.dtype)
    return F.interpolate(maps, size=like.shape[2:], mode=LINEAR[like.ndim - 2], align_corners=False)


def over_positions(value: Tensor) -> tuple[int, ...]:
    """The dimensions of positions in ``(N, C, *sides)``."""
    return tuple(range(2, value.ndim))


def at_positions(per_channel: Tensor, like: Tensor) -> Tensor:
    """Numbers ``(N, C)`` shaped for multiplication with ``(N, C, *sides)``."""
    return per_channel.reshape(*per_channel.shape, *[1] * (like.ndim - 2))
