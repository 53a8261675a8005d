"""XRAI against the package it is taken from."""

import importlib
import sys

import numpy as np
import pytest
import torch
from made_networks import classes, convolutional, images
from torch import nn

from lightning_sanity.attribution.regions import xrai


@pytest.mark.slow
def test_xrai_equals_the_package():
    package = pytest.importorskip("saliency.core")
    model = convolutional(3)
    y, z = torch.meshgrid(torch.linspace(-1, 1, 100), torch.linspace(-1, 1, 112), indexing="ij")
    x = torch.stack([(y * z).sin(), (y**2 + z**2 < 0.3).float(), (y > 0).float() * z])[None].expand(2, -1, -1, -1)
    x = x + 0.05 * images(2, 3, 112)[:, :, :100]
    target = torch.tensor([1, 3])
    found = xrai(n_steps=8)(model, x, target)
    for i in range(2):

        def call(batch, call_model_args=None, expected_keys=None, i=i):
            rows = torch.from_numpy(np.asarray(batch)).float().permute(0, 3, 1, 2).requires_grad_()
            (gradient,) = torch.autograd.grad(model(rows)[:, target[i]].sum(), rows)
            return {"INPUT_OUTPUT_GRADIENTS": gradient.permute(0, 2, 3, 1).numpy()}

        oracle = package.XRAI().GetMask(
            x[i].permute(1, 2, 0).numpy(), call, batch_size=8, extra_parameters=package.XRAIParameters(steps=8)
        )
        torch.testing.assert_close(found[i, 0].double(), torch.from_numpy(oracle), rtol=1e-3, atol=1e-6)


def test_xrai_of_small_images_is_refused_unless_asked_for():
    assert "below 100 pixels" in xrai().refuses(convolutional(), images(), None)
    assert "not (N, C, H, W)" in xrai().refuses(nn.Linear(4, 2), torch.rand(2, 4), None)
    pytest.importorskip("saliency")
    assert xrai(min_side=16).refuses(convolutional(), images(), None) is None


def test_xrai_cuts_its_regions_once(monkeypatch):
    pytest.importorskip("saliency")
    module = importlib.import_module("lightning_sanity.attribution.regions")
    model, x, target = convolutional(), images(2), classes(2)
    prepared = xrai(n_steps=3, min_side=16, max_batch=4).prepare(model, x)
    monkeypatch.setattr(module, "_outlines", lambda pixels: pytest.fail("cut again"))
    a, b = (prepared(model, x, target) for _ in range(2))
    assert a.shape == x.shape
    assert torch.equal(a, b)
    alone = xrai(n_steps=3, min_side=16).attribute
    monkeypatch.undo()
    torch.testing.assert_close(alone(model, x[1:], target[1:]), a[1:])


def test_xrai_without_the_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "saliency.core", None)
    x = images(1, side=100)
    assert "pip install lightning-sanity[xrai]" in xrai().refuses(convolutional(), x, None)
    with pytest.raises(ImportError, match=r"pip install lightning-sanity\[xrai\]"):
        xrai()(convolutional(), x, classes(1))
