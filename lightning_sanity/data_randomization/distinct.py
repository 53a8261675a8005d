"""Are the models that are compared several models, and networks of one kind? Copies of one count as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from typing_extensions import override

NEARLY = 0.01
"""Largest relative difference of any parameter up to which two models count as one: rounding to 16 bits makes .002."""

ONE_RUN = 0.3
"""Relative difference of every parameter up to which two models share a training: checkpoints of one run that still
learned differed by .06 to .15, models of other seeds by more than 1."""

SAME_ANSWERS = 1e-4
"""Relative difference of outputs up to which two models are one function."""

SEEDED = (
    "is a seed set in the factory, in `__init__` or in a hook (`seed_everything(0)`)? Leave that out: each model needs "
    "first weights of its own"
)


def check_distinct(models: Sequence[nn.Module], kind: str) -> None:
    """Refuse models of one kind of labels of which some are one.

    Args:
        models: Trained on labels of one kind.
        kind: Of labels: ``"true"`` or ``"random"``.

    Raises:
        ValueError: Which of them, how alike they are, and what to do.
    """
    for one, other in combinations(range(len(models)), 2):
        difference = largest_difference(models[one], models[other])
        if difference <= NEARLY:
            how = "the same weights" if difference == 0 else f"all but the same weights (within {difference:.2g})"
            raise ValueError(
                f"{kind}-label models {one} and {other} have {how}: they count as one model, and tell nothing about "
                f"chance. If they were trained separately, {SEEDED}; else pass one of them only."
            )


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    """Largest relative difference ``|a - b| / max(|a|, |b|)`` over the parameters; infinite if they have none alike."""
    theirs = dict(other.named_parameters())
    found = [_relative(value.detach(), theirs[name].detach()) for name, value in one.named_parameters()]
    return max(found, default=float("inf"))


def _relative(one: Tensor, other: Tensor) -> float:
    a, b = one.double(), other.to(one.device).double()
    scale = max(float(torch.linalg.vector_norm(a)), float(torch.linalg.vector_norm(b)))
    return float(torch.linalg.vector_norm(a - b)) / scale if scale > 0 else 0.0


def of_one_run(groups: Mapping[str, Sequence[nn.Module]]) -> str | None:
    """Which models of one kind come from one training, if some do: then they tell little about chance.

    Args:
        groups: By kind of labels.
    """
    for kind, models in groups.items():
        for one, other in combinations(range(len(models)), 2):
            difference = largest_difference(models[one], models[other])
            if difference <= ONE_RUN:
                return (
                    f"{kind}-label models {one} and {other} come from one training, as checkpoints of one run do (no "
                    f"weights differ by more than {difference:.0%}): train each from first weights of its own, or pass "
                    "one of them only"
                )
    return None


def of_one_function(outputs: Tensor, groups: tuple[int, int]) -> str | None:
    """Which models give the same answers, whatever their weights look like, if some do.

    Hidden channels in another order, or a factor that a rectifier lets through, make other weights of one function.
    Probabilities tell nothing: where they saturate, those of all models are equal.

    Args:
        outputs: Of all models for the same samples, true-label ones first ``(K, N, ...)``.
        groups: How many of them saw true and random labels.
    """
    if not outputs.is_floating_point() or (float(outputs.min()) >= 0 and float(outputs.max()) <= 1):
        return None
    rows = outputs.double().flatten(2) if outputs.ndim > 2 else outputs.double()[..., None]
    rows = (rows - rows.mean(1, keepdim=True)).flatten(1)
    norms = rows.norm(dim=1)
    names = [f"true-label model {k}" for k in range(groups[0])] + [f"random-label model {k}" for k in range(groups[1])]
    for one, other in combinations(range(len(rows)), 2):
        scale = float(torch.maximum(norms[one], norms[other]))
        if scale > 0 and float((rows[one] - rows[other]).norm()) <= SAME_ANSWERS * scale:
            return f"{names[one]} and {names[other]} give the same answers to all samples: they are one model"
    return None


# -------------------------------------------------------------------------------------------------------- architecture


def check_architectures(models: Sequence[nn.Module]) -> None:
    """Refuse models that differ in the names and shapes of parameters, or in their layers and how these are set.

    Raises:
        ValueError: Names the first difference.
    """
    shapes = [{name: tuple(p.shape) for name, p in model.named_parameters()} for model in models]
    layers = [dict(layers_of(model)) for model in models]
    for index in range(1, len(models)):
        for kind, found in (("parameter", shapes), ("layer", layers)):
            first, other = dict(found[0]), dict(found[index])
            if first != other:
                name = next(n for n in (*first, *other) if first.get(n) != other.get(n))
                raise ValueError(
                    f"the models must have one architecture: {kind} '{name}' is {first.get(name, 'missing')} in the "
                    f"first and {other.get(name, 'missing')} in model {index} (true-label models are counted first)"
                )


def layers_of(model: nn.Module) -> Sequence[tuple[str, str]]:
    """PyTorch's own layers with what they are set to; dropout does nothing when maps are made."""
    return [
        (name, f"{type(module).__name__}({module.extra_repr()})")
        for name, module in getattr(model, "_orig_mod", model).named_modules()
        if type(module).__module__.startswith("torch.nn.modules")
        and not isinstance(module, (nn.modules.dropout._DropoutNd, nn.ModuleList, nn.ModuleDict, nn.Sequential))
    ]


def check_functions(calls: Sequence[Callable[[], Any]]) -> None:
    """Refuse models whose forward passes call different functions, such as another activation.

    Args:
        calls: One forward pass of each model.

    Raises:
        ValueError: Names a function that only one of them calls.
    """
    called = [functions_called(call) for call in calls]
    for index, other in enumerate(called[1:], 1):
        only = sorted(called[0] ^ other)
        if only:
            whose, whom = ("the first", f"model {index}") if only[0] in called[0] else (f"model {index}", "the first")
            raise ValueError(
                f"the models must have one architecture: {whose} calls {only[0]} on the way to its output and {whom} "
                "does not (true-label models are counted first)"
            )


@torch.no_grad()
def functions_called(call: Callable[[], Any]) -> frozenset[str]:
    """Names of PyTorch's functions that ``call`` calls."""
    with _Listening() as heard:
        call()
    return frozenset(heard.names)


class _Listening(TorchFunctionMode):
    """Names the functions of PyTorch that Python code calls, which do not depend on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = resolve_name(func)
        if name is not None and "dropout" not in name and "__get__" not in name:
            self.names.add(name)
        return func(*args, **(kwargs or {}))
