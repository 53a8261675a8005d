"""The support of an input: what differs from its background."""

import pytest
import torch

from lightning_sanity import similarity as sim


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
