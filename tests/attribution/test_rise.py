"""RISE against its definition over every mask."""

import pytest
import reference
import torch
from made_networks import classes, images, linear, seeded
from torch import nn

from lightning_sanity.attribution import perturbation
from lightning_sanity.attribution.perturbation import MaskDraw, rise


def every_mask(grid, size):
    """All grids of cells, each with all shifts."""
    cell = perturbation.cell_size(grid, size)
    codes = torch.arange(2 ** (grid * grid))
    cells = ((codes[:, None] >> torch.arange(grid * grid)) & 1).float().reshape(-1, grid, grid)
    shifts = torch.cartesian_prod(torch.arange(cell[0]), torch.arange(cell[1]))
    return MaskDraw(cells.repeat_interleave(len(shifts), 0), shifts.repeat(len(cells), 1), size)


@pytest.mark.parametrize("size", [(4, 4), (5, 4)])
def test_rise_over_every_mask_is_its_definition(monkeypatch, size):
    masks = every_mask(2, size)
    monkeypatch.setattr(MaskDraw, "random", lambda *given: masks)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(size[0] * size[1] * 2, 9), nn.Tanh(), nn.Linear(9, 2)).double()
    x, target = torch.rand(2, 2, *size).double(), torch.tensor([1, 0])
    found = rise(n_masks=len(masks.cells), grid=2)(model, x, target)
    for i in range(2):

        def output(image, i=i):
            with torch.no_grad():
                return float(model(torch.from_numpy(image)[None])[0, target[i]])

        expected = torch.from_numpy(reference.rise_expectation(output, x[i].numpy(), 2, 0.5))
        torch.testing.assert_close(found[i], expected.expand(2, *size), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("p", [0.3, 0.5])
def test_rise_is_unbiased_on_a_linear_model(p):
    model, x = linear(side=4), images(1, side=4).double()

    def output(image):
        with torch.no_grad():
            return float(model(torch.from_numpy(image)[None])[0, 1])

    expected = torch.from_numpy(reference.rise_expectation(output, x[0].numpy(), 2, p))
    method = rise(n_masks=2000, grid=2, p=p, max_batch=2000)
    runs = torch.stack([seeded(method, model, x, torch.tensor([1]), seed)[0, 0] for seed in range(20)])
    standard_error = runs.std(0) / 20**0.5
    assert ((runs.mean(0) - expected).abs() < 4 * standard_error).all()


def test_rise_masks_keep_every_pixel_with_probability_p():
    drawn = MaskDraw.random(6000, 3, 0.3, (10, 7)).masks(0, 6000)
    assert drawn.shape == (6000, 10, 7)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert (drawn.mean(0) - 0.3).abs().max() < 0.03


def test_rise_centered_ignores_a_constant_output():
    class Offset(nn.Module):
        def __init__(self, offset):
            super().__init__()
            self.inner, self.offset = linear(), offset

        def forward(self, image):
            return self.inner(image) + self.offset

    x, target = images(2, side=8).double(), classes(2)
    for center in (True, False):
        maps = [seeded(rise(64, center=center), Offset(offset), x, target) for offset in (0.0, 10.0)]
        assert torch.allclose(*maps) == center


def test_rise_shows_the_baseline_where_the_mask_hides():
    class Mean(nn.Module):
        def forward(self, image):
            return image.mean((1, 2, 3))[:, None]

    x = images(2, side=8)
    mean = x.mean((2, 3), keepdim=True)
    found = seeded(rise(16, baseline="mean"), Mean(), mean.expand_as(x), None)
    shown = seeded(rise(16, baseline=0.0), Mean(), torch.zeros_like(x), None)
    assert (shown == 0).all()
    assert found.abs().min() > 0
