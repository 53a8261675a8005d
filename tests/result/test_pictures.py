import torch

from lightning_sanity.result import pictures


def kept(maps):
    """One sample's maps along two depths, as kept."""
    return pictures.keep(torch.rand(1, 3, 10, 10), [0], [0], {"method": maps}).maps["method"]


def test_one_extreme_pixel_does_not_empty_a_picture():
    drawn = torch.linspace(0.5, 1, 400).reshape(1, 1, 20, 20)
    drawn[0, 0, 0, 0] = 1e6
    assert kept(drawn)[0, 0, 1:].float().mean() > 60


def test_full_colour_begins_at_the_99th_percentile():
    drawn = torch.arange(1.0, 401).reshape(1, 1, 20, 20)
    full = int((kept(drawn) == 127).sum())
    assert full == int((drawn >= drawn.quantile(0.99) * 126.5 / 127).sum())


def test_a_map_of_few_pixels_is_scaled_by_its_largest():
    drawn = torch.zeros(1, 1, 20, 20)
    drawn[0, 0, 3, 4], drawn[0, 0, 5, 6] = -2.0, 1.0
    assert sorted(kept(drawn).unique().tolist()) == [-127, 0, 64]


def test_a_map_without_finite_values_is_blank():
    assert not kept(torch.full((1, 1, 4, 4), float("nan"))).any()
