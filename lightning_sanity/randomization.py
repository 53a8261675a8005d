"""Units: which parameters, in what order, re-initialised how; and the proof that they changed.

Order and membership come from use, not from definition: a unit stands where the forward pass reads its parameters
(see ``graph``). A layer joins its weights and what is bound to it, the normalisation, layer scale or bias vector that
follows, so that no step only resets a constant.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_sanity._rng import generator as make_generator
from lightning_sanity._rng import isolated_rng
from lightning_sanity.graph import Graph, trace

Order = Literal["cascading", "bottom_up", "independent", "full"]
Granularity = str | Sequence[str]
Reinitialize = str | Callable[..., Any] | nn.Module

ORDERS = ("cascading", "bottom_up", "independent", "full")
STRATEGIES = ("default", "normal", "shuffle", "reset", "xavier", "kaiming")
NORM_STATS = ("auto", "keep", "reset", "recalibrate")


class RandomizationError(RuntimeError):
    """A parameter could not be re-initialised."""


@dataclass(frozen=True)
class Unit:
    """Parameters that are re-initialised together in one step.

    Attributes:
        name: The module path a user would write, or the parameter's own name where a container holds it.
        parameters: Names of its parameters; a tied parameter appears once, in the unit of its topmost use.
        statistics: Names of the running statistics that belong to its normalisation layers.
    """

    name: str
    parameters: tuple[str, ...]
    statistics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The units of a model.

    Attributes:
        units: From output to input.
        unused: Parameters that the forward pass never read.
        notes: What a reader should know about them.
    """

    units: tuple[Unit, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """What happened to one parameter: how it was drawn and ``|new - old| / max(|new|, |old|)``, a 0-d tensor."""

    parameter: str
    strategy: str
    relative: Tensor


# ------------------------------------------------------------------------------------------------------------ units


def units(model: nn.Module, inputs: Any, granularity: Granularity = "layer") -> tuple[Unit, ...]:
    """The units of ``model``, from output to input, by the use that one forward pass makes of its parameters.

    Args:
        model: In the mode in which it is explained, normally ``eval()``.
        inputs: Its input, or a tuple of its positional arguments; one or two samples are enough.
        granularity: ``"layer"``, ``"block"``, or module names / regular expressions that each make one unit.

    Raises:
        ValueError: If ``granularity`` is unknown, or a name matches nothing.
        RandomizationError: If the forward pass uses no parameter, or one that has no values yet.
    """
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    return plan(model, trace(model, inputs), granularity).units


def plan(model: nn.Module, graph: Graph, granularity: Granularity = "layer", max_steps: int | None = None) -> Plan:
    """Group the parameters that ``graph`` saw in use; see ``units``.

    Args:
        model: The traced model.
        graph: Its recording.
        granularity: See ``units``.
        max_steps: Merge neighbouring units evenly until at most this many remain.
    """
    parameters = dict(model.named_parameters())
    _refuse_empty(parameters)
    used = [name for name in graph.order() if name in parameters and _is_weight(parameters[name])]
    if not used:
        raise RandomizationError(
            f"{type(model).__name__} uses no floating-point parameter in its forward pass: there is nothing to "
            "re-initialise. Quantised or scripted weights cannot be reached; pass the float model."
        )
    layers = _layers(model, used, graph)
    notes: tuple[str, ...] = ()
    if isinstance(granularity, str) and granularity == "layer":
        grouped = layers
    elif isinstance(granularity, str) and granularity == "block":
        blocks = _blocks(model, layers)
        grouped = _merge(layers, lambda unit: _innermost(unit, blocks))
    elif isinstance(granularity, str):
        raise ValueError(
            f"unknown granularity '{granularity}'; choose 'layer', 'block', or pass a list of module names or regexes"
        )
    else:
        grouped, notes = _listed(model, layers, granularity)
    if max_steps is not None and len(grouped) > max_steps:
        notes += (f"{len(grouped)} units merged evenly into {max_steps} steps (max_steps)",)
        grouped = _thin(grouped, max_steps)
    unused = tuple(name for name, p in parameters.items() if name not in graph.uses and _is_weight(p))
    return Plan(tuple(grouped), unused, notes)


def _is_weight(parameter: Tensor) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def _refuse_empty(parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise RandomizationError(f"'{name}' is lazy and has no values yet: run one batch through the model first")
        if parameter.is_meta:
            raise RandomizationError(f"'{name}' is a meta tensor without values: materialise the model and load it first")


def _owner(model: nn.Module, parameter: str) -> str:
    """Path of the module a parameter belongs to; a parametrisation belongs to the module that carries it."""
    return parameter.split("parametrizations.", 1)[0].rstrip(".") if "parametrizations." in parameter else (
        parameter.rpartition(".")[0]
    )


def _layers(model: nn.Module, used: Sequence[str], graph: Graph) -> list[Unit]:
    """Layer units, output first: weighted groups in the order of their last use, with the vectors that follow them."""
    parameters = dict(model.named_parameters())
    groups: dict[tuple[str, int], list[str]] = {}
    for name in used:  # weight and bias may be read by different operations of one module: the module is the group
        owner = _owner(model, name)
        bearing = _bears_children(model, owner)
        key = (owner, graph.uses[name][-1]) if bearing else (owner, -1)
        groups.setdefault(key, []).append(name)
    order = sorted(groups.items(), key=lambda item: max(graph.uses[name][-1] for name in item[1]))
    members: list[list[tuple[str, list[str]]]] = []
    leading: list[tuple[str, list[str]]] = []
    for (owner, _), names in order:
        entry = (_unit_name(model, owner, names), names)
        if any(_has_fan(parameters[name]) for name in names):
            members.append([*leading, entry])
            leading = []
        elif members:
            members[-1].append(entry)
        else:  # vectors before any weighted layer, an input normalisation for example, go with the first one
            leading.append(entry)
    if leading:
        members.append(leading)
    found = [_unit(model, group) for group in members]
    return _distinct(list(reversed(found)))


def _bears_children(model: nn.Module, owner: str) -> bool:
    module = model.get_submodule(owner)
    return owner == "" or any(
        True
        for name, child in module.named_children()
        if name != "parametrizations" and next(child.parameters(), None) is not None
    )


def _unit_name(model: nn.Module, owner: str, names: Sequence[str]) -> str:
    if owner == "" or (_bears_children(model, owner) and len(names) == 1):
        return names[0]
    return owner


def _has_fan(parameter: Tensor) -> bool:
    """Whether it mixes channels: two or more sides longer than one. A vector scales, shifts or marks only."""
    return sum(side > 1 for side in parameter.shape) >= 2


def _unit(model: nn.Module, group: Sequence[tuple[str, Sequence[str]]]) -> Unit:
    parameters = dict(model.named_parameters())
    weighted = [name for name, names in group if any(_has_fan(parameters[n]) for n in names)]
    names = tuple(name for _, members in group for name in members)
    return Unit((weighted or [group[0][0]])[0], names, _statistics(model, names))


def _statistics(model: nn.Module, parameters: Iterable[str]) -> tuple[str, ...]:
    """Running statistics held beside the given parameters."""
    owners = dict.fromkeys(_owner(model, name) for name in parameters)
    return tuple(
        f"{owner}.{key}" if owner else key
        for owner in owners
        for key in ("running_mean", "running_var")
        if isinstance(getattr(model.get_submodule(owner), key, None), Tensor)
    )


def _distinct(found: list[Unit]) -> list[Unit]:
    """Give units of one name (two groups of one container) the names of their first parameters."""
    counts: dict[str, int] = {}
    for unit in found:
        counts[unit.name] = counts.get(unit.name, 0) + 1
    return [
        unit if counts[unit.name] == 1 else Unit(unit.parameters[0], unit.parameters, unit.statistics) for unit in found
    ]


# ------------------------------------------------------------------------------------------- blocks, names, thinning


def _blocks(model: nn.Module, layers: Sequence[Unit]) -> tuple[str, ...]:
    """Paths of the modules that make one block each.

    A module is opened when it only holds others: the root, a plain container, one that holds most of the network, or
    a stack of repeated multi-layer modules. What is not opened is a block.
    """
    inside: dict[str, int] = {}
    for unit in layers:
        parts = unit.name.split(".")
        for depth in range(len(parts) + 1):
            path = ".".join(parts[:depth])
            inside[path] = inside.get(path, 0) + 1

    def repeated(path: str) -> bool:
        if not _is_module(model, path):  # a bare parameter
            return False
        kinds = [
            type(child)
            for name, child in model.get_submodule(path).named_modules()
            if name and inside.get(f"{path}.{name}" if path else name, 0) >= 2 and not isinstance(child, _CONTAINERS)
        ]
        return len(kinds) > len(set(kinds))

    def closed(path: str) -> list[str]:
        module = model.get_submodule(path) if _is_module(model, path) else None
        children = [f"{path}.{n}" if path else n for n, _ in module.named_children()] if module is not None else []
        children = [child for child in children if inside.get(child)]
        plain = type(module) in _CONTAINERS or path == ""
        trunk = inside[path] > len(layers) / 2
        if not children or not (plain or trunk or repeated(path)):
            return [path]
        return [block for child in children for block in closed(child)]

    return tuple(closed(""))


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _is_module(model: nn.Module, path: str) -> bool:
    return path == "" or any(name == path for name, _ in model.named_modules(remove_duplicate=False))


def _innermost(unit: Unit, paths: Sequence[str]) -> str:
    """The longest of ``paths`` that contains the unit, else the unit itself."""
    containing = [path for path in paths if unit.name == path or unit.name.startswith(path + ".")]
    return max(containing, key=len, default=unit.name)


def _merge(layers: Sequence[Unit], group_of: Callable[[Unit], str]) -> list[Unit]:
    """Join units of one group at the place of the group's topmost unit."""
    groups: dict[str, list[Unit]] = {}
    for unit in layers:
        groups.setdefault(group_of(unit), []).append(unit)
    return [_joined(name, members) for name, members in groups.items()]


def _joined(name: str, members: Sequence[Unit]) -> Unit:
    return Unit(
        name,
        tuple(parameter for unit in members for parameter in unit.parameters),
        tuple(statistic for unit in members for statistic in unit.statistics),
    )


def _listed(model: nn.Module, layers: Sequence[Unit], patterns: Sequence[str]) -> tuple[list[Unit], tuple[str, ...]]:
    """Units by module names or regexes; what no pattern covers stays in units of its own, never trained."""
    paths = [name for name, _ in model.named_modules() if name]
    chosen: list[str] = []
    for pattern in patterns:
        matched = [path for path in paths if path == pattern or re.fullmatch(pattern, path)]
        if not matched:
            raise ValueError(f"granularity: '{pattern}' matches no module; there are {', '.join(paths[:20])} ...")
        chosen += matched

    def group_of(unit: Unit) -> str | None:
        containing = [path for path in chosen if unit.name == path or unit.name.startswith(path + ".")]
        return min(containing, key=len, default=None)

    named = [(group_of(unit), unit) for unit in layers]
    runs: list[tuple[str | None, list[Unit]]] = []
    for group, unit in named:
        same = next((run for run in runs if run[0] == group), None) if group is not None else None
        if same is not None:
            same[1].append(unit)
        elif group is None and runs and runs[-1][0] is None:
            runs[-1][1].append(unit)
        else:
            runs.append((group, [unit]))
    found = [_joined(group or _span(members), members) for group, members in runs]
    rest = [unit.name for (group, _), unit in zip(runs, found, strict=True) if group is None]
    note = (f"not covered by the given granularity, re-initialised as further steps: {', '.join(rest)}",) if rest else ()
    return found, note


def _span(members: Sequence[Unit]) -> str:
    return members[0].name if len(members) == 1 else f"{members[0].name}..{members[-1].name}"


def _thin(grouped: Sequence[Unit], steps: int) -> list[Unit]:
    """Merge neighbours into ``steps`` groups of nearly equal size."""
    edges = [round(k * len(grouped) / steps) for k in range(steps + 1)]
    parts = [grouped[low:high] for low, high in zip(edges, edges[1:], strict=False)]
    return [_joined(_span(part), part) for part in parts if part]


def subsets(found: Sequence[Unit], order: str) -> tuple[tuple[Unit, ...], ...]:
    """Which units carry random weights at each step of ``order``; every order is subsets of one twin's units.

    Raises:
        ValueError: If ``order`` is unknown.
    """
    if order == "cascading":
        return tuple(tuple(found[: depth + 1]) for depth in range(len(found)))
    if order == "bottom_up":
        return tuple(tuple(found[::-1][: depth + 1]) for depth in range(len(found)))
    if order == "independent":
        return tuple((unit,) for unit in found)
    if order == "full":
        return (tuple(found),)
    raise ValueError(f"unknown order '{order}'; choose from: {', '.join(ORDERS)}")


# -------------------------------------------------------------------------------------------------- re-initialisation

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
            f"{_describe(how)}. Pass reinitialize='normal', or a function that sets it."
        )


def _describe(how: Reinitialize) -> str:
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
    before = {name: _effective(model, name).clone() for name in unit.parameters}
    strategies = act()
    return tuple(
        Change(name, strategies[name], _relative(before[name], _effective(model, name))) for name in unit.parameters
    )


def _effective(model: nn.Module, name: str) -> Tensor:
    """What the forward pass computes with: a parametrised parameter stands for the tensor it produces."""
    owner, rest = _owner(model, name), name
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
            found.setdefault((_owner(model, name), tensor), []).append(name)
    return found


Draw = Callable[[Tensor, float, torch.Generator], tuple[Tensor, str]]


def _draw_each(model: nn.Module, unit: Unit, draw: Draw, rng: torch.Generator) -> dict[str, str]:
    """Draw every tensor of the unit in the order of its names; parametrised ones through what they produce."""
    strategies: dict[str, str] = {}
    scale = _unit_scale(model, unit)
    for (owner, tensor), names in _parametrized(model, unit).items():
        module = model.get_submodule(owner)
        value, strategy = draw(getattr(module, tensor).detach(), scale, rng)
        if _assign_through(module, tensor, value):
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
    for parametrization in module.parametrizations[tensor]:  # type: ignore[union-attr,index]
        power_method = getattr(parametrization, "_power_method", None)
        if power_method is not None:  # spectral norm estimates the largest singular value by iteration
            matrix = parametrization._reshape_weight_to_matrix(module.parametrizations[tensor].original)  # type: ignore[union-attr,index,operator]
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
        if tensor.ndim < 2 or tensor.is_complex() or not _has_fan(tensor):
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
    return {owner: model.get_submodule(owner) for owner in dict.fromkeys(_owner(model, n) for n in unit.parameters)}


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
    with isolated_rng(int(torch.randint(2**62, (), generator=rng)), _device(model)):
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
    return dict.fromkeys(unit.parameters, name or _describe(function))


def _device(model: nn.Module) -> torch.device:
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


# -------------------------------------------------------------------------------------------------------------- twins


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

    def start_trial(self, trial: int) -> Callable[[nn.Module, Unit], tuple[Change, ...]]:
        """The function that re-initialises one unit in this trial."""
        twin = self.twin(trial) if self.twin is not None else None
        draw = redraw(twin if twin is not None else self.how)

        def act(model: nn.Module, unit: Unit) -> tuple[Change, ...]:
            changes = draw(model, unit, make_generator(self.seed, trial, unit.name))
            _set_statistics(model, unit, self.norm_stats, twin)
            return changes

        return act


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
    how: Reinitialize, model: nn.Module, original: nn.Module, plan_: Plan, seed: int, norm_stats: str = "auto"
) -> Reinitializer:
    """Resolve ``how`` once, at the border.

    Args:
        how: See ``parameter_randomization_test``.
        model: The clone that will be re-initialised.
        original: The user's module, asked for saved hyper-parameters.
        plan_: Its units.
        seed: Of every draw.
        norm_stats: ``"auto"``, ``"keep"``, ``"reset"`` or ``"recalibrate"``.

    Raises:
        ValueError: If a name is unknown, or a given twin factory does not build this architecture.
    """
    if norm_stats not in NORM_STATS:
        raise ValueError(f"unknown norm_stats '{norm_stats}'; choose from: {', '.join(NORM_STATS)}")
    if how == "default":
        factory, note = _factory_from_hyperparameters(original)
        if factory is not None:
            problem = _factory_problem(factory, model, plan_, seed)
            if problem is None:
                return Reinitializer("twin", how, seed, norm_stats, (note,), _twins(factory, model, seed))
            note = f"no twin from saved hyper-parameters: {problem}"
        return Reinitializer("normal", "normal", seed, norm_stats, (f"{note}; matched-moment normal draws instead",))
    if not isinstance(how, str) and _is_factory(how):
        problem = _factory_problem(how, model, plan_, seed)
        if problem is not None:
            raise ValueError(f"reinitialize={_describe(how)} does not build a twin of this model: {problem}")
        return Reinitializer("twin", how, seed, norm_stats, (), _twins(how, model, seed))
    redraw(how)  # raises on an unknown name
    return Reinitializer(how if isinstance(how, str) else _describe(how), how, seed, norm_stats)


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
    kind, given = type(original), dict(hparams)
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
    return lambda trial: _build(factory, (seed, trial, "twin"), _device(model))


def _factory_problem(factory: Callable[[], nn.Module], model: nn.Module, plan_: Plan, seed: int) -> str | None:
    """Why the factory's modules cannot serve as twins, or None."""
    try:
        first, second = (
            dict(_build(factory, (seed, probe, "factory"), _device(model)).named_parameters()) for probe in (0, 1)
        )
    except Exception as error:
        return f"building one raised {type(error).__name__}: {error}"
    for name in (name for unit in plan_.units for name in unit.parameters):
        wanted = model.get_parameter(name)
        if name not in first or first[name].shape != wanted.shape:
            return f"parameter '{name}' is missing or has another shape"
        one, two = first[name].detach(), second[name].detach()
        if one.numel() > 1 and torch.equal(one, two) and not bool((one == one.reshape(-1)[0]).all()):
            return f"parameter '{name}' comes out the same every time (pretrained weights?)"
    return None
