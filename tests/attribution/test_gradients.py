"""Gradients that compete and gradients that are smoothed."""

import torch
from made_networks import cnn

from lightning_sanity.attribution import resolve
from lightning_sanity.attribution.gradients import smoothed, smoothgrad, smoothgrad_squared, vargrad
from lightning_sanity.attribution.path import integrated_gradients, smooth_integrated_gradients


def test_competition_keeps_only_what_wins_over_all_classes(batch):
    model, (x, target) = cnn(), batch
    products = torch.stack([resolve("input_x_gradient")(model, x, torch.full((3,), c)) for c in range(5)])
    own = products[target, torch.arange(3)]
    wins = ((own > 0) & (own == products.amax(0))) | ((own < 0) & (own == products.amin(0)))
    torch.testing.assert_close(resolve("competition_input_x_gradient")(model, x, target), own * wins)
    assert "no other class" in resolve("competition_input_x_gradient").refuses(cnn(1), x, target * 0)


def test_smoothgrad_family_satisfies_its_moments(batch):
    model = cnn()
    found = []
    for factory in (smoothgrad, smoothgrad_squared, vargrad):
        torch.manual_seed(1)
        found.append(factory(n_samples=6)(model, *batch))
    torch.testing.assert_close(found[2], found[1] - found[0] ** 2, atol=1e-7, rtol=1e-3)
    calm = smooth_integrated_gradients(n_steps=8, n_samples=2, noise=0.0)(model, *batch)
    torch.testing.assert_close(calm, integrated_gradients(n_steps=8)(model, *batch), atol=1e-6, rtol=1e-4)


def test_smoothing_the_gradient_is_smoothgrad(batch):
    found = []
    for method in (smoothed(resolve("gradient"), 6, 0.15), smoothgrad(6)):
        torch.manual_seed(1)
        found.append(method(cnn(), *batch))
    torch.testing.assert_close(*found)


def test_smoothing_without_noise_changes_nothing(batch):
    method = smoothed(resolve("gradcam"), 3, 0.0)
    assert (method.name, method.stochastic, method.passes) == ("smoothed_gradcam", True, 3)
    model = cnn()
    torch.testing.assert_close(method(model, *batch), resolve("gradcam")(model, *batch))
