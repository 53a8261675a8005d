"""Verdicts before all trials are there."""

from dataclasses import replace

import pytest
import torch

from lightning_sanity import Criterion, Outcome
from lightning_sanity.choice.racing import LEAST_TRIALS, early, levels
from lightning_sanity.result.psi import LEVEL
from lightning_sanity.result.verdict import Evidence, judge

LOOKS = (3, 4, 6, 9, 13, 20)


def evidence(similarity, *, trials=20, between=0.0, samples=24, seed=0):
    rng = torch.Generator().manual_seed(seed)
    by_trial = between * torch.randn(trials, 1, 1, generator=rng)
    return Evidence(
        values={"spearman": similarity + by_trial + 0.1 * torch.randn(trials, 4, samples, generator=rng)},
        floor={"spearman": 0.1 + 0.02 * torch.randn(trials, 4, samples, generator=rng)},
        ceiling={"spearman": torch.ones(1, samples)},
        noise=torch.ones(1, samples),
        cross=torch.zeros(9, samples),
        dead=0.0,
    )


def first(given, trials):
    parts = {name: {"spearman": getattr(given, name)["spearman"][:trials]} for name in ("values", "floor")}
    return replace(given, **parts)


def settled(given, shares):
    """The outcome that looks before the last settle, and after how many trials; None if they settle nothing."""
    for trials, level in zip(LOOKS[:-1], shares, strict=False):
        verdict = early(first(given, trials), Criterion(), level)
        if verdict is not None:
            return verdict.outcome, trials
    return None


SHARES = levels([look / LOOKS[-1] for look in LOOKS])


def test_looks_before_the_last_spend_no_more_than_allowed():
    shares = levels((0.1, 0.2, 0.5, 0.7, 1.0), spend=0.01)
    assert sum(1 - level for level in shares[:-1]) == pytest.approx(0.01 * 0.7)
    assert shares[-1] == LEVEL
    assert sum(1 - level for level in levels((0.1, 0.2, 0.9), spend=0.01)) == pytest.approx(0.009)


def test_looking_more_often_spends_no_more():
    seldom, often = levels((0.5, 1.0), 0.01), levels((0.1, 0.2, 0.3, 0.4, 0.5, 1.0), 0.01)
    assert sum(1 - level for level in seldom[:-1]) == pytest.approx(sum(1 - level for level in often[:-1]))


@pytest.mark.parametrize("shares", [(), (0.5, 0.5), (0.5, 0.2), (0.0, 1.0), (0.5, 1.5)])
def test_shares_that_do_not_grow_are_refused(shares):
    with pytest.raises(ValueError, match=r"increase within \(0, 1\]"):
        levels(shares)


def test_a_spending_that_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="spend"):
        levels((0.5, 1.0), spend=0)


@pytest.mark.parametrize(("similarity", "outcome"), [(0.1, Outcome.PASS), (0.8, Outcome.FAIL)])
def test_a_clear_case_is_settled_by_the_first_looks(similarity, outcome):
    found, trials = settled(evidence(similarity), SHARES)
    assert found is outcome
    assert trials <= 4


def test_a_case_at_the_bound_is_left_to_the_whole_test():
    assert settled(evidence(0.1 + 0.35 * 0.9, between=0.05), SHARES) is None


def test_no_index_settles_before_three_trials():
    assert LEAST_TRIALS == 3
    assert early(first(evidence(0.1), 2), Criterion(), 0.9) is None
    assert early(first(evidence(0.1), 3), Criterion(), 0.9) is not None


def test_what_no_trial_can_change_is_settled_at_once():
    given = replace(first(evidence(0.1), 1), trivial="not applicable: no convolution")
    verdict = early(given, Criterion(), 0.999)
    assert verdict is not None
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "no convolution" in verdict.reason


def test_an_early_verdict_is_the_verdict_at_that_level():
    given = first(evidence(0.1, between=0.02), 4)
    assert early(given, Criterion(), 0.99) == judge(given, Criterion(), level=0.99)
    assert judge(given, Criterion(), level=LEVEL) == judge(given, Criterion())
    assert judge(given, Criterion(), level=0.99).psi_low < judge(given, Criterion()).psi_low


def test_looking_often_does_not_raise_the_error():
    # Trials differ, and the truth lies at the bound: whatever a look settles is wrong half the time or more.
    at_the_bound = [evidence(0.1 + 0.35 * 0.9, between=0.1, samples=12, seed=seed) for seed in range(60)]
    naive = sum(settled(each, [LEVEL] * len(LOOKS)) is not None for each in at_the_bound)
    raced = sum(settled(each, SHARES) is not None for each in at_the_bound)
    assert naive > 6  # more than a tenth, each time at 5 %
    assert raced <= 1
