"""Similarities against scipy, scikit-image and the promises that hold for all of them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from skimage.feature import hog as skimage_hog
from skimage.metrics import structural_similarity
from torch import Tensor

from lightning_sanity import similarity as sim
from lightning_sanity.normalization import NORMALIZATIONS
from lightning_sanity.ranks import inversions

PLAIN = (sim.spearman, sim.pearson, sim.cosine, sim.euclidean, sim.mse, sim.hog, sim.top_k_overlap, sim.kendall)
NAMES = sim.available()


def continuous(side: int, seed: int) -> Tensor:
    return torch.randn(2, side, side, generator=torch.Generator().manual_seed(seed))


def rectified(side: int, seed: int) -> Tensor:
    return (continuous(side, seed) - 0.2533).relu()  # 60 % zeros


def upsampled(side: int, seed: int) -> Tensor:
    coarse = rectified(7, seed)[:, None]
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")[:, 0]


MAPS = [
    pytest.param(kind, side, id=f"{kind.__name__}-{side}")
    for kind, side in [
        (continuous, 28),
        (rectified, 28),
        (continuous, 7),
        (rectified, 7),
        (upsampled, 56),
        (continuous, 224),
        (rectified, 224),
        (upsampled, 224),
    ]
]


def pair(kind: Callable[[int, int], Tensor], side: int) -> tuple[Tensor, Tensor]:
    a = kind(side, 1)
    return a, 0.5 * a + kind(side, 2)


def loop(oracle: Callable[[np.ndarray, np.ndarray], float], a: Tensor, b: Tensor) -> Tensor:
    return torch.tensor([oracle(x, y) for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True)]).double()


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


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


@pytest.mark.parametrize(("kind", "side"), MAPS)
@pytest.mark.parametrize(("data_range", "sample_covariance"), [(1.0, False), (2.0, True)])
def test_ssim_matches_skimage(kind, side, data_range, sample_covariance):
    a, b = map(sim.min_max, pair(kind, side))

    def oracle(x, y):
        return structural_similarity(
            x,
            y,
            win_size=min(11, side),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=sample_covariance,
            data_range=data_range,
        )

    actual = sim.ssim(a, b, data_range=data_range, sample_covariance=sample_covariance)
    assert_near(actual, loop(oracle, a, b), 1e-8)


@pytest.mark.parametrize("shape", [(11, 30), (10, 12), (3, 9), (2, 2), (1, 5), (43, 80)])
def test_ssim_of_any_shape_matches_skimage(shape):
    a, b = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).double()[:, None]
    window = min(11, (min(shape) - 1) // 2 * 2 + 1)
    expected = structural_similarity(
        a[0].numpy(),
        b[0].numpy(),
        win_size=window,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
    )
    assert_near(sim.ssim(a, b), torch.tensor([expected]).double())


def test_registered_ssims_scale_each_map_first():
    a, b = pair(continuous, 32)
    assert_near(sim.resolve("ssim")(a, b), sim.ssim(sim.min_max(a.double()), sim.min_max(b.double())))
    legacy = sim.resolve("ssim_legacy")(a, b)
    scaled = [sim.min_max(m.double()) for m in (a, b)]
    assert_near(
        legacy,
        loop(lambda x, y: structural_similarity(x, y, gaussian_weights=True, data_range=2), *scaled),
    )
    assert (legacy - sim.resolve("ssim")(a, b)).abs().min() > 0.03


def ms_ssim_oracle(x: np.ndarray, y: np.ndarray) -> float:
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])
    scales = max(1, sum(min(x.shape) >> s >= 11 for s in range(5)))
    weights = weights[:scales] / weights[:scales].sum()

    def smooth(image: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(image, 1.5, truncate=3.5)[5:-5, 5:-5]

    value = 1.0
    for scale, weight in enumerate(weights):
        mx, my = smooth(x), smooth(y)
        vx, vy, vxy = smooth(x * x) - mx * mx, smooth(y * y) - my * my, smooth(x * y) - mx * my
        term = (2 * vxy + 9e-4) / (vx + vy + 9e-4)
        if scale == scales - 1:
            term = term * (2 * mx * my + 1e-4) / (mx * mx + my * my + 1e-4)
        value *= max(term.mean(), 0.0) ** weight
        x, y = ([image[i::2, j::2] for i in (0, 1) for j in (0, 1)] for image in (x, y))
        x, y = (sum(part[: len(parts[3]), : parts[3].shape[1]] for part in parts) / 4 for parts in (x, y))
    return value


@pytest.mark.parametrize("side", [28, 45, 64, 224])
def test_ms_ssim_matches_its_definition(side):
    a, b = (sim.min_max(m.double()) for m in pair(upsampled, side))
    assert_near(sim.ms_ssim(a, b), loop(ms_ssim_oracle, a, b))


def test_ms_ssim_of_one_scale_is_ssim():
    a, b = (sim.min_max(m.double()) for m in pair(rectified, 16))
    assert_near(sim.ms_ssim(a, b), sim.ssim(a, b).clamp(min=0))


@pytest.mark.parametrize(("kind", "side"), MAPS)
def test_hog_matches_skimage(kind, side):
    a, b = (sim.min_max(m.double()) for m in pair(kind, side))
    cell = 16 if side >= 128 else 8 if side >= 24 else 2

    def oracle(x):
        return skimage_hog(x, pixels_per_cell=(cell, cell))

    assert_near(sim.hog_descriptor(a), torch.tensor(np.stack([oracle(x) for x in a.numpy()])), 1e-6)
    assert_near(sim.hog(a, b), loop(lambda x, y: stats.pearsonr(oracle(x), oracle(y)).statistic, a, b), 1e-6)


@pytest.mark.parametrize(("kind", "side"), MAPS)
def test_hog_spearman_ranks_the_descriptors(kind, side):
    a, b = (sim.min_max(m.double()) for m in pair(kind, side))
    actual = sim.resolve("hog_spearman")(a, b)

    def spearmanr(x, y):
        return stats.spearmanr(np.float32(x), np.float32(y)).statistic

    assert_near(actual, loop(spearmanr, sim.hog_descriptor(a), sim.hog_descriptor(b)))
    # scikit-image adds up a cell in float32, which unties bins that are equal.
    cell = 16 if side >= 128 else 8 if side >= 24 else 2
    cells = (cell, cell)
    expected = loop(lambda x, y: spearmanr(skimage_hog(x, 9, cells), skimage_hog(y, 9, cells)), a, b)
    assert_near(actual, expected, 1e-4)


@pytest.mark.parametrize(
    ("orientations", "cell", "block"), [(9, (8, 8), (3, 3)), (8, (16, 16), (2, 2)), (7, (5, 9), (1, 2))]
)
def test_hog_descriptor_matches_skimage_with_other_settings(orientations, cell, block):
    maps = torch.rand(2, 50, 61, generator=torch.Generator().manual_seed(0)).double()
    expected = [skimage_hog(m, orientations, cell, block) for m in maps.numpy()]
    assert_near(sim.hog_descriptor(maps, orientations, cell, block), torch.tensor(np.stack(expected)), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_average_ranks_match_scipy_with_ties(dtype):
    values = torch.randint(-5, 5, (4, 99), generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.testing.assert_close(
        sim.average_ranks(values), torch.tensor(stats.rankdata(values.numpy(), axis=1)).float(), rtol=0, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_average_ranks_leave_out_masked_values(dtype):
    values = torch.tensor([[3.0, 1.0, 3.0, -2.0, 9.0]], dtype=dtype)
    mask = torch.tensor([[True, True, True, False, False]])
    assert sim.average_ranks(values, mask).tolist() == [[2.5, 1.0, 2.5, 0.0, 0.0]]


def test_average_ranks_of_non_finite_rows_are_nan():
    ranks = sim.average_ranks(torch.tensor([[1.0, torch.nan], [1.0, torch.inf], [1.0, 2.0]]))
    assert ranks[:2].isnan().all()
    assert ranks[2].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("count", [1, 2, 7, 16, 33])
def test_inversions_match_counting_pairs(count):
    rows = torch.stack([torch.randperm(count, generator=torch.Generator().manual_seed(s)) for s in range(3)])
    expected = torch.triu(rows[:, :, None] > rows[:, None, :], diagonal=1).sum(dim=(1, 2))
    assert torch.equal(inversions(rows), expected)


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


@pytest.mark.parametrize("function", PLAIN)
def test_plain_function_equals_the_registered_similarity(function):
    a, b = pair(rectified, 28)
    assert torch.equal(function(a, b), sim.resolve(function.__name__)(a, b))


@pytest.mark.parametrize("function", [*PLAIN, sim.ssim, sim.ms_ssim])
def test_maps_of_two_shapes_are_refused(function):
    with pytest.raises(ValueError, match=r"one shape, got \(2, 8, 8\) and \(2, 8, 9\)"):
        function(torch.rand(2, 8, 8), torch.rand(2, 8, 9))
    with pytest.raises(ValueError, match=r"shape \(N, H, W\), got \(2, 3, 8, 8\)"):
        function(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8))


def test_hog_of_maps_without_room_for_a_block_is_refused():
    with pytest.raises(ValueError, match=r"hog needs 3 x 3 pixels .* got maps of 2 x 9"):
        sim.hog(torch.rand(1, 2, 9), torch.rand(1, 2, 9))


def test_top_k_overlap_refuses_a_share_outside_its_range():
    with pytest.raises(ValueError, match=r"got k=10"):
        sim.top_k_overlap(torch.rand(1, 8, 8), torch.rand(1, 8, 8), k=10)


def test_resolve_offers_the_choices():
    with pytest.raises(ValueError, match=r"unknown similarity 'sperman'; choose from: spearman, "):
        sim.resolve("sperman")
    assert sim.resolve(sim.resolve("ssim")) is sim.resolve("ssim")


def test_similarity_on_support_asks_for_the_support():
    maps = torch.rand(1, 8, 8)
    with pytest.raises(ValueError, match=r"pass support=support_of"):
        sim.resolve("spearman_support")(maps, maps)
    with pytest.raises(ValueError, match=r"got shape \(1, 4, 4\) for maps of \(1, 8, 8\)"):
        sim.resolve("spearman_support")(maps, maps, torch.ones(1, 4, 4, dtype=torch.bool))


# --- normalisations


def test_percentile_clipped_is_the_abs_postprocessing_of_2018():
    maps = rectified(28, 0)
    expected = [np.clip((m - m.min()) / (np.percentile(m, 99) - m.min()), 0, 1) for m in maps.double().numpy()]
    actual = sim.percentile_clipped(maps.double())
    assert_near(actual, torch.tensor(np.stack(expected)))
    assert ((actual == 1).double().mean(dim=(1, 2)) >= 0.01).all()


def test_diverging_maps_zero_to_one_half():
    maps = continuous(28, 0)
    maps[:, 0, 0] = 0.0
    scale = [abs(np.percentile(m, 99)) for m in maps.double().numpy()]
    expected = [np.clip((m + s) / (2 * s), -1, 1) for m, s in zip(maps.double().numpy(), scale, strict=True)]
    actual = sim.diverging(maps.double())
    assert_near(actual, torch.tensor(np.stack(expected)))
    assert (actual[:, 0, 0] == 0.5).all()


def test_normalisations_of_an_undefined_percentile_are_nan():
    sparse = torch.zeros(1, 20, 20)
    sparse[0, 0, 0] = 1.0
    assert sim.percentile_clipped(sparse).isnan().all()
    assert sim.diverging(sparse).isnan().all()


@pytest.mark.parametrize("normalise", [sim.min_max, sim.percentile_clipped, sim.diverging, sim.second_moment])
def test_normalisation_of_a_constant_map_is_nan(normalise):
    maps = torch.stack([torch.full((8, 8), 3.0), torch.rand(8, 8)])
    assert normalise(maps)[0].isnan().all()
    assert normalise(maps)[1].isfinite().all()


def test_second_moment_survives_tiny_gradients():
    assert_near(sim.second_moment(1e-30 * continuous(16, 0)).square().mean(dim=(1, 2)), torch.ones(2), 1e-5)


# --- the support of an input


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_support_is_what_differs_from_the_background(dtype):
    inputs = torch.full((1, 3, 10, 10), -0.4242).to(dtype)
    inputs[:, 2] = 1.8
    inputs[0, 1, 2:6, 3:7] = torch.rand(4, 4).to(dtype)
    support, has_background = sim.support_of(inputs)
    expected = torch.zeros(1, 10, 10, dtype=torch.bool)
    expected[0, 2:6, 3:7] = True
    assert torch.equal(support, expected)
    assert has_background.tolist() == [True]


def test_support_finds_the_most_frequent_pixel_not_the_modes_of_channels():
    colours = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])  # (colour, channel)
    counts = torch.tensor([40, 35, 25])
    inputs = colours.repeat_interleave(counts, dim=0).T.reshape(1, 2, 10, 10)
    counts = torch.tensor([30, 35, 35])  # both channels' mode is 1, yet (1, 1) is the rarest colour
    inputs = torch.cat([inputs, colours.repeat_interleave(counts, dim=0).T.reshape(1, 2, 10, 10)])
    support, has_background = sim.support_of(inputs)
    assert support.sum(dim=(1, 2)).tolist() == [60, 65]
    assert has_background.tolist() == [True, True]


def test_support_needs_a_background_and_something_in_front_of_it():
    noise, blank, small = torch.rand(1, 10, 10), torch.zeros(1, 10, 10), torch.zeros(1, 10, 10)
    small[0, 0, :7] = 1.0
    support, has_background = sim.support_of(torch.stack([noise, blank, small]))
    assert has_background.tolist() == [False, False, False]
    assert support.sum(dim=(1, 2)).tolist() == [99, 0, 7]


def test_support_of_a_sample_ignores_its_neighbours_and_the_sign_of_zero():
    image = torch.zeros(1, 1, 10, 10)
    image[..., ::2, :] = -0.0
    image[..., 4:8, 4:8] = 1.0
    crowd = torch.cat([torch.rand(2, 1, 10, 10), image])
    assert torch.equal(sim.support_of(crowd)[0][2], sim.support_of(image)[0][0])
    assert int(sim.support_of(image)[0].sum()) == 16


def test_support_of_maps_is_refused():
    with pytest.raises(ValueError, match=r"images \(N, C, H, W\), got \(2, 8, 8\)"):
        sim.support_of(torch.rand(2, 8, 8))


@pytest.mark.parametrize("normalization", [n for n in NORMALIZATIONS if n != "abs"])
@pytest.mark.parametrize("name", ["pearson", "ssim"])
def test_a_normalisation_chosen_by_name_is_applied_first(name, normalization):
    a, b = torch.rand(3, 16, 16) - 0.3, torch.rand(3, 16, 16) - 0.3
    chosen = sim.resolve(f"{name}.{normalization}")
    plain = sim.resolve(name)
    assert torch.allclose(chosen(a, b), plain(NORMALIZATIONS[normalization](a), NORMALIZATIONS[normalization](b)))
    assert (chosen.name, chosen.normalization) == (f"{name}.{normalization}", normalization)


def test_clipping_at_a_percentile_changes_what_an_outlier_does():
    a, b = torch.rand(1, 16, 16), torch.rand(1, 16, 16)
    a[0, 3, 3] = b[0, 3, 3] = 100.0
    assert sim.resolve("pearson")(a, b) > 0.9
    assert sim.resolve("pearson.percentile_clipped")(a, b).abs() < 0.3


def test_abs_ignores_the_sign_of_a_signed_map():
    a = torch.randn(2, 9, 9)
    found = sim.resolve("spearman_signed.abs")
    assert found.maps == "signed"
    assert torch.allclose(found(a, -a), torch.ones(2).double())


def test_an_unknown_normalisation_is_named():
    with pytest.raises(ValueError, match=r"unknown normalization 'z' of 'ssim'; choose from: none, abs"):
        sim.resolve("ssim.z")
