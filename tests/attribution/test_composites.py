"""A composite of zennit as a method: refused where its rules would be passed by, with the reason."""

import pytest
import torch
from made_networks import Functional, cnn
from torch import nn

from lightning_sanity.attribution import resolve

composites = pytest.importorskip("zennit.composites")


def test_functional_relus_are_refused_with_the_reason(batch):
    assert "relu" in resolve(composites.EpsilonPlus()).refuses(Functional(), *batch)


def test_batch_norm_that_follows_no_linear_layer_is_refused(batch):
    model = nn.Sequential(nn.BatchNorm2d(3), *cnn()).eval()
    model[0].running_mean += 0.3
    assert "'0' does not follow a linear layer" in resolve(composites.EpsilonPlus()).refuses(model, *batch)


def test_the_numbers_are_zennits_own_for_the_explained_class(batch):
    from zennit.attribution import Gradient

    model, (x, target) = cnn(), batch
    with Gradient(model, composites.EpsilonPlus()) as attributor:
        _, theirs = attributor(x, nn.functional.one_hot(target, 5).to(x))
    torch.testing.assert_close(resolve(composites.EpsilonPlus())(model, x, target), theirs)
