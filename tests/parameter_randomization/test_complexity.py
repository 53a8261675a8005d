"""Entropy against NumPy's histogram, and efficient MPRT: what it gives, and why it does not gate."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sanity import attribution
from lightning_sanity.cli import demo
from lightning_sanity.parameter_randomization.complexity import efficient_mprt, entropy


def histogram_entropy(values, bins):
    values = np.asarray(values, dtype=np.float64).ravel()
    shares = np.histogram(values, bins=bins)[0] / values.size
    shares = shares[shares > 0]
    return -(shares * np.log(shares)).sum()


MAPS = {
    "continuous": torch.randn(4, 28, 28, generator=torch.Generator().manual_seed(0)),
    "tiny": torch.randn(4, 7, 7, generator=torch.Generator().manual_seed(1)),
    "tied": torch.randint(0, 6, (4, 28, 28), generator=torch.Generator().manual_seed(2)).float(),
    "sparse": torch.randn(4, 28, 28, generator=torch.Generator().manual_seed(3)).sub(1).relu(),
    "huge and faint": torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(4))
    * torch.tensor([1e-30, 1e-3, 1e3, 1e30])[:, None, None],
    "double": torch.randn(4, 28, 28, generator=torch.Generator().manual_seed(5), dtype=torch.float64),
    "half": torch.randn(4, 28, 28, generator=torch.Generator().manual_seed(6)).half(),
}


@pytest.mark.parametrize("bins", [2, 10, 100])
@pytest.mark.parametrize("kind", MAPS)
def test_entropy_matches_numpy(kind, bins):
    expected = [histogram_entropy(image, bins) for image in MAPS[kind]]
    np.testing.assert_allclose(entropy(MAPS[kind], bins).numpy(), expected, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=6, max_size=6), st.integers(1, 50))
def test_entropy_counts_values_on_bin_edges_as_numpy_does(values, bins):
    image = torch.tensor(values, dtype=torch.float64).reshape(1, 2, 3)
    expected = histogram_entropy(image, bins) if len(set(values)) > 1 else np.nan
    np.testing.assert_allclose(entropy(image, bins).numpy(), [expected], atol=1e-9)


def test_entropy_ignores_scale_and_shift():
    maps = MAPS["double"]
    torch.testing.assert_close(entropy(maps * -4 + 8).sort().values, entropy(-maps).sort().values)


def test_entropy_of_one_value_per_bin_is_the_logarithm_of_the_bins():
    ramp = torch.arange(100, dtype=torch.float64).reshape(1, 10, 10)
    torch.testing.assert_close(entropy(ramp), torch.tensor([100.0], dtype=torch.float64).log())


@pytest.mark.parametrize("spoiled", [0.0, torch.nan, torch.inf])
def test_entropy_of_constant_or_broken_maps_is_nan(spoiled):
    maps = MAPS["continuous"].clone()
    maps[1] = 0
    maps[1, 3, 3] = spoiled
    assert entropy(maps).isnan().tolist() == [False, True, False, False]


def test_entropy_of_a_sample_ignores_its_neighbours():
    maps = MAPS["continuous"]
    alone = torch.cat([entropy(image[None]) for image in maps])
    assert torch.equal(entropy(maps * torch.tensor([1.0, 1, 1, 50])[:, None, None])[:3], alone[:3])


@pytest.mark.parametrize("bins", [0, 2.5, True])
def test_entropy_refuses_impossible_bins(bins):
    with pytest.raises(ValueError, match="bins must be a whole number"):
        entropy(MAPS["tiny"], bins)


def test_efficient_mprt_is_the_relative_rise_of_entropy():
    trained, random = MAPS["sparse"].double(), MAPS["continuous"].double()
    before = np.array([histogram_entropy(image, 100) for image in trained])
    after = np.array([histogram_entropy(image, 100) for image in random])
    np.testing.assert_allclose(efficient_mprt(trained, random).numpy(), (after - before) / before, atol=1e-9)


def test_efficient_mprt_is_nan_where_the_trained_map_has_no_entropy():
    assert efficient_mprt(MAPS["tiny"], MAPS["tiny"], bins=1).isnan().all()


def test_efficient_mprt_refuses_maps_of_other_shapes():
    with pytest.raises(ValueError, match=r"same inputs, got shapes \(4, 28, 28\) and \(4, 7, 7\)"):
        efficient_mprt(MAPS["continuous"], MAPS["tiny"])


def scores(name, network, images, classes):
    """Efficient MPRT ``(5, N)`` of a method's maps, against five networks that were never trained."""
    method = attribution.resolve(name)
    trained = method(network, images, classes).sum(1)
    found = []
    for seed in range(5):
        torch.manual_seed(seed)
        found.append(efficient_mprt(trained, method(demo.DigitsClassifier().eval(), images, classes).sum(1)))
    return torch.stack(found)


def test_efficient_mprt_of_an_edge_detector_is_zero(digits_network):
    network, images, classes = digits_network
    assert (scores("edge_detector", network, images[:32], classes[:32]) == 0).all()


def test_efficient_mprt_does_not_order_gradient_above_guided_backprop(digits_network):
    network, images, classes = digits_network
    by_random_network = [
        scores(name, network, images[:64], classes[:64]).nanmean(1) for name in ("gradient", "guided_backprop")
    ]
    # One depends on the model and one does not; which random network one drew decides who scores higher.
    advantage = by_random_network[0] - by_random_network[1]
    assert advantage.mean() < 2 * advantage.std()


def test_efficient_mprt_orders_a_failing_method_above_its_passing_sibling(digits_network):
    network, images, classes = digits_network
    times_input, plain = (
        scores(name, network, images[:64], classes[:64]).nanmean()
        for name in ("input_x_gradient", "integrated_gradients_local")
    )
    assert times_input > plain
