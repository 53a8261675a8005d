"""Superpixels, and ablation, LIME and KernelSHAP on them, against captum, Shapley values and linear models."""

import pytest
import reference
import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr import FeatureAblation, KernelShap, LimeBase
from made_networks import QUARTERS, classes, convolutional, images, linear, seeded, weights_of
from torch import nn
from torch.nn import functional as F

from lightning_sanity.attribution import segmentation
from lightning_sanity.attribution.superpixels import feature_ablation, kernel_shap, lime


def on_regions(values, labels):
    """``values (N, M)`` painted on ``labels (N, H, W)``."""
    return values.gather(1, labels.flatten(1)).reshape(labels.shape)


# Superpixels --------------------------------------------------------------------------------------------------------


def test_superpixels_are_cut_once_and_serve_every_model(monkeypatch):
    cut = []
    original = segmentation._slic
    monkeypatch.setattr(segmentation, "_slic", lambda *given: cut.append(1) or original(*given))
    x, target = images(3), classes(3)
    for method in (feature_ablation(segments=6), lime(segments=6, n_samples=9), kernel_shap(segments=6)):
        cut.clear()
        model = convolutional()
        prepared = method.prepare(model, x)
        first = prepared(model, x, target)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        second = prepared(model, x + 0.01 * torch.randn_like(x), target)
        assert len(cut) == 3
        for a, b in zip(first, second, strict=True):  # the same outlines: equal values stay together
            edges = [(m.diff(dim=1) != 0) for m in (a, b)]
            assert torch.equal(*edges)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_superpixels_are_numbered_without_gaps(channels):
    x = images(3, channels, 24)
    x[0] = 0.5  # flat
    x[1] = x[1] * 1000 - 500
    labels = segmentation.regions(x, 9)
    assert labels.shape == (3, 1, 24, 24)
    for one in labels:
        assert torch.equal(one.unique(), torch.arange(int(one.max()) + 1))
        assert 5 <= len(one.unique()) <= 18


def test_superpixels_do_not_depend_on_the_scale_of_the_image():
    x = images(1, 3, 24).double()
    assert torch.equal(segmentation.regions(x, 9), segmentation.regions(x * 4 - 2, 9))


def test_superpixels_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"superpixels of shape \(8, 8\) do not fit"):
        kernel_shap(superpixels=QUARTERS)(convolutional(), images(), classes(3))


# Ablation -----------------------------------------------------------------------------------------------------------


def test_feature_ablation_equals_captum_on_its_superpixels():
    model, x, target = convolutional(3).double(), images(3, 3).double(), classes(3)
    found = feature_ablation(segments=7, baseline="mean")(model, x, target)
    labels = segmentation.regions(x, 7)
    for i in range(3):
        oracle = FeatureAblation(model).attribute(
            x[i : i + 1],
            baselines=x[i : i + 1].mean((2, 3), keepdim=True).expand(1, 3, 16, 16),
            feature_mask=labels[i : i + 1],
            target=int(target[i]),
        )
        torch.testing.assert_close(found[i : i + 1], oracle.double())


def test_feature_ablation_of_a_linear_model_sums_over_superpixels():
    model, x, target = linear(), images(2, side=8).double(), classes(2)
    found = feature_ablation(superpixels=QUARTERS)(model, x, target)
    product = weights_of(model, (1, 8, 8), target) * x
    torch.testing.assert_close(found, F.interpolate(F.avg_pool2d(product, 4) * 16, scale_factor=4))


# LIME and KernelSHAP ------------------------------------------------------------------------------------------------


def test_lime_without_ridge_finds_the_weights_of_a_linear_model():
    model, x, target = linear(), images(2, side=8).double(), classes(2)
    found = seeded(lime(superpixels=QUARTERS, n_samples=60, ridge=0.0), model, x, target)
    product = weights_of(model, (1, 8, 8), target) * x
    torch.testing.assert_close(found, F.interpolate(F.avg_pool2d(product, 4) * 16, scale_factor=4))


def test_lime_equals_captum_given_the_same_draws():
    model, x, target = convolutional().double(), images(3).double(), classes(3)
    found = seeded(lime(segments=7, n_samples=40), model, x, target)
    labels = segmentation.regions(x, 7)
    torch.manual_seed(0)
    seed = int(torch.randint(2**62, (1,)))
    for i in range(3):
        count = int(labels[i].max()) + 1
        draws = torch.rand(40, count, generator=torch.Generator().manual_seed(seed)) < 0.5

        def perturb(_, draws=draws, **given):
            yield from draws[:, None].double()

        oracle = LimeBase(
            model,
            SkLearnRidge(alpha=1.0),
            lambda a, b, shown, **given: torch.exp(-(((1 - shown.mean().sqrt()) / 0.25) ** 2)),
            perturb,
            True,
            lambda shown, image, labels=labels[i], **given: image * shown[0, labels],
            None,
        ).attribute(x[i : i + 1], target=int(target[i]), n_samples=40)
        expected = on_regions(oracle.double(), labels[i])
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_kernel_shap_equals_enumerated_shapley_values_on_four_superpixels(baseline):
    torch.manual_seed(0)
    model, target = convolutional().double(), classes(2)
    x = images(2, side=8).double()
    found = kernel_shap(superpixels=QUARTERS, baseline=baseline)(model, x, target)
    for i in range(2):

        def game(coalition, i=i):
            shown = torch.zeros(8, 8, dtype=torch.bool)
            for player in coalition:
                shown |= player == QUARTERS
            with torch.no_grad():
                return float(model(torch.where(shown, x[i], baseline)[None])[0, target[i]])

        values = torch.tensor(reference.shapley_values(game, 4), dtype=torch.double)
        torch.testing.assert_close(found[i, 0], values[QUARTERS], rtol=1e-9, atol=1e-10)


def test_kernel_shap_explains_the_columns_of_a_table():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = torch.rand(1, 4).double()
    found = kernel_shap()(model, x, torch.tensor([1]))

    def game(coalition):
        with torch.no_grad():
            return float(model(x * torch.tensor([float(i in coalition) for i in range(4)]))[0, 1])

    torch.testing.assert_close(found[0], torch.tensor(reference.shapley_values(game, 4)).double())


def test_kernel_shap_with_draws_nears_the_shapley_values():
    model, x, target = convolutional().double(), images(2).double(), classes(2)
    exact = kernel_shap(segments=8, n_samples=2**10)(model, x, target)
    drawn = seeded(kernel_shap(segments=8, n_samples=120), model, x, target)
    assert (drawn - exact).abs().max() < 0.05 * exact.abs().max()


def test_kernel_shap_agrees_with_captum():
    model, x, target = convolutional().double(), images(2, side=8).double(), classes(2)
    found = kernel_shap(superpixels=QUARTERS)(model, x, target)
    torch.manual_seed(0)
    for i in range(2):
        oracle = KernelShap(model).attribute(
            x[i : i + 1],
            target=int(target[i]),
            feature_mask=QUARTERS.expand(1, 1, 8, 8),
            n_samples=600,
            perturbations_per_eval=64,
        )
        assert (found[i] - oracle[0]).abs().max() < 0.05 * found[i].abs().max()  # which draws its coalitions


@pytest.mark.parametrize("n_samples", [3, 10, 40])
def test_kernel_shap_sums_to_the_difference_of_outputs(n_samples):
    model, x, target = convolutional().double(), images(3).double(), classes(3)
    labels = segmentation.regions(x, 7)
    found = seeded(kernel_shap(segments=7, n_samples=n_samples), model, x, target)
    with torch.no_grad():
        gap = (model(x) - model(torch.zeros_like(x))).gather(1, target[:, None])[:, 0]
    sizes = torch.stack([torch.bincount(one.flatten())[one] for one in labels])
    torch.testing.assert_close((found / sizes).sum((1, 2, 3)), gap)


def test_kernel_shap_gives_a_lone_superpixel_everything():
    model, x, target = convolutional().double(), images(2).double(), classes(2)
    found = kernel_shap(superpixels=torch.zeros(16, 16, dtype=torch.long))(model, x, target)
    with torch.no_grad():
        gap = (model(x) - model(torch.zeros_like(x))).gather(1, target[:, None])
    torch.testing.assert_close(found.flatten(1), gap.expand(2, 256))
