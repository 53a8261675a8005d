"""What the engine knows of a path: how the rows of several depths go through a network together."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm

from lightning_sanity.attribution.guided import Steering
from lightning_sanity.attribution.method import first
from lightning_sanity.model.structure import Known
from lightning_sanity.randomization.unit import Unit
from lightning_sanity.resources.memory import bytes_of

JOIN = 4 * 2**20
"""Bytes up to which rows are joined for an operation: a copy that a larger batch repays. Above it the copy costs more
than the batch gains."""

UNLIMITED = 2**62
"""Bytes, where nobody counts them."""

Steps = tuple[int, ...]


class NotTraceable(RuntimeError):
    """The network cannot be walked this way; says why."""


@dataclass(frozen=True)
class Observed:
    """What one walk saw of some samples, the rows of a depth together, depths as they were asked for.

    Attributes:
        outputs: ``(depths * n, ...)``.
        gradient: Of the explained outputs with respect to the explained input; None where it was not asked for.
        activation: Of the layer, per layer; as the module returns it.
        slope: The explained outputs' gradient there.
    """

    outputs: Tensor
    gradient: Tensor | None
    activation: Mapping[str, Tensor]
    slope: Mapping[str, Tensor]

    @staticmethod
    def together(parts: Sequence[Observed]) -> Observed:
        """What walks over some depths saw, one after the other."""
        if len(parts) == 1:
            return parts[0]
        gradients = [part.gradient for part in parts if part.gradient is not None]
        return Observed(
            torch.cat([part.outputs for part in parts]),
            torch.cat(gradients) if gradients else None,
            {layer: torch.cat([part.activation[layer] for part in parts]) for layer in parts[0].activation},
            {layer: torch.cat([part.slope[layer] for part in parts]) for layer in parts[0].slope},
        )


class Begun(Protocol):
    """A walk over some samples, as far as it does not depend on the trial."""

    def observe(
        self, target: Tensor | None, rules: Sequence[str] = ..., at_input: Collection[str] = ...
    ) -> dict[str, Observed]:
        """Walk all depths of the plan: up once, down once per rule.

        Args:
            target: The explained class of each sample.
            rules: How rectifiers send gradients down: "gradient" as usual, "guided" or "deconvnet". The layers are
                watched under "gradient".
            at_input: Those whose gradient at the input is wanted.
        """

    def reference(
        self, target: Tensor | None, rules: Sequence[str] = ..., at_input: Collection[str] = ...
    ) -> dict[str, Observed] | None:
        """The same of the trained model alone, of a walk that was planned for it; None where nothing is shared."""


class Planned(Protocol):
    """A walk over some depths.

    Attributes:
        chosen: The depths, as indices into those of the cascade.
        together: Samples of each depth up to which a larger batch pays.
    """

    chosen: Steps
    together: int

    def bytes_per_sample(self) -> int:
        """What a walk keeps of one sample where there is room for it, about."""

    def least_per_sample(self) -> int:
        """The same where there is none."""

    def together_within(self, room: int) -> Steps:
        """Most depths that a walk of so many bytes a sample keeps at once."""

    def begin(self, inputs: Any, steering: Steering | None = None, room: int = ...) -> Begun:
        """The walk over some samples; with a steering if there will be other rules than "gradient".

        ``room`` are the bytes that it may keep.
        """


class Path(ABC):
    """A network with trained and with random weights, and a way to explain several depths of it together.

    Args:
        model: The explained model in eval mode, on trained weights. Left as it is, in-place activations apart, which
            are switched off during a walk.
        inputs: Its inputs: a tensor, or a tuple whose first is explained.
        units: The units that become random.
        owner: The module that the units' names refer to: the model or a part of it.
        watched: Modules whose own value somebody looks at.
        known: What was found of the model's structure before, to be added to; see ``structure``.

    Attributes:
        name: What results call it.
        tolerance: Share of a map's norm by which it moves maps, beyond what batches of another size do.
        random: Copy of the model that holds the random weights.
        twin: Copy of ``owner`` inside it, that is re-initialised in its stead.
        layers: Modules whose output can be had, with the bytes of one sample's.

    Raises:
        NotTraceable: If it cannot be sure that its maps are those of one pass per depth; says why.
    """

    name: ClassVar[str]
    tolerance: ClassVar[float] = 0.0
    layers: Mapping[str, int]

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        units: Sequence[Unit],
        owner: nn.Module,
        watched: Collection[str] = (),
        known: Known | None = None,
    ) -> None:
        self._structure = {} if known is None else known
        if not isinstance(first(inputs), Tensor):
            raise NotTraceable("the explained input is no tensor")
        self.trained = model
        try:
            self.random, self.twin = copy.deepcopy((model, owner))
        except Exception as error:  # whatever hangs on the model
            raise NotTraceable(f"it cannot be copied ({type(error).__name__}: {error})") from error
        self._unit_of = {id(tensor): index for index, unit in enumerate(units) for tensor in _tensors_of(owner, unit)}

    @abstractmethod
    def plan(
        self,
        steps: Sequence[frozenset[int]],
        chosen: Steps,
        layers: tuple[str, ...] = (),
        to_input: bool = True,
        reference: bool = False,
    ) -> Planned:
        """A walk.

        Args:
            steps: Indices of the random units at each depth.
            chosen: The depths to walk, as indices into ``steps``.
            layers: Modules whose activation and slope are wanted.
            to_input: Whether the gradient with respect to the input is.
            reference: Whether the trained model is explained by the same walk.

        Raises:
            NotTraceable: If these depths cannot go together.
        """

    @torch.no_grad()
    def start_trial(self) -> None:
        """Give the random copy the trained weights, to be re-initialised from.

        That copy lies on the model's device for as long as the network is kept, which is what explaining all depths at
        once costs: one more model. ``engine="plain"`` does without.
        """
        theirs = dict(named_tensors(self.random))
        for name, tensor in named_tensors(self.trained):
            theirs[name].copy_(tensor)

    def copied_bytes(self, steps: Sequence[frozenset[int]]) -> int:
        """What the copies of weights take, if these units are random at each depth."""
        return bytes_of(tensor for _, tensor in named_tensors(self.random))

    def units_of(self, tensors: Iterable[Tensor]) -> frozenset[int]:
        """The units that some tensors of the trained model belong to."""
        return frozenset(self._unit_of[id(tensor)] for tensor in tensors if id(tensor) in self._unit_of)

    def mixed(self, key: frozenset[int]) -> nn.Module:
        """A copy of the trained model with the random weights of some units."""
        made = copy.deepcopy(self.trained)
        self._mix(made, self.trained, self.random, key)
        return made

    def versions(self) -> tuple[int, ...]:
        """Of the trained weights; graphs over them are of use only as long as these stay."""
        return tuple(tensor._version for _, tensor in named_tensors(self.trained))

    @contextmanager
    def random_lent(self, key: frozenset[int]) -> Iterator[bool]:
        """Inside the block the trained module computes with the random weights of some units.

        They hang in place of the trained values, which are not written to: what was begun with these stays good. Yields
        False where only redrawing can do that.
        """
        if any(parametrize.is_parametrized(module) or _iterated(module) for module in self.trained.modules()):
            yield False
            return
        theirs = dict(named_tensors(self.random))
        pairs = [(tensor, theirs[path]) for path, tensor in named_tensors(self.trained)]
        lent = [(mine, mine.data, other) for mine, other in pairs if self._unit_of.get(id(mine)) in key]
        try:
            for mine, _, other in lent:
                mine.data = other.data
            yield True
        finally:
            for mine, before, _ in lent:
                mine.data = before

    @torch.no_grad()
    def _mix(self, into: nn.Module, trained: nn.Module, random: nn.Module, key: frozenset[int]) -> None:
        mine, theirs = dict(named_tensors(trained)), dict(named_tensors(random))
        for path, tensor in named_tensors(into):
            if self._unit_of.get(id(mine[path])) in key:
                tensor.copy_(theirs[path])

    @contextmanager
    def out_of_place(self) -> Iterator[None]:
        """A value may be read by several depths, so no module may overwrite it."""
        both: Any = (self.trained, self.random)
        flagged = [module for root in both for module in root.modules() if getattr(module, "inplace", False)]
        for module in flagged:
            module.inplace = False
        try:
            yield
        finally:
            for module in flagged:
                module.inplace = True


def _iterated(module: nn.Module) -> bool:
    """Whether a spectral norm by hook keeps vectors that belong to its weights."""
    return any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name, shared ones once."""
    return [*model.named_parameters(), *model.named_buffers()]


def _tensors_of(model: nn.Module, unit: Unit) -> list[Tensor]:
    parameters = (*unit.parameters, *unit.beside)
    return [*map(model.get_parameter, parameters), *map(model.get_buffer, unit.statistics)]
