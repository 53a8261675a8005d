import pytest
import torch

from lightning_sanity.result import Criterion, Outcome
from lightning_sanity.result.verdict import Evidence, judge, scope_of
from lightning_sanity.similarity import spearman


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


@pytest.mark.parametrize(
    ("steady", "wide", "outcome"),
    [(0.38, 0.3, Outcome.INCONCLUSIVE), (0.46, 0.55, Outcome.FAIL)],
    ids=["open", "failing"],
)
def test_the_index_shown_is_the_one_that_decided(steady, wide, outcome):
    swings = torch.linspace(-0.5, 0.5, 6)[:, None, None].expand(6, 4, 24)
    values = {"spearman": steady + 0.01 * swings, "ssim": wide + swings}
    both = {name: evidence(0.1).floor["spearman"] for name in values}
    found = evidence(0.1, values=values, floor=both, ceiling={name: torch.ones(1, 24) for name in values})
    verdict = judge(found, Criterion())
    assert verdict.outcome is outcome
    assert f"{verdict.psi:.2f} [{verdict.psi_low:.2f}, {verdict.psi_high:.2f}] by {verdict.measure}" in verdict.reason
    smallest = min(verdict.psi_of, key=lambda name: verdict.psi_of[name][0])
    assert verdict.measure != smallest, "the case shows nothing"


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


def several(**means):
    """Tables of several measures about these means."""
    return {name: mean + 0.01 * torch.randn(6, 4, 24) for name, mean in means.items()}


def of_measures(values, floor, **changes):
    tables = {"values": several(**values), "floor": several(**floor)}
    return evidence(0.1, **tables, ceiling={name: torch.ones(1, 24) for name in values}, **changes)


def test_a_measure_that_cannot_tell_is_left_out_and_named():
    found = of_measures({"spearman": 0.2, "ssim": 0.9}, {"spearman": 0.1, "ssim": 0.89})
    verdict = judge(found, Criterion())
    assert (verdict.outcome, verdict.measure, list(verdict.psi_of)) == (Outcome.PASS, "spearman", ["spearman"])
    assert "ssim cannot tell, and is left out" in verdict.reason


def test_judge_is_inconclusive_where_no_measure_of_magnitude_can_tell():
    found = of_measures({"spearman": 0.9, "spearman_signed": 0.1}, {"spearman": 0.89, "spearman_signed": 0.0})
    verdict = judge(found, Criterion())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "no measure of magnitude can tell" in verdict.reason
    assert verdict.psi != verdict.psi  # NaN


def same(floor=0.1, **changes):
    return evidence(1.0, spread=0.0, floor={"spearman": torch.full((6, 4, 24), floor)}, **changes)


@pytest.mark.parametrize("floor", [0.1, 0.95, 1.0])
def test_a_map_that_no_weights_change_fails_whatever_the_floor(floor):
    cross = torch.full((9, 24), floor)
    verdict = judge(same(floor, cross=cross), Criterion())
    assert verdict.outcome is Outcome.FAIL
    assert "the same when all weights are random" in verdict.reason


def test_a_map_that_changes_a_little_at_the_last_step_does_not_fail_outright():
    values = torch.ones(6, 4, 24)
    values[:, -1] -= 1e-3
    verdict = judge(same(1.0 - 2e-3, values={"spearman": values}), Criterion())
    assert verdict.outcome is Outcome.INCONCLUSIVE


def test_a_method_that_does_not_reproduce_itself_is_unstable():
    unstable, stable = (evidence(0.1, again=level + 0.02 * torch.randn(3, 24)) for level in (0.4, 0.5))
    verdict = judge(unstable, Criterion())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "unstable: two runs" in verdict.reason
    assert "agree only by 0.4" in verdict.reason
    assert judge(stable, Criterion()).outcome is Outcome.PASS


def drawing(kept, noise, trials=6, depths=4, samples=24):
    """Evidence of maps that share ``kept`` with every model's, and hold noise of their own for every model and seed."""
    pattern = torch.randn(samples, 16, 16)

    def maps():
        other = torch.randn(samples, 16, 16)
        return kept * pattern + (1 - kept) * other + noise * torch.randn(samples, 16, 16)

    own = torch.randn(samples, 16, 16)
    trained = pattern + noise * own
    again = torch.stack([spearman(trained, pattern + noise * torch.randn_like(pattern)) for _ in range(3)])
    walked = [[maps() for _ in range(depths)] for _ in range(trials)]
    values, floor = (
        torch.stack([torch.stack([spearman(trained, each.roll(shift, 0)) for each in row]) for row in walked])
        for shift in (0, 1)
    )
    cross = torch.stack([spearman(trained, trained.roll(shift, 0)) for shift in range(1, 10)])
    return evidence(0.0, values={"spearman": values}, floor={"spearman": floor}, again=again, cross=cross)


def test_the_noise_of_its_own_draws_lets_no_method_pass():
    """A method that ignores the weights and draws: its maps are never alike, whatever the weights are."""
    assert judge(drawing(kept=1, noise=0.1), Criterion()).outcome is Outcome.FAIL
    verdict = judge(drawing(kept=1, noise=1.5), Criterion())
    assert verdict.psi > 0.65
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "part of what changes may be the method's own noise; give it more samples" in verdict.reason


def test_a_method_that_draws_and_depends_on_the_weights_passes():
    verdict = judge(drawing(kept=0, noise=1.5), Criterion())
    assert verdict.outcome is Outcome.PASS


def test_noise_under_one_seed_is_unstable_and_no_failure():
    verdict = judge(same(0.0, again=0.05 * torch.randn(3, 24), cross=0.05 * torch.randn(9, 24)), Criterion())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "unstable" in verdict.reason


def test_depths_count_by_their_weights():
    values = torch.stack([torch.full((6, 24), level) for level in (0.9, 0.1, 0.1)], 1) + 0.01 * torch.randn(6, 3, 24)
    floor = {"spearman": torch.full((6, 3, 24), 0.1)}
    given = {"values": {"spearman": values}, "floor": floor}
    assert judge(evidence(0.1, **given), Criterion()).psi == pytest.approx(2 / 3 + 1 / 27, abs=0.01)
    assert judge(evidence(0.1, **given, weights=(0.0, 0.5, 0.5)), Criterion()).psi == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("order", "walked", "layers", "outcomes"),
    [
        ("cascading", 4, 4, "PASS FAIL"),
        ("cascading", 1, 1, "PASS FAIL"),
        ("cascading", 1, 4, "INCONCLUSIVE FAIL"),
        ("full", 1, 4, "INCONCLUSIVE FAIL"),
        ("bottom_up", 4, 4, "INCONCLUSIVE FAIL"),
        ("independent", 4, 4, "INCONCLUSIVE INCONCLUSIVE"),
    ],
)
def test_only_a_cascade_of_several_steps_lets_a_method_pass(order, walked, layers, outcomes):
    scope = scope_of(order, walked, layers)
    found = [judge(evidence(level, scope=scope), Criterion()) for level in (0.1, 0.8)]
    assert " ".join(verdict.outcome.value for verdict in found) == outcomes
    assert all("use order='cascading'" in v.reason for v in found if v.outcome is Outcome.INCONCLUSIVE)
    assert all(verdict.psi == verdict.psi for verdict in found)  # the number stays


@pytest.mark.parametrize(
    ("samples", "words"), [(1, "one sample has no other sample's map"), (2, "two samples are too few")]
)
def test_too_few_samples_have_a_sentence_of_their_own(samples, words):
    def table(level, rows):
        return torch.full((rows, samples), level)

    cross = table(0.3, 9)[: samples - 1] if samples > 1 else table(torch.nan, 1)
    floor = torch.full((6, 4, samples), 0.1 if samples > 1 else torch.nan)
    found = evidence(
        0.1,
        values={"spearman": 0.1 + 0.02 * torch.randn(6, 4, samples)},
        floor={"spearman": floor},
        ceiling={"spearman": torch.ones(1, samples)},
        noise=table(0.9, 3),
        cross=cross,
    )
    verdict = judge(found, Criterion())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert words in verdict.reason


def test_maps_that_are_the_same_for_every_sample_are_told_from_noise():
    verdict = judge(evidence(0.1, noise=torch.ones(3, 24), cross=torch.ones(9, 24)), Criterion())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "the same for every sample" in verdict.reason


def test_maps_that_hardly_differ_between_samples_are_told_from_noise():
    verdict = judge(evidence(0.1, noise=torch.full((3, 24), 0.99), cross=torch.full((9, 24), 0.96)), Criterion())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "resemble one another by 0.96, as gradients of a nearly linear model do" in verdict.reason
    assert "0.03 apart" in verdict.reason


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        (torch.tensor([1.0, 0.2]).repeat(3, 12), "not reliably (p = "),
        (torch.full((3, 24), 0.31), "hardly more than another sample's map (by 0.0"),
    ],
    ids=["by chance", "too little"],
)
def test_judge_says_what_a_signal_lacks(noise, words):
    verdict = judge(evidence(0.1, noise=noise), Criterion())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.reason.startswith("the maps carry no signal")
    assert words in verdict.reason


@pytest.mark.parametrize(
    ("level", "words"), [(0.3, "would settle it"), (0.41, "too close to the threshold")], ids=["far", "near"]
)
def test_more_data_are_advised_only_where_they_are_worth_it(level, words):
    values = level + torch.linspace(-0.4, 0.4, 6)[:, None, None].expand(6, 4, 24)
    found = evidence(0.1, values={"spearman": values}, floor={"spearman": torch.full((6, 4, 24), 0.1)})
    verdict = judge(found, Criterion())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert words in verdict.reason


def test_judge_is_inconclusive_on_constant_maps():
    nothing = torch.full((6, 4, 24), torch.nan)
    verdict = judge(evidence(0.1, values={"spearman": nothing}), Criterion())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "the other models' maps are constant" in verdict.reason
    verdict = judge(evidence(0.1, values={"spearman": nothing}, dead=1.0), Criterion())
    assert verdict.reason.startswith("every map of the trained model is constant")


def test_criterion_refuses_numbers_out_of_range():
    with pytest.raises(ValueError, match=r"min_psi must be a number between 0 and 1, not 1\.5"):
        Criterion(min_psi=1.5)
