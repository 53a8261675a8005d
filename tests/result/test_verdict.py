import pytest
import torch

from lightning_sanity.result import Criterion, Outcome
from lightning_sanity.result.verdict import Evidence, judge


def evidence(similarity, *, spread=0.02, trials=6, **changes):
    values = similarity + spread * torch.randn(trials, 4, 24)
    given = {
        "values": {"spearman": values},
        "floor": {"spearman": 0.1 + 0.02 * torch.randn(trials, 4, 24)},
        "ceiling": {"spearman": torch.ones(1, 24)},
        "noise": 0.9 + 0.02 * torch.randn(3, 24),
        "cross": 0.3 + 0.02 * torch.randn(9, 24),
        "dead": 0.0,
    }
    return Evidence(**{**given, **changes})


@pytest.mark.parametrize(
    ("similarity", "outcome"), [(0.1, Outcome.PASS), (0.9, Outcome.FAIL)], ids=["unrelated", "unchanged"]
)
def test_judge_decides_by_the_whole_interval(similarity, outcome):
    assert judge(evidence(similarity), Criterion()).outcome is outcome


def test_judge_fails_on_the_measure_that_sees_the_failure():
    both = evidence(0.1)
    values = {**both.values, "ssim": 0.9 + 0.02 * torch.randn(6, 4, 24)}
    verdict = judge(
        evidence(0.1, values=values, floor={**both.floor, "ssim": both.floor["spearman"]},
                 ceiling={**both.ceiling, "ssim": both.ceiling["spearman"]}),
        Criterion(),
    )  # fmt: skip
    assert (verdict.outcome, verdict.measure) == (Outcome.FAIL, "ssim")


def test_judge_says_what_would_settle_an_open_verdict():
    verdict = judge(evidence(0.4, spread=1.5), Criterion())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "would settle it" in verdict.reason


def test_judge_says_how_many_pairs_were_undefined():
    values = evidence(0.1).values["spearman"].clone()
    values[:, :, ::2] = torch.nan
    verdict = judge(evidence(0.1, values={"spearman": values}), Criterion())
    assert verdict.outcome is Outcome.PASS
    assert "50% of the pairs are left out" in verdict.reason


def blank(share, trials=6):
    """Evidence of a method that would pass, but for this share of pairs of every trial, whose map was constant."""
    values = evidence(0.1, trials=trials).values["spearman"].clone()
    values[:, :, : round(share * 24)] = torch.nan
    return evidence(0.1, trials=trials, values={"spearman": values})


@pytest.mark.parametrize(("share", "outcome"), [(0.75, Outcome.PASS), (0.875, Outcome.INCONCLUSIVE)])
def test_judge_needs_enough_pairs_that_are_defined(share, outcome):
    verdict = judge(blank(share), Criterion())
    assert verdict.outcome is outcome
    assert f"{share:.0%} of the pairs" in verdict.reason


def test_criterion_says_how_many_pairs_may_be_undefined():
    assert judge(blank(0.5), Criterion(max_undefined_rate=0.4)).outcome is Outcome.INCONCLUSIVE
    assert judge(blank(0.875), Criterion(max_undefined_rate=0.9)).outcome is Outcome.PASS


def test_trials_without_a_single_map_are_no_evidence():
    values = evidence(0.1, trials=3).values["spearman"].clone()
    values[1:] = torch.nan
    verdict = judge(evidence(0.1, trials=3, values={"spearman": values}), Criterion())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "one trial is not evidence" in verdict.reason


def test_judge_never_passes_a_single_trial():
    verdict = judge(evidence(0.1, trials=1), Criterion())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "one trial is not evidence" in verdict.reason


def test_judge_is_inconclusive_on_maps_without_signal():
    verdict = judge(evidence(0.0, noise=torch.zeros(3, 24), cross=0.1 * torch.randn(9, 24)), Criterion())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "carry no signal" in verdict.reason
    assert verdict.psi != verdict.psi  # NaN


def test_judge_is_inconclusive_on_dead_maps():
    verdict = judge(evidence(0.1, dead=0.25), Criterion())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "25% of the trained model's maps are constant" in verdict.reason


def test_judge_is_inconclusive_where_ceiling_meets_floor():
    verdict = judge(evidence(0.1, ceiling={"spearman": torch.full((3, 24), 0.2)}), Criterion())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "cannot tell" in verdict.reason


def test_judge_is_inconclusive_on_constant_maps():
    nothing = torch.full((6, 4, 24), torch.nan)
    verdict = judge(evidence(0.1, values={"spearman": nothing}), Criterion())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "no similarity is defined" in verdict.reason


def test_criterion_refuses_numbers_out_of_range():
    with pytest.raises(ValueError, match=r"min_psi must be a number between 0 and 1, not 1\.5"):
        Criterion(min_psi=1.5)
