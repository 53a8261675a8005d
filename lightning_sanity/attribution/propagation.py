"""Relevance passed back through a network, call by call: a rule for every operation, whatever the code around it.

While the mode is active, the forward pass is the network's own; what differs is that its backward pass carries
relevance instead of slopes. Relevance is conserved: what arrives at an operation's result is what leaves for its data,
but for what biases, constants and the stabiliser take. The rules:

- linear layers and convolutions: epsilon, z+ or alpha-beta, with a batch normalisation behind them folded in; Bach et
  al. 2015 (doi:10.1371/journal.pone.0130140), Montavon et al. 2019 (doi:10.1007/978-3-030-28954-6_10). Batch
  normalisation elsewhere is one more linear operation by the epsilon rule; by the others it passes on what it gets,
  for an operation of one weight has nothing to share out; Hui & Binder 2019 (doi:10.1007/978-3-030-20518-8_21).
- sums, means, average pooling, interpolation: in proportion to what each summand adds.
- activations: passed on. Maxima: to the winner. Reshapes, concatenations, selections: to where values came from.
- gates, attention, divisors: to the signal, none to what scales it; Arras et al. 2017 (arXiv:1706.07206), for softmax
  and layer normalisation Ali et al. 2022 (arXiv:2202.07304). Of a product without a gate, half to each factor;
  Achtibat et al. 2024 (arXiv:2402.05602).

What has no rule is noted if relevance arrives there, and not before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_sanity.attribution.rescale import ELEMENTWISE, in_place

Pull = Callable[[Tensor], Sequence[Tensor]]
"""``relevance of the result -> relevance of each operand``."""


@dataclass(frozen=True)
class Rule:
    """What a linear layer does with relevance.

    Attributes:
        parts: Of signed rules, ``(share, sign)``: contributions of that sign get that share of the relevance. None for
            the epsilon rule, where all get theirs.
        epsilon: Added to every denominator, away from zero.
        bias: Whether the bias takes part in the denominators of signed rules.
    """

    parts: tuple[tuple[float, int], ...] = ()
    epsilon: float = 1e-6
    bias: bool = True

    def shared(self, relevance: Tensor, among: Tensor) -> Tensor:
        """Relevance per unit of what it is shared out by; none where there is nothing."""
        denominator = among + torch.where(among < 0, -self.epsilon, self.epsilon)
        return relevance / denominator.masked_fill(denominator == 0, torch.inf)


class Propagation(TorchFunctionMode):
    """While active, the backward pass of what is computed from ``begin`` carries relevance.

    Parameters must not require gradients meanwhile: what does is taken for data.

    Args:
        rule: Of linear layers and convolutions.

    Attributes:
        unknown: Operations that relevance came to and that have no rule.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule
        self.unknown: dict[str, None] = {}
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # what came out of a rule, and how

    def begin(self, value: Tensor) -> Tensor:
        """The explained input as the network is to get it; while active."""
        self._known[value] = _Made()
        return value.clone()  # no leaf: the network may write to it

    def end(self, outputs: Tensor) -> Tensor:
        """What the network returned, with what happened out of sight noted."""
        return outputs if not outputs.requires_grad else self._looked_at(outputs)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call with its rule in the place of its derivative."""
        kwargs = kwargs or {}
        if not torch.is_grad_enabled() or not any(map(_is_data, tree_leaves((args, kwargs)))):
            return func(*args, **kwargs)
        if func in _WRITTEN_OUT:
            with self:
                return _WRITTEN_OUT[func]()(*args, **kwargs)
        args, kwargs = tree_map(lambda each: self._looked_at(each) if _is_data(each) else each, (args, kwargs))
        name = getattr(func, "__name__", "")
        if name in _WRITING or in_place(func, name, args, kwargs):
            return self._written(func, name.strip("_").removeprefix("i" if name in _WRITING else ""), args, kwargs)
        call = _Call(func, name.strip("_"), args, kwargs)
        made = self._ruled(call)
        self._remember(made, call)
        return made

    # ------------------------------------------------------------------------------------------------- what is known

    def _looked_at(self, value: Tensor) -> Tensor:
        """A tensor that came out of a rule; one that did not is the work of a function of its own."""
        if value not in self._known:
            value = self._without_rule(value, "a function with a backward pass of its own, or scripted code")
            self._known[value] = _Made()
        return value

    def _remember(self, made: Any, call: _Call) -> None:
        """Where results came from, how much they scale what they are multiplied with, and what was read for them."""
        results = [each for each in tree_leaves(made) if _is_data(each)]
        before = [self._known[each] for each in call.data]
        if call.kind in _SAME and len(before) == len(results) == 1:
            self._known[results[0]] = before[0]
            return
        scales = _SCALES.get(call.kind, 2 if call.divides_a_constant else 0)
        if call.kind in _STRUCTURE or call.kind in _SUMS or call.kind in _PRODUCTS or call.kind in _DIVISIONS:
            scales = max(scales, min(each.scales for each in before))
        for each in results:
            if each not in self._known:
                self._known[each] = _Made(scales)
        for each in before if results else ():
            each.readers += 1

    def _written(self, func: Any, kind: str, args: Any, kwargs: Any) -> Tensor:
        """A call that writes its result over its first argument."""
        target: Tensor = args[0] if args else kwargs["input"]
        call = _Call(lambda first, *rest, **named: func(first.clone(), *rest, **named), kind, args, kwargs)
        if kind in _STRUCTURE:
            func(*args, **kwargs)
        else:
            target.copy_(self._ruled(call))
        if kind not in _SAME:
            self._known.pop(target, None)
            self._known[target] = _Made(_SCALES.get(kind, 0))
        return target

    def _without_rule(self, value: Tensor, name: str) -> Tensor:
        """A value whose relevance nobody knows how to pass on; the slope goes on in its place."""

        def compute(carrier: Tensor) -> tuple[Tensor, Pull]:
            def pull(relevance: Tensor) -> Sequence[Tensor]:
                self.unknown[name] = None
                return (relevance,)

            return carrier.detach().clone(), pull

        made: Tensor = _Ruled.apply(compute, value)
        return made

    # ---------------------------------------------------------------------------------------------------- the rules

    def _ruled(self, call: _Call) -> Any:
        """The result of a call, with the rule of its kind."""
        kind = call.kind
        if kind in _STRUCTURE:
            return call.run()
        if kind in _LAYERS and (layer := _Layer.of(call)) is not None:
            return self._weighted(layer)
        if kind == "batch_norm":
            return self._normalised(call)
        if kind in _FIXED_SCALE:
            return self._shared(call.data[:1], _FIXED_SCALE[kind](call))
        if kind == "scaled_dot_product_attention":
            value, attend = _attention(call)
            return self._shared([value], attend) if _is_data(value) else self._without_rule(call.run(), kind)
        if kind in _DIVISIONS and call.kwargs.get("rounding_mode") is None:
            return self._passed(call, call.data[:1]) if call.divides_a_constant else self._signal(call, [call.dividend])
        if kind in _PRODUCTS:
            least = min(self._known[each].scales for each in call.data)
            return self._signal(call, [each for each in call.data if self._known[each].scales == least])
        if kind in _SUMS:
            return self._shared(call.data, call.over(call.data))
        if kind in _FIRST:
            return self._shared(call.data[:1], call.over(call.data[:1]))
        if (kind in ELEMENTWISE or kind in _SCALED) and len(call.data) == 1:
            return self._passed(call, call.data[:1])
        made = call.run()
        return tree_map(lambda each: self._without_rule(each, kind) if _is_data(each) else each, made)

    def _passed(self, call: _Call, carrier: Sequence[Tensor]) -> Tensor:
        """Relevance of every entry to the entry that it was computed from."""

        def compute(value: Tensor) -> tuple[Tensor, Pull]:
            with torch.no_grad():
                return call.over(carrier)(value.detach()), lambda relevance: (relevance,)

        made: Tensor = _Ruled.apply(compute, *carrier)
        return made

    def _signal(self, call: _Call, signals: Sequence[Tensor]) -> Tensor:
        """A product: to the signals, in equal parts."""
        if len(signals) == 1 and call.kind not in _MIXING and signals[0].shape == call.broadcast:
            return self._passed(call, signals)
        return self._shared(signals, call.over(signals), 1 / call.occurrences(signals))

    def _shared(self, carriers: Sequence[Tensor], function: Callable[..., Tensor], share: float = 1.0) -> Tensor:
        """In proportion to what every entry adds to the result; ``function`` is linear in each of the carriers."""

        def compute(*values: Tensor) -> tuple[Tensor, Pull]:
            leaves = [value.detach().clone().requires_grad_() for value in values]
            with torch.enable_grad():
                result = function(*leaves)
            among = result.detach().clone()

            def pull(relevance: Tensor) -> Sequence[Tensor]:
                slopes = torch.autograd.grad(result, leaves, self.rule.shared(share * relevance, among))
                return [leaf.detach() * slope for leaf, slope in zip(leaves, slopes, strict=True)]

            return result.detach(), pull

        made: Tensor = _Ruled.apply(compute, *carriers)
        return made

    def _weighted(self, layer: _Layer) -> Tensor:
        """A linear layer or convolution, by the mode's rule."""

        def compute(value: Tensor) -> tuple[Tensor, Pull]:
            with torch.no_grad():
                result = layer.run(value.detach(), layer.weight, layer.bias)
            among = result.clone()
            return result, lambda relevance: (layer.pull(self.rule, among, relevance),)

        made: Tensor = _Ruled.apply(compute, layer.value)
        self._known[made] = layer
        return made

    def _normalised(self, call: _Call) -> Tensor:
        """Batch normalisation with fixed statistics: a part of the layer before it, or one more linear operation."""
        value, mean, variance, weight, bias, training, _, eps = _bound(call, _BATCH_NORM).values()
        if training or mean is None:
            return self._without_rule(call.run(), "batch normalisation by the statistics of the batch")
        before = self._known[value]
        scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
        shift = (0 if bias is None else bias) - mean * scale
        function = call.over([value])

        def compute(given: Tensor) -> tuple[Tensor, Pull]:
            leaf = given.detach().clone()
            with torch.no_grad():
                result = function(leaf)
            among = result.clone()

            def pull(relevance: Tensor) -> Sequence[Tensor]:
                if isinstance(before, _Layer) and before.readers == 1 and before.has_channels(len(scale)):
                    before.fold(scale, shift, among)
                    return (relevance,)
                if self.rule.parts:
                    return (relevance,)
                return (leaf * _by_channel(scale, leaf) * self.rule.shared(relevance, among),)

            return result, pull

        made: Tensor = _Ruled.apply(compute, value)
        return made


class _Ruled(torch.autograd.Function):
    """A result whose backward pass is a rule's: ``compute(*operands) -> (result, its pull)``."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., tuple[Tensor, Pull]], *operands: Tensor) -> Tensor:
        result, ctx.pull = compute(*operands)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return (None, *ctx.pull(gradients[0]))


@dataclass
class _Made:
    """What is known of a tensor.

    Attributes:
        scales: How surely it only scales what it is multiplied with: 2 for gates and divisors, 1 for what is bounded.
        readers: Calls that read it.
    """

    scales: int = 0
    readers: int = 0


@dataclass(frozen=True)
class _Call:
    """One call: what runs, under which name, on what."""

    function: Callable[..., Any]
    kind: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def data(self) -> list[Tensor]:
        """The tensors, however nested, that depend on the explained input; each once."""
        return list({id(each): each for each in self._tensors() if _is_data(each)}.values())

    def _tensors(self) -> list[Tensor]:
        return [each for each in tree_leaves((self.args, self.kwargs)) if isinstance(each, Tensor)]

    def occurrences(self, among: Sequence[Tensor]) -> int:
        """How often these are named."""
        wanted = {id(each) for each in among}
        return sum(id(each) in wanted for each in self._tensors())

    @property
    def broadcast(self) -> torch.Size:
        """Shape of the result of an operation on entries."""
        return torch.broadcast_shapes(*(each.shape for each in self._tensors()))

    @property
    def dividend(self) -> Any:
        """What is divided, in a division."""
        operands = [*self.args, *self.kwargs.values()]
        return operands[1 if self.kind in _TURNED else 0]

    @property
    def divides_a_constant(self) -> bool:
        """Whether data is nothing but the divisor."""
        return self.kind in _DIVISIONS and not _is_data(self.dividend)

    def run(self) -> Any:
        """The call itself."""
        return self.function(*self.args, **self.kwargs)

    def over(self, carriers: Sequence[Tensor]) -> Callable[..., Any]:
        """The call as a function of these tensors alone; all others are constants."""

        def function(*values: Tensor) -> Any:
            place = {id(carrier): value for carrier, value in zip(carriers, values, strict=True)}
            args, kwargs = tree_map(
                lambda each: place.get(id(each), each.detach()) if _is_data(each) else each, (self.args, self.kwargs)
            )
            return self.function(*args, **kwargs)

        return function


class _Layer(_Made):
    """A linear layer or convolution that ran, and what is folded into it."""

    def __init__(self, call: _Call, value: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.call, self.value, self.weight, self.bias = call, value, weight, bias
        self._version = value._version
        self._folded: tuple[Tensor, Tensor, Tensor] | None = None

    @classmethod
    def of(cls, call: _Call) -> _Layer | None:
        """The layer of a call; None where data is more than its input."""
        names = _LAYERS[call.kind]
        given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
        value, weight, bias = given[names[0]], given.get(names[1]), given.get("bias")
        if len(call.data) > 1 or not _is_data(value) or not isinstance(weight, Tensor):
            return None
        return cls(call, value, weight, bias)

    def run(self, value: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same layer with another input and other weights."""
        names = _LAYERS[self.call.kind]
        given = {**dict(zip(names, self.call.args, strict=False)), **self.call.kwargs}
        given |= dict(zip(names, (value, weight, bias), strict=False))
        made: Tensor = self.call.function(*map(given.pop, names), *self.call.args[len(names) :], **given)
        return made

    def has_channels(self, count: int) -> bool:
        """Whether what scales so many channels of the result can be folded into the weights."""
        channels = self.weight.shape[_channels(self.call.kind)]
        return channels == count and (self.call.kind.startswith("conv") or self.value.ndim == 2)

    def fold(self, scale: Tensor, shift: Tensor, result: Tensor) -> None:
        """Take the batch normalisation behind it for a part of the layer."""
        self._folded = scale, shift, result

    def pull(self, rule: Rule, result: Tensor, relevance: Tensor) -> Tensor:
        """Relevance of the input."""
        if self.value._version != self._version:
            raise RuntimeError("an input of a layer was overwritten later on, so that its relevance is not known")
        weight, bias = self.weight, self.bias
        if self._folded is not None:
            scale, shift, result = self._folded
            shape = [1] * weight.ndim
            shape[_channels(self.call.kind)] = len(scale)
            weight = weight * scale.reshape(shape)
            bias = shift if bias is None else bias * scale + shift
        value = self.value.detach()
        if not rule.parts:
            return self._part(rule, value, relevance, (weight, weight, None), result)
        found = torch.zeros_like(value)
        for share, sign in rule.parts:
            same, other = (weight.clamp(0), weight.clamp(max=0))[::sign]
            added = None if bias is None or not rule.bias else bias.clamp(0) if sign > 0 else bias.clamp(max=0)
            found += share * self._part(rule, value, relevance, (same, other, added))
        return found

    def _part(self, rule: Rule, value: Tensor, relevance: Tensor, weights: Any, among: Tensor | None = None) -> Tensor:
        """In proportion to contributions of one sign: of positive inputs by one weight, of negative ones by another."""
        same, other, bias = weights
        with torch.enable_grad():
            leaf = value.detach().requires_grad_()
            if same is other:
                total = self.run(leaf, same, bias)
            else:
                total = self.run(leaf.clamp(0), same, bias) + self.run(leaf.clamp(max=0), other, None)
        (slope,) = torch.autograd.grad(total, leaf, rule.shared(relevance, total.detach() if among is None else among))
        return value * slope


def _channels(kind: str) -> int:
    """Where a layer's weight has the channels of its result."""
    return 0 if kind == "linear" or (kind.startswith("conv") and "transpose" not in kind) else 1


def _is_data(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _by_channel(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 2))


def _bound(call: _Call, signature: inspect.Signature) -> dict[str, Any]:
    bound = signature.bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _attention(call: _Call) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """The values, and attention to them as a function of the values alone."""
    given = {**dict(zip(("query", "key", "value"), call.args, strict=False)), **call.kwargs}
    query, key, value = (given.pop(name) for name in ("query", "key", "value"))
    return value, lambda each: call.function(query.detach(), key.detach(), each, *call.args[3:], **given)


def _layer_norm(call: _Call) -> Callable[[Tensor], Tensor]:
    """Layer normalisation with the spread of its input as a constant."""
    given = _bound(call, inspect.signature(F.layer_norm))
    dims = tuple(range(-len(given["normalized_shape"]), 0))
    return _with_fixed_scale(given, lambda value: value, dims)


def _group_norm(call: _Call) -> Callable[[Tensor], Tensor]:
    """The same in groups of channels."""
    given = _bound(call, inspect.signature(F.group_norm))
    return _with_fixed_scale(given, lambda value: value.reshape(len(value), given["num_groups"], -1), (-1,))


def _instance_norm(call: _Call) -> Callable[[Tensor], Tensor]:
    """The same in every channel."""
    given = _bound(call, inspect.signature(F.instance_norm))
    return _with_fixed_scale(given, lambda value: value.flatten(2), (-1,))


def _with_fixed_scale(
    given: dict[str, Any], laid_out: Callable[[Tensor], Tensor], dims: tuple[int, ...]
) -> Callable[[Tensor], Tensor]:
    rows = laid_out(given["input"].detach())
    scale = (rows.var(dims, correction=0, keepdim=True) + given["eps"]).rsqrt()
    weight, bias = given["weight"], given["bias"]

    def function(value: Tensor) -> Tensor:
        rows = laid_out(value)
        found = ((rows - rows.mean(dims, keepdim=True)) * scale).reshape(value.shape)
        if "normalized_shape" not in given:
            weight_, bias_ = (None if each is None else _by_channel(each, value) for each in (weight, bias))
        else:
            weight_, bias_ = weight, bias
        found = found if weight_ is None else found * weight_
        return found if bias_ is None else found + bias_

    return function


@cache
def _attention_written_out() -> Callable[..., Any]:
    """Multi-head attention call by call, as it runs where nobody watches."""
    function: Any = F.multi_head_attention_forward
    unwatched = {**function.__globals__, "has_torch_function": lambda _: False}
    body = FunctionType(function.__code__, unwatched, function.__name__, function.__defaults__, function.__closure__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


def _glu() -> Callable[..., Tensor]:
    def written_out(input: Tensor, dim: int = -1) -> Tensor:
        signal, gate = input.chunk(2, dim)
        return signal * gate.sigmoid()

    return written_out


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WRITTEN_OUT: dict[Any, Callable[[], Callable[..., Any]]] = {
    F.multi_head_attention_forward: _attention_written_out,
    F.glu: _glu,
}
"""Calls that are several."""
_FIXED_SCALE = {"layer_norm": _layer_norm, "group_norm": _group_norm, "instance_norm": _instance_norm}
_BATCH_NORM = inspect.signature(F.batch_norm)
_CONVOLUTIONS = [f"conv{transposed}{dims}d" for dims in (1, 2, 3) for transposed in ("", "_transpose")]
_LAYERS = {
    **dict.fromkeys(("linear", *_CONVOLUTIONS), ("input", "weight", "bias")),
    **dict.fromkeys(("matmul", "mm"), ("input", "other")),
}
"""Names of a layer's input, weight and bias."""
_SUMS = _words("add sub subtract radd rsub sum mean cumsum index_add scatter_add index_put fold")
_FIRST = frozenset(
    (
        "interpolate",
        "upsample",
        "grid_sample",
        "addmm",
        *(f"{kind}avg_pool{dims}d" for kind in ("", "adaptive_") for dims in (1, 2, 3)),
    )
)
"""What is linear in its first operand that is data."""
_MIXING = _words("matmul rmatmul bmm mm mv dot einsum outer baddbmm")
_PRODUCTS = _MIXING | _words("mul multiply rmul")
_TURNED = frozenset(("rtruediv", "rdiv"))
_DIVISIONS = _TURNED | _words("div divide true_divide truediv")
_SCALED = _words("neg negative positive pow threshold normalize rms_norm local_response_norm")
"""What changes every entry by itself, or scales it by something of all."""
_SCALES = {
    **dict.fromkeys(("sigmoid", "hardsigmoid", "softmax", "rsqrt", "reciprocal"), 2),
    **dict.fromkeys(("tanh", "erf", "relu6", "hardtanh"), 1),
}
_WRITING = frozenset(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "div", "matmul", "pow"))
_SAME = _words("clone contiguous dropout dropout1d dropout2d dropout3d feature_dropout requires_grad")
"""What gives the very tensor that it got, in a network that is not in training."""
_STRUCTURE = (
    _SAME
    | _words(
        """
    get view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze transpose permute swapaxes
    swapdims movedim moveaxis t expand expand_as broadcast_to broadcast_tensors repeat tile repeat_interleave
    atleast_1d atleast_2d atleast_3d to float double half bfloat16 type type_as cpu cuda cat concat concatenate
    stack hstack vstack dstack split split_with_sizes tensor_split chunk unbind narrow select getitem index_select
    gather take take_along_dim masked_select masked_fill where setitem copy roll flip fliplr flipud rot90 pad
    unfold pixel_shuffle pixel_unshuffle channel_shuffle diagonal tril triu nan_to_num amax amin max min maximum
    minimum fmax fmin topk sort alpha_dropout
    """
    )
    | {f"{kind}max_pool{d}d{end}" for kind in ("", "adaptive_") for d in (1, 2, 3) for end in ("", "_with_indices")}
)
"""What only says which values come from where, so that its own way back is the rule."""
