"""Re-initialises units, in place, and proves that they changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity._rng import generator as make_generator
from lightning_sanity._rng import isolated_rng
from lightning_sanity.units import RandomizationError, Unit, has_fan, owner_of, units
from lightning_sanity.weights import whole

__all__ = ["STRATEGIES", "Change", "RandomizationError", "Reinitialize", "Unit", "redraw", "reinitialize_", "units"]

Reinitialize = str | Callable[..., Any] | nn.Module
STRATEGIES = ("default", "normal", "shuffle", "reset", "xavier", "kaiming")


@dataclass(frozen=True)
class Change:
    """What happened to one parameter: how it was drawn and ``|new - old| / max(|new|, |old|)``, a 0-d tensor."""

    parameter: str
    strategy: str
    relative: Tensor


Redraw = Callable[[nn.Module, Unit, torch.Generator], tuple[Change, ...]]


def reinitialize_(
    model: nn.Module, unit: Unit, how: Reinitialize = "normal", generator: torch.Generator | None = None
) -> None:
    """Give the parameters of ``unit`` new values, in place.

    Args:
        model: The model that holds them; never the one being trained.
        unit: One of ``units(model, ...)``.
        how: ``"normal"`` draws with each tensor's own mean and standard deviation; ``"shuffle"`` permutes each tensor;
            ``"reset"`` calls the modules' own ``reset_parameters``; ``"xavier"``, ``"kaiming"``; a function of a
            module; or a twin (module of the same structure) to copy from. ``"default"`` means ``"normal"`` here.
        generator: CPU generator of the draws; the global streams are never touched.

    Raises:
        RandomizationError: If a parameter kept its value: which one, and what to do.
        ValueError: If ``how`` is unknown.
    """
    changes = redraw(how)(model, unit, generator or make_generator(0, unit.name))
    kept = [change.parameter for change in changes if not bool(change.relative > 0)]
    if kept:
        raise RandomizationError(
            f"cannot re-initialise {', '.join(map(repr, kept))} of unit '{unit.name}': the value did not change under "
            f"{describe(how)}. Pass reinitialize='normal', or a function that sets it."
        )


def describe(how: Reinitialize) -> str:
    return f"'{how}'" if isinstance(how, str) else getattr(how, "__name__", type(how).__name__)


def redraw(how: Reinitialize) -> Redraw:
    """The function behind ``reinitialize_``: it reports what changed instead of raising."""
    if isinstance(how, nn.Module):
        twin = how
        return lambda model, unit, rng: _measured(model, unit, rng, lambda: _copy_from(model, unit, twin, rng))
    if how in ("default", "normal", "shuffle", "xavier", "kaiming"):
        draw = _DRAWS["normal" if how == "default" else str(how)]
        return lambda model, unit, rng: _measured(model, unit, rng, lambda: _draw_each(model, unit, draw, rng))
    if how == "reset":
        return lambda model, unit, rng: _measured(model, unit, rng, lambda: _reset_modules(model, unit, rng))
    if callable(how):
        function = how
        return lambda model, unit, rng: _measured(model, unit, rng, lambda: _apply_callable(model, unit, function, rng))
    raise ValueError(f"unknown re-initialisation '{how}'; choose from: {', '.join(STRATEGIES)}, a function or a twin")


@torch.no_grad()
def _measured(
    model: nn.Module, unit: Unit, rng: torch.Generator, act: Callable[[], dict[str, str]]
) -> tuple[Change, ...]:
    with whole(model, unit.parameters):
        before = {name: _effective(model, name).clone() for name in unit.parameters}
        strategies = act()
        return tuple(
            Change(name, strategies[name], _relative(before[name], _effective(model, name))) for name in unit.parameters
        )


def _effective(model: nn.Module, name: str) -> Tensor:
    """What the forward pass computes with: a parametrised parameter stands for the tensor it produces."""
    owner, rest = owner_of(model, name), name
    if "parametrizations." in name:
        rest = name.split("parametrizations.", 1)[1].split(".")[0]
        tensor = getattr(model.get_submodule(owner), rest)
        if isinstance(tensor, Tensor):
            return tensor.detach()
    return model.get_parameter(name).detach()


def _relative(old: Tensor, new: Tensor) -> Tensor:
    if old.shape != new.shape:
        return torch.ones((), device=new.device)
    old, new = _wide(old), _wide(new)
    scale = torch.maximum(torch.linalg.vector_norm(old), torch.linalg.vector_norm(new))
    return (torch.linalg.vector_norm(new - old) / scale.clamp_min(torch.finfo(torch.float32).tiny)).float()


def _wide(tensor: Tensor) -> Tensor:
    """Real, at least float32."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _parametrized(model: nn.Module, unit: Unit) -> dict[tuple[str, str], list[str]]:
    """``(owner, tensor) -> raw parameters`` of new-style parametrisations."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in unit.parameters:
        if "parametrizations." in name:
            tensor = name.split("parametrizations.", 1)[1].split(".")[0]
            found.setdefault((owner_of(model, name), tensor), []).append(name)
    return found


Draw = Callable[[Tensor, float, torch.Generator], tuple[Tensor, str]]


def _draw_each(model: nn.Module, unit: Unit, draw: Draw, rng: torch.Generator) -> dict[str, str]:
    """Draw every tensor of the unit in the order of its names; parametrised ones through what they produce."""
    strategies: dict[str, str] = {}
    scale = _unit_scale(model, unit)
    for (owner, tensor), names in _parametrized(model, unit).items():
        module = model.get_submodule(owner)
        value, strategy = draw(getattr(module, tensor).detach(), scale, rng)
        with isolated_rng(int(torch.randint(2**62, (), generator=rng)), device_of(model)):  # some inverses draw
            assigned = _assign_through(module, tensor, value)
        if assigned:
            strategies.update(dict.fromkeys(names, f"{strategy} (through its parametrisation)"))
    for name in unit.parameters:
        if name not in strategies:
            parameter = model.get_parameter(name)
            value, strategies[name] = draw(parameter.detach(), scale, rng)
            parameter.copy_(value)
    return strategies


def _assign_through(module: nn.Module, tensor: str, value: Tensor) -> bool:
    """Set a parametrised tensor; False where its parametrisation has no inverse."""
    try:
        setattr(module, tensor, value)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    for parametrization in module.parametrizations[tensor]:  # type: ignore[index]
        power_method = getattr(parametrization, "_power_method", None)
        if power_method is not None:  # spectral norm estimates the largest singular value by iteration
            matrix = parametrization._reshape_weight_to_matrix(module.parametrizations[tensor].original)  # type: ignore[index,union-attr]
            power_method(matrix, 15)
    return True


def _unit_scale(model: nn.Module, unit: Unit) -> float:
    """Spread of the unit's largest tensor: what a tensor without a spread of its own is drawn with."""
    largest = max((model.get_parameter(name).detach() for name in unit.parameters), key=Tensor.numel)
    spread = float(_wide(largest).std()) if largest.numel() > 1 else 0.0
    return spread if spread > 0 else 0.02


def _randn_like(tensor: Tensor, rng: torch.Generator) -> Tensor:
    dtype = tensor.dtype if tensor.is_complex() else torch.float32
    return torch.randn(tensor.shape, generator=rng, dtype=dtype).to(tensor.device)


def _normal(tensor: Tensor, unit_scale: float, rng: torch.Generator) -> tuple[Tensor, str]:
    """A normal draw with the tensor's own mean and spread, so that a deep network keeps its signal."""
    wide = tensor if tensor.is_complex() else _wide(tensor)
    mean = wide.mean()
    spread = _wide(tensor).std() if tensor.numel() > 1 else torch.zeros((), device=tensor.device)
    constant = bool(spread <= 1e-12 * mean.abs()) if tensor.numel() > 1 else True
    if not constant:
        return (mean + spread * _randn_like(tensor, rng)).to(tensor.dtype), "normal"
    # All values equal: nothing to match, yet the value itself was trained. A tenth of it keeps a scale near one.
    scale = 0.1 * float(mean.abs()) or unit_scale
    return (mean + scale * _randn_like(tensor, rng)).to(tensor.dtype), "normal (around a constant)"


def _shuffle(tensor: Tensor, unit_scale: float, rng: torch.Generator) -> tuple[Tensor, str]:
    flat = tensor.reshape(-1)
    shuffled = flat[torch.randperm(flat.numel(), generator=rng).to(flat.device)]
    if torch.equal(shuffled, flat):  # one element, or all of them equal
        return _normal(tensor, unit_scale, rng)
    return shuffled.reshape(tensor.shape), "shuffle"


def _variance_scaling(fill: Callable[..., Tensor], name: str) -> Draw:
    def draw(tensor: Tensor, unit_scale: float, rng: torch.Generator) -> tuple[Tensor, str]:
        if tensor.ndim < 2 or tensor.is_complex() or not has_fan(tensor):
            return _normal(tensor, unit_scale, rng)
        return fill(torch.empty(tensor.shape), generator=rng).to(tensor.device, tensor.dtype), name

    return draw


_DRAWS: dict[str, Draw] = {
    "normal": _normal,
    "shuffle": _shuffle,
    "xavier": _variance_scaling(nn.init.xavier_normal_, "xavier"),
    "kaiming": _variance_scaling(nn.init.kaiming_normal_, "kaiming"),
}


def _owners(model: nn.Module, unit: Unit) -> dict[str, nn.Module]:
    return {owner: model.get_submodule(owner) for owner in dict.fromkeys(owner_of(model, n) for n in unit.parameters)}


def _reset_modules(model: nn.Module, unit: Unit, rng: torch.Generator) -> dict[str, str]:
    """Each module's own initialiser; a matched normal draw where it has none or does not reach a parameter."""

    def reset(module: nn.Module) -> None:
        own = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(own):
            own()

    before = {name: model.get_parameter(name).detach().clone() for name in unit.parameters}
    strategies = _apply_callable(model, unit, reset, rng, "reset")
    unreached = tuple(n for n in unit.parameters if torch.equal(before[n], model.get_parameter(n).detach()))
    if unreached:
        normal = _draw_each(model, Unit(unit.name, unreached), _normal, rng)
        strategies.update({name: f"{how} (no reset of its own)" for name, how in normal.items()})
    return strategies


def _apply_callable(
    model: nn.Module, unit: Unit, function: Callable[[nn.Module], Any], rng: torch.Generator, name: str = ""
) -> dict[str, str]:
    """Run a function on each owner under its own random stream; what lies outside the unit is put back."""
    names = set(unit.parameters) | set(unit.statistics)
    with isolated_rng(int(torch.randint(2**62, (), generator=rng)), device_of(model)):
        for owner, module in _owners(model, unit).items():
            prefix = f"{owner}." if owner else ""
            outside = {
                key: value.detach().clone() for key, value in module.state_dict().items() if prefix + key not in names
            }
            function(module)
            current = module.state_dict(keep_vars=True)
            for key, value in outside.items():
                if key in current and current[key].shape == value.shape:
                    current[key].data.copy_(value)
    return dict.fromkeys(unit.parameters, name or describe(function))


def device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _copy_from(model: nn.Module, unit: Unit, twin: nn.Module, rng: torch.Generator) -> dict[str, str]:
    """Copy the unit from a fresh twin; where the twin holds the trained value itself, a constant, draw instead."""
    source = dict(twin.named_parameters())
    strategies: dict[str, str] = {}
    same: list[str] = []
    for name in unit.parameters:
        parameter = model.get_parameter(name)
        value = source[name].detach().to(parameter.device, parameter.dtype)
        if torch.equal(parameter.detach(), value):
            same.append(name)
        parameter.copy_(value)
        strategies[name] = "twin"
    if same:
        normal = _draw_each(model, Unit(unit.name, tuple(same)), _normal, rng)
        strategies.update({name: f"{how}, the twin's value being the trained one" for name, how in normal.items()})
    return strategies
