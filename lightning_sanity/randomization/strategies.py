"""Re-initialises units, in place, and proves that they changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from lightning_sanity.model.weights import whole
from lightning_sanity.randomization.layers import WITHIN, owner_of
from lightning_sanity.randomization.unit import RandomizationError, Unit, units
from lightning_sanity.resources.random_streams import generator as make_generator
from lightning_sanity.resources.random_streams import isolated_rng

__all__ = ["STRATEGIES", "Change", "RandomizationError", "Reinitialize", "Unit", "redraw", "reinitialize_", "units"]

Reinitialize = str | Callable[..., Any] | nn.Module
_CONSTANT = 1e-5
"""Spread, as a share of the mean, up to which values count as equal: rounding of a sum leaves that much."""
_PIECE = 2**16
"""Values that are compared at once."""
STRATEGIES = ("normal", "shuffle", "reset", "xavier", "kaiming")


@dataclass(frozen=True)
class Change:
    """What happened to one parameter: how it was drawn and ``|new - old| / max(|new|, |old|)``, a 0-d tensor."""

    parameter: str
    strategy: str
    relative: Tensor


class Redraw(Protocol):
    """Re-initialises a unit and says what changed."""

    def __call__(
        self, model: nn.Module, unit: Unit, rng: torch.Generator, trained: nn.Module | None = None
    ) -> tuple[Change, ...]:
        """Draw.

        Args:
            model: Whose unit.
            unit: Which.
            rng: Of the draws.
            trained: Another module with the values that ``model`` has, which saves a copy of them.
        """


def reinitialize_(
    model: nn.Module, unit: Unit, how: Reinitialize = "normal", generator: torch.Generator | None = None
) -> None:
    """Give the parameters of ``unit`` new values, in place.

    Args:
        model: The model that holds them; never the one being trained.
        unit: One of ``units(model, ...)``.
        how: ``"normal"`` draws with each tensor's own mean and standard deviation, the weights of a head around 0 with
            their own root mean square; ``"shuffle"`` permutes each tensor;
            ``"reset"`` calls the modules' own ``reset_parameters``; ``"xavier"``, ``"kaiming"``; a function of a
            module; or a twin (module of the same structure) to copy from.
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
    """The function behind ``reinitialize_``: it reports what changed instead of raising.

    What a draw matches of the trained values is looked up once, so call it on units that carry them.
    """
    act = _replacement(how)

    @torch.no_grad()
    def measured(
        model: nn.Module, unit: Unit, rng: torch.Generator, trained: nn.Module | None = None
    ) -> tuple[Change, ...]:
        names = (*unit.parameters, *unit.beside)
        with whole(model, names):
            if trained is None:
                before = {name: _effective(model, name).clone() for name in names}
            else:
                before = {name: _effective(trained, name) for name in names}
            strategies = act(model, unit, rng) | _draw_beside(act, model, unit, rng)
            _iterate_again(model, names)
            return tuple(
                Change(name, strategies[name], _relative(before.pop(name), _effective(model, name))) for name in names
            )

    return measured


_ITERATIONS = 50
"""Of the power method, from vectors that belong to other weights: norms of random matrices are right to a per cent."""


def _iterate_again(model: nn.Module, names: Sequence[str]) -> None:
    """Spectral norms are divided by as vectors kept from training estimate them; those of new weights are their own."""
    for owner, module in ((owner, model.get_submodule(owner)) for owner in {owner_of(model, name) for name in names}):
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm) and f"{owner}.{hook.name}_orig".lstrip(".") in names:
                before, hook.n_power_iterations = hook.n_power_iterations, _ITERATIONS
                hook.compute_weight(module, do_power_iteration=True)
                hook.n_power_iterations = before
        for tensor, chain in getattr(module, "parametrizations", {}).items():
            for link in (link for link in chain if isinstance(link, _SpectralNorm)):
                before, link.n_power_iterations = link.n_power_iterations, _ITERATIONS
                link.train()
                getattr(module, tensor)
                link.eval()
                link.n_power_iterations = before


_Act = Callable[[nn.Module, Unit, torch.Generator], dict[str, str]]


def _draw_beside(act: _Act, model: nn.Module, unit: Unit, rng: torch.Generator) -> dict[str, str]:
    """What becomes random with a unit, after it, so that its own draws stay what they are."""
    names, strategies = unit.beside, dict[str, str]()
    if isinstance(act, partial) and act.func is _copy_from:  # a twin need not have what no pass of it reads
        (twin,) = act.args
        theirs = parameters_of(twin, names)
        missing = tuple(n for n in names if n not in theirs or theirs[n].shape != model.get_parameter(n).shape)
        names = tuple(name for name in names if name not in missing)
        strategies |= _draw_each(_DRAWS["normal"], _Laws(), model, Unit(unit.name, missing), rng) if missing else {}
    return strategies | (act(model, Unit(unit.name, names), rng) if names else {})


def _replacement(how: Reinitialize) -> Callable[[nn.Module, Unit, torch.Generator], dict[str, str]]:
    """What replaces a unit's values and names how it did so, by parameter."""
    if isinstance(how, nn.Module):
        return partial(_copy_from, how)
    if isinstance(how, str) and how in _DRAWS:
        return partial(_draw_each, _DRAWS[how], _Laws())
    if how == "reset":
        return _reset_modules
    if callable(how):
        return partial(_apply_callable, how)
    raise ValueError(f"unknown re-initialisation '{how}'; choose from: {', '.join(STRATEGIES)}, a function or a twin")


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
    """``|new - old| / max(|new|, |old|)``."""
    if old.shape != new.shape:
        return torch.ones((), device=new.device)
    pairs = zip(_pieces(old), _pieces(new), strict=True)
    norms = [[torch.linalg.vector_norm(each) for each in (a, b, b - a)] for a, b in pairs]
    before, after, change = torch.linalg.vector_norm(torch.stack([torch.stack(row) for row in norms]), dim=0)
    return (change / torch.maximum(before, after).clamp_min(torch.finfo(torch.float32).tiny)).float()


def _pieces(tensor: Tensor) -> Sequence[Tensor]:
    """Small enough for a cache, so that a difference takes neither the time nor the memory of another tensor."""
    return _wide(tensor).reshape(-1).split(_PIECE)


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


@dataclass(frozen=True)
class _Law:
    """The normal law that a tensor is redrawn from, so that a deep network keeps its signal.

    Attributes:
        mean: Of the trained values.
        spread: Their standard deviation.
        strategy: What to call it.
    """

    mean: complex
    spread: float
    strategy: str


class _Laws:
    """Laws by tensor, each found once: all trials start from the same trained values."""

    def __init__(self) -> None:
        self._known: dict[str, _Law] = {}

    def of(self, tensors: Mapping[str, Tensor], scoring: Collection[str]) -> Mapping[str, _Law]:
        """The laws of a unit's tensors, which carry their trained values the first time; of the scoring ones around 0.

        A head of one logit ``w`` and one of two, ``-w/2`` and ``w/2``, are one function: they follow one law then. And
        the mean of ``w`` alone can order the samples as training did, where features rise and fall together.
        """
        unknown = {name: tensor for name, tensor in tensors.items() if name not in self._known}
        moments = {name: _moments(tensor, name in scoring) for name, tensor in unknown.items()}
        if unknown:
            largest = max(tensors.values(), key=Tensor.numel)
            for name, (mean, spread) in moments.items():
                self._known[name] = _law(mean, spread, lambda: _moments(largest)[1])
        return self._known


def _moments(tensor: Tensor, around_zero: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of all values, or 0 and their root mean square.

    The latter are those of the parts of complex values.
    """
    wide = _wide(tensor)
    if around_zero:
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(piece) for piece in _pieces(tensor)]))
        return norm.new_zeros((), dtype=tensor.dtype if tensor.is_complex() else None), norm / wide.numel() ** 0.5
    mean = wide.mean()
    centred = [torch.linalg.vector_norm(piece - mean) for piece in _pieces(tensor)]
    spread = torch.linalg.vector_norm(torch.stack(centred)) / max(wide.numel() - 1, 1) ** 0.5
    return tensor.mean() if tensor.is_complex() else mean, spread


def _law(mean: Tensor, spread: Tensor, of_largest: Callable[[], Tensor]) -> _Law:
    centre, deviation = torch.stack([mean, spread.to(mean.dtype)]).tolist()  # one question to the device, not two
    if deviation.real > _CONSTANT * abs(centre):
        return _Law(centre, deviation.real, "normal")
    # All values equal: nothing to match, yet the value itself was trained. A tenth of it keeps a scale near one.
    scale = 0.1 * abs(centre) or float(of_largest()) or 0.02
    return _Law(centre, scale, "normal (around a constant)")


Draw = Callable[[Tensor, _Law, torch.Generator], str]
"""Replaces a tensor's values in place; what that is called."""


def _draw_each(
    draws: tuple[Draw, Draw], laws: _Laws, model: nn.Module, unit: Unit, rng: torch.Generator
) -> dict[str, str]:
    """Draw every tensor of the unit in the order of its names; parametrised ones through what they produce."""
    strategies: dict[str, str] = {}
    chains = _parametrized(model, unit)
    produced = {at: getattr(model.get_submodule(at[0]), at[1]).detach().clone() for at in chains}
    tensors = {name: model.get_parameter(name).detach() for name in unit.parameters}
    scoring = {*unit.scoring, *(".".join(at) for at, names in chains.items() if set(unit.scoring) & set(names))}
    law = laws.of(tensors | {".".join(place): value for place, value in produced.items()}, scoring)
    for (owner, made), names in chains.items():
        value = produced[owner, made]
        draw = draws[0] if any(name in unit.weights for name in names) else draws[1]
        strategy = draw(value, law[f"{owner}.{made}"], rng)
        with isolated_rng(int(torch.randint(2**62, (), generator=rng)), device_of(model)):  # some inverses draw
            assigned = _assign_through(model.get_submodule(owner), made, value)
        if assigned:
            strategies.update(dict.fromkeys(names, f"{strategy} (through its parametrisation)"))
    for name, tensor in tensors.items():
        if name not in strategies:
            strategies[name] = draws[name not in unit.weights](tensor, law[name], rng)
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


def _normal(tensor: Tensor, law: _Law, rng: torch.Generator) -> str:
    """A normal draw with the tensor's own law."""
    if tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous():
        drawn = tensor
    else:  # on the CPU, so that all devices agree
        dtype = tensor.dtype if tensor.is_complex() else torch.float32
        drawn = torch.empty(tensor.shape, dtype=dtype, pin_memory=tensor.device.type == "cuda")
    if isinstance(law.mean, complex) or not math.isfinite(law.spread):  # of weights that are NaN, all draws are
        drawn.normal_(generator=rng).mul_(law.spread).add_(law.mean)
    else:
        drawn.normal_(law.mean, law.spread, generator=rng)
    if drawn is not tensor:
        tensor.copy_(drawn, non_blocking=True)
    return law.strategy


def _shuffle(tensor: Tensor, law: _Law, rng: torch.Generator) -> str:
    flat = tensor.reshape(-1)
    shuffled = flat[torch.randperm(flat.numel(), generator=rng).to(flat.device)]
    if torch.equal(shuffled, flat):  # one element, or all of them equal
        return _normal(tensor, law, rng)
    tensor.copy_(shuffled.reshape(tensor.shape))
    return "shuffle"


def _variance_scaling(fill: Callable[..., Tensor], name: str) -> Draw:
    def draw(tensor: Tensor, law: _Law, rng: torch.Generator) -> str:
        if tensor.ndim < 2 or tensor.is_complex():
            return _normal(tensor, law, rng)
        tensor.copy_(fill(torch.empty(tensor.shape, dtype=torch.float32), generator=rng))
        return name

    return draw


_DRAWS: dict[str, tuple[Draw, Draw]] = {
    "normal": (_normal, _normal),
    "shuffle": (_shuffle, _shuffle),
    "xavier": (_variance_scaling(nn.init.xavier_normal_, "xavier"), _normal),
    "kaiming": (_variance_scaling(nn.init.kaiming_normal_, "kaiming"), _normal),
}
"""How what mixes channels is drawn, and how the rest."""


def _owners(model: nn.Module, unit: Unit) -> dict[str, nn.Module]:
    return {owner: model.get_submodule(owner) for owner in dict.fromkeys(owner_of(model, n) for n in unit.parameters)}


def _reset_modules(model: nn.Module, unit: Unit, rng: torch.Generator) -> dict[str, str]:
    """Each module's own initialiser; a matched normal draw where it has none or does not reach a parameter."""

    def reset(module: nn.Module) -> None:
        own = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(own):
            own()

    before = {name: model.get_parameter(name).detach().clone() for name in unit.parameters}
    strategies = _apply_callable(reset, model, unit, rng, "reset")
    unreached = tuple(n for n in unit.parameters if torch.equal(before[n], model.get_parameter(n).detach()))
    if unreached:
        normal = _draw_each(_DRAWS["normal"], _Laws(), model, replace(unit, parameters=unreached), rng)
        strategies.update({name: f"{how} (no reset of its own)" for name, how in normal.items()})
    return strategies


def _apply_callable(
    function: Callable[[nn.Module], Any], model: nn.Module, unit: Unit, rng: torch.Generator, name: str = ""
) -> dict[str, str]:
    """Run a function on each owner under its own random stream; what lies outside the unit is put back."""
    names = set(unit.parameters) | set(unit.statistics)
    with isolated_rng(int(torch.randint(2**62, (), generator=rng)), device_of(model)):
        for owner, module in _owners(model, unit).items():
            prefix = f"{owner}." if owner else ""
            inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
            with _within_as_own(module, inside) as own:
                outside = {key: value.detach().clone() for key, value in module.state_dict().items() if key not in own}
                function(module)
                current = module.state_dict(keep_vars=True)
                for key, value in outside.items():
                    if key in current and current[key].shape == value.shape:
                        current[key].data.copy_(value)
    return dict.fromkeys(unit.parameters, name or describe(function))


@contextmanager
def _within_as_own(module: nn.Module, names: Collection[str]) -> Iterator[set[str]]:
    """What only the module's own pass reads bears its usual name, for functions that know no other; see ``ties``."""
    held = module._parameters
    parted = [name for name in names if name.endswith(WITHIN) and name in held]

    def swap() -> None:
        for name in parted:
            own = name.removesuffix(WITHIN)
            held[own], held[name] = held[name], held[own]

    swap()
    try:
        yield {name.removesuffix(WITHIN) if name in parted else name for name in names}
    finally:
        swap()


def device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def stops_signal(name: str, value: Tensor) -> bool:
    """Whether a fresh module starts this parameter at one constant that multiplies, other than 1.

    Modern initialisations switch parts of a network off: a head of zeros, the last normalisation of a residual block,
    a layer scale of 1e-6, the second factor of a low-rank adapter. Such a network is no random one: its maps are
    constant, or those of the layers that are left. Biases add, and may be any constant.
    """
    if "bias" in name.rpartition(".")[2] or value.is_meta:
        return False
    values = value.detach().reshape(-1)
    if values.numel() == 1:  # a temperature is no switch; a gate of 0 is
        return bool(values[0] == 0)
    return bool((values == values[0]).all()) and bool(values[0] != 1)


def parameters_of(twin: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """A twin's parameters by the names that a copy gives to them, where it has them; see ``ties``."""
    theirs = dict(twin.named_parameters(remove_duplicate=False))
    meant = {name: name if name in theirs else name.removesuffix(WITHIN) for name in names}
    return {name: theirs[own].detach() for name, own in meant.items() if own in theirs}


def _copy_from(twin: nn.Module, model: nn.Module, unit: Unit, rng: torch.Generator) -> dict[str, str]:
    """Copy the unit from a fresh twin, but draw what would stop the signal, and what has the trained value itself."""
    source = parameters_of(twin, unit.parameters)
    strategies: dict[str, str] = {}
    drawn: dict[str, str] = {}
    for name in unit.parameters:
        parameter = model.get_parameter(name)
        value = source[name].to(parameter.device, parameter.dtype)
        if stops_signal(name, value):
            drawn[name] = "the twin's value being one constant that multiplies"
        elif torch.equal(parameter.detach(), value):
            drawn[name] = "the twin's value being the trained one"
        else:
            parameter.copy_(value)
            strategies[name] = "twin"
    if drawn:
        normal = _draw_each(_DRAWS["normal"], _Laws(), model, replace(unit, parameters=tuple(drawn)), rng)
        strategies.update({name: f"{how}, {drawn[name]}" for name, how in normal.items()})
    return strategies
