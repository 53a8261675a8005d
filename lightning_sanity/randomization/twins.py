"""Twins: a re-initialisation bound to a model and a seed, so that the same (trial, unit) always gets the same draw."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn

from lightning_sanity.model.weights import own_class
from lightning_sanity.randomization.strategies import Change, Redraw, Reinitialize, describe, device_of, redraw
from lightning_sanity.randomization.unit import Plan, Unit
from lightning_sanity.resources.random_streams import generator as make_generator
from lightning_sanity.resources.random_streams import isolated_rng

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
        notes: Why, where ``"default"`` had a choice.
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
    source = dict(twin.named_buffers()) if twin is not None and policy == "auto" else {}
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
    original: nn.Module,
    plan_: Plan,
    seed: int,
    norm_stats: str = "auto",
    twin_device: str | torch.device | None = None,
) -> Reinitializer:
    """Resolve ``how`` once, at the border.

    Args:
        how: See ``parameter_randomization_test``.
        model: The clone that will be re-initialised.
        original: The user's module, asked for saved hyper-parameters.
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
    if how == "default":
        factory, note = _factory_from_hyperparameters(original)
        if factory is not None:
            factory = _on(place, factory)
            problem = _factory_problem(factory, model, plan_, seed)
            if problem is None:
                return Reinitializer("twin", how, seed, norm_stats, (note,), _twins(factory, model, seed))
            note = f"no twin from saved hyper-parameters: {problem}"
        return Reinitializer("normal", "normal", seed, norm_stats, (f"{note}; matched-moment normal draws instead",))
    if not isinstance(how, str) and _is_factory(how):
        factory = _on(place, how)
        problem = _factory_problem(factory, model, plan_, seed)
        if problem is not None:
            raise ValueError(f"reinitialize={describe(how)} does not build a twin of this model: {problem}")
        return Reinitializer("twin", how, seed, norm_stats, (), _twins(factory, model, seed))
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


def _factory_from_hyperparameters(original: nn.Module) -> tuple[Callable[[], nn.Module] | None, str]:
    hparams = getattr(original, "hparams", None)
    if not hparams:
        return None, "no twin factory and no saved hyper-parameters"
    kind: Any = own_class(original)
    given = dict(hparams)
    if any(isinstance(value, nn.Module) for value in given.values()):
        return None, "saved hyper-parameters hold a module, which is trained"
    accepted = inspect.signature(kind.__init__).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values()):
        given = {key: value for key, value in given.items() if key in accepted}
    return (lambda: kind(**given)), f"twin built from {kind.__name__}'s saved hyper-parameters"


def _build(factory: Callable[[], nn.Module], key: tuple[object, ...], device: torch.device) -> nn.Module:
    with torch.inference_mode(False), isolated_rng(make_generator(*key).initial_seed(), device):
        return factory()


def _twins(factory: Callable[[], nn.Module], model: nn.Module, seed: int) -> Callable[[int], nn.Module]:
    return lambda trial: _build(factory, (seed, trial, "twin"), device_of(model))


def _factory_problem(factory: Callable[[], nn.Module], model: nn.Module, plan_: Plan, seed: int) -> str | None:
    """Why the factory's modules cannot serve as twins, or None."""
    heads: list[dict[str, torch.Tensor]] = []
    try:
        for number in (0, 1):  # one after the other, so that only one of them takes memory
            made = dict(_build(factory, (seed, number, "factory"), device_of(model)).named_parameters())
            for name in (name for unit in plan_.drawn for name in unit.parameters):
                if name not in made or made[name].shape != model.get_parameter(name).shape:
                    return f"parameter '{name}' is missing or has another shape"
            heads.append({name: made[name].detach().reshape(-1)[:_HEAD].clone() for name in made})
            del made
    except Exception as error:
        return f"building one raised {type(error).__name__}: {error}"
    for name, one in ((name, heads[0][name]) for unit in plan_.drawn for name in unit.parameters):
        if one.numel() > 1 and torch.equal(one, heads[1][name]) and not bool((one == one[0]).all()):
            return f"parameter '{name}' comes out the same every time (pretrained weights?)"
    return None
