"""Optimised masks: they find what the model looks at, at the area asked for."""

import pytest
import torch
from made_networks import classes, convolutional, images, seeded
from torch import nn
from torch.nn import functional as F

from lightning_sanity.attribution import optimized
from lightning_sanity.attribution.optimized import extremal_perturbation, meaningful_perturbation


class Contrast(nn.Module):
    """Looks at the local contrast of one square of the image and at nothing else."""

    def __init__(self, top=4, left=18, side=10):
        super().__init__()
        self.box = slice(top, top + side), slice(left, left + side)
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, image):
        part = image[:, :, self.box[0], self.box[1]]
        contrast = (part - F.avg_pool2d(part, 3, 1, 1)).square().mean((1, 2, 3)) * self.scale
        return torch.stack([contrast, -contrast], 1)

    def inside(self):
        mask = torch.zeros(32, 32, dtype=torch.bool)
        mask[self.box] = True
        return mask


@pytest.mark.parametrize("baseline", ["blur", "mean", 0.0])
@pytest.mark.parametrize("factory", [meaningful_perturbation, extremal_perturbation])
def test_optimised_mask_finds_the_region_the_model_looks_at(factory, baseline):
    model, x = Contrast(), images(4, 3, 32)
    found = factory(baseline=baseline)(model, x, torch.zeros(4, dtype=torch.long))[:, 0]
    inside = model.inside()
    assert inside.flatten()[found.flatten(1).argmax(1)].all()
    assert (found[:, inside].mean(1) > 4 * found[:, ~inside].mean(1)).all()


@pytest.mark.parametrize("factory", [meaningful_perturbation, extremal_perturbation])
def test_optimised_mask_does_not_depend_on_the_scale_of_the_output(factory):
    x, target = images(2, 3, 32).double(), torch.zeros(2, dtype=torch.long)
    model = Contrast().double()
    large = factory(steps=30)(model, x, target)
    model.scale.data /= 4096
    torch.testing.assert_close(factory(steps=30)(model, x, target), large, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("area", [0.05, 0.1, 0.2, 0.5])
def test_extremal_mask_has_the_area_asked_for(area):
    found = extremal_perturbation(area)(Contrast(), images(3, 3, 32), torch.zeros(3, dtype=torch.long))[:, 0]
    assert (found.mean((1, 2)) - area).abs().max() < 0.03
    assert found.min() >= 0
    assert found.max() <= 1
    assert ((found < 0.1) | (found > 0.9)).float().mean() > 0.6


def test_extremal_areas_are_summed():
    model, x, target = convolutional().double(), images(2).double(), classes(2)
    both = extremal_perturbation((0.1, 0.3), steps=5)(model, x, target)
    single = [extremal_perturbation(area, steps=5)(model, x, target) for area in (0.1, 0.3)]
    torch.testing.assert_close(both, single[0] + single[1])


def test_meaningful_mask_shrinks_as_area_costs_more():
    model, x, target = Contrast(), images(2, 3, 32), torch.zeros(2, dtype=torch.long)
    sizes = [float(meaningful_perturbation(area_weight=weight)(model, x, target).mean()) for weight in (0.2, 1.0, 5.0)]
    assert sizes == sorted(sizes, reverse=True)


def test_meaningful_perturbation_without_jitter_is_deterministic():
    method = meaningful_perturbation(steps=5, jitter=0)
    model, x, target = convolutional(), images(2), classes(2)
    assert not method.stochastic
    assert torch.equal(seeded(method, model, x, target, 0), seeded(method, model, x, target, 1))


def test_smooth_maximum_lies_near_the_maximum_over_a_gaussian():
    cells = torch.zeros(1, 1, 7, 7)
    cells[0, 0, 3, 3] = 1
    found = optimized.smooth_maximum(cells, 1.0)[0, 0]
    distance = (torch.arange(7) - 3.0) ** 2
    expected = torch.exp(-0.5 * (distance[:, None] + distance))
    near = distance[:, None] + distance <= 2
    assert (found - expected)[near].abs().max() < 0.05
    assert (found <= expected + 1e-6).all()
