import math

import pytest
import torch

from lightning_sanity.statistics import sensitivity, signal


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


def test_interval_is_the_same_for_the_same_seed_and_holds_the_estimate():
    values, floor = torch.rand(6, 3, 16), 0.1 * torch.rand(6, 3, 16)
    one, two = (sensitivity(values, floor, uniform(1, (1, 16)), seed=3) for _ in range(2))
    assert one == two
    assert one.psi.low < one.psi.value < one.psi.high


def test_interval_grows_with_the_spread_between_trials():
    base = uniform(0.5, (6, 3, 16))
    by_trial = base + torch.linspace(-0.3, 0.3, 6)[:, None, None]
    found = sensitivity(by_trial, uniform(0, (6, 3, 16)), uniform(1, (1, 16)))
    assert found.psi.high - found.psi.low > 0.2
    assert found.psi.trial_share > 0.99


def test_bootstrap_agrees_with_a_slow_loop():
    values, floor, ceiling = torch.rand(4, 2, 6).double(), 0.2 * torch.rand(4, 2, 6).double(), torch.ones(1, 6).double()
    rng = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(1500):
        t, n = torch.randint(4, (4,), generator=rng), torch.randint(6, (6,), generator=rng)
        v, u = values[t][:, :, n], floor[t][:, :, n].mean()
        draws.append(float((1 - (v.mean((0, 2)) - u) / (1 - u)).mean()))
    expected = torch.tensor(draws).quantile(torch.tensor([0.025, 0.975]))
    found = sensitivity(values, floor, ceiling, resamples=4000)
    assert [found.psi.low, found.psi.high] == pytest.approx(expected.tolist(), abs=0.03)


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
