"""Tuned on one half, judged on the other."""

import contests
import pytest
import torch
from scipy import stats

from lightning_sanity.choice.halves import split, tune


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_halves_hold_every_sample_once():
    halves = split(17)
    assert sorted([*halves.tune.tolist(), *halves.judge.tolist()]) == list(range(17))
    assert abs(len(halves.tune) - len(halves.judge)) <= 1


def test_halves_share_out_every_group():
    groups = torch.tensor([0] * 6 + [1] * 4 + [2] * 10)[torch.randperm(20, generator=rng())]
    halves = split(20, groups)
    assert groups[halves.tune].bincount().tolist() == groups[halves.judge].bincount().tolist() == [3, 2, 5]


def test_halves_follow_the_seed():
    assert split(30, seed=1).tune.tolist() == split(30, seed=1).tune.tolist() != split(30, seed=2).tune.tolist()


def test_too_few_samples_are_not_halved():
    with pytest.raises(ValueError, match="3 samples cannot be halved"):
        split(3)
    with pytest.raises(ValueError, match="one for each of the 6 samples"):
        split(6, torch.zeros(5))


def test_a_setting_that_is_better_keeps_its_gain():
    base = torch.randn(40, generator=rng())
    scores = {"default": base, "better": base + 1 + 0.1 * torch.randn(40, generator=rng(1)), "worse": base - 1}
    halves = split(40)
    found = tune(scores, "default", halves)
    gains = (scores["better"] - base)[halves.judge].double().numpy()
    expected = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert found.chosen == found.kept == "better"
    assert (found.gain.low, found.gain.high) == pytest.approx(tuple(expected), rel=1e-6)


def test_a_gain_of_the_half_that_chose_is_not_kept():
    halves = split(20)
    lucky = torch.zeros(20)
    lucky[halves.tune] = 1.0
    lucky += 0.01 * torch.randn(20, generator=rng())
    found = tune({"default": torch.zeros(20), "lucky": lucky}, "default", halves)
    assert found.chosen == "lucky"
    assert found.promised.low > 0.9
    assert found.kept == "default"
    assert found.figures["lucky"][0] > 0.9 > 0.1 > found.figures["lucky"][1]


def test_the_default_is_kept_where_nothing_is_better():
    base = torch.rand(12, generator=rng())
    found = tune(
        {"default": base, "same": base.clone(), "undefined": torch.full((12,), torch.nan)}, "default", split(12)
    )
    assert found.chosen == "default"
    assert (found.gain.low, found.gain.value, found.gain.high) == (0, 0, 0)


def test_what_is_drawn_for_the_judging_half_alone_cannot_choose():
    halves = split(12)
    base, other = torch.zeros(12), torch.zeros(12)
    other[halves.judge] = 9.0
    assert tune({"default": base, "other": other}, "default", halves).chosen == "default"


def test_settings_that_were_not_asked_are_refused():
    with pytest.raises(ValueError, match="unknown default setting 'usual'"):
        tune({"default": torch.zeros(8)}, "usual", split(8))
    with pytest.raises(ValueError, match="one score for each of the 8 samples"):
        tune({"default": torch.zeros(9)}, "default", split(8))
    with pytest.raises(ValueError, match="no defined score"):
        tune({"default": torch.full((8,), torch.nan)}, "default", split(8))


def test_gains_by_tuning_on_noise_hold_zero_on_the_half_that_judges():
    rates = contests.tuned("normal", 32, 12, 60, rng())
    assert rates["judging half"] >= 0.9
    assert rates["tuning half"] < rates["judging half"]
