"""Which method to show for a model: the front door."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_sanity.choice.budget import Budget
from lightning_sanity.choice.faithfulness import METRICS
from lightning_sanity.choice.options import DEFAULTS, OWN, ChoiceOptions, check
from lightning_sanity.choice.search import Question, Search
from lightning_sanity.explanation.options import spelled_out
from lightning_sanity.explanation.provenance import provenance
from lightning_sanity.explanation.targets import Target, check_target
from lightning_sanity.model.clone import weights_digest
from lightning_sanity.parameter_randomization.options import settled, settled_for
from lightning_sanity.resources.progress import Forecast, progress_bar
from lightning_sanity.result.choice import Choice


@spelled_out(ChoiceOptions, DEFAULTS)
def choose_methods(
    model: nn.Module,
    inputs: Any,
    target: Tensor | int | Target | Callable[[Any], Tensor] | None = None,
    *,
    candidates: Any = "auto",
    budget: float | Budget | None = None,
    quality: str | Sequence[str] = METRICS,
    groups: Sequence[Any] | Tensor | None = None,
    **options: Unpack[ChoiceOptions],
) -> Choice:
    """Which attribution method to show for this model, on what evidence.

    Every candidate runs on a sample or two; what can run goes through the parameter randomization test, few trials
    first; what passes is scored on the same samples by what removing parts of the input does to the output, beside a
    random map and the edge detector. Recommended is the cheapest method that passed, that no other one is better than
    for certain, and that beats both baselines. ``model``, its mode and all random streams are left as they were.

    A recommendation rests on these samples and these metrics. It does not show that a map is right, or that people
    understand it.

    Args:
        model: A trained module; see ``parameter_randomization_test``.
        inputs: A batch ``(N, ...)``; see there. 32 to 64 samples are usual; fewer than ten decide little.
        target: What is explained; see there.
        candidates: "auto" for every method there is, else names, functions, or a dictionary, as ``methods=`` elsewhere.
        budget: Seconds, or ``Budget(seconds=, explanations=)``. Cheap methods come first; what was not measured within
            it is named. Only a budget in explanations gives the same answer on every machine.
        quality: Metrics: "fidelity" and "deletion", see ``choice.faithfulness``; "localization" where there are masks.
        groups: The group of every sample ``(N,)``: the table and the test are given for each of them too.
        **options: See ``ChoiceOptions``.

    Returns:
        The recommended method or None, the table of all candidates, and the reason.

    Raises:
        ValueError: If an argument is wrong: which one, and what would be right.
        CloneError: If the model cannot be copied into a live model of its own.
        RandomizationError: If it has nothing to re-initialise.
    """
    started = time.perf_counter()
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}: pass what that was made from")
    given: dict[str, Any] = {**DEFAULTS, **options}
    metrics = check(given, quality)
    walk = settled_for(model, settled({k: v for k, v in given.items() if k not in OWN}, "choose_methods()"))
    check_target(target)
    spent = budget if isinstance(budget, Budget) else Budget(seconds=budget)
    spent = Budget(spent.seconds, spent.explanations, started=started)
    with progress_bar(given["progress"]) as tick:
        search = Search(Question(model, inputs, target, walk, given["labels"]), metrics, spent, Forecast(tick))
        answer = search.answer(candidates, groups, masks=given["masks"], profile=given["profile"], tune=given["tune"])
    facts = provenance(inputs, next((p.device for p in model.parameters()), torch.device("cpu")), started)
    return replace(answer, weights_digest=weights_digest(model), **facts)
