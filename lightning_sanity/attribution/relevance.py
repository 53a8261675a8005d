"""Layer-wise relevance propagation and excitation backprop, on whatever a network does: modules, calls, in-place ones.

Providers attach rules to modules and refuse what happens between them, or pass it on as a plain gradient. Here the
calls themselves get rules, see ``propagation``; a network with an operation that has none is refused, by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.attribution.batching import of_few
from lightning_sanity.attribution.method import (
    Method,
    any_of,
    at_least,
    factory,
    first,
    leaf,
    not_differentiable,
    outputs_of,
    replaced,
    select,
)
from lightning_sanity.attribution.propagation import Propagation, Rule
from lightning_sanity.model.weights import is_sharded
from lightning_sanity.resources.quoting import listed

_WAYS_OUT = {
    "softmax": "explain the scores before it: return those, or pass forward=",
    "lstm": "write the recurrence out, with linear layers and gates",
}
_WAYS_OUT |= {"log_softmax": _WAYS_OUT["softmax"], "gru": _WAYS_OUT["lstm"]}
_OTHERWISE = (
    "pass a zennit composite with a rule for its module (pip install 'lightning-sanity[zennit]'), or a function of "
    "your own, as the method"
)


@factory
def lrp_epsilon(epsilon: float = 1e-6) -> Method:
    """LRP with the epsilon rule in every layer; Bach et al. 2015 (doi:10.1371/journal.pone.0130140).

    With a tiny epsilon it equals input times gradient on a network of rectifiers. It differs where activations are not
    rectifiers, and where gates, attention or layer normalisation scale a signal.

    Args:
        epsilon: Added to every denominator, away from zero.
    """
    at_least(0, "lrp_epsilon", epsilon=epsilon)
    return _method("lrp_epsilon", Rule(epsilon=epsilon))


@factory
def lrp_z_plus() -> Method:
    """LRP with the z+ rule in every layer (deep Taylor decomposition); Montavon et al. 2017 (arXiv:1512.02479)."""
    return _method("lrp_z_plus", Rule(((1.0, 1),)))


@factory
def lrp_alpha_beta(alpha: float = 2.0, beta: float = 1.0) -> Method:
    """LRP with the alpha-beta rule in every layer; Bach et al. 2015 (doi:10.1371/journal.pone.0130140).

    Args:
        alpha: Weight of what speaks for.
        beta: Weight of what speaks against; ``alpha - beta`` must be 1, so that relevance is conserved.
    """
    at_least(0, "lrp_alpha_beta", alpha=alpha, beta=beta)
    if abs(alpha - beta - 1) > 1e-9:
        raise ValueError(f"lrp_alpha_beta: alpha - beta must be 1, not {alpha} - {beta}")
    return _method("lrp_alpha_beta", Rule(((alpha, 1), (-beta, -1))))


@factory
def excitation_backprop() -> Method:
    """Excitation backprop, the odds that a winner-take-all walk ends there; Zhang et al. 2016 (arXiv:1608.00507)."""
    return _method("excitation_backprop", Rule(((1.0, 1),), bias=False), probability=True)


def _method(name: str, rule: Rule, *, probability: bool = False) -> Method:
    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        return _relevance(model, inputs, target, rule, probability)[0]

    def reason(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
        if is_sharded(model):
            return "its rules read whole weights, of which sharded weights are parts"
        unknown = of_few(lambda few: _relevance(model, few, None, rule, probability)[1], inputs)
        ways_out = list(dict.fromkeys(_WAYS_OUT.get(each, _OTHERWISE) for each in unknown))
        return f"relevance has no rule for {listed(unknown)}: {'; '.join(ways_out)}" if unknown else None

    signed = name in ("lrp_epsilon", "lrp_alpha_beta")
    return Method(name, attribute, signed=signed, passes=2.0, refuses=any_of(not_differentiable, reason))


def _relevance(
    model: nn.Module, inputs: Any, target: Tensor | None, rule: Rule, probability: bool
) -> tuple[Tensor, tuple[str, ...]]:
    """Relevance of the explained input, shaped like it, and the operations on its way that have no rule."""
    explained = leaf(first(inputs))
    with torch.enable_grad(), _fixed(model), Propagation(rule) as walk:
        outputs = walk.end(outputs_of(model, replaced(inputs, walk.begin(explained))))
        chosen = select(outputs, target)
    start = torch.ones_like(chosen) if probability else chosen.detach()
    (relevance,) = torch.autograd.grad(chosen, explained, start)
    return relevance, tuple(walk.unknown)


@contextmanager
def _fixed(model: nn.Module) -> Iterator[None]:
    """Parameters that require no gradient, for a while: only what depends on the input then does."""
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in free:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)
