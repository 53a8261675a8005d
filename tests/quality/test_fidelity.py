"""Quality of attributions against captum, slow loops, and closed forms on linear models."""

import numpy as np
import pytest
import torch
from captum import metrics
from captum.attr import IntegratedGradients
from scipy.integrate import trapezoid
from torch import nn

from lightning_sanity import attribution
from lightning_sanity.quality import deletion_auc, faithfulness_correlation, infidelity, insertion_auc, max_sensitivity

CLASSES = torch.tensor([0, 2, 1, 1, 0])


def smooth_network():
    torch.manual_seed(1)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, 3)]
    return nn.Sequential(*layers).double().eval()


def images(samples=5):
    return torch.rand(samples, 2, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def linear(features=12, classes=3):
    torch.manual_seed(3)
    return nn.Linear(features, classes).double(), torch.randn(4, features, dtype=torch.float64)


def integrated(model, x, multiply):
    explain = IntegratedGradients(model, multiply_by_inputs=multiply)
    return explain.attribute(x, target=CLASSES, n_steps=20)


# Infidelity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multiplied", [False, True])
def test_infidelity_with_the_baseline_is_the_squared_completeness_gap(multiplied):
    model, x = smooth_network(), images()
    attributions = integrated(model, x, multiplied) * 1.1
    found = infidelity(model, x, attributions, CLASSES, perturbation="baseline", multiplied=multiplied, normalize=False)
    outputs, total = model(x) - model(torch.zeros_like(x)), attributions if multiplied else attributions * x
    gap = total.flatten(1).sum(1) - outputs.gather(1, CLASSES[:, None])[:, 0]
    assert (gap.abs() > 1e-4).all()
    torch.testing.assert_close(found, gap.square(), atol=1e-6, rtol=0)


def test_infidelity_of_complete_attributions_with_the_baseline_is_zero():
    model, x = smooth_network(), images()
    found = infidelity(model, x, integrated(model, x, False), CLASSES, perturbation="baseline", normalize=False)
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-6, rtol=0)


def draw(perturbation, x, samples):
    """What is taken away, ``(N, samples, ...)``, with noise of .2 and a baseline of .1."""
    if perturbation == "square":  # a quarter of 6 pixels is one
        places = zip(torch.randint(6, (samples, 1)), torch.randint(6, (samples, 1)), strict=True)
        inside = torch.zeros(samples, 2, 6, 6, dtype=x.dtype)
        for index, (row, column) in enumerate(places):
            inside[index, :, row, column] = 1
        return inside * (x - 0.1)[:, None]
    noise = 0.2 * torch.randn(samples, *x.shape[1:]).to(x)
    return ((x - 0.1)[:, None] if perturbation == "noisy_baseline" else torch.zeros_like(x)[:, None]) - noise


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("perturbation", ["gaussian", "noisy_baseline", "square"])
def test_infidelity_matches_captum(perturbation, normalize):
    model, x = smooth_network(), images()
    attributions = torch.randn_like(x)
    settings = {"perturbation": perturbation, "noise": 0.2, "baseline": 0.1, "n_samples": 6, "normalize": normalize}
    torch.manual_seed(0)
    found = infidelity(model, x, attributions, CLASSES, **settings)
    torch.manual_seed(0)
    removed = draw(perturbation, x, 6).flatten(0, 1)
    expected = metrics.infidelity(
        model,
        lambda repeated: (removed, repeated - removed),
        x,
        attributions,
        target=CLASSES,
        n_perturb_samples=6,
        normalize=normalize,
    )
    torch.testing.assert_close(found, expected)


def test_infidelity_matches_its_definition():
    model, x = smooth_network(), images()
    attributions = torch.randn_like(x)
    torch.manual_seed(0)
    found = infidelity(model, x, attributions, CLASSES, noise=0.2, n_samples=6)
    torch.manual_seed(0)
    removed = draw("gaussian", x, 6)
    for index, label in enumerate(CLASSES):
        dots = (removed[index] * attributions[index]).flatten(1).sum(1).numpy()
        with torch.no_grad():
            drops = (model(x[index][None]) - model(x[index] - removed[index]))[:, label].numpy()
        scale = np.linalg.lstsq(dots[:, None], drops, rcond=None)[0]
        assert found[index].item() == pytest.approx(((scale * dots - drops) ** 2).mean())


def test_infidelity_of_the_gradient_of_a_linear_model_is_zero():
    model, x = linear()
    for perturbation in ("gaussian", "baseline", "noisy_baseline"):
        found = infidelity(model, x, model.weight[CLASSES[:4]], CLASSES[:4], perturbation=perturbation, normalize=False)
        torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-12, rtol=0)


def test_infidelity_normalized_ignores_the_scale_of_the_map():
    model, x = smooth_network(), images()
    attributions = torch.randn_like(x)
    found = []
    for scale in (1, -250):
        torch.manual_seed(0)
        found.append(infidelity(model, x, attributions * scale, CLASSES))
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=0)


def test_infidelity_takes_a_function_as_perturbation():
    model, x = smooth_network(), images()
    attributions = torch.randn_like(x)
    settings = {"target": CLASSES, "normalize": False, "n_samples": 1}
    found = infidelity(model, x, attributions, perturbation=lambda value: value - 0.5, **settings)
    expected = infidelity(model, x, attributions, perturbation="baseline", baseline=0.5, **settings)
    torch.testing.assert_close(found, expected)


def test_infidelity_splits_a_map_among_the_channels():
    model, x = smooth_network(), images()
    heat = torch.randn(5, 6, 6, dtype=x.dtype)
    settings = {"target": CLASSES, "perturbation": "baseline", "multiplied": True, "normalize": False}
    whole = torch.stack([heat / 2, heat / 2], 1)
    torch.testing.assert_close(infidelity(model, x, heat, **settings), infidelity(model, x, whole, **settings))


def test_infidelity_is_nan_where_an_attribution_is_not_finite():
    model, x = smooth_network(), images()
    attributions = torch.randn_like(x)
    attributions[1, 0, 0, 0], attributions[3, 1, 2, 2] = torch.nan, torch.inf
    assert infidelity(model, x, attributions, CLASSES).isnan().tolist() == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"perturbation": "uniform"}, "unknown perturbation 'uniform'; choose from: gaussian, baseline"),
        ({"perturbation": "baseline"}, "pass normalize=False"),
        ({"n_samples": 1}, "pass normalize=False"),
        ({"multiplied": True}, "needs perturbation 'baseline' or 'square'"),
        ({"n_samples": 0}, "n_samples must be a whole number"),
        ({"noise": -1}, "noise must be at least 0"),
        ({"perturbation": lambda value: value[:, :1]}, "must return"),
    ],
)
def test_infidelity_refuses_what_has_no_meaning(settings, message):
    model, x = smooth_network(), images()
    with pytest.raises(ValueError, match=message):
        infidelity(model, x, torch.randn_like(x), CLASSES, **settings)


# Max-sensitivity ------------------------------------------------------------------------------------------------------


def test_max_sensitivity_matches_its_definition():
    model, x = smooth_network(), images()
    torch.manual_seed(0)
    found = max_sensitivity(model, x, attribution.resolve("gradient"), CLASSES, radius=0.3, n_samples=7)
    torch.manual_seed(0)
    draws = (2 * torch.rand(7, *x.shape[1:]) - 1) * 0.3
    method = attribution.resolve("gradient")
    plain = method(model, x, CLASSES).flatten(1)
    changes = [(method(model, x + draw, CLASSES).flatten(1) - plain).norm(dim=1) for draw in draws]
    torch.testing.assert_close(found, torch.stack(changes).amax(0) / plain.norm(dim=1))


def test_max_sensitivity_of_a_linear_gradient_is_zero():
    model, x = linear()
    assert (max_sensitivity(model, x, attribution.resolve("gradient"), CLASSES[:4]) == 0).all()


def test_max_sensitivity_is_nan_where_nothing_is_attributed():
    model, x = smooth_network(), images()
    found = max_sensitivity(model, x, lambda model, x, target: x * (target != 1)[:, None, None, None], CLASSES)
    assert found.isnan().tolist() == (CLASSES == 1).tolist()


# Deletion and insertion -----------------------------------------------------------------------------------------------


def slow_deletion(read, x, relevance, hidden):
    """One feature at a time, one sample at a time."""
    areas = []
    for image, values in zip(x, relevance, strict=True):
        current, curve = image.clone(), [read(image)]
        for feature in sorted(range(len(values)), key=lambda i: -values[i]):
            current[feature] = hidden
            curve.append(read(current))
        areas.append(trapezoid(curve, dx=1 / len(values)))
    return torch.tensor(areas, dtype=torch.float64)


def test_deletion_of_a_linear_model_matches_a_slow_loop():
    model, x = linear()
    relevance = torch.randn_like(x)
    found = deletion_auc(model, x, relevance, torch.full((4,), 1), baseline=0.25, steps=12)
    expected = slow_deletion(lambda row: model(row).softmax(0)[1].item(), x, relevance, 0.25)
    torch.testing.assert_close(found, expected)


def test_deletion_of_a_linear_output_has_a_closed_form():
    model, x = linear(classes=1)
    contributions = x * model.weight[0]
    found = deletion_auc(model, x, contributions, probability=None, steps=12)
    remaining = (torch.arange(12) + 0.5) / 12  # the trapezoids of the feature removed first weigh least
    expected = (contributions.sort(dim=1, descending=True).values * remaining).sum(1) + model.bias
    torch.testing.assert_close(found, expected)


def test_deletion_is_lowest_for_the_contributions_of_a_linear_output():
    model, x = linear(classes=1)
    contributions = x * model.weight[0]
    best = deletion_auc(model, x, contributions, probability=None)
    assert all((deletion_auc(model, x, torch.randn_like(x), probability=None) >= best).all() for _ in range(20))


def test_insertion_is_deletion_of_the_least_relevant_first():
    model, x = smooth_network(), images()
    relevance = torch.randn_like(x)
    inserted = insertion_auc(model, x, relevance, CLASSES, baseline="blur", steps=36)
    deleted = deletion_auc(model, x, -relevance, CLASSES, baseline="blur", steps=36)
    torch.testing.assert_close(inserted, deleted)


def test_deletion_takes_maps_as_it_takes_attributions():
    model, x = smooth_network(), images()
    relevance = torch.randn_like(x)
    settings = {"target": CLASSES, "steps": 9}
    torch.testing.assert_close(
        deletion_auc(model, x, relevance.sum(1), **settings), deletion_auc(model, x, relevance, **settings)
    )


def test_deletion_with_few_steps_is_near_the_exact_area():
    model, x = smooth_network(), images()
    relevance = torch.randn_like(x)
    coarse, exact = (deletion_auc(model, x, relevance, CLASSES, steps=steps) for steps in (9, 1000))
    torch.testing.assert_close(coarse, exact, atol=0.03, rtol=0)


def test_deletion_of_constant_or_broken_maps_is_nan():
    model, x = smooth_network(), images()
    relevance = torch.randn_like(x)
    relevance[0], relevance[2, 0, 0, 0] = 3, torch.nan
    assert deletion_auc(model, x, relevance, CLASSES).isnan().tolist() == [True, False, True, False, False]


def test_deletion_needs_to_know_the_class():
    model, x = smooth_network(), images()
    with pytest.raises(ValueError, match="probability of which class"):
        deletion_auc(model, x, x)


def test_deletion_refuses_attributions_of_another_shape():
    model, x = smooth_network(), images()
    with pytest.raises(
        ValueError, match=r"shaped like the inputs, \(5, 2, 6, 6\), or maps \(5, 6, 6\), not \(5, 6, 5\)"
    ):
        deletion_auc(model, x, x[:, 0, :, :5], CLASSES)


def test_deletion_and_insertion_tell_an_attribution_from_noise_on_digits(digits_network):
    network, x, _ = digits_network
    x = x[:48]
    classes = network(x).argmax(1)
    heat, noise = attribution.resolve("integrated_gradients")(network, x, classes), torch.randn_like(x)
    settings = {"target": classes, "baseline": 0.0, "steps": 16}
    assert deletion_auc(network, x, heat, **settings).mean() < deletion_auc(network, x, noise, **settings).mean() - 0.1
    assert (
        insertion_auc(network, x, heat, **settings).mean() > insertion_auc(network, x, noise, **settings).mean() + 0.1
    )


# Faithfulness correlation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_faithfulness_correlation_of_linear_contributions_is_one(sign):
    model, x = linear()
    contributions = sign * x * model.weight[CLASSES[:4]]
    found = faithfulness_correlation(model, x, contributions, CLASSES[:4], runs=30)
    torch.testing.assert_close(found, torch.full_like(found, sign))


def test_faithfulness_correlation_matches_a_slow_loop():
    model, x = smooth_network(), images()
    relevance = torch.randn_like(x)
    torch.manual_seed(0)
    found = faithfulness_correlation(model, x, relevance, CLASSES, subset_size=5, runs=20, baseline=0.3)
    torch.manual_seed(0)
    subsets = torch.rand(20, 36).argsort(1)[:, :5]
    expected = []
    for image, heat, label in zip(x, relevance.sum(1), CLASSES, strict=True):
        sums, losses = [], []
        for subset in subsets:
            hidden = image.clone().flatten(1)
            hidden[:, subset] = 0.3
            losses.append((model(image[None]) - model(hidden.reshape(1, 2, 6, 6)))[0, label].item())
            sums.append(heat.flatten()[subset].sum().item())
        expected.append(np.corrcoef(sums, losses)[0, 1])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_faithfulness_correlation_of_a_blind_model_is_nan():
    found = faithfulness_correlation(lambda_module(lambda x: x[:, 0, 0] * 0 + 1e3), images(), images())
    assert found.isnan().all()


def test_faithfulness_correlation_of_a_constant_map_is_nan():
    model, x = smooth_network(), images()
    assert faithfulness_correlation(model, x, torch.full_like(x, 0.1), CLASSES).isnan().all()


def test_faithfulness_correlation_refuses_subsets_of_everything():
    model, x = smooth_network(), images()
    with pytest.raises(ValueError, match="subset_size 36 must be smaller than the number of pixels, 36"):
        faithfulness_correlation(model, x, x, CLASSES, subset_size=36)


# What they share ------------------------------------------------------------------------------------------------------


def lambda_module(function):
    module = nn.Module()
    module.forward = function
    return module


METRICS = {
    "infidelity": lambda model, x, a, t, **more: infidelity(model, x, a, t, n_samples=5, **more),
    "infidelity square": lambda model, x, a, t, **more: infidelity(model, x, a, t, perturbation="square", **more),
    "max_sensitivity": lambda model, x, a, t, **more: max_sensitivity(
        model, x, attribution.resolve("gradient"), t, n_samples=5, **more
    ),
    "deletion_auc": deletion_auc,
    "insertion_auc": insertion_auc,
    "faithfulness_correlation": lambda model, x, a, t, **more: faithfulness_correlation(model, x, a, t, runs=9, **more),
}


@pytest.mark.parametrize("name", METRICS)
def test_quality_of_a_sample_ignores_its_neighbours_and_the_chunks(name):
    model, x = smooth_network(), images()
    attributions = torch.randn_like(x)
    torch.manual_seed(4)
    together = METRICS[name](model, x, attributions, CLASSES)
    torch.manual_seed(4)
    alone = METRICS[name](model, x[2:3], attributions[2:3], CLASSES[2:3], max_batch=2)
    torch.manual_seed(4)
    chunked = METRICS[name](model, x, attributions, CLASSES, max_batch=3)
    torch.testing.assert_close(alone, together[2:3], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(chunked, together, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", METRICS)
def test_quality_passes_further_inputs_through(name):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = smooth_network()

        def forward(self, x, scale):
            return self.network(x) * scale[:, None]

    model, x, scale = Scaled(), images(), torch.rand(5, dtype=torch.float64) + 0.5
    attributions = torch.randn_like(x)
    torch.manual_seed(4)
    together = METRICS[name](model, (x, scale), attributions, CLASSES)
    torch.manual_seed(4)
    alone = METRICS[name](model, (x[3:4], scale[3:4]), attributions[3:4], CLASSES[3:4])
    torch.testing.assert_close(alone, together[3:4], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", METRICS)
def test_quality_leaves_a_training_model_as_it_was(name):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(48, 3)
    )
    model[3].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    METRICS[name](model, images().float(), torch.randn(5, 2, 6, 6), CLASSES)
    assert [module.training for module in model] == [True, True, True, False, True, True]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
