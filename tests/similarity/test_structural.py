"""SSIM and multi-scale SSIM against scikit-image and the definition."""

import numpy as np
import pytest
import torch
from made_maps import MAPS, assert_near, continuous, loop, pair, rectified, upsampled
from scipy import ndimage
from skimage.metrics import structural_similarity

from lightning_sanity import similarity as sim


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
