"""What the axes of an input are: told by the first operation of the network that mixes its numbers.

A network says what it takes for a channel by what it does: a convolution mixes channels and slides along sides, a
linear layer mixes features, an attention or a recurrence those of each step. So one pass is watched, and beside every
value that is made of the input by moving numbers about (views, permutations, patches, padding, normalisation) a shadow
goes along that says which number of the input stands where. At the first operation that mixes numbers, the axes that
vary only along what it mixes are the channels, the others are sides.

Where all axes have become one before, nothing can be seen; then the shape tells, where it can mean one thing only.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from lightning_sanity.explanation.kinds import ARRAY, IMAGE, SIGNAL, TABLE, VOLUME, Kind, Layout
from lightning_sanity.similarity.registry import LEAST_SIDE

_log = logging.getLogger(__name__)

_MOVES = {"cat", "stack", "repeat", "roll", "flip", "index", "index_select", "gather", "im2col"}
_MOVES |= {"constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d"}
_MOVES |= {"replication_pad1d", "replication_pad2d", "replication_pad3d", "pixel_shuffle", "pixel_unshuffle"}
"""Operations that move numbers about and leave them as they are, beside views."""
_RESHAPES = {"view", "_unsafe_view", "_reshape_alias", "_reshape_copy"}
_STAYS = {"clone", "_to_copy", "copy_", "native_layer_norm", "native_batch_norm", "cudnn_batch_norm", "native_dropout"}
_STAYS |= {"_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "native_group_norm", "_softmax"}
_STAYS |= {"_batch_norm_with_update", "_batch_norm_no_update", "cumsum", "fake_quantize_per_tensor_affine"}
"""Operations whose result has a number for every number it is given, beside those on single numbers."""
_REDUCES = {"mean", "sum", "amax", "amin", "max", "min", "std", "var", "var_mean", "linalg_vector_norm", "logsumexp"}
_MULTIPLIES = {"mm": (0, 1), "addmm": (1, 2), "linear": (0, 1), "bmm": (0, 1), "baddbmm": (1, 2), "_sparse_mm": (0, 1)}
_MULTIPLIES |= {"mkldnn_linear": (0, 1), "_addmm_activation": (1, 2), "matmul": (0, 1)}
"""Products of matrices, and which of their arguments are the factors."""
_WINDOWS = re.compile(r"_?(mkldnn_|cudnn_|miopen_)?(convolution|upsample|grid_sampler|\w*pool)\w*")
_STEPS = re.compile(r"(mkldnn_rnn|_cudnn_rnn|miopen_rnn|lstm|gru|rnn_tanh|rnn_relu|_thnn_fused)\w*")
_ATTENDS = re.compile(r"(_native_multi_head_attention|_transformer_encoder|_scaled_dot_product|_flash_attention)\w*")
_FOURIER = re.compile(r"_fft_(r2c|c2c)")
_ENOUGH = 8
"""Mixing operations that are looked at."""


@dataclass(frozen=True)
class _Mixing:
    """An operation that mixed numbers of the input.

    Attributes:
        name: In words.
        varying: Per axis of the input, the dimensions of the operation's argument along which its place varies.
        mixed: The dimension that the operation mixes.
        length: Of that dimension.
        rows: How many times it does so.
        windows: Whether it also looks at neighbours, along the dimensions behind.
    """

    name: str
    varying: dict[int, frozenset[int]]
    mixed: int
    length: int
    rows: int
    windows: bool

    @property
    def channels(self) -> list[int]:
        """Axes that vary along nothing but what is mixed."""
        return [axis for axis, dims in self.varying.items() if dims == {self.mixed}]

    @property
    def along(self) -> bool:
        """Whether it goes along a row ``(N, T)``, whose numbers are then steps and no columns of a table.

        It does where it transforms the row into frequencies, takes the numbers one after another, or looks with the
        same weights at one stretch after another.
        """
        dims = self.varying.get(1, frozenset())
        if self.name == "recurrence":
            return dims != {self.mixed}
        return self.name == "Fourier transform" or (self.name == "linear layer" and dims > {self.mixed})

    def rivals(self, channel: int | None, shape: tuple[int, ...]) -> bool:
        """Whether it is a linear layer over another axis than the channels', of which several rows go through it."""
        axis = next(iter(self.channels), channel)
        linear = self.name == "linear layer" and self.rows > shape[0]
        return linear and axis != channel and axis is not None and self.length == shape[axis] > 1


class _Watch(TorchDispatchMode):
    """One pass; see the module's docstring.

    Attributes:
        found: Mixing operations, the first first.
    """

    def __init__(self, value: Tensor, inputs: Any, weights: Collection[Tensor]) -> None:
        super().__init__()
        self.found: list[_Mixing] = []
        self._shape = tuple(value.shape)
        self._shadows: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._data: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._made: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._weights = {tensor.untyped_storage()._cdata for tensor in weights}
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor):
                self._data[leaf] = True
        exact = torch.float32 if value.numel() < 2**24 else torch.float64  # each place is a number of its own
        self._places = torch.arange(value.numel(), dtype=exact, device=value.device)
        self._shadows[value] = self._places.reshape(value.shape)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self._told:
            try:
                self._follow(func, args, kwargs, result)
            except Exception as error:  # what cannot be followed is not known, which is an answer
                _log.debug("%s is not followed (%s: %s)", func, type(error).__name__, error)
        return result

    @property
    def _told(self) -> bool:
        """Whether what follows can say nothing new."""
        return len(self.found) >= _ENOUGH or any(mixing.windows for mixing in self.found[:1])

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        of_data = any(tensor in self._data for tensor in read)
        for tensor in made:
            if of_data:
                self._data[tensor] = True
            elif any(self._is_weight(other) for other in read):
                self._made[tensor] = True
        if not made or not any(tensor in self._shadows for tensor in read):
            return
        shadow = self._shadow_of(func, func.overloadpacket.__name__, args, kwargs, made[0])
        if isinstance(shadow, Tensor):
            shadow = [shadow]
        for tensor, each in zip(made, shadow or (), strict=False):
            if each.shape == tensor.shape:
                self._shadows[tensor] = each

    def _is_weight(self, tensor: Tensor) -> bool:
        return tensor in self._made or tensor.untyped_storage()._cdata in self._weights

    def _shadow_of(self, func: Any, name: str, args: Any, kwargs: Any, made: Tensor) -> Any:
        """Where the numbers of an operation's result come from; None where that cannot be said."""
        if name in _MULTIPLIES:
            return self._multiplied(name, *(args[place] for place in _MULTIPLIES[name]))
        given = self._shadows.get(args[0]) if args and isinstance(args[0], Tensor) else None
        if _WINDOWS.fullmatch(name):
            return self._slid(name, given, args)
        if _STEPS.fullmatch(name) or _ATTENDS.fullmatch(name):
            return self._mix("recurrence" if _STEPS.fullmatch(name) else "attention", given, -1)
        if _FOURIER.fullmatch(name) and len(self._shape) == 2:
            return self._mix("Fourier transform", given, -1)
        if name == "constant_pad_nd":
            return func(given, args[1], -1.0)
        if name in _RESHAPES:  # of what may lie in memory in another order than its shadow
            return None if given is None else given.reshape(args[1])
        if func.is_view or name in _MOVES:
            stands_for = (
                (lambda t: torch.full_like(t, -1, dtype=self._places.dtype)) if name in ("cat", "stack") else None
            )
            return func(*tree_map(lambda leaf: self._stand_in(leaf, stands_for), args), **kwargs)
        if name in _REDUCES:
            dims = args[2] if name == "linalg_vector_norm" and len(args) > 2 else args[1] if len(args) > 1 else None
            keep = bool(kwargs.get("keepdim", next((arg for arg in args[2:] if isinstance(arg, bool)), False)))
            return None if given is None or (not dims and dims != 0) else given.amin(dims, keepdim=keep)
        if torch.Tag.pointwise in func.tags or name in _STAYS:
            shadows = [self._shadows.get(leaf) for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            spread = [each.expand(made.shape) for each in shadows if each is not None]
            return torch.stack(spread).amax(0) if len(spread) > 1 else spread[0]
        return None

    def _stand_in(self, leaf: Any, other: Callable[[Tensor], Tensor] | None) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        shadow = self._shadows.get(leaf)
        return shadow if shadow is not None else other(leaf) if other is not None else leaf

    def _slid(self, name: str, given: Tensor | None, args: Any) -> None:
        """A convolution, a pooling, a resizing: mixes channels, or keeps them apart, and looks at neighbours."""
        if given is None:
            return
        sides = re.search(r"(\d)d", name)
        channel = given.ndim - 1 - int(sides.group(1)) if sides and "pool" in name else 1
        word = "convolution" if "conv" in name else "pooling" if "pool" in name else "resizing"
        self._mix(word, given, channel, windows=True)

    def _multiplied(self, name: str, left: Tensor, right: Tensor) -> Tensor | None:
        """A product with a weight mixes; one with anything else (a graph, a filter bank) moves numbers on its way."""
        a, b = self._shadows.get(left), self._shadows.get(right)
        given, other, dim = (a, right, -1) if a is not None else (b, left, -2)
        if given is None:
            return None
        if a is not None and b is not None:
            self._mix("attention", given, -1)
            return None
        if self._is_weight(other):
            mixed = given.amin(dim, keepdim=True)
            self._mix("linear layer", given, dim)
            size = other.shape[0 if name in ("linear", "mkldnn_linear") or dim == -2 else -1]
            return mixed.expand(*(size if d == given.ndim + dim else n for d, n in enumerate(given.shape)))
        size = other.shape[-1 if dim == -1 else -2]
        places = torch.linspace(0, given.shape[dim] - 1, size, device=given.device).round().long()
        return given.index_select(dim, places)

    def _mix(self, name: str, given: Tensor | None, dim: int, *, windows: bool = False) -> None:
        if given is None:
            return
        varying = {axis: dims for axis in range(1, len(self._shape)) if (dims := self._varying(given, axis))}
        if varying:
            dim = dim % given.ndim
            self.found.append(_Mixing(name, varying, dim, given.shape[dim], given.numel() // given.shape[dim], windows))

    def _varying(self, given: Tensor, axis: int) -> frozenset[int]:
        """The dimensions along which the place on an axis of the input varies."""
        stride, size = math.prod(self._shape[axis + 1 :]), self._shape[axis]
        place = (given / stride).floor().remainder(size)
        low, high = place.masked_fill(given < 0, math.inf), place.masked_fill(given < 0, -math.inf)
        return frozenset(d for d in range(given.ndim) if bool((high.amax(d) > low.amin(d)).any()))


def layout_of(model: nn.Module, inputs: Any, value: Tensor, run: Callable[[], Any]) -> tuple[Layout, Any]:
    """What the axes of an input are, and what the pass returned that showed it.

    Args:
        model: Whose weights tell a layer from a fixed map.
        inputs: What the pass is made of.
        value: The explained one among them, ``(n, ...)``.
        run: The pass.
    """
    with _Watch(value, inputs, [*model.parameters()]) as watch:
        outputs = run()
    return _told(watch.found, tuple(value.shape)), outputs


def _told(found: Sequence[_Mixing], shape: tuple[int, ...]) -> Layout:
    """The layout that the mixing operations of a pass, or else the shape, tell."""
    by_shape = of_shape(shape)
    if not found:
        return by_shape
    mixing = found[0]
    if mixing.windows:
        return _of_windows(mixing, shape) or by_shape
    if len(shape) == 2 and mixing.along:
        return Layout(shape, None, SIGNAL, f"the network's first {mixing.name} goes along it, as along time")
    long = [axis for axis in range(1, len(shape)) if shape[axis] > 1]
    flat = all(mixing.varying.get(axis) == frozenset({mixing.mixed}) for axis in long)
    if len(shape) == 2 or flat or len(mixing.channels) > 1:
        return by_shape
    channel = next(iter(mixing.channels), _single(shape))
    if any(later.rivals(channel, shape) for later in found[1:]):
        return by_shape  # it mixes along one axis as along another: either may be the features
    sides = [axis for axis in range(1, len(shape)) if axis != channel]
    patches = len(sides) == 2 and all(len(mixing.varying.get(axis, ())) > 1 for axis in sides)
    image = patches or (len(sides) == 2 and by_shape.kind is IMAGE and by_shape.channel == channel)
    known = f"the network's first {mixing.name} mixes" + (" patches without channels" if channel is None else "")
    return Layout(shape, channel, IMAGE if image else _by_sides(sides, channel), known)


def _of_windows(mixing: _Mixing, shape: tuple[int, ...]) -> Layout | None:
    """The layout that a convolution, a pooling or a resizing tells; None where it reads several axes as channels."""
    channels = mixing.channels
    if len(channels) > 1 or (len(shape) == 2 and channels):
        return None
    channel = next(iter(channels), _single(shape))
    sides = [axis for axis in range(1, len(shape)) if axis != channel]
    behind = [frozenset(d for d in mixing.varying.get(axis, ()) if d > mixing.mixed) for axis in sides]
    image = len(sides) == 2 and all(behind) and len(frozenset().union(*behind)) > 1
    if channel is None:
        known = f"the network's first {mixing.name} reads it without channels"
    else:
        known = f"the network's first {mixing.name} reads as channels"
    return Layout(shape, channel, IMAGE if image else _by_sides(sides, channel), known)


def _by_sides(sides: Sequence[int], channel: int | None) -> Kind:
    """The kind of an input with so many sides that make no picture."""
    if len(sides) == 1:
        return SIGNAL
    return VOLUME if channel is not None and len(sides) == 3 else ARRAY


_COLOURS = (1, 3, 4)


def of_shape(shape: tuple[int, ...]) -> Layout:
    """What a shape alone tells of an input that nothing else is known of."""
    if len(shape) <= 2:
        return Layout(shape, None, TABLE, "a table has no other axis")
    single = _single(shape)
    if single is not None:
        return _shaped(shape, single, "has length 1")
    colours = [
        axis
        for axis in (1, len(shape) - 1)
        if len(shape) > 3 and shape[axis] in _COLOURS and all(n > shape[axis] for n in _without(shape, axis))
    ]
    if len(colours) == 1:
        return _shaped(shape, colours[0], f"by its length of {shape[colours[0]]} holds colours")
    if len(shape) == 3 and shape[1] == shape[2] >= LEAST_SIDE:
        return Layout(shape, None, IMAGE, "axes 1 and 2, of one length, are taken for the sides of an image")
    return Layout(shape, None, ARRAY, "nothing shows which axis holds channels or features; channel_axis= says it")


def _single(shape: tuple[int, ...]) -> int | None:
    """An axis of length 1 that can be nothing but the channels', if there is one."""
    return next((axis for axis in (1, len(shape) - 1) if len(shape) > 2 and shape[axis] == 1), None)


def _without(shape: tuple[int, ...], axis: int) -> list[int]:
    return [n for place, n in enumerate(shape[1:], 1) if place != axis]


def _shaped(shape: tuple[int, ...], channel: int, known: str) -> Layout:
    sides = _without(shape, channel)
    kind = IMAGE if len(sides) == 2 else _by_sides(sides, channel)
    return Layout(shape, channel, kind, known)


def as_asked(told: Layout, channel_axis: int | str | None, feature_axis: int | None) -> Layout:
    """The layout that the options name, or the one that was told where they leave it open.

    Raises:
        ValueError: If both are given, or an axis is none of the input's.
    """
    if feature_axis is not None and channel_axis != "auto":
        raise ValueError("pass channel_axis= or feature_axis=, not both: either names the axis that is summed")
    if channel_axis == "auto" and feature_axis is None:
        return told
    shape = told.shape
    name = "channel_axis" if feature_axis is None else "feature_axis"
    axis = channel_axis if feature_axis is None else feature_axis
    if axis is None:
        return Layout(shape, None, told.kind if told.channel is None else ARRAY, "channel_axis=None says so")
    assert isinstance(axis, int)
    found = axis + len(shape) if axis < 0 else axis
    if len(shape) < 3:
        raise ValueError(
            f"{name}={axis}: an input {shape} is a table, and nothing of it is summed; leave the option out"
        )
    if not 1 <= found < len(shape):
        raise ValueError(
            f"{name}={axis} is no axis of an input {shape} that could be summed; choose from 1 to {len(shape) - 1}, "
            "the batch being 0"
        )
    sides = _without(shape, found)
    picture = feature_axis is None and len(sides) == 2
    return Layout(shape, found, IMAGE if picture else _by_sides(sides, found), f"{name}= names")
