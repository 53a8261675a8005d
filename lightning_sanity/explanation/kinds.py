"""Kinds of input: how they lie, how attributions are reduced to maps, which measures suit, what can be drawn.

Behind the border every explained input lies the same way: a table as ``(N, F)``, anything else with its channels first
and its sides behind them, ``(N, C, *sides)``, with one channel where it has none. So the methods that hide windows,
look at layers or resize maps need not know how the user's network takes its input. A ``Layout`` is the way between the
two. Summed is only what is known to be a channel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_sanity.attribution.method import AttributionFn, Method, first, replaced
from lightning_sanity.model.clone import Adapted
from lightning_sanity.similarity import Similarity
from lightning_sanity.similarity.registry import LEAST_SIDE

MOST_SIDES = 3
"""Sides of what methods can look at; further ones become one with the third."""


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        name: What results and messages call it.
        picture: Whether its two sides make a picture, which can be drawn and cut into windows.
        example: How it lies behind the border.
    """

    name: str
    picture: bool
    example: str


TABLE = Kind("table", False, "(N, F)")
TOKENS = Kind("tokens", False, "(N, T)")
SIGNAL = Kind("signal", False, "(N, C, L)")
IMAGE = Kind("image", True, "(N, C, H, W)")
VOLUME = Kind("volume", False, "(N, C, D, H, W)")
ARRAY = Kind("array", False, "(N, 1, *sides)")
"""What is known to have no channels or not known to have any: the whole tensor is the map, and no picture."""


@dataclass(frozen=True)
class Layout:
    """What the axes of an explained input are.

    Attributes:
        shape: Of the input as the user gave it.
        channel: The axis that is summed, counted with the batch as 0; None if there is none.
        kind: See ``Kind``.
        known: How that was found out.
        compact: Whether the user's network wants its input without gaps in memory. Where it does not, an input that
            has been turned twice lies as it lay before, and every layout is computed in the same way, bit for bit.
    """

    shape: tuple[int, ...]
    channel: int | None
    kind: Kind
    known: str
    compact: bool = True

    @property
    def sides(self) -> tuple[int, ...]:
        """The axes of a map."""
        return tuple(axis for axis in range(1, len(self.shape)) if axis != self.channel)

    @property
    def as_it_is(self) -> bool:
        """Whether the user's input lies as it does behind the border."""
        if self.kind in (TABLE, TOKENS):
            return True
        return self.channel == 1 and len(self.sides) <= MOST_SIDES

    def turned(self, value: Tensor) -> Tensor:
        """The user's input, or anything shaped like it, as it lies behind the border."""
        if self.as_it_is:
            return value
        value = value.unsqueeze(1) if self.channel is None else value.movedim(self.channel, 1)
        return self._merged(value).contiguous()

    def back(self, value: Any) -> Any:
        """The inverse of ``turned``; also while a model is traced symbolically."""
        if self.as_it_is:
            return value
        if len(self.sides) > MOST_SIDES:
            value = value.unflatten(MOST_SIDES + 1, [self.shape[axis] for axis in self.sides[MOST_SIDES - 1 :]])
        if self.channel is None:
            return self._packed(value.squeeze(1))
        places = {0: 0, self.channel: 1} | {axis: 2 + place for place, axis in enumerate(self.sides)}
        return self._packed(value.permute(*(places[axis] for axis in range(len(self.shape)))))

    def _packed(self, value: Any) -> Any:
        return value.contiguous() if self.compact else value

    def _merged(self, value: Tensor) -> Tensor:
        return value.flatten(MOST_SIDES + 1) if len(self.sides) > MOST_SIDES else value

    def map_of(self, found: Any) -> Any:
        """What a method returned for the user's input, as it lies behind the border; as it is if it fits neither."""
        if self.as_it_is or not isinstance(found, Tensor) or found.ndim == 0:
            return found
        sides = [self.shape[axis] for axis in self.sides]
        if tuple(found.shape[1:]) == self.shape[1:]:
            return self.turned(found)
        one = [1 if axis == self.channel else self.shape[axis] for axis in range(1, len(self.shape))]
        if list(found.shape[1:]) in (sides, [1, *sides], one):
            return self._merged(found.reshape(len(found), 1, *sides))
        return found

    def guest(self, method: Method, forward: Any) -> Method:
        """A method that a user wrote, which is given the model and the input as they are the user's.

        Args:
            method: The method.
            forward: How the user has the model called; None where calling it is enough.
        """
        if self.as_it_is or not method.foreign:
            return method

        def around(function: AttributionFn) -> AttributionFn:
            def attribute(model: Any, inputs: Any, target: Tensor | None) -> Any:
                own = model.model if forward is None else Adapted(model.model, forward).eval()
                found = function(own, replaced(inputs, self.back(first(inputs)).contiguous()), target)
                found = found[0] if isinstance(found, tuple) and len(found) == 1 else found
                return self.map_of(found)

            return attribute

        return replace(method, attribute=around(method.attribute))

    @property
    def settings(self) -> dict[str, Any]:
        """What a result keeps of it."""
        return {"kind": self.kind.name, "summed": self.channel, "known": self.known}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the result must know; nothing of what lies as most networks take it."""
        if self.as_it_is:
            return ()
        given = f"inputs {self.shape}"
        if self.channel is not None:
            return (f"{given}: maps are summed over axis {self.channel}, which {self.known}",)
        return (f"{given}: nothing is summed, every number has its place in the map: {self.known}",)


def are_ids(value: Tensor) -> bool:
    """Whether it is token ids ``(N, T)``: whole numbers, a row per sample."""
    whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    return whole and value.ndim == 2


def of_ids(value: Tensor) -> Layout:
    """The layout of token ids."""
    return Layout(tuple(value.shape), None, TOKENS, "whole numbers (N, T) are ids")


def unsuited(measure: Similarity, value: Tensor, support: Tensor | None, kind: Kind) -> str | None:
    """Why a measure means nothing on this input, or None if it does.

    Args:
        measure: The measure.
        value: The explained input, as it lies behind the border.
        support: See ``measures.support_in``.
        kind: Of the input.
    """
    shape = tuple(value.shape)
    if measure.on_support and support is None:
        return "most inputs have no constant background that could be left out"
    if not measure.spatial:
        return None
    if not kind.picture:
        return f"it looks at windows of images {IMAGE.example}, and the explained input, of shape {shape}, is none"
    if min(shape[-2:]) < LEAST_SIDE:
        return f"it needs images of at least {LEAST_SIDE} pixels a side, and the explained input has shape {shape}"
    return None


def summed(attribution: Tensor, value: Tensor) -> tuple[Tensor, Tensor] | None:
    """Signed and absolute maps ``(N, H, W)`` of an attribution; None if it does not fit the input.

    Args:
        attribution: Shaped like the input, or without or with one channel.
        value: The explained input, as it lies behind the border.

    Volumes keep their last side, the others become one; what has one side or none is one row high.
    """
    wanted, got = tuple(value.shape), tuple(attribution.shape)
    sides = wanted[2:] if len(wanted) > 2 else wanted[1:]
    if got not in {wanted, (wanted[0], 1, *sides), (wanted[0], *sides)}:
        return None
    channels = len(got) == len(wanted) and len(wanted) > 2
    signed = attribution.sum(1) if channels else attribution
    magnitude = attribution.abs().sum(1) if channels else attribution.abs()
    shape = (wanted[0], math.prod(sides[:-1]), sides[-1])
    return signed.reshape(shape), magnitude.reshape(shape)


def positions(value: Tensor) -> Tensor | None:
    """An input ``(N, C, H, W)`` with the positions of its maps; None if it has none or holds no real numbers."""
    if value.ndim < 3 or not value.is_floating_point():
        return None
    return value.reshape(*value.shape[:2], -1, value.shape[-1])


def drawable(value: Tensor, kind: Kind) -> bool:
    """Whether small pictures of it can be kept."""
    if kind is IMAGE:
        return value.ndim == 4 and value.shape[1] in (1, 3)
    sides = {VOLUME.name: 5, SIGNAL.name: 3, TABLE.name: 2, TOKENS.name: 2}
    return value.ndim == sides.get(kind.name)
