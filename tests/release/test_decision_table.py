"""The gate's decision table: whatever meets whatever, 0 comes out only where every part is a pass."""

import itertools
from dataclasses import replace

import pytest
import torch
from made_results import FAILING, NOW, OPEN, PASSING, made, void
from torch import nn

from lightning_sanity.model.clone import weights_digest
from lightning_sanity.release import Policy, gate

PASS, FAIL, NOTHING_FOLLOWS = 0, 1, 3
OLD = "2026-01-01T12:00:00+00:00"

# What a result says by itself, at a looser, an equal and a stricter threshold than it was measured with.
KINDS = {
    "PASS": (PASSING, {0.5: PASS, 0.65: PASS, 0.8: PASS}),
    "FAIL": (FAILING, {0.5: FAIL, 0.65: FAIL, 0.8: FAIL}),
    "INCONCLUSIVE": (OPEN, {0.5: PASS, 0.65: NOTHING_FOLLOWS, 0.8: FAIL}),
    "invalid": (PASSING, dict.fromkeys((0.5, 0.65, 0.8), NOTHING_FOLLOWS)),
    "stale": (PASSING, dict.fromkeys((0.5, 0.65, 0.8), FAIL)),
    "of other weights": (PASSING, dict.fromkeys((0.5, 0.65, 0.8), FAIL)),
    "of no weights": (None, dict.fromkeys((0.5, 0.65, 0.8), FAIL)),
}
THRESHOLDS = {"looser": 0.5, "equal": 0.65, "stricter": 0.8}
BASELINES = {"better": (-0.2, FAIL), "equal": (0.0, PASS), "worse": (0.2, PASS), "foreign": (0.0, NOTHING_FOLLOWS)}
PLACES = ("one file", "two of one model", "two of two", "folder")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Every file that the table needs, made once."""
    root = tmp_path_factory.mktemp("table")
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    torch.save(model.state_dict(), root / "best.pt")
    mine = weights_digest(model)
    for kind, (similarity, _) in KINDS.items():
        if similarity is None:
            (root / kind).mkdir()
            continue
        about = "e" * 64 if kind == "of other weights" else mine
        result = made(
            {"gradcam": similarity}, weights_digest=about, created=OLD if kind == "stale" else NOW.isoformat()
        )
        result = void(result, "the control 'random' passed") if kind == "invalid" else result
        older = made({"gradcam": FAILING}, weights_digest=about, step=1, created="2025-12-31T12:00:00+00:00")
        result.to_json(root / f"{kind}.json")
        result.to_json(root / kind / "latest.json")
        result.to_json(root / kind / "step=7.json")
        older.to_json(root / kind / "step=1.json")
    for similarity, (name, (shift, _)) in itertools.product((PASSING, FAILING, OPEN), BASELINES.items()):
        baseline = made({"gradcam": similarity + shift}, weights_digest="0" * 64)
        baseline = replace(baseline, probe_digest="b" * 64) if name == "foreign" else baseline
        baseline.to_json(root / f"baseline {similarity} {name}.json")
    good = made({"gradcam": PASSING - 0.4}, weights_digest=mine)
    good.to_json(root / "second.json")
    replace(good, weights_digest="d" * 64).to_json(root / "second of another.json")
    return root


def given(files, kind, place):
    if place == "folder":
        return [files / kind]
    second = {"two of one model": ["second.json"], "two of two": ["second of another.json"]}.get(place, [])
    return [files / f"{kind}.json", *(files / name for name in second)]


def expected(kind, threshold, baseline, place):
    parts = [KINDS[kind][1][THRESHOLDS[threshold]]]
    if kind == "invalid":
        parts.append(NOTHING_FOLLOWS)
    elif kind != "of no weights":
        parts.append(BASELINES[baseline][1])
    if place == "two of two":
        parts.append(FAIL)  # the checkpoint is one model's
    return FAIL if FAIL in parts else max(parts)


TABLE = list(itertools.product(KINDS, THRESHOLDS, BASELINES, PLACES))


@pytest.mark.parametrize(("kind", "threshold", "baseline", "place"), TABLE, ids=map(", ".join, TABLE))
def test_the_gate_decides_as_the_table_says(kind, threshold, baseline, place, files):
    similarity = KINDS[kind][0] or PASSING
    policy = Policy(
        min_psi=THRESHOLDS[threshold],
        weights=files / "best.pt",
        max_age="7d",
        baseline=files / f"baseline {similarity} {baseline}.json",
    )
    # The second result is better than the first, so that only the first can be worse than the baseline.
    assert gate(given(files, kind, place), policy, now=NOW).exit_code == expected(kind, threshold, baseline, place)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_without_weights_only_results_of_one_model_are_judged(kind, place, files):
    if place == "two of two" and kind != "of no weights":
        with pytest.raises(ValueError, match="about 2 models"):
            gate(given(files, kind, place), now=NOW)
        return
    if kind == "of other weights" and place == "two of one model":
        with pytest.raises(ValueError, match="about 2 models"):
            gate(given(files, kind, place), now=NOW)
        return
    code = {"FAIL": FAIL, "of no weights": FAIL, "INCONCLUSIVE": NOTHING_FOLLOWS, "invalid": NOTHING_FOLLOWS}
    assert gate(given(files, kind, place), now=NOW).exit_code == code.get(kind, PASS)
