import math

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_sanity.result.psi import depth_weights, sensitivity, sensitivity_curve, sensitivity_of_samples
from lightning_sanity.result.signal import signal


def uniform(value, shape):
    return torch.full(shape, float(value))


def test_psi_is_zero_for_maps_that_never_change():
    found = sensitivity(uniform(1, (4, 3, 8)), uniform(0.2, (4, 3, 8)), uniform(1, (1, 8)))
    assert (found.psi.value, found.psi.low, found.psi.high) == (0, 0, 0)


def test_psi_is_one_for_maps_as_different_as_unrelated_ones():
    found = sensitivity(uniform(0.2, (4, 3, 8)), uniform(0.2, (4, 3, 8)), uniform(0.9, (1, 8)))
    assert found.psi.value == pytest.approx(1)


def test_psi_averages_over_the_cascade_not_its_end():
    values = torch.stack([uniform(1, (4, 8)), uniform(0.2, (4, 8))], 1)
    found = sensitivity(values, uniform(0.2, (4, 2, 8)), uniform(1, (1, 8)))
    assert (found.first, found.psi.value, found.last) == pytest.approx((0, 0.5, 1))


def test_psi_leaves_undefined_pairs_out():
    values, floor = torch.rand(5, 3, 8), uniform(0, (5, 3, 8))
    with_gap = values.clone()
    with_gap[2, :, 4] = math.nan
    expected = 1 - (values.sum((0, 2)) - values[2, :, 4]) / 39
    assert sensitivity(with_gap, floor, uniform(1, (1, 8))).psi.value == pytest.approx(float(expected.mean()), abs=1e-6)


def test_absolute_psi_counts_a_flipped_sign_as_retained():
    found = sensitivity(uniform(-1, (4, 3, 8)), uniform(0, (4, 3, 8)), uniform(1, (1, 8)), absolute=True)
    assert found.psi.value == 0


def simulated(trials, samples, spreads, draw):
    """Values, floor and ceiling with random trials, samples and pairs around a known PSI."""
    by_trial, by_sample, by_pair = spreads

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    level = torch.tensor([0.7, 0.5, 0.36, 0.2], dtype=torch.float64)[:, None]  # 1 - (.44 - .2) / (.8 - .2) = .6
    common = by_trial * normal(trials, 1, 1) + by_sample * normal(1, 1, samples)
    values = level + common + by_pair * normal(trials, 4, samples)
    floor = 0.2 + by_sample / 2 * normal(1, 1, samples) + by_pair * normal(trials, 4, samples)
    ceiling = 0.8 + 0.02 * normal(1, samples)
    return values, floor, ceiling


@pytest.mark.parametrize("trials", [5, 20])
@pytest.mark.parametrize(
    "spreads", [(0.08, 0.02, 0.1), (0.02, 0.1, 0.1), (0.05, 0.12, 0.15)], ids=["trials", "samples", "both"]
)
def test_interval_holds_a_known_psi_as_often_as_it_says(trials, spreads):
    draw = torch.Generator().manual_seed(2)
    found = [sensitivity(*simulated(trials, 32, spreads, draw)).psi for _ in range(400)]
    held = sum(interval.low <= 0.6 <= interval.high for interval in found) / len(found)
    assert 0.90 <= held <= 0.98


def test_variance_agrees_with_leaving_one_trial_or_sample_out():
    draw = torch.Generator().manual_seed(0)
    values, floor, ceiling = simulated(6, 12, (0.05, 0.1, 0.1), draw)
    ceiling = ceiling * 0 + 0.8

    def psi(v, u):
        return float((1 - (v.mean((0, 2)) - u.mean()) / (0.8 - u.mean())).mean())

    def without(axis, i):
        rest = [j for j in range(values.shape[axis]) if j != i]
        return psi(values.index_select(axis, torch.tensor(rest)), floor.index_select(axis, torch.tensor(rest)))

    left_out = [[without(axis, i) for i in range(values.shape[axis])] for axis in (0, 2)]
    by_trial, by_sample = (
        (len(rows) - 1) / len(rows) * sum((x - sum(rows) / len(rows)) ** 2 for x in rows) for rows in left_out
    )
    found = sensitivity(values, floor, ceiling).psi
    assert found.trial_share == pytest.approx(by_trial / (by_trial + by_sample), rel=0.05)
    half = found.high - found.value
    widest = stats.t.ppf(0.975, 5) * (by_trial + by_sample) ** 0.5
    assert stats.norm.ppf(0.975) * max(by_trial, by_sample) ** 0.5 * 0.95 < half < widest * 1.05


def test_interval_of_one_trial_is_that_of_a_mean_over_samples():
    values = torch.rand(1, 1, 10).double()
    found = sensitivity(values, uniform(0, (1, 1, 10)), uniform(1, (1, 10))).psi
    expected = stats.t.interval(0.95, 9, 1 - values.mean(), values[0, 0].std() / 10**0.5)
    assert (found.low, found.high) == pytest.approx(tuple(map(float, expected)))


def test_interval_grows_with_the_spread_between_trials():
    base = uniform(0.5, (6, 3, 16))
    by_trial = base + torch.linspace(-0.3, 0.3, 6)[:, None, None]
    found = sensitivity(by_trial, uniform(0, (6, 3, 16)), uniform(1, (1, 16)))
    assert found.psi.high - found.psi.low > 0.2
    assert found.psi.trial_share > 0.99


def test_signal_is_found_where_maps_resemble_their_noisy_repeats():
    found = signal(0.8 + 0.1 * torch.rand(3, 16), 0.3 * torch.rand(9, 16))
    assert found.p < 1e-6
    assert found.separation == pytest.approx(0.7, abs=0.05)


def test_signal_holds_its_level_where_there_is_none():
    generator = torch.Generator().manual_seed(1)
    found = [
        signal(torch.rand(1, 32, generator=generator), torch.rand(9, 32, generator=generator)).p for _ in range(2000)
    ]
    assert (torch.tensor(found) <= 0.05).float().mean() == pytest.approx(0.05, abs=0.02)


def test_signal_is_undefined_without_a_single_defined_sample():
    assert math.isnan(signal(uniform(math.nan, (2, 4)), uniform(0.1, (3, 4))).p)


def test_sensitivity_curve_averages_to_the_psi():
    values, floor, ceiling = torch.rand(5, 4, 8), 0.3 * torch.rand(5, 4, 8), 0.8 + 0.2 * torch.rand(2, 8)
    found = sensitivity(values, floor, ceiling)
    curve = sensitivity_curve(values, floor, ceiling)
    assert float(curve[0].mean()) == pytest.approx(found.psi.value)
    assert (float(curve[0, 0]), float(curve[0, -1])) == pytest.approx((found.first, found.last))


def test_sensitivity_curve_has_the_intervals_of_single_depths():
    values, floor = torch.rand(5, 3, 8), uniform(0.1, (5, 3, 8))
    curve = sensitivity_curve(values, floor, uniform(1, (1, 8)))
    for depth in range(3):
        alone = sensitivity(values[:, depth : depth + 1], floor[:, :1], uniform(1, (1, 8))).psi
        assert curve[:, depth].tolist() == pytest.approx([alone.value, alone.low, alone.high])


def test_sensitivity_curve_is_undefined_at_a_depth_without_maps():
    values = torch.rand(5, 3, 8)
    values[:, 1] = math.nan
    curve = sensitivity_curve(values, uniform(0, (5, 3, 8)), uniform(1, (1, 8)))
    assert curve.isnan().all(0).tolist() == [False, True, False]


def test_sensitivity_of_samples_averages_to_the_psi():
    values, floor, ceiling = torch.rand(5, 4, 8), 0.3 * torch.rand(5, 4, 8), 0.8 + 0.2 * torch.rand(2, 8)
    found = sensitivity_of_samples(values, floor, ceiling)
    assert float(found.mean()) == pytest.approx(sensitivity(values, floor, ceiling).psi.value)


def test_sensitivity_of_a_sample_moves_with_that_sample_only():
    values, floor, ceiling = torch.rand(5, 4, 8), uniform(0, (5, 4, 8)), uniform(1, (1, 8))
    changed = values.clone()
    changed[..., 3] = 1
    before, after = (sensitivity_of_samples(v, floor, ceiling) for v in (values, changed))
    assert (before != after).nonzero().flatten().tolist() == [3]
    assert float(after[3]) == 0


@pytest.mark.parametrize("walked", [range(9), [0, 8], [0, 3, 4, 8], [2, 5, 6], [8], [0]], ids=str)
def test_weights_are_those_of_straight_lines_between_walked_steps(walked):
    height = {step: math.sin(1 + step) for step in walked}
    lines = sum(float(np.interp(step, list(walked), list(height.values()))) for step in range(9)) / 9
    weights = depth_weights(list(walked), 9)
    assert sum(weights) == pytest.approx(1)
    assert sum(w * h for w, h in zip(weights, height.values(), strict=True)) == pytest.approx(lines)


def test_silent_steps_neither_count_nor_are_counted_for():
    assert depth_weights([0, 1, 2, 3], 4, {1, 2}) == (0.5, 0, 0, 0.5)
    assert depth_weights([0, 4], 5, {1, 2, 3}) == (0.5, 0.5)
    assert depth_weights([0, 1], 2, {0, 1}) == (0, 0)


def test_weighted_psi_is_that_of_the_repeated_depths():
    draw = torch.Generator().manual_seed(3)
    values, floor, ceiling = simulated(5, 12, (0.05, 0.05, 0.1), draw)
    repeated = [torch.cat([t[:, :1], t, t[:, -1:]], 1) for t in (values, floor)]
    weighted = sensitivity(values, floor, ceiling, weights=(1 / 3, 1 / 6, 1 / 6, 1 / 3))
    expected = sensitivity(*repeated, ceiling)
    assert vars(weighted.psi) == pytest.approx(vars(expected.psi))
    assert weighted.separation == pytest.approx(expected.separation)
    found = [sensitivity_of_samples(*given, ceiling, weights=w) for given, w in
             (((values, floor), (1 / 3, 1 / 6, 1 / 6, 1 / 3)), (repeated, ()))]  # fmt: skip
    torch.testing.assert_close(*found)


def test_weights_are_shared_out_among_the_depths_that_are_defined():
    values = torch.rand(5, 3, 8)
    values[:, 1] = math.nan
    floor, ceiling = uniform(0, (5, 3, 8)), uniform(1, (1, 8))
    found = sensitivity(values, floor, ceiling, weights=(0.2, 0.5, 0.3)).psi.value
    means = 1 - values.double().mean((0, 2))
    assert found == pytest.approx(float(0.4 * means[0] + 0.6 * means[2]))


@pytest.mark.parametrize(("level", "found"), [(0.0, False), (0.03, False), (0.2, True)])
def test_signal_needs_little_effect_and_significance(level, found):
    draw = torch.Generator().manual_seed(1)
    noise, cross = level + 0.05 * torch.randn(3, 64, generator=draw), 0.05 * torch.randn(9, 64, generator=draw)
    assert signal(noise, cross).found(0.05) is found
