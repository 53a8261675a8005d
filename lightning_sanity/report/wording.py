"""What figures, pages and summaries say alike: the answer in a line, what was randomised, names that fit."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lightning_sanity.result.controls import COMPARISON
from lightning_sanity.result.sanity_result import WORST_FIRST, Outcome, SanityResult, Verdict

SYMBOL = {Outcome.PASS: "\N{CHECK MARK}", Outcome.FAIL: "\N{BALLOT X}", Outcome.INCONCLUSIVE: "?"}

_NEARLY_ALL = 0.9
_TOGETHER = 6  # gated methods that one chart can hold
_FITS = 14  # characters of a step's name that fit everywhere
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_STAGE = {
    "cascading": "unit re-initialised last; those to its left are re-initialised too (output first)",
    "bottom_up": "unit re-initialised last; those to its left are re-initialised too (input first)",
    "independent": "the only unit re-initialised",
    "full": "all units re-initialised at once",
}
_STEP = {"cascading": "down to\n", "bottom_up": "up to\n", "independent": "only\n"}


def answer(result: SanityResult) -> tuple[Outcome, str]:
    """The whole result in one line, and the outcome whose colour it deserves."""
    gated = {name: verdict.outcome for name, verdict in result.verdicts.items() if verdict.gated}
    failed = [name for name, outcome in gated.items() if outcome is Outcome.FAIL]
    undecided = [name for name, outcome in gated.items() if outcome is Outcome.INCONCLUSIVE]
    if not result.valid:
        return Outcome.FAIL, "NOT VALID"
    if not gated:
        return Outcome.INCONCLUSIVE, "Only controls were tested"
    what, step = subject(result), "" if result.step is None else f" (step {result.step})"
    if failed:
        return Outcome.FAIL, f"FAIL: maps of {_some(failed, gated)} change too little with the {what}{step}"
    if undecided:
        return Outcome.INCONCLUSIVE, f"INCONCLUSIVE: no decision on {_some(undecided, gated)}{step}"
    return Outcome.PASS, f"PASS: maps of {_some(list(gated), gated)} change with the {what}{step}"


def _some(names: Sequence[str], gated: Sequence[str] | dict[str, Outcome]) -> str:
    if len(names) < 3:
        return " and ".join(short_head(name, 30) for name in names)
    return f"{len(names)} of {len(gated)} methods"


def ordered(result: SanityResult) -> list[str]:
    """Method names, gated ones first: FAIL, INCONCLUSIVE, PASS, by their index within each, undefined ones last."""

    def place(name: str) -> tuple[bool, int, float]:
        verdict = result.verdicts[name]
        index = verdict.psi if math.isfinite(verdict.psi) else math.inf
        return not verdict.gated, WORST_FIRST.index(verdict.outcome), index

    return sorted(result.verdicts, key=place)


def shown_on_cards(result: SanityResult) -> list[str]:
    """Method names in order, without controls that came out as they must: a card has little room."""
    names = ordered(result)
    gated = [name for name in names if result.verdicts[name].gated]
    return gated if gated and result.valid else names


def role(name: str, verdict: Verdict) -> str:
    """What a method that does not count is there for, to stand behind its name."""
    if verdict.gated:
        return ""
    return " (comparison)" if name == COMPARISON else " (control)"


def subject(result: SanityResult) -> str:
    """What the test randomised."""
    return "labels" if str(result.settings.get("test", "")).startswith("data") else "weights"


def reference(result: SanityResult) -> str:
    """Whose maps and predictions others are compared with."""
    return "true-label model" if subject(result) == "labels" else "trained model"


def origin(result: SanityResult) -> str:
    """What stands at the beginning of a curve and of a row of maps, before the first step."""
    return "true labels" if subject(result) == "labels" else "trained"


def learners(result: SanityResult) -> str:
    """Which models a data randomization test compared; empty for the other test, which makes its own."""
    if subject(result) != "labels":
        return ""
    true, permuted = result.settings.get("models", ("an unknown number of", "of"))
    return f"{_counted(true)} trained on the true labels and {permuted} trained on random ones"


def _counted(models: Any) -> str:
    return f"{models} model{'' if models == 1 else 's'}"


def passing(result: SanityResult, least: float) -> str:
    """From where an index passes, which is its mean where there are several steps.

    Args:
        result: Whose steps count.
        least: The threshold.
    """
    return f"passes from {least:g}" + (" on average" if len(result.units) > 1 else "")


def crowded(result: SanityResult) -> bool:
    """Whether the gated methods are more than one chart can hold."""
    return sum(verdict.gated for verdict in result.verdicts.values()) > _TOGETHER


def index_name(result: SanityResult) -> str:
    """Short name of the index that the verdicts rest on: of data or of parameter randomization."""
    return "DRI" if subject(result) == "labels" else "PSI"


def stage(result: SanityResult) -> str:
    """What a point of the depth axis means, and how many of the steps were walked, if not all."""
    if subject(result) == "labels":
        return ""
    steps = result.settings.get("steps")
    some = isinstance(steps, int) and len(result.units) < steps
    walked = f"; {len(result.units)} of {steps} steps walked" if some else ""
    return _STAGE.get(str(result.settings.get("order")), "re-initialised") + walked


def reproducibility(result: SanityResult) -> str:
    """How far methods that draw agree with themselves, in a sentence; empty where none draws."""
    found = {
        name: float(again.nanmean())
        for name, again in result.reproducibility.items()
        if name in result.verdicts and result.verdicts[name].gated
    }
    if not found:
        return ""
    listed = ", ".join(
        f"{name} at {value:.2f}" if value == value else f"{name}: undefined" for name, value in found.items()
    )
    return (
        f"Run again under another seed, methods agree with themselves (rank correlation, 1 = the same map): {listed}."
    )


def step_title(result: SanityResult, depth: int, limit: int = 15) -> str:
    """What had been re-initialised at a depth, in at most two lines of ``limit`` characters."""
    name = step_names(result.units, limit)[depth - 1]
    plain = subject(result) == "labels" or len(result.units) == 1
    return name if plain else _STEP.get(str(result.settings.get("order")), "") + name


def step_names(units: Sequence[str], limit: int) -> list[str]:
    """Names of the steps in at most ``limit`` characters, all different.

    Names that fit stay. If one is too long, all are numbered, and the long ones lose what begins and ends most of them;
    a block's number keeps the first letter of what it counts. What is still too long keeps ``d16`` of ``denselayer16``
    and ``down`` of ``down_proj`` where nearly all end so, and loses its middle: module paths differ at both ends.

    >>> step_names(["fc", "layers.1.self_attention.out", "layers.2.self_attention.out"], 18)
    ['1 fc', '2 layers.1', '3 layers.2']
    >>> step_names(["head", "blocks.37.attention.query", "blocks.37.mlp.fc1"], 14)
    ['1 head', '2 atten….query', '3 mlp.fc1']
    >>> step_names(["norm", *(f"blocks.{k}.mlp.{way}_proj" for k in (1, 0) for way in ("up", "down"))], 14)
    ['1 norm', '2 b1.mlp.up', '3 b1.mlp.down', '4 b0.mlp.up', '5 b0.mlp.down']
    """
    long = [name.split(".") for name in units if len(name) > _FITS]
    if not long:
        return list(units)
    first = _shared(long)
    inner = [parts[len(first) :] for parts in long if parts[: len(first)] == first and len(parts) > len(first)]
    last = _shared([parts[::-1] for parts in inner])
    ending = _ending(long)
    found = []
    for number, name in enumerate(units, 1):
        parts = name.split(".")
        if len(name) > _FITS and len(parts) > len(first) and parts[: len(first)] == first:
            parts = parts[len(first) :]
            if last and len(parts) > len(last) and parts[: -len(last) - 1 : -1] == last:
                parts = parts[: -len(last)]
            if parts[0].isdigit() and first:  # a number alone names nothing
                parts = [first[-1], *parts] if len(parts) == 1 else [first[-1][0] + parts[0], *parts[1:]]
        free = limit - len(str(number)) - 1
        if len(".".join(parts)) > free:
            parts = [re.sub(r"^([A-Za-z])[A-Za-z_]+(?=\d+$)", r"\1", part) for part in parts[:-1]] + parts[-1:]
            parts[-1] = parts[-1].removesuffix(ending) or parts[-1]
        found.append(f"{number} {short_middle('.'.join(parts), free)}")
    return found


def _shared(paths: Sequence[Sequence[str]]) -> list[str]:
    """The parts with which nearly all paths begin; none of a single one."""
    found: list[str] = []
    while len(paths) > 1:
        following = Counter(path[len(found)] for path in paths if len(path) > len(found) + 1)  # something has to stay
        part, count = following.most_common(1)[0] if following else ("", 0)
        if count < _NEARLY_ALL * len(paths):
            break
        found.append(part)
        paths = [path for path in paths if path[: len(found)] == found]
    return found


def _ending(paths: Sequence[Sequence[str]]) -> str:
    """The last word, with its underscore, of what nearly all paths end in; empty if there is none."""
    words = Counter("_" + path[-1].rpartition("_")[2] for path in paths if "_" in path[-1])
    word, count = words.most_common(1)[0] if words else ("", 0)
    return word if count >= _NEARLY_ALL * len(paths) else ""


_TITLES = {
    "spearman": "Rank correlation of magnitudes",
    "spearman_signed": "Rank correlation with signs",
    "spearman_support": "Rank correlation where inputs are not empty",
    "ssim": "Structural similarity",
    "hog": "Histograms of gradients",
    "pearson": "Correlation of magnitudes",
    "cosine": "Cosine of magnitudes",
    "cosine_signed": "Cosine with signs",
    "euclidean": "Closeness of magnitudes",
    "euclidean_signed": "Closeness with signs",
    "top_k_overlap": "Overlap of the largest values",
}


def measure_title(key: str) -> str:
    """A similarity as a chart's title, its key behind; the key alone where it is a user's own.

    >>> measure_title("ssim")
    'Structural similarity (ssim)'
    """
    return f"{_TITLES[key]} ({key})" if key in _TITLES else key


def short_middle(name: str, limit: int) -> str:
    """At most ``limit`` characters, cut in the middle.

    >>> short_middle("11.attention.query", 11)
    '11.at…query'
    """
    head = (limit - 1) // 2
    return name if len(name) <= limit else name[:head] + _ELLIPSIS + name[len(name) - (limit - 1 - head) :]


def labelled(depths: int, room: int) -> list[int]:
    """Which of the depths ``0 .. depths`` get a label if ``room`` of them fit: the first, the last, every k-th.

    >>> labelled(10, 4)
    [0, 4, 7, 10]
    """
    step = max(1, math.ceil(depths / room))
    return [0, *sorted(depth for depth in range(depths, 0, -step) if depth > step / 2)]


def short_head(name: str, limit: int) -> str:
    """At most ``limit`` characters, cut at the end."""
    return name if len(name) <= limit else name[: limit - 1] + _ELLIPSIS


def short_tail(name: str, limit: int) -> str:
    """At most ``limit`` characters: module paths differ at their ends, so the end stays, cut at a word if one is near.

    >>> short_tail("backbone.encoder.layers.11.mlp.fc2", 16)
    '…11.mlp.fc2'
    """
    if len(name) <= limit:
        return name
    tail = name[1 - limit :]
    word = re.search(r"[._]", tail[: limit // 2])
    return _ELLIPSIS + (tail[word.end() :] if word else tail)


def wrapped(name: str, width: int) -> str:
    r"""Lines of about ``width``, broken after dots and underscores where possible.

    >>> wrapped("integrated_gradients", 14)
    'integrated_\ngradients'
    """
    spaced = name.replace("_", "_\0 ").replace(".", ".\0 ")
    return textwrap.fill(spaced, width + 1).replace("\0 ", "").replace("\0", "")


def breakable(name: str) -> str:
    """A name that a narrow column breaks after its dots and underscores, not within a word."""
    return re.sub(r"([._])", "\\1\N{ZERO WIDTH SPACE}", name)


def setting(value: Any) -> str:
    """A setting as text.

    >>> setting("layer"), setting({"min_psi": 0.65}), setting(None)
    ('layer', '{"min_psi": 0.65}', 'null')
    """
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
