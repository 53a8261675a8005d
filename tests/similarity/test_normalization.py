"""Normalisations of maps, and the names that apply them before a similarity."""

import numpy as np
import pytest
import torch
from made_maps import assert_near, continuous, rectified

from lightning_sanity import similarity as sim
from lightning_sanity.similarity.normalization import NORMALIZATIONS


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
    with pytest.raises(ValueError, match=r"unknown normalization of 'ssim': 'z'; choose from: none, abs"):
        sim.resolve("ssim.z")
