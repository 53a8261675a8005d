"""Class activation maps against captum and slow versions, and the layers they read."""

import captum.attr as captum
import pytest
import reference
import torch
from made_networks import cnn
from reference import quietly
from torch import nn
from torch.nn import functional as F

from lightning_sanity import attribution, parameter_randomization_test
from lightning_sanity.attribution import resolve
from lightning_sanity.attribution.gradient_cam import gradcam, internal_influence, scorecam
from lightning_sanity.attribution.layers import last_map, layout_of


def test_gradcam_matches_captum(batch):
    model, (x, target) = cnn(), batch
    raw = quietly(lambda: captum.LayerGradCam(model, model[3]).attribute(x, target=target, relu_attributions=True))
    expected = F.interpolate(raw, size=(12, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(gradcam("3")(model, x, target), expected)
    assert last_map(model, x).name == "3"


@pytest.mark.parametrize("name", ["gradcam_plus_plus", "layercam", "scorecam"])
def test_activation_maps_match_the_slow_version(batch, name):
    model, (x, target) = cnn(), batch
    found = attribution.registry._METHODS[name](layer="3")(model, x, target)
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


def test_gradcam_rejects_a_layer_that_is_not_there(batch):
    with pytest.raises(ValueError, match="layer 'nope' is not a module of the model"):
        gradcam("nope").refuses(cnn(), *batch)


def test_gradcam_finds_no_map_in_a_perceptron(batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 5))
    assert "no spatial feature map" in gradcam().refuses(model, *batch)


def test_scorecam_takes_the_widest_channels_only(batch):
    model = cnn()
    assert scorecam("3", max_channels=2)(model, *batch).shape == (3, 1, 12, 12)


# Layouts of a layer's output -----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["gradcam", "guided_gradcam", "guided_backprop"])
def test_what_a_network_is_made_of_is_found_with_few_samples(name):
    rows = []
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    network.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    method, images = resolve(name), torch.rand(16, 3, 8, 8)
    assert method.refuses(network, images, torch.zeros(16, dtype=torch.long)) is None
    if method.prepare is not None:
        method.prepare(network, images)
    assert rows
    assert max(rows) < 16


@pytest.mark.parametrize("name", ["gradcam", "guided_gradcam"])
def test_a_network_for_one_size_of_batch_is_asked_with_that(name):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
            self.head = nn.Linear(4, 2)

        def forward(self, images):
            return self.head(self.layers(images).reshape(5, 4))

    method, images = resolve(name), torch.rand(5, 3, 8, 8)
    assert method.refuses(Fixed(), images, torch.zeros(5, dtype=torch.long)) is None
    assert len(method(Fixed(), images, torch.zeros(5, dtype=torch.long))) == 5


class Backbone(nn.Module):
    """Features in a structure of its own, and a layer that runs at both ends of the network."""

    def __init__(self):
        super().__init__()
        self.low, self.high, self.drop = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1), nn.Dropout()

    def forward(self, x):
        low = self.drop(self.low(x)).relu()
        return {"high": self.drop(self.high(low)).relu(), "low": low}


class Detector(nn.Module):
    """Reads both levels of its backbone by name."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = Backbone(), nn.Linear(14, 4)

    def forward(self, x):
        found = self.backbone(x)
        return self.head(torch.cat([found["high"].mean((2, 3)), found["low"].mean((2, 3))], 1))


def test_the_default_layer_returns_one_map_and_runs_once():
    torch.manual_seed(0)
    found = last_map(Detector().eval(), torch.rand(3, 3, 16, 16))
    assert found.name == "backbone.high"


def test_a_layer_that_returns_a_structure_may_be_named():
    torch.manual_seed(0)
    model, images, target = Detector().eval(), torch.rand(3, 3, 16, 16), torch.tensor([0, 1, 2])
    ours = resolve("gradcam", layer="backbone")(model, images, target)
    high = model.backbone(images)["high"].detach()
    weights = model.head.weight[target, :8].detach() / high[0, 0].numel()
    expected = (high * weights[:, :, None, None]).sum(1, keepdim=True).relu()
    expected = nn.functional.interpolate(expected, size=(16, 16), mode="bilinear")
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


class Rectified(nn.Module):
    """Two convolutions, rectified in the given way."""

    def __init__(self, low, high):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(8, 4)
        self.low, self.high = low, high

    def forward(self, x):
        return self.head(self.high(self.second(self.low(self.first(x)))).mean((2, 3)))


CAMS = ("gradcam", "gradcam_plus_plus", "layercam", "scorecam", "internal_influence", "guided_gradcam")
RECTIFIERS = {
    "function": F.relu,
    "function in place": lambda x: F.relu(x, inplace=True),
    "method": torch.Tensor.relu,
    "clamp": lambda x: torch.clamp(x, min=0),
}


@pytest.mark.parametrize("way", RECTIFIERS)
def test_the_default_map_is_the_rectified_one_whether_a_module_or_a_function_rectifies(way):
    images, target = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1)), torch.arange(4)
    by_modules, called = Rectified(nn.ReLU(), nn.ReLU()).eval(), Rectified(RECTIFIERS[way], RECTIFIERS[way]).eval()
    assert last_map(called, images).shown == "second and the activation after it"
    assert last_map(by_modules, images).shown == "high"
    for name in CAMS:
        torch.testing.assert_close(
            resolve(name)(called, images, target), resolve(name)(by_modules, images, target), rtol=1e-5, atol=1e-7
        )


def test_gradcam_of_a_pooled_network_is_the_positive_part_of_its_exact_map_where_a_function_rectifies():
    images, target = torch.randn(4, 3, 12, 12), torch.arange(4)
    model = Rectified(F.relu, F.relu).eval()
    features = F.relu(model.second(F.relu(model.first(images)))).detach()
    exact = (features * model.head.weight[target].detach()[:, :, None, None]).sum(1, keepdim=True) / 64
    expected = F.interpolate(F.relu(exact), size=(12, 12), mode="bilinear")
    torch.testing.assert_close(resolve("gradcam")(model, images, target), expected)


def overwritten(x):
    x.relu_()
    return x


@pytest.mark.parametrize("high", [lambda x: F.relu(x) + x, overwritten, lambda x: x.square(), lambda x: F.relu(-x)])
def test_a_map_is_that_of_its_module_where_no_rectifier_alone_reads_it(high):
    images, target = torch.randn(4, 3, 12, 12), torch.arange(4)
    model = Rectified(F.relu, high).eval()
    assert last_map(model, images).shown == "second"
    named = resolve("gradcam", layer="second")(model, images, target)
    assert torch.equal(resolve("gradcam")(model, images, target), named)


def test_a_named_layer_is_the_module_itself():
    images, target = torch.randn(4, 3, 12, 12), torch.arange(4)
    model = Rectified(F.relu, F.relu).eval()
    before = model.second(F.relu(model.first(images))).detach().requires_grad_()
    (slope,) = torch.autograd.grad(model.head(F.relu(before).mean((2, 3))).gather(1, target[:, None]).sum(), before)
    expected = F.relu((before * slope.mean((2, 3), keepdim=True)).sum(1, keepdim=True)).detach()
    expected = F.interpolate(expected, size=(12, 12), mode="bilinear")
    torch.testing.assert_close(resolve("gradcam", layer="second")(model, images, target), expected)


def test_both_spellings_of_a_rectifier_get_one_verdict():
    images, target = torch.randn(5, 3, 12, 12), torch.arange(5) % 4
    options = {"trials": 2, "repeats": 1, "pictures": False, "controls": False}
    found = [
        parameter_randomization_test(Rectified(*way).eval(), images, target, methods="gradcam", **options)
        for way in ((nn.ReLU(), nn.ReLU()), (F.relu, F.relu))
    ]
    by_module, called = (each.curves["gradcam", "spearman"].values for each in found)
    torch.testing.assert_close(called, by_module, rtol=0, atol=1e-5, equal_nan=True)
    assert found[1].settings["cam_layers"] == {"gradcam": "second and the activation after it"}
