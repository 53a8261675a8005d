"""Occlusion, ablation, surrogates, RISE, prediction differences, optimised masks and XRAI against their definitions."""

import copy
import importlib
import sys

import numpy as np
import pytest
import reference
import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr import FeatureAblation, KernelShap, LimeBase, Occlusion
from torch import nn
from torch.nn import functional as F

from lightning_sanity.attribution import optimized, perturbation, prediction_difference, resolve, superpixels
from lightning_sanity.attribution.optimized import extremal_perturbation, meaningful_perturbation
from lightning_sanity.attribution.perturbation import MaskDraw, occlusion, rise
from lightning_sanity.attribution.prediction_difference import PatchSampler, prediction_difference_analysis
from lightning_sanity.attribution.superpixels import feature_ablation, kernel_shap, lime
from lightning_sanity.attribution.xrai import xrai

NAMES = (
    "occlusion",
    "feature_ablation",
    "lime",
    "kernel_shap",
    "rise",
    "prediction_difference_analysis",
    "meaningful_perturbation",
    "extremal_perturbation",
)
QUICK = {
    "occlusion": occlusion(),
    "feature_ablation": feature_ablation(segments=6),
    "lime": lime(segments=6, n_samples=20),
    "kernel_shap": kernel_shap(segments=8, n_samples=12),
    "rise": rise(n_masks=20, grid=3),
    "prediction_difference_analysis": prediction_difference_analysis(window=4, stride=6, n_samples=2),
    "meaningful_perturbation": meaningful_perturbation(steps=4, jitter=1),
    "extremal_perturbation": extremal_perturbation(areas=(0.1, 0.3), steps=4),
}
STOCHASTIC = {"lime", "kernel_shap", "rise", "prediction_difference_analysis", "meaningful_perturbation"}
QUARTERS = torch.arange(2).repeat_interleave(4)[:, None] * 2 + torch.arange(2).repeat_interleave(4)  # (8, 8)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def convolutional(channels=1, classes=4):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    ).eval()


def linear(channels=1, side=8, classes=3):
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, classes)).double()


def weights_of(model, shape, target):
    return torch.stack([model[1].weight[int(c)].reshape(shape) for c in target]).detach()


def images(count=3, channels=1, side=16):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(3))


def classes(count, n=4):
    return torch.arange(count) % n


def seeded(method, model, inputs, target, seed=0):
    torch.manual_seed(seed)
    return method(model, inputs, target)


def on_regions(values, labels):
    """``values (N, M)`` painted on ``labels (N, H, W)``."""
    return values.gather(1, labels.flatten(1)).reshape(labels.shape)


# What holds for all -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_method_is_repeatable_under_one_seed(name):
    model, x, target = convolutional(), images(), classes(3)
    a, b = (seeded(QUICK[name], model, x, target) for _ in range(2))
    assert a.shape == x.shape
    assert a.dtype == x.dtype
    assert torch.equal(a, b)
    assert a.isfinite().all()
    assert (a.flatten(1).std(1) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_method_says_whether_it_is_stochastic(name):
    model, x, target = convolutional(), images(), classes(3)
    a, b = (seeded(QUICK[name], model, x, target, seed) for seed in (0, 1))
    assert QUICK[name].stochastic == (name in STOCHASTIC)
    assert torch.equal(a, b) == (name not in STOCHASTIC)


@pytest.mark.parametrize("name", NAMES)
def test_map_of_a_sample_ignores_its_neighbours(name):
    model, x, target = convolutional().double(), images(4).double(), classes(4)
    x[1] = x[1].round()  # its superpixels are cut differently, and there are not as many
    together = seeded(QUICK[name], model, x, target)
    alone = seeded(QUICK[name], model, x[2:3], target[2:3])
    torch.testing.assert_close(alone, together[2:3], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_method_leaves_the_model_as_it_found_it(name):
    model, x, target = convolutional(), images(), classes(3)
    model[0].weight.requires_grad_(False)
    before, given = copy.deepcopy(model.state_dict()), x.clone()
    with torch.enable_grad():
        QUICK[name](model, x, target)
    assert torch.equal(x, given)
    assert not x.requires_grad
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 7
    assert not model.training
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


@pytest.mark.parametrize("max_batch", [2, 7])
@pytest.mark.parametrize("name", NAMES)
def test_rows_per_pass_stay_within_max_batch(name, max_batch):
    parameters = {
        "occlusion": {},
        "feature_ablation": {"segments": 4},
        "lime": {"segments": 4, "n_samples": 10},
        "kernel_shap": {"segments": 4, "n_samples": 10},
        "rise": {"n_masks": 9, "grid": 2},
        "prediction_difference_analysis": {"window": 4, "stride": 6, "n_samples": 3},
        "meaningful_perturbation": {"steps": 2},
        "extremal_perturbation": {"areas": (0.1, 0.3), "steps": 2},
    }[name]
    module = {"lime": superpixels, "kernel_shap": superpixels, "feature_ablation": superpixels}.get(name)
    module = module or {"prediction_difference_analysis": prediction_difference}.get(name)
    module = module or (optimized if "_perturbation" in name else perturbation)
    model, x, target = convolutional().double(), images(5).double(), classes(5)
    rows = []
    model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    small = seeded(getattr(module, name)(**parameters, max_batch=max_batch), model, x, target)
    assert max(rows) <= max_batch
    large = seeded(getattr(module, name)(**parameters), model, x, target)
    torch.testing.assert_close(small, large, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_other_inputs_travel_with_their_sample(name):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = convolutional().double()

        def forward(self, image, scale):
            return self.inner(image) * scale[:, None]

    model, x, target = Scaled().eval(), images().double(), classes(3)
    scale = torch.tensor([1.0, 2.0, -3.0], dtype=torch.double)
    together = seeded(QUICK[name], model, (x, scale), target)
    for i in range(3):
        alone = seeded(QUICK[name], model, (x[i : i + 1], scale[i : i + 1]), target[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_method_explains_a_model_with_a_single_output(name):
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = convolutional(classes=1)

        def forward(self, image):
            return self.inner(image)[:, 0]

    found = seeded(QUICK[name], Single().eval(), images(), None)
    assert QUICK[name].refuses(Single().eval(), images(), None) is None
    assert found.shape == (3, 1, 16, 16)
    assert (found.flatten(1).std(1) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_method_refuses_token_ids(name):
    reason = QUICK[name].refuses(nn.Embedding(9, 4), torch.zeros(2, 5, dtype=torch.long), None)
    assert "shape" in reason or "int64" in reason


@pytest.mark.parametrize("name", NAMES)
def test_method_is_registered_with_its_cost(name):
    method = resolve(name)
    assert method.name == name
    assert method.passes > 1
    assert method.signed == ("_perturbation" not in name)
    assert not method.control


class TinyTransformer(nn.Module):
    """A vision transformer of one layer: patches of 4 x 4 pixels, a class token, positions."""

    def __init__(self):
        super().__init__()
        self.cut = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 17, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu", dropout=0.0)
        self.head = nn.Linear(16, 5)

    def forward(self, image):
        patches = self.cut(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(image), -1, -1), patches], 1) + self.position
        return self.head(self.layer(tokens)[:, 0])


@pytest.mark.parametrize("name", NAMES)
def test_method_explains_a_vision_transformer(name):
    torch.manual_seed(0)
    found = seeded(QUICK[name], TinyTransformer().eval(), images(2, 3), classes(2))
    assert found.shape == (2, 3, 16, 16)
    assert found.isfinite().all()
    assert (found.flatten(1).std(1) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_method_explains_a_resnet(name):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).eval()
    method = prediction_difference_analysis(stride=28, n_samples=1) if "difference" in name else QUICK[name]
    found = seeded(method, model, images(2, 3, 64), classes(2))
    assert found.shape == (2, 3, 64, 64)
    assert found.isfinite().all()


@pytest.mark.slow
def test_methods_with_their_defaults_explain_the_digits_network(digits_network):
    model, x, _ = digits_network
    x = x[:4]
    target = model(x).argmax(1)
    for name in NAMES:
        found = seeded(resolve(name), model, x, target)
        assert found.shape == x.shape, name
        assert found.isfinite().all(), name
        assert (found.flatten(1).std(1) > 0).all(), name


# Occlusion and ablation ---------------------------------------------------------------------------------------------


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


def test_feature_ablation_equals_captum_on_its_superpixels():
    model, x, target = convolutional(3).double(), images(3, 3).double(), classes(3)
    found = feature_ablation(segments=7, baseline="mean")(model, x, target)
    labels = superpixels.regions(x, 7)
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


# Superpixels --------------------------------------------------------------------------------------------------------


def test_superpixels_are_cut_once_and_serve_every_model(monkeypatch):
    cut = []
    original = superpixels._slic
    monkeypatch.setattr(superpixels, "_slic", lambda *given: cut.append(1) or original(*given))
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
    labels = superpixels.regions(x, 9)
    assert labels.shape == (3, 1, 24, 24)
    for one in labels:
        assert torch.equal(one.unique(), torch.arange(int(one.max()) + 1))
        assert 5 <= len(one.unique()) <= 18


def test_superpixels_do_not_depend_on_the_scale_of_the_image():
    x = images(1, 3, 24).double()
    assert torch.equal(superpixels.regions(x, 9), superpixels.regions(x * 4 - 2, 9))


def test_prepared_method_refuses_another_batch():
    model, x = convolutional(), images(3)
    for name in ("feature_ablation", "lime", "kernel_shap", "prediction_difference_analysis"):
        with pytest.raises(ValueError, match=f"{name}: prepared for 3 samples, got 2"):
            QUICK[name].prepare(model, x)(model, x[:2], classes(2))


# LIME and KernelSHAP ------------------------------------------------------------------------------------------------


def test_lime_without_ridge_finds_the_weights_of_a_linear_model():
    model, x, target = linear(), images(2, side=8).double(), classes(2)
    found = seeded(lime(superpixels=QUARTERS, n_samples=60, ridge=0.0), model, x, target)
    product = weights_of(model, (1, 8, 8), target) * x
    torch.testing.assert_close(found, F.interpolate(F.avg_pool2d(product, 4) * 16, scale_factor=4))


def test_lime_equals_captum_given_the_same_draws():
    model, x, target = convolutional().double(), images(3).double(), classes(3)
    found = seeded(lime(segments=7, n_samples=40), model, x, target)
    labels = superpixels.regions(x, 7)
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
    labels = superpixels.regions(x, 7)
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


# RISE ---------------------------------------------------------------------------------------------------------------


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


# Prediction difference analysis -------------------------------------------------------------------------------------


def test_prediction_difference_equals_the_slow_loop():
    model, x, target = convolutional(2).double(), images(2, 2, 8).double(), classes(2)
    method = prediction_difference_analysis(window=2, stride=2, context=1, n_samples=3)
    found = seeded(method, model, x, target)

    def probabilities(image):
        with torch.no_grad():
            return model(torch.from_numpy(image)[None])[0].softmax(0).numpy()

    for i in range(2):
        sampler = PatchSampler.fit(x[i : i + 1, None], 2, 1, 1e-2, True)
        torch.manual_seed(0)
        expected = reference.prediction_difference(
            probabilities,
            x[i].numpy(),
            int(target[i]),
            2,
            1,
            2,
            lambda top, left, sampler=sampler, i=i: sampler.draw(x[i : i + 1], top, left, 3)[0].numpy(),
        )
        torch.testing.assert_close(found[i], torch.from_numpy(expected).expand(2, 8, 8), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("corner", [(2, 3), (0, 0), (4, 1)])
def test_patches_follow_the_conditional_gaussian(corner):
    top, left = corner
    x = images(30, side=6).double()
    x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)  # neighbours alike
    sampler = PatchSampler.fit(x[None], 2, 1, 1e-1, True)
    drawn = sampler.draw(x[:1], top, left, 20000)[0].flatten(1)  # (S, 4)

    flat = sampler.patches[0].flatten(1).numpy()
    variance = flat.var(0).mean()
    covariance = np.cov(flat.T, bias=True) + 0.1 * variance * np.eye(16)
    known, values = [], []
    for row in range(4):
        for column in range(4):
            inside = 1 <= row <= 2 and 1 <= column <= 2
            y, z = top - 1 + row, left - 1 + column
            if not inside and 0 <= y < 6 and 0 <= z < 6:
                known.append(row * 4 + column)
                values.append(float(x[0, 0, y, z]))
    ring = [k for k in range(16) if k not in (5, 6, 9, 10)]
    missing = [k for k in ring if k not in known]
    kept = [k for k in range(16) if k not in missing]
    mean, spread = reference.conditional_gaussian(
        flat.mean(0)[kept], covariance[np.ix_(kept, kept)], [kept.index(k) for k in known], np.array(values)
    )
    scale = np.sqrt(np.diag(spread))
    assert np.abs(drawn.mean(0).numpy() - mean).max() < 0.05 * scale.max()
    np.testing.assert_allclose(np.cov(drawn.T.numpy()), spread, atol=0.05 * scale.max() ** 2)


def test_prediction_difference_of_a_given_set_ignores_the_batch():
    model, x, target = convolutional().double(), images(4).double(), classes(4)
    method = prediction_difference_analysis(window=4, stride=6, n_samples=2, images=images(9))
    together = seeded(method, model, x, target)
    torch.testing.assert_close(seeded(method, model, x[:1], target[:1]), together[:1])


def test_prediction_difference_copies_patches_when_marginal():
    model, x, target = convolutional().double(), images(2).double(), classes(2)
    method = prediction_difference_analysis(window=4, stride=6, n_samples=2, sampling="marginal")
    assert seeded(method, model, x, target).isfinite().all()
    sampler = PatchSampler.fit(x[:, None], 4, 1, 1e-2, False)
    drawn = sampler.draw(x, 3, 3, 5)
    windows = F.unfold(x, 4).transpose(1, 2)  # (N, L, 16)
    for i in range(2):
        assert all((windows[i] == patch.flatten()).all(1).any() for patch in drawn[i])


def test_prediction_difference_does_not_saturate():
    model, x, target = convolutional().double(), images(2).double(), classes(2)
    for parameter in model[-1].parameters():
        parameter.data *= 1e4  # probabilities are exactly 0 and 1 in floating point
    found = seeded(QUICK["prediction_difference_analysis"], model, x, target)
    assert found.isfinite().all()
    assert found.abs().max() > 60  # in bits; a rounded probability cannot show more than 53


def test_prediction_difference_survives_a_flat_image():
    found = seeded(QUICK["prediction_difference_analysis"], convolutional(), torch.ones(2, 1, 16, 16), classes(2))
    assert found.isfinite().all()


def test_prediction_difference_refuses_several_outputs_without_a_class():
    reason = QUICK["prediction_difference_analysis"].refuses(convolutional(), images(), None)
    assert "no class is given" in reason


# Optimised masks ----------------------------------------------------------------------------------------------------


class Contrast(nn.Module):
    """Looks at the local contrast of one square of the image and at nothing else."""

    def __init__(self, top=4, left=18, side=10):
        super().__init__()
        self.box = slice(top, top + side), slice(left, left + side)
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, image):
        part = image[:, :, self.box[0], self.box[1]]
        contrast = (part - F.avg_pool2d(part, 3, 1, 1)).square().mean((1, 2, 3)) * self.scale
        return torch.stack([contrast, -contrast], 1)

    def inside(self):
        mask = torch.zeros(32, 32, dtype=torch.bool)
        mask[self.box] = True
        return mask


@pytest.mark.parametrize("baseline", ["blur", "mean", 0.0])
@pytest.mark.parametrize("factory", [meaningful_perturbation, extremal_perturbation])
def test_optimised_mask_finds_the_region_the_model_looks_at(factory, baseline):
    model, x = Contrast(), images(4, 3, 32)
    found = factory(baseline=baseline)(model, x, torch.zeros(4, dtype=torch.long))[:, 0]
    inside = model.inside()
    assert inside.flatten()[found.flatten(1).argmax(1)].all()
    assert (found[:, inside].mean(1) > 4 * found[:, ~inside].mean(1)).all()


@pytest.mark.parametrize("factory", [meaningful_perturbation, extremal_perturbation])
def test_optimised_mask_does_not_depend_on_the_scale_of_the_output(factory):
    x, target = images(2, 3, 32).double(), torch.zeros(2, dtype=torch.long)
    model = Contrast().double()
    large = factory(steps=30)(model, x, target)
    model.scale.data /= 4096
    torch.testing.assert_close(factory(steps=30)(model, x, target), large, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("area", [0.05, 0.1, 0.2, 0.5])
def test_extremal_mask_has_the_area_asked_for(area):
    found = extremal_perturbation(area)(Contrast(), images(3, 3, 32), torch.zeros(3, dtype=torch.long))[:, 0]
    assert (found.mean((1, 2)) - area).abs().max() < 0.03
    assert found.min() >= 0
    assert found.max() <= 1
    assert ((found < 0.1) | (found > 0.9)).float().mean() > 0.6


def test_extremal_areas_are_summed():
    model, x, target = convolutional().double(), images(2).double(), classes(2)
    both = extremal_perturbation((0.1, 0.3), steps=5)(model, x, target)
    single = [extremal_perturbation(area, steps=5)(model, x, target) for area in (0.1, 0.3)]
    torch.testing.assert_close(both, single[0] + single[1])


def test_meaningful_mask_shrinks_as_area_costs_more():
    model, x, target = Contrast(), images(2, 3, 32), torch.zeros(2, dtype=torch.long)
    sizes = [float(meaningful_perturbation(area_weight=weight)(model, x, target).mean()) for weight in (0.2, 1.0, 5.0)]
    assert sizes == sorted(sizes, reverse=True)


def test_meaningful_perturbation_without_jitter_is_deterministic():
    method = meaningful_perturbation(steps=5, jitter=0)
    model, x, target = convolutional(), images(2), classes(2)
    assert not method.stochastic
    assert torch.equal(seeded(method, model, x, target, 0), seeded(method, model, x, target, 1))


def test_smooth_maximum_lies_near_the_maximum_over_a_gaussian():
    cells = torch.zeros(1, 1, 7, 7)
    cells[0, 0, 3, 3] = 1
    found = optimized.smooth_maximum(cells, 1.0)[0, 0]
    distance = (torch.arange(7) - 3.0) ** 2
    expected = torch.exp(-0.5 * (distance[:, None] + distance))
    near = distance[:, None] + distance <= 2
    assert (found - expected)[near].abs().max() < 0.05
    assert (found <= expected + 1e-6).all()


# XRAI ---------------------------------------------------------------------------------------------------------------


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
    module = importlib.import_module("lightning_sanity.attribution.xrai")
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


# Bad parameters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: occlusion(window=0), "occlusion: window must be a whole number, at least 1, not 0"),
        (lambda: occlusion(window=2, stride=3), "stride 3 is larger than window 2"),
        (lambda: occlusion(baseline="grey"), "occlusion: unknown baseline 'grey'; choose from"),
        (lambda: occlusion(max_batch=0), "occlusion: max_batch must be at least 1"),
        (lambda: feature_ablation(segments=1), "feature_ablation: segments must be a whole number, at least 2"),
        (lambda: feature_ablation(superpixels=torch.rand(4, 4)), "superpixels are labels"),
        (lambda: lime(n_samples=1), "lime: n_samples must be a whole number, at least 2"),
        (lambda: lime(kernel_width=0.0), "kernel_width must be positive"),
        (lambda: lime(ridge=-1.0), "ridge must not be negative"),
        (lambda: kernel_shap(n_samples=2.5), "kernel_shap: n_samples must be a whole number"),
        (lambda: rise(p=1.0), "rise: p must lie between 0 and 1, not 1.0"),
        (lambda: rise(grid=0), "rise: grid must be a whole number, at least 1"),
        (lambda: prediction_difference_analysis(sampling="joint"), "unknown sampling 'joint'"),
        (lambda: prediction_difference_analysis(shrinkage=0.0), "shrinkage must be positive"),
        (lambda: prediction_difference_analysis(images=torch.rand(3, 4)), r"images must be \(M, C, H, W\)"),
        (lambda: meaningful_perturbation(area_weight=-1.0), "weights must not be negative"),
        (lambda: meaningful_perturbation(jitter=-1), "jitter must be a whole number, at least 0"),
        (lambda: meaningful_perturbation(learning_rate=0.0), "learning_rate must be positive"),
        (lambda: extremal_perturbation(areas=()), "areas must be shares between 0 and 1"),
        (lambda: extremal_perturbation(areas=(0.1, 1.0)), "areas must be shares between 0 and 1"),
        (lambda: extremal_perturbation(smoothing=0.0), "smoothing and constraint must be positive"),
        (lambda: xrai(algorithm="quick"), "xrai: unknown algorithm 'quick'; choose from: full, fast"),
        (lambda: xrai(n_steps=1), "xrai: n_steps must be a whole number, at least 2"),
    ],
)
def test_bad_parameter_is_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_window_larger_than_the_image_is_refused():
    model, x = convolutional(), images()
    with pytest.raises(ValueError, match="window 17 is larger than the input"):
        occlusion(window=17)(model, x, classes(3))
    with pytest.raises(ValueError, match="a window of 16 and its ring of 2 do not fit"):
        prediction_difference_analysis(window=16)(model, x, classes(3))


def test_superpixels_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"superpixels of shape \(8, 8\) do not fit"):
        kernel_shap(superpixels=QUARTERS)(convolutional(), images(), classes(3))
