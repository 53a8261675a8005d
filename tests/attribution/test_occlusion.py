"""Occlusion against captum and against sums over the windows of a linear model."""

import torch
from captum.attr import Occlusion
from made_networks import classes, convolutional, images, linear, weights_of
from torch import nn
from torch.nn import functional as F

from lightning_sanity.attribution.perturbation import occlusion


def test_occlusion_equals_captum_for_each_sample():
    model, x, target = convolutional(3).double(), images(3, 3).double(), classes(3)
    found = occlusion(baseline=0.2)(model, x, target)
    for i in range(3):
        oracle = Occlusion(model).attribute(
            x[i : i + 1], (3, 4, 4), strides=(3, 2, 2), baselines=0.2, target=int(target[i])
        )
        torch.testing.assert_close(found[i : i + 1], oracle.double())


def test_occlusion_of_a_linear_model_is_the_mean_loss_of_its_windows():
    model, x, target = linear(), images(2, side=8).double(), classes(2)
    found = occlusion(window=2, stride=2)(model, x, target)
    lost = F.avg_pool2d(weights_of(model, (1, 8, 8), target) * x, 2) * 4  # windows do not overlap
    torch.testing.assert_close(found, F.interpolate(lost, scale_factor=2))


def test_occlusion_covers_sides_of_any_length():
    found = occlusion()(nn.Sequential(nn.Flatten(), nn.Linear(13 * 9, 2)), torch.rand(2, 1, 13, 9), classes(2))
    assert (found != 0).all()


def test_occlusion_explains_tables_and_sequences():
    table = occlusion(window=1, stride=1)(nn.Linear(6, 2), torch.rand(2, 6), classes(2))
    sequence = occlusion()(nn.Sequential(nn.Flatten(), nn.Linear(24, 2)), torch.rand(2, 3, 8), classes(2))
    assert (table.shape, sequence.shape) == ((2, 6), (2, 3, 8))
