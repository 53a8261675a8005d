"""Class activation maps of modules that run several times: an encoder of two images, a trunk of two heads."""

import copy

import pytest
import torch
from torch import nn

from lightning_sanity import parameter_randomization_test
from lightning_sanity.attribution import gradcam, gradcam_plus_plus, guided_gradcam, layercam, scorecam
from lightning_sanity.resources.random_streams import generator

ONE, OTHER = torch.rand(2, 5, 1, 12, 12, generator=generator("two images"))
TARGET = torch.arange(5) % 3
METHODS = (gradcam, gradcam_plus_plus, layercam, guided_gradcam, scorecam)


class Pair(nn.Module):
    """Classes of two images, by one encoder or by two with the same weights."""

    def __init__(self, parted=False, other_first=False, functional=False):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3)]
        self.encoder = nn.Sequential(*layers, *([] if functional else [nn.ReLU()]))
        self.second = copy.deepcopy(self.encoder) if parted else None
        self.head, self.other_first, self.functional = nn.Linear(6, 3), other_first, functional

    def encoded(self, encoder, x):
        maps = encoder(x)
        return (maps.relu() if self.functional else maps).mean((2, 3))

    def forward(self, one, other):
        second = self.encoder if self.second is None else self.second
        if self.other_first:
            there = self.encoded(second, other)
            return self.head((self.encoded(self.encoder, one) - there).abs())
        return self.head((self.encoded(self.encoder, one) - self.encoded(second, other)).abs())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("options", [{}, {"other_first": True}, {"functional": True}], ids=str)
def test_a_shared_encoder_is_explained_as_one_of_two(method, options):
    inputs = (ONE, OTHER)
    expected = method()(Pair(parted=True, **options).eval(), inputs, TARGET)
    torch.testing.assert_close(method()(Pair(**options).eval(), inputs, TARGET), expected)


def test_a_named_layer_of_a_shared_encoder_is_taken_where_the_explained_image_runs_through_it():
    inputs, layer = (ONE, OTHER), "encoder.0"
    expected = gradcam(layer)(Pair(parted=True).eval(), inputs, TARGET)
    torch.testing.assert_close(gradcam(layer)(Pair(other_first=True).eval(), inputs, TARGET), expected)


class Again(nn.Module):
    """The trunk runs a second time for an output that is not explained."""

    def __init__(self, again):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.head = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU()), nn.Linear(6, 3)
        self.again, self.other = again, nn.Linear(6, 2)

    def forward(self, x):
        scores = self.head(self.trunk(x).mean((2, 3)))
        return (scores, self.other(self.trunk(x.flip(-1)).mean((2, 3)))) if self.again else (scores, scores.detach())


def test_a_second_pass_of_the_trunk_changes_no_map_and_no_index():
    given = {"methods": ("gradcam",), "trials": 2, "output": 0, "controls": False, "pictures": False, "progress": False}
    once, twice = (parameter_randomization_test(Again(again).eval(), ONE, TARGET, **given) for again in (False, True))
    for measure in ("spearman", "ssim"):
        values, expected = (result.curves["gradcam", measure].values for result in (twice, once))
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-5, equal_nan=True)


class Views(nn.Module):
    """The mean of an image's scores and those of its mirror image."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU()), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.trunk(x).mean((2, 3)) + self.trunk(x.flip(-1)).mean((2, 3)))


def test_a_map_that_two_calls_make_is_refused_in_words():
    model = Views().eval()
    assert "that one call of one module makes" in gradcam().refuses(model, ONE, TARGET)
    with pytest.raises(
        ValueError, match="layer 'trunk' ran 2 times in one forward pass: what is explained must depend"
    ):
        gradcam("trunk")(model, ONE, TARGET)
