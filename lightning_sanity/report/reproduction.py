"""How to run a test again: the call that its settings describe."""

from __future__ import annotations

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
_STRATEGIES = ("normal", "shuffle", "reset", "xavier", "kaiming")


def python_call(result: SanityResult) -> str:
    """The Python call of a result's test, with every setting spelled out.

    Objects that a file cannot hold, such as the model, the inputs and a user's own functions, stand there by name.
    """
    settings = result.settings
    function, given = "parameter_randomization_test", "model, inputs"
    if subject(result) == "labels":
        function, given = "data_randomization_test", "model, random_label_model, inputs"
    lines = [f"    methods={list(settings.get('methods', result.verdicts))!r},"]
    for key in _KEYWORDS:
        if key not in settings:
            continue
        value = settings[key]
        if key == "reinitialize" and value not in _STRATEGIES:
            lines.append(f"    # reinitialize was {value!r}: pass what it was, or leave it out for the default")
        else:
            lines.append(f"    {key}={value!r},")
    if isinstance(settings.get("criterion"), dict):
        numbers = ", ".join(f"{key}={value!r}" for key, value in settings["criterion"].items())
        lines.append(f"    criterion=Criterion({numbers}),")
    body = "\n".join(lines)
    return f"from lightning_sanity import Criterion, {function}\n\nresult = {function}(\n    {given},\n{body}\n)\n"
