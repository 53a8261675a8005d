"""Every method against an oracle: captum where it is right, zennit, a closed form, or ``reference``."""

import logging
import warnings

import captum.attr as captum
import pytest
import reference
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from lightning_sanity import attribution
from lightning_sanity.attribution import Method, available, resolve, resolve_all, table
from lightning_sanity.attribution.attention import captured_attention
from lightning_sanity.attribution.batching import Rows
from lightning_sanity.attribution.cam import gradcam, internal_influence, scorecam
from lightning_sanity.attribution.deeplift import deeplift, deepshap
from lightning_sanity.attribution.gradient import smoothed, smoothgrad, smoothgrad_squared, vargrad
from lightning_sanity.attribution.layers import last_map, layout_of
from lightning_sanity.attribution.path import (
    expected_gradients,
    integrated_gradients,
    integrated_gradients_local,
    smooth_integrated_gradients,
)
from lightning_sanity.attribution.relevance import lrp_alpha_beta, lrp_epsilon

MINE = [
    "gradient",
    "input_x_gradient",
    "competition_input_x_gradient",
    "integrated_gradients",
    "integrated_gradients_local",
    "smoothgrad",
    "smoothgrad_squared",
    "vargrad",
    "smooth_integrated_gradients",
    "expected_gradients",
    "deeplift",
    "deeplift_local",
    "deepshap",
    "deepshap_local",
    "guided_backprop",
    "deconvnet",
    "cam",
    "gradcam",
    "gradcam_plus_plus",
    "layercam",
    "scorecam",
    "guided_gradcam",
    "internal_influence",
    "lrp_epsilon",
    "lrp_z_plus",
    "lrp_alpha_beta",
    "excitation_backprop",
]
CONTROLS = ["edge_detector", "input_copy", "input_plus_gradient", "random", "constant"]


def cnn(classes=5):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    ).eval()


class Functional(nn.Module):
    """Rectifies by function call, in place once, and once bounded."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.first(x), inplace=True)
        x = F.relu6(self.second(x))
        return self.head(torch.relu(self.third(x)).mean((2, 3)))


def as_modules(functional):
    """The same network with a module for every rectifier."""
    return nn.Sequential(
        functional.first,
        nn.ReLU(),
        functional.second,
        nn.ReLU(),  # 6 is out of reach for these weights
        functional.third,
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        functional.head,
    )


@pytest.fixture
def batch():
    return torch.randn(3, 3, 12, 12), torch.tensor([0, 1, 2])


def quietly(function):
    """Captum warns about what it does to inputs and hooks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function().detach()


def error(a, b):
    return float((a - b).abs().max() / b.abs().max())


# ------------------------------------------------------------------------------------------------------------ oracles


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gradient", lambda x, w: w.expand_as(x)),
        ("input_x_gradient", lambda x, w: x * w),
        ("integrated_gradients", lambda x, w: x * w),
        ("integrated_gradients_local", lambda x, w: w.expand_as(x)),
        ("smoothgrad", lambda x, w: w.expand_as(x)),
        ("smoothgrad_squared", lambda x, w: (w**2).expand_as(x)),
        ("vargrad", lambda x, w: torch.zeros_like(x)),
        ("deeplift", lambda x, w: x * w),
        ("deeplift_local", lambda x, w: w.expand_as(x)),
        ("deepshap", lambda x, w: (x - x.mean(0)) * w),
        ("deepshap_local", lambda x, w: w.expand_as(x)),
    ],
)
def test_linear_model_has_the_closed_form(name, expected):
    model = nn.Linear(6, 2)
    x = torch.randn(4, 6)
    found = resolve(name)(model, x, torch.ones(4, dtype=torch.long))
    torch.testing.assert_close(found, expected(x, model.weight[1].detach()), atol=1e-5, rtol=1e-4)


def test_expected_gradients_of_a_linear_model_is_exact_when_baselines_take_turns():
    model, x, baselines = nn.Linear(4, 2), torch.randn(3, 4), torch.randn(5, 4)
    found = expected_gradients(n_samples=20, baselines=baselines)(model, x, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(found, (x - baselines.mean(0)) * model.weight[0].detach(), atol=1e-5, rtol=1e-4)


def test_expected_gradients_of_an_additive_model_are_its_shapley_values():
    class Additive(nn.Module):
        def forward(self, x):
            return (x**3 + torch.sin(2 * x)).sum(1)

    x, baselines = torch.randn(2, 4), torch.randn(6, 4)
    found = expected_gradients(n_samples=3000, baselines=baselines, max_batch=8192)(Additive(), x, None)
    for sample in range(2):

        def game(coalition, sample=sample):
            members = torch.tensor([player in coalition for player in range(4)])
            return float(Additive()(torch.where(members, x[sample], baselines)).mean())

        exact = torch.tensor(reference.shapley_values(game, 4))
        torch.testing.assert_close(found[sample], exact.to(found), atol=0.02, rtol=0.02)


def test_integrated_gradients_match_captum(batch):
    model, (x, target) = cnn(), batch
    baseline = torch.randn(1, 3, 12, 12)
    found = integrated_gradients(n_steps=20, baseline=baseline, max_batch=7)(model, x, target)
    theirs = quietly(lambda: captum.IntegratedGradients(model).attribute(x, baseline, target=target, n_steps=20))
    assert error(found, theirs) < 1e-5


@pytest.mark.parametrize("baseline", ["blur", "min", "max", "mean", 0.5])
def test_integrated_gradients_are_complete_from_every_baseline(batch, baseline):
    gap = integrated_gradients(n_steps=200, baseline=baseline).completeness(cnn().double(), batch[0].double(), batch[1])
    assert float(gap.max()) < 1e-2


def test_deeplift_matches_captum_on_modules(batch):
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ELU(), nn.Flatten(), nn.Linear(384, 9), nn.Tanh(),
        nn.Linear(9, 5),
    ).double()  # fmt: skip
    x, target = batch[0].double(), batch[1]
    baseline = torch.randn(1, 3, 12, 12).double()
    theirs = quietly(lambda: captum.DeepLift(model).attribute(x, baseline, target=target))
    assert error(deeplift(baseline)(model, x, target), theirs) < 1e-9
    many = torch.randn(3, 3, 12, 12).double()
    theirs = quietly(lambda: captum.DeepLiftShap(model).attribute(x, many, target=target))
    assert error(deepshap(many)(model, x, target), theirs) < 1e-9


def test_deeplift_is_complete_through_overlapping_pools(batch):
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(150, 5)
    ).double()
    gap = deeplift(0.3).completeness(model, batch[0].double(), batch[1])
    assert float(gap.max()) < 1e-9


def test_deeplift_is_complete_after_relu_and_pooling_where_captum_is_not(batch):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(150, 5)).double()
    x, target, baseline = batch[0].double(), batch[1], torch.randn(1, 3, 12, 12).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, missed = captum.DeepLift(model).attribute(x, baseline, target=target, return_convergence_delta=True)
    assert float(missed.abs().max()) > 1e-3
    assert float(deeplift(baseline).completeness(model, x, target).max()) < 1e-9


def test_deeplift_of_functional_relus_is_that_of_modules(batch):
    model = Functional()
    model.first.bias.data += 0.5
    found = deeplift()(model, *batch)
    torch.testing.assert_close(found, deeplift()(as_modules(model), *batch), atol=1e-6, rtol=1e-4)
    assert error(found, resolve("input_x_gradient")(model, *batch)) > 0.05


def test_deeplift_works_on_a_resnet_that_reuses_its_relus():
    model = models.resnet18(num_classes=5).eval()
    x, target = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    method = deeplift()
    assert method.refuses(model, x, target) is None
    assert float(method.completeness(model, x, target).max()) < 1e-3


def test_deeplift_refuses_what_its_rules_do_not_know(batch):
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(800, 5))

        def forward(self, x):
            return self.layers(x) ** 3

    model = Normalised()
    assert "no rule for group_norm" in deeplift().refuses(model, *batch)


def test_guided_backprop_matches_captum_on_vgg():
    model, x, target = models.vgg11_bn(num_classes=5).eval(), torch.randn(2, 3, 32, 32), torch.tensor([0, 3])
    theirs = quietly(lambda: captum.GuidedBackprop(model).attribute(x.clone(), target=target))
    assert error(resolve("guided_backprop")(model, x, target), theirs) < 1e-5


@pytest.mark.parametrize(("name", "masked"), [("guided_backprop", True), ("deconvnet", False)])
def test_guided_methods_match_the_hand_written_pass(batch, name, masked):
    model = cnn()
    expected = torch.stack([reference.guided(model, x, int(t), masked) for x, t in zip(*batch, strict=True)])
    torch.testing.assert_close(resolve(name)(model, *batch), expected, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet"])
def test_guided_methods_reach_functional_inplace_and_bounded_relus(batch, name):
    model = Functional()
    found = resolve(name)(model, *batch)
    torch.testing.assert_close(found, resolve(name)(as_modules(model), *batch), atol=1e-7, rtol=1e-4)
    assert error(found, resolve("gradient")(model, *batch)) > 0.05


def test_guided_backprop_differs_from_the_gradient_on_inception():
    model = models.inception_v3(init_weights=False, num_classes=5).eval()
    x, target = torch.randn(1, 3, 96, 96), torch.tensor([1])
    method = resolve("guided_backprop")
    assert method.refuses(model, x, target) is None
    assert error(method(model, x, target), resolve("gradient")(model, x, target)) > 0.1


def test_gradcam_matches_captum(batch):
    model, (x, target) = cnn(), batch
    raw = quietly(lambda: captum.LayerGradCam(model, model[3]).attribute(x, target=target, relu_attributions=True))
    expected = F.interpolate(raw, size=(12, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(gradcam("3")(model, x, target), expected)
    assert last_map(model, x).name == "3"


@pytest.mark.parametrize("name", ["gradcam_plus_plus", "layercam", "scorecam"])
def test_activation_maps_match_the_slow_version(batch, name):
    model, (x, target) = cnn(), batch
    found = attribution._METHODS[name](layer="3")(model, x, target)
    for sample in range(len(x)):
        features, slope = reference.feature_gradient(model[:4], model[4:], x[sample], int(target[sample]))
        with torch.no_grad():
            expected = (
                reference.scorecam(model, features, x[sample], int(target[sample]))
                if name == "scorecam"
                else getattr(reference, name)(features, slope)
            )
        expected = F.interpolate(expected[None, None], size=(12, 12), mode="bilinear", align_corners=False)
        torch.testing.assert_close(found[sample], expected[0], atol=1e-6, rtol=1e-4)


def test_cam_averages_to_the_score(batch):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 5)

        def forward(self, x):
            return self.head(F.relu(self.features(x)).mean((2, 3)))

    model, (x, target) = Pooled(), batch
    found = resolve("cam")(model, x, target)
    expected = model(x).gather(1, target[:, None])[:, 0] - model.head.bias[target]
    torch.testing.assert_close(found.mean((1, 2, 3)), expected)


def test_cam_refuses_another_head_by_naming_it(batch):
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5)
    )
    reason = resolve("cam").refuses(model, *batch)
    assert "AdaptiveAvgPool2d, Flatten, Linear, ReLU, Linear" in reason


def test_internal_influence_matches_captum(batch):
    model, (x, target) = cnn(), batch
    raw = quietly(lambda: captum.InternalInfluence(model, model[3]).attribute(x, target=target, n_steps=12))
    expected = F.interpolate(raw.sum(1, keepdim=True), size=(12, 12), mode="bilinear", align_corners=False)
    found = internal_influence("3", n_steps=12, max_batch=5)(model, x, target)
    torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-4)


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


def test_lrp_epsilon_is_input_times_gradient_on_rectifiers(batch):
    pytest.importorskip("zennit")
    model = models.resnet18(num_classes=5).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    model, x = model.double(), torch.randn(2, 3, 32, 32).double()
    target = model(x).argmax(1)
    found = lrp_epsilon(1e-9)(model, x, target)
    assert error(found, resolve("input_x_gradient")(model, x, target)) < 1e-3  # zennit stabilises sums by 1e-6


@pytest.mark.parametrize("name", ["lrp_z_plus", "lrp_alpha_beta", "excitation_backprop"])
def test_relevance_matches_zennit(batch, name):
    zennit = pytest.importorskip("zennit.composites")
    from zennit.attribution import Gradient
    from zennit.rules import AlphaBeta, Norm, Pass, ZPlus
    from zennit.types import Activation, AvgPool, Linear

    model, (x, target) = cnn(), batch
    rule = {
        "lrp_z_plus": ZPlus(),
        "lrp_alpha_beta": AlphaBeta(alpha=2, beta=1),
        "excitation_backprop": ZPlus(zero_params="bias"),
    }[name]
    composite = zennit.LayerMapComposite([(Activation, Pass()), (AvgPool, Norm()), (Linear, rule)])
    outputs = model(x).detach()
    chosen = F.one_hot(target, 5) * (1 if name == "excitation_backprop" else outputs)
    with Gradient(model, composite) as attributor:
        _, theirs = attributor(x, chosen.to(x))
    torch.testing.assert_close(resolve(name)(model, x, target), theirs, atol=1e-6, rtol=1e-4)


def test_excitation_backprop_is_a_distribution():
    pytest.importorskip("zennit")
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 9), nn.ReLU(), nn.Linear(9, 5))
    x, target = torch.rand(3, 3, 4, 4), torch.tensor([0, 1, 2])
    found = resolve("excitation_backprop")(model, x, target)
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_relevance_refuses_functional_relus_with_the_reason(batch):
    pytest.importorskip("zennit")
    assert "relu" in resolve("lrp_z_plus").refuses(Functional(), *batch)


def test_relevance_refuses_batch_norm_that_follows_no_linear_layer(batch):
    pytest.importorskip("zennit")
    model = nn.Sequential(nn.BatchNorm2d(3), *cnn()).eval()
    model[0].running_mean += 0.3
    assert "'0' does not follow a linear layer" in resolve("lrp_z_plus").refuses(model, *batch)


# ----------------------------------------------------------------------------------------- what every method must keep


@pytest.mark.parametrize("name", [*MINE, *(c for c in CONTROLS if c != "random")])
def test_a_sample_ignores_its_neighbours(batch, name):
    model, (x, target) = cnn(), batch
    method = resolve(name)
    function = method.prepare(model, x) if method.prepare is not None else method.attribute
    changed = x.clone()
    changed[1] = 5 * torch.rand(3, 12, 12)
    torch.manual_seed(7)
    first = function(model, x, target)
    torch.manual_seed(7)
    second = function(model, changed, torch.tensor([0, 4, 2]))
    torch.manual_seed(7)
    alone = function(model, x[:1], target[:1])
    scale = float(first[0].abs().max()) + 1e-12
    torch.testing.assert_close(second[[0, 2]], first[[0, 2]], atol=1e-6 * scale, rtol=1e-5)
    torch.testing.assert_close(alone[0], first[0], atol=1e-5 * scale, rtol=1e-4)


def signature(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [(name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), type(m),
          getattr(m, "inplace", None)) for name, m in model.named_modules()],
        [(name, p.requires_grad, p.grad is None, p.data_ptr()) for name, p in model.named_parameters()],
    )  # fmt: skip


@pytest.mark.parametrize("name", [*MINE, *CONTROLS])
def test_method_leaves_the_model_untouched(batch, name):
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 5),
    ).eval()  # fmt: skip
    model[0].weight.requires_grad_(False)
    x, target = batch
    state, modules, parameters = signature(model)
    before = x.clone()
    method = resolve(name)
    assert method.refuses is None or method.refuses(model, x, target) is None
    method(model, x, target)
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the model's own error is
        raise_in(model, lambda: method(model, x, target)) if name not in CONTROLS or "gradient" in name else 1 / 0
    after = signature(model)
    assert after[1:] == (modules, parameters)
    assert all(torch.equal(after[0][key], state[key]) for key in state)
    assert torch.equal(x, before)
    assert not x.requires_grad


def raise_in(model, act):
    """Act while the model's last layer raises."""
    handle = model[-1].register_forward_pre_hook(lambda module, args: 1 / 0)
    try:
        act()
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["integrated_gradients", "smoothgrad", "expected_gradients", "deepshap", "scorecam"])
def test_chunks_do_not_show_in_the_result(batch, name):
    model = cnn()
    found = []
    for most in (1, 4, 1000):
        torch.manual_seed(3)
        found.append(attribution._METHODS[name](max_batch=most)(model, *batch))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in MINE if name != "cam"])
def test_second_input_is_passed_through_row_by_row(name):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = cnn()

        def forward(self, x, scale):
            return self.inner(x) * scale[:, None]

    model, x, target = Scaled(), torch.randn(3, 3, 12, 12), torch.tensor([0, 1, 2])
    method = resolve(name)
    if name.startswith(("lrp", "excitation")):
        assert "mul" in method.refuses(model, (x, torch.ones(3)), target)
        return
    torch.manual_seed(2)
    found = method(model, (x, torch.ones(3)), target)
    torch.manual_seed(2)
    expected = method(model.inner, x, target)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_gradient_methods_refuse_token_ids_with_advice():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))
    tokens, target = torch.randint(9, (2, 5)), torch.tensor([0, 1])
    for name in MINE:
        reason = resolve(name).refuses(model, tokens, target)
        assert reason is not None, name
        assert "explain the embeddings" in reason or "not (N, C, H, W)" in reason


@pytest.mark.parametrize("name", ["gradcam", "scorecam", "internal_influence", "cam", "deepshap", "lrp_z_plus"])
def test_prepared_method_follows_the_weights(batch, name):
    model = cnn()
    method = resolve(name)
    function = method.prepare(model, batch[0]) if method.prepare is not None else method.attribute
    before = function(model, *batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    after = function(model, *batch)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, method(model, *batch))


def test_out_of_memory_halves_the_rows_and_says_so(caplog):
    rows, seen = Rows(8, "example"), []

    def run(samples, copies):
        if (samples.stop - samples.start) * len(copies) > 3:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes")
        seen.extend((s, c) for s in range(samples.start, samples.stop) for c in copies)

    with caplog.at_level(logging.WARNING):
        list(rows.chunks(5, 4, run))
    assert sorted(seen) == [(s, c) for s in range(5) for c in range(4)]
    assert rows.limit <= 3
    assert "out of memory with 5 rows at once" in caplog.text
    with pytest.raises(RuntimeError, match="not enough memory"):
        list(Rows(8, "example").chunks(1, 1, lambda *_: (_ for _ in ()).throw(RuntimeError("not enough memory"))))


def test_incomplete_integrated_gradients_are_refused_with_advice():
    class Steep(nn.Module):
        def forward(self, x):
            return torch.tanh(80 * (x.sum(1) - 0.37))

    x = torch.rand(4, 3) + 1
    assert "raise n_steps, which is 2" in integrated_gradients_local(n_steps=2).refuses(Steep(), x, None)
    assert integrated_gradients(n_steps=300).refuses(Steep(), x, None) is None


# ----------------------------------------------------------------------------------------------------- layers and maps


@pytest.mark.parametrize(
    ("shape", "kind", "size"),
    [
        ((2, 64, 7, 7), "channels first", (7, 7)),
        ((2, 7, 7, 768), "channels last", (7, 7)),
        ((2, 50, 64), "tokens", (7, 7)),
        ((2, 49, 64), "tokens", (7, 7)),
    ],
)
def test_layout_is_read_from_the_shape(shape, kind, size):
    layout = layout_of(shape, (224, 224))
    assert (layout.kind, layout.sides) == (kind, size)
    assert tuple(layout.grid(torch.zeros(shape)).shape[2:]) == size


def test_layout_of_an_oblong_image_keeps_its_shape():
    layout = layout_of((1, 1 + 8 * 4, 16), (64, 32))
    assert (layout.sides, layout.prefix) == ((8, 4), 1)
    assert layout_of((1, 768, 1, 1), (64, 64)) is None


def test_tokens_become_a_grid_in_reading_order():
    tokens = torch.arange(5.0).reshape(1, 5, 1)
    grid = layout_of((1, 5, 1), (8, 8)).grid(tokens)
    assert grid.tolist() == [[[[1.0, 2.0], [3.0, 4.0]]]]


def test_gradcam_rejects_a_layer_that_is_not_there(batch):
    with pytest.raises(ValueError, match="layer 'nope' is not a module of the model"):
        gradcam("nope").refuses(cnn(), *batch)


def test_gradcam_finds_no_map_in_a_perceptron(batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 5))
    assert "no spatial feature map" in gradcam().refuses(model, *batch)


def test_scorecam_takes_the_widest_channels_only(batch):
    model = cnn()
    assert scorecam("3", max_channels=2)(model, *batch).shape == (3, 1, 12, 12)


# --------------------------------------------------------------------------------------------------- names and objects


def test_registry_lists_every_method_with_what_a_user_must_know():
    rows = {row["name"]: row for row in table()}
    assert tuple(rows) == available()
    assert set(MINE) | set(CONTROLS) <= set(rows)
    assert all(row["summary"].endswith((".", "signed.")) for row in rows.values())
    assert [name for name in MINE if rows[name]["needs"] == "zennit"] == [
        name for name in MINE if name.startswith(("lrp", "exc"))
    ]
    assert not rows["vargrad"]["signed"]
    assert rows["gradient"]["signed"]
    assert [row["name"] for row in rows.values() if row["control"]] == CONTROLS


def test_missing_extra_is_named_when_the_method_is_asked_for(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "lrp_epsilon" in available()
    with pytest.raises(ImportError, match=r"pip install 'lightning-sanity\[zennit\]'"):
        resolve("lrp_epsilon")


def test_resolve_takes_methods_with_parameters_by_name():
    found = resolve_all({"ig": integrated_gradients(n_steps=64, baseline="blur"), "plain": "gradient"})
    assert list(found) == ["ig", "plain"]
    assert found["ig"].passes == 64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: integrated_gradients(n_steps=0), "n_steps must be at least 1, not 0"),
        (lambda: integrated_gradients(baseline="grey"), "unknown baseline 'grey'; choose from: blur, max, mean, min"),
        (lambda: smoothgrad(noise=-1), "noise must be at least 0"),
        (lambda: vargrad(n_samples=1), "n_samples must be at least 2"),
        (lambda: lrp_alpha_beta(alpha=3), "alpha - beta must be 1"),
        (lambda: deepshap(n_baselines=0), "n_baselines must be an integer of at least 1"),
        (lambda: scorecam(max_batch=0), "max_batch must be at least 1"),
        (lambda: resolve("salency"), "unknown attribution method 'salency'; choose from: gradient"),
    ],
)
def test_bad_parameter_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_factory_itself_is_not_a_method():
    with pytest.raises(TypeError, match="pass 'smoothgrad' or smoothgrad"):
        resolve(smoothgrad)


def test_captum_class_is_built_on_the_explained_model(batch):
    model = cnn()
    torch.testing.assert_close(resolve(captum.Saliency)(model, *batch), resolve("gradient")(model, *batch))
    torch.testing.assert_close(resolve(captum.LayerGradCam)(model, *batch), gradcam("3")(model, *batch))


def test_captum_object_explains_the_clone_with_its_own_settings(batch):
    users, clone = cnn(), cnn()
    given = captum.IntegratedGradients(users, multiply_by_inputs=False)
    found = resolve(given)(clone, *batch)
    expected = quietly(lambda: captum.IntegratedGradients(clone, False).attribute(batch[0], target=batch[1]))
    torch.testing.assert_close(found, expected.float())
    layered = captum.LayerActivation(users, users[1])
    assert resolve(layered)(clone, *batch).shape == (3, 1, 12, 12)


def test_captum_object_on_a_function_cannot_be_rebuilt():
    model = cnn()
    with pytest.raises(ValueError, match="bound to a function"):
        resolve(captum.Saliency(lambda x: model(x)))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (captum.Occlusion, "needs sliding_window_shapes"),
        (captum.GradientShap, "needs baselines.*'expected_gradients'"),
        (captum.NeuronGradient, "explains a neuron"),
    ],
)
def test_captum_class_that_needs_more_says_what(cls, message):
    with pytest.raises(ValueError, match=message):
        resolve(cls)


@pytest.mark.parametrize("cls", [captum.GuidedBackprop, captum.Deconvolution, captum.DeepLift])
def test_captum_hooks_that_reach_no_functional_relu_are_refused(batch, cls):
    assert "reaches 0 of the network's 3 rectifiers" in resolve(cls).refuses(Functional(), *batch)


def test_zennit_composite_is_a_method(batch):
    composites = pytest.importorskip("zennit.composites")
    method = resolve(composites.EpsilonPlus())
    assert isinstance(method, Method)
    assert method.name == "EpsilonPlus"
    model = cnn()
    assert method.refuses(model, *batch) is None
    assert method(model, *batch).shape == (3, 3, 12, 12)


# ---------------------------------------------------------------------------------------------------------- attention


def vit():
    model = models.VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero
    return model


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32), torch.tensor([0, 1])


def test_attention_rollout_matches_the_slow_version(images):
    model, (x, target) = vit(), images
    with torch.no_grad():
        tokens = torch.cat([model.class_token.expand(2, -1, -1), model._process_input(x)], 1)
        tokens, weights = tokens + model.encoder.pos_embedding, []
        for layer in model.encoder.layers:
            normed = layer.ln_1(tokens)
            weights.append(layer.self_attention(normed, normed, normed, average_attn_weights=False)[1])
            tokens = layer(tokens)
    found = resolve("attention_rollout")(model, x, target)
    for sample in range(2):
        drawn = reference.rollout([layer[sample] for layer in weights])[0, 1:].reshape(1, 1, 4, 4)
        expected = F.interpolate(drawn, size=(32, 32), mode="bilinear", align_corners=False)
        torch.testing.assert_close(found[sample], expected[0], atol=1e-6, rtol=1e-4)


def test_gradient_attention_depends_on_the_class_and_rollout_does_not(images):
    model, (x, target) = vit(), images
    for name, same in (("attention_rollout", True), ("gradient_attention", False)):
        method = resolve(name)
        assert method.refuses(model, x, target) is None
        a, b = method(model, x, target), method(model, x, target + 2)
        assert torch.allclose(a, b) == same, name
        assert bool((a >= 0).all())


def test_capturing_attention_changes_no_output(images):
    model = vit()
    with torch.no_grad():
        before = model(images[0])
        with captured_attention(model) as weights:
            during = model(images[0])
    torch.testing.assert_close(during, before)
    assert [tuple(w.shape) for w in weights] == [(2, 2, 17, 17)] * 3
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gradcam_explains_transformer_tokens_without_configuration(images):
    model = vit()
    assert last_map(model, images[0]).name == "encoder.layers.encoder_layer_2.ln_1"
    assert gradcam()(model, *images).shape == (2, 1, 32, 32)


def test_attention_is_refused_where_there_is_none(images):
    assert "no nn.MultiheadAttention ran" in resolve("attention_rollout").refuses(cnn(), *images)
