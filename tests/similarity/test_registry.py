"""Similarities against scipy, scikit-image and the promises that hold for all of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_maps import MAPS, assert_near, continuous, loop, pair, rectified, upsampled
from scipy import stats
from scipy.spatial import distance
from torch import Tensor

from lightning_sanity import similarity as sim

PLAIN = (sim.spearman, sim.pearson, sim.cosine, sim.euclidean, sim.mse, sim.hog, sim.top_k_overlap, sim.kendall)
NAMES = sim.available()


def compare(name: str, a: Tensor, b: Tensor) -> Tensor:
    return sim.resolve(name)(a, b, torch.ones_like(a, dtype=torch.bool))


# --- against scipy and scikit-image


@pytest.mark.parametrize(("kind", "side"), MAPS)
def test_spearman_matches_scipy(kind, side):
    a, b = pair(kind, side)
    expected = loop(lambda x, y: stats.spearmanr(x.ravel(), y.ravel()).statistic, a, b)
    assert_near(sim.spearman(a, b), expected)
    assert_near(sim.spearman(a.double(), b.double()), expected)


@pytest.mark.parametrize(("kind", "side"), MAPS)
def test_kendall_matches_scipy(kind, side):
    a, b = pair(kind, side)
    assert_near(sim.kendall(a, b), loop(lambda x, y: stats.kendalltau(x.ravel(), y.ravel()).statistic, a, b))


@pytest.mark.parametrize(("kind", "side"), MAPS)
def test_pearson_matches_scipy(kind, side):
    a, b = pair(kind, side)
    assert_near(sim.pearson(a, b), loop(lambda x, y: stats.pearsonr(x.ravel(), y.ravel()).statistic, a, b))


def test_spearman_support_matches_scipy_on_the_support():
    a, b = pair(rectified, 28)
    support = continuous(28, 3) > 0.5
    actual = sim.resolve("spearman_support")(a, b, support)
    expected = [stats.spearmanr(x[s], y[s]).statistic for x, y, s in zip(a, b, support, strict=True)]
    assert_near(actual, torch.tensor(expected).double())


def test_spearman_support_of_two_supports_uses_their_common_pixels():
    measure = sim.resolve("spearman_support")
    a, b = pair(continuous, 12)
    left, right = continuous(12, 3) > 0, continuous(12, 4) > 0
    prepared = measure.prepare(a, left), measure.prepare(b, right)
    expected = []
    for x, y, s, t in zip(a, b, left, right, strict=True):
        ranks = [np.zeros((12, 12)), np.zeros((12, 12))]
        ranks[0][s], ranks[1][t] = stats.rankdata(x[s]), stats.rankdata(y[t])
        expected.append(stats.pearsonr(ranks[0][s & t], ranks[1][s & t]).statistic)
    assert_near(measure.compare(*prepared), torch.tensor(expected).double())


def test_spearman_support_of_fewer_than_three_pixels_is_nan():
    a, b = pair(continuous, 8)
    support = torch.zeros_like(a, dtype=torch.bool)
    support[0, 0, :2] = True
    assert sim.resolve("spearman_support")(a, b, support).isnan().all()


def test_mse_and_euclidean_follow_from_the_second_moment_error():
    a, b = pair(rectified, 28)
    error = (sim.second_moment(a.double()) - sim.second_moment(b.double())).square().mean(dim=(1, 2))
    assert_near(sim.mse(a, b), 1 - error / 2)
    assert_near(sim.euclidean(a, b), 1 - (error / 2).sqrt())
    assert_near(sim.mse(a, b), sim.cosine(a, b))


def test_cosine_matches_torch():
    a, b = pair(continuous, 28)
    expected = torch.cosine_similarity(a.double().flatten(1), b.double().flatten(1))
    assert_near(sim.cosine(a, b), expected)


def test_top_k_overlap_counts_common_pixels():
    a, b = torch.zeros(2, 1, 10, 10)
    a.view(-1)[:10] = torch.arange(1.0, 11.0)
    b.view(-1)[7:17] = torch.arange(1.0, 11.0)
    assert_near(sim.top_k_overlap(a, b), torch.tensor([0.3], dtype=torch.float64))
    assert_near(sim.top_k_overlap(a, b, k=0.01), torch.tensor([0.0]).double())


def test_top_k_overlap_shares_places_among_ties():
    a, b = torch.zeros(2, 1, 10, 10)
    a[0, 0, 0] = b[0, 9, 9] = 1.0  # nine of the ten places are shared by 99 zeros
    assert_near(sim.top_k_overlap(a, b), torch.tensor([10 / 11], dtype=torch.float64))
    assert_near(sim.top_k_overlap(a, a), torch.ones(1).double())


# --- what every similarity promises


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), batch=st.integers(1, 6), side=st.sampled_from([7, 16, 28]), ties=st.booleans())
def test_similarity_of_a_sample_ignores_its_neighbours(name, seed, batch, side, ties):
    draw = torch.Generator().manual_seed(seed)
    measure = sim.resolve(name)

    def maps(count: int) -> Tensor:
        values = torch.randn(count, side, side, generator=draw)
        return values.relu() if ties else values

    a, b, support = maps(1), maps(1), torch.rand(1, side, side, generator=draw) > 0.3
    alone = measure(a, b, support)
    place = seed % (batch + 1)
    neighbours = maps(batch), maps(batch), torch.rand(batch, side, side, generator=draw) > 0.3
    neighbours[0][: batch // 2] = torch.nan
    neighbours[1][0] = 1e30
    crowd = [torch.cat([n[:place], own, n[place:]]) for n, own in zip(neighbours, (a, b, support), strict=True)]
    torch.testing.assert_close(measure(*crowd)[place : place + 1], alone, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_similarity_of_undefined_maps_is_nan(name):
    good = continuous(16, 0)[:1].expand(5, -1, -1).clone()
    bad = good.clone()
    bad[0], bad[1], bad[2, 3, 4], bad[3, 0, 0], bad[4, 15, 15] = 0.0, 2.5, torch.nan, torch.inf, -torch.inf
    for a, b in ((good, bad), (bad, good), (bad, bad)):
        assert compare(name, a, b).isnan().all()
    assert compare(name, good, good).isfinite().all()


@pytest.mark.parametrize("kind", [continuous, rectified, upsampled])
@pytest.mark.parametrize("name", NAMES)
def test_similarity_of_a_map_with_itself_is_one(name, kind):
    maps = kind(28, 0)
    assert_near(compare(name, maps, maps), torch.ones(2).double(), 1e-12)
    assert_near(compare(name, 1e-25 * maps, maps), torch.ones(2).double(), 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_similarity_is_symmetric_and_at_most_one(name):
    a, b = pair(rectified, 28)
    assert_near(compare(name, a, b), compare(name, b, a), 1e-12)
    assert (compare(name, a, b) < 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_similarity_does_not_tell_minus_zero_from_zero(name):
    a, b = pair(rectified, 16)
    flipped = torch.where(a == 0, -a, a)
    flipped[:, ::2] = a[:, ::2]
    assert torch.equal(compare(name, flipped, b), compare(name, a, b))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_similarity_takes_half_precision_as_float32(name, dtype):
    a, b = (m.to(dtype) for m in pair(rectified, 28))
    assert torch.equal(compare(name, a, b), compare(name, a.float(), b.float()))
    assert compare(name, a, b).dtype == torch.float64


@pytest.mark.parametrize("name", NAMES)
def test_prepared_maps_can_be_rolled_to_pair_other_samples(name):
    measure = sim.resolve(name)
    a, b = (torch.cat(pair(continuous, 16)) for _ in range(2))
    b = b.flip(2)
    args = (torch.ones_like(a, dtype=torch.bool),) if measure.on_support else ()
    left, right = measure.prepare(a, *args), measure.prepare(b, *args)
    assert {len(t) for t in (*left, *right)} == {4}
    rolled = measure.compare(left, tuple(t.roll(1, 0) for t in right))
    assert_near(rolled, compare(name, a, b.roll(1, 0)), 1e-12)


def test_similarity_leaves_its_arguments_as_they_were():
    a, b = pair(rectified, 28)
    before = a.clone(), b.clone()
    for name in NAMES:
        measure = sim.resolve(name)
        args = (torch.ones_like(a, dtype=torch.bool),) if measure.on_support else ()
        left, right = measure.prepare(a, *args), measure.prepare(b, *args)
        assert torch.equal(measure.compare(left, right), measure.compare(left, right))
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


@pytest.mark.parametrize("name", NAMES)
def test_similarity_accepts_maps_that_require_grad(name):
    a, b = pair(continuous, 16)
    result = compare(name, a.requires_grad_(), b)
    assert not result.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_similarity_of_no_samples_is_empty(name):
    nothing = torch.empty(0, 16, 16)
    assert compare(name, nothing, nothing).shape == (0,)


OWN = {
    "spearman": lambda a, b: stats.spearmanr(a, b).statistic,
    "pearson": lambda a, b: stats.pearsonr(a, b).statistic,
    "kendall": lambda a, b: stats.kendalltau(a, b).statistic,
    "cosine": lambda a, b: 1 - distance.cosine(a, b),
    "euclidean": lambda a, b: 1 - np.linalg.norm(a / np.linalg.norm(a) - b / np.linalg.norm(b)) / np.sqrt(2),
    "mse": lambda a, b: 1 - np.square(a / np.linalg.norm(a) - b / np.linalg.norm(b)).sum() / 2,
}


@pytest.mark.parametrize("name", OWN)
def test_plain_and_registered_similarity_equal_an_independent_one(name):
    a, b = pair(rectified, 28)
    expected = [
        OWN[name](one.flatten().double().numpy(), other.flatten().double().numpy())
        for one, other in zip(a, b, strict=True)
    ]
    for found in (getattr(sim, name)(a, b), sim.resolve(name)(a, b)):
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("function", [*PLAIN, sim.ssim, sim.ms_ssim])
def test_maps_of_two_shapes_are_refused(function):
    with pytest.raises(ValueError, match=r"one shape, got \(2, 8, 8\) and \(2, 8, 9\)"):
        function(torch.rand(2, 8, 8), torch.rand(2, 8, 9))
    with pytest.raises(ValueError, match=r"shape \(N, H, W\), got \(2, 3, 8, 8\)"):
        function(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8))


def test_top_k_overlap_refuses_a_share_outside_its_range():
    with pytest.raises(ValueError, match=r"got k=10"):
        sim.top_k_overlap(torch.rand(1, 8, 8), torch.rand(1, 8, 8), k=10)


def test_resolve_offers_the_choices():
    with pytest.raises(
        ValueError, match=r"unknown similarity 'sperman'; did you mean spearman .*choose from: spearman, "
    ):
        sim.resolve("sperman")
    assert sim.resolve(sim.resolve("ssim")) is sim.resolve("ssim")


def test_similarity_on_support_asks_for_the_support():
    maps = torch.rand(1, 8, 8)
    with pytest.raises(ValueError, match=r"pass support=support_of"):
        sim.resolve("spearman_support")(maps, maps)
    with pytest.raises(ValueError, match=r"got shape \(1, 4, 4\) for maps of \(1, 8, 8\)"):
        sim.resolve("spearman_support")(maps, maps, torch.ones(1, 4, 4, dtype=torch.bool))
