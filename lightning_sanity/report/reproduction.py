"""How to run a test again: the call that its settings describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_sanity.randomization.strategies import STRATEGIES
from lightning_sanity.report.wording import subject
from lightning_sanity.result.sanity_result import SanityResult

_KEYWORDS = (
    "similarities",
    "order",
    "granularity",
    "max_steps",
    "reinitialize",
    "norm_stats",
    "trials",
    "repeats",
    "retarget",
    "output",
    "channel_axis",
    "feature_axis",
    "seed",
)


def python_call(result: SanityResult) -> str:
    """The Python call of a result's test, with every setting spelled out.

    Objects that a file cannot hold, such as the model, the inputs and a user's own functions, stand there by name.
    """
    settings = result.settings
    function, given = "parameter_randomization_test", "model, inputs"
    if subject(result) == "labels":
        function, given = "data_randomization_test", "models, random_label_models, inputs"
    lines = [f"    methods={list(settings.get('methods', result.verdicts))!r},"]
    for key in _KEYWORDS:
        if key not in settings:
            continue
        value = settings[key]
        if key == "reinitialize" and value not in STRATEGIES:
            lines.append(f"    # reinitialize was {value!r}: pass what it was, or leave it out for the default")
        else:
            lines.append(f"    {key}={value!r},")
    if isinstance(settings.get("criterion"), dict):
        numbers = ", ".join(f"{key}={value!r}" for key, value in settings["criterion"].items())
        lines.append(f"    criterion=Criterion({numbers}),")
    imports = f"from lightning_sanity import Criterion, {function}\n"
    if isinstance(known := settings.get("memorization"), dict):
        # Without it no verdict stands, so that nothing could be reproduced.
        numbers = ", ".join(f"{key}={value!r}" for key, value in known.items())
        lines += [f"    memorization=Memorization({numbers}),", f"    min_train_accuracy={_least(settings)!r},"]
        imports += "from lightning_sanity.data_randomization import Memorization\n"
    body = "\n".join(lines)
    return f"{imports}\nresult = {function}(\n    {given},\n{body}\n)\n"


def _least(settings: Mapping[str, Any]) -> Any:
    return settings.get("min_train_accuracy", 0.95)
