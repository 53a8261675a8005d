"""Histograms of oriented gradients against scikit-image."""

import numpy as np
import pytest
import torch
from made_maps import MAPS, assert_near, loop, pair
from scipy import stats
from skimage.feature import hog as skimage_hog

from lightning_sanity import similarity as sim


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


def test_hog_of_maps_without_room_for_a_block_is_refused():
    with pytest.raises(ValueError, match=r"hog needs 3 x 3 pixels .* got maps of 2 x 9"):
        sim.hog(torch.rand(1, 2, 9), torch.rand(1, 2, 9))
