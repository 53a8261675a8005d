"""Twins: a re-initialisation bound to a model and a seed, so that the same (trial, unit) always gets the same draw."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn

from lightning_sanity.model.constants import Role, kind_of
from lightning_sanity.randomization.strategies import (
    Change,
    Redraw,
    Reinitialize,
    describe,
    device_of,
    parameters_of,
    redraw,
    stops_signal,
)
from lightning_sanity.randomization.unit import Plan, Unit
from lightning_sanity.resources.quoting import listed
from lightning_sanity.resources.random_streams import generator as make_generator
from lightning_sanity.resources.random_streams import isolated_rng

_NAMED = 8  # parameters that a note names
_HEAD = 4096  # values of a parameter that tell whether two twins share it
NORM_STATS = ("auto", "keep", "reset", "recalibrate")


class TrialDraw(Protocol):
    """Re-initialises one unit of a model, as one trial draws it; what changed."""

    def __call__(self, model: nn.Module, unit: Unit, trained: nn.Module | None = None) -> tuple[Change, ...]:
        """See ``Redraw``."""


@dataclass(frozen=True)
class Reinitializer:
    """A strategy bound to a model and a seed: the same (trial, unit) always gets the same draw.

    Attributes:
        name: What was resolved: a strategy's name, ``"twin"`` or the function's name.
        notes: What a reader should know of it.
        twin: Builds the twin of a trial, or None.
    """

    name: str
    how: Reinitialize
    seed: int
    norm_stats: str
    notes: tuple[str, ...] = ()
    twin: Callable[[int], nn.Module] | None = None

    def start_trial(self, trial: int) -> TrialDraw:
        """The function that re-initialises one unit in this trial."""
        twin = self.twin(trial) if self.twin is not None else None
        draw = redraw(twin) if twin is not None else self._redraw

        def act(model: nn.Module, unit: Unit, trained: nn.Module | None = None) -> tuple[Change, ...]:
            changes = draw(model, unit, make_generator(self.seed, trial, unit.name), trained)
            _set_statistics(model, unit, self.norm_stats, twin)
            return changes

        return act

    @cached_property
    def _redraw(self) -> Redraw:
        return redraw(self.how)


@torch.no_grad()
def _set_statistics(model: nn.Module, unit: Unit, policy: str, twin: nn.Module | None) -> None:
    source = dict(twin.named_buffers(remove_duplicate=False)) if twin is not None and policy == "auto" else {}
    for name in unit.statistics:
        buffer = model.get_buffer(name)
        if name in source:
            buffer.copy_(source[name])
        elif policy == "reset":
            buffer.fill_(0.0 if name.endswith("running_mean") else 1.0)


@torch.no_grad()
def recalibrate_(model: nn.Module, random_units: Sequence[Unit], run: Callable[[], Any]) -> None:
    """Set the running statistics of re-initialised units to those of the data that ``run`` feeds through."""
    owners = {name.rpartition(".")[0] for unit in random_units for name in unit.statistics}
    modules = [module for name, module in model.named_modules() if name in owners]
    momenta = [(module, module.momentum) for module in modules]
    try:
        for module in modules:
            module.train()
            module.momentum = 1.0
        run()
    finally:
        for module, momentum in momenta:
            module.eval()
            module.momentum = momentum


def reinitializer(
    how: Reinitialize,
    model: nn.Module,
    plan_: Plan,
    seed: int,
    norm_stats: str = "auto",
    twin_device: str | torch.device | None = None,
) -> Reinitializer:
    """Resolve ``how`` once, at the border.

    Args:
        how: See ``parameter_randomization_test``.
        model: The clone that will be re-initialised.
        plan_: Its units.
        seed: Of every draw.
        norm_stats: ``"auto"``, ``"keep"``, ``"reset"`` or ``"recalibrate"``.
        twin_device: Where twins live; see ``parameter_randomization_test``.

    Raises:
        ValueError: If a name is unknown, torch knows no such device, or a given twin factory does not build this
            architecture.
    """
    if norm_stats not in NORM_STATS:
        raise ValueError(f"unknown norm_stats '{norm_stats}'; choose from: {', '.join(NORM_STATS)}")
    place = device_named(twin_device)
    if not isinstance(how, str) and _is_factory(how):
        factory = _on(place, how)
        tried = _tried(factory, model, plan_, seed)
        if tried.problem is not None:
            raise ValueError(f"reinitialize={describe(how)} does not build a twin of this model: {tried.problem}")
        return Reinitializer("twin", how, seed, norm_stats, _notes(tried), _twins(factory, model, seed))
    redraw(how)  # raises on an unknown name
    return Reinitializer(how if isinstance(how, str) else describe(how), how, seed, norm_stats)


def device_named(name: str | torch.device | None) -> torch.device | None:
    """The device of that name.

    Raises:
        ValueError: If torch knows none.
    """
    try:
        return None if name is None else torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"twin_device must be a device such as 'cpu' or 'cuda:1', not {name!r}") from error


def _on(device: torch.device | None, factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The factory, its twins made on the CPU, so that every device has the same draws, and kept on this one."""
    if device is None:
        return factory

    def make() -> nn.Module:
        with torch.device("cpu"):
            made = factory()
        return made.to(device)

    return make


def _is_factory(how: Any) -> bool:
    """A callable without required arguments builds twins; one with an argument initialises a module."""
    if isinstance(how, nn.Module) or not callable(how):
        return False
    try:
        parameters = inspect.signature(how).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return not any(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)


def _build(factory: Callable[[], nn.Module], key: tuple[object, ...], device: torch.device) -> nn.Module:
    with torch.inference_mode(False), isolated_rng(make_generator(*key).initial_seed(), device):
        return factory()


def _twins(factory: Callable[[], nn.Module], model: nn.Module, seed: int) -> Callable[[int], nn.Module]:
    return lambda trial: _build(factory, (seed, trial, "twin"), device_of(model))


@dataclass(frozen=True)
class _Trial:
    """What two modules of a factory show.

    Attributes:
        problem: Why they cannot serve as twins, or None.
        stopped: Parameters that are one constant that multiplies.
        tables: Parameters that follow a formula and are the same in every module.
    """

    problem: str | None = None
    stopped: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


def _tried(factory: Callable[[], nn.Module], model: nn.Module, plan_: Plan, seed: int) -> _Trial:
    """Build two modules, one after the other, so that only one of them takes memory, and compare them."""
    names = [name for unit in plan_.drawn for name in unit.parameters]
    heads: dict[str, torch.Tensor] = {}
    stopped: list[str] = []
    same: dict[str, str | None] = {}
    try:
        for number in (0, 1):
            made = parameters_of(_build(factory, (seed, number, "factory"), device_of(model)), names)
            for name in names:
                if name not in made or made[name].shape != model.get_parameter(name).shape:
                    return _Trial(f"parameter '{name}' is missing or has another shape")
            for name, value in made.items():
                head = value.reshape(-1)[:_HEAD].clone()
                if number == 0:
                    heads[name] = head
                elif stops_signal(name, value):
                    stopped.append(name)
                elif head.numel() > 1 and torch.equal(head, heads[name]) and not bool((head == head[0]).all()):
                    same[name] = kind_of(value, {Role.MIXES})
            del made
    except Exception as error:
        return _Trial(f"building one raised {type(error).__name__}: {error}")
    fixed = next((name for name, kind in same.items() if kind is None), None)
    if fixed is not None:
        return _Trial(f"parameter '{fixed}' comes out the same every time (pretrained weights?)")
    return _Trial(None, tuple(stopped), tuple(same))


def _notes(tried: _Trial) -> tuple[str, ...]:
    stops = "redrawn by 'normal', because the factory fills in one constant that multiplies and stops the signal"
    fixed = "tables of a formula, the same in every twin; redrawn by 'normal' where they are the trained ones"
    said = {stops: tried.stopped, fixed: tried.tables}
    return tuple(f"{what}: {listed(names, _NAMED)}" for what, names in said.items() if names)
