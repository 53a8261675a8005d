"""What holds for every method that perturbs its input."""

import copy

import pytest
import torch
from made_networks import classes, convolutional, images, seeded
from torch import nn

from lightning_sanity.attribution import optimized, perturbation, prediction_difference, resolve, superpixels
from lightning_sanity.attribution.optimized import extremal_perturbation, meaningful_perturbation
from lightning_sanity.attribution.perturbation import occlusion, rise
from lightning_sanity.attribution.prediction_difference import prediction_difference_analysis
from lightning_sanity.attribution.regions import xrai
from lightning_sanity.attribution.superpixels import feature_ablation, kernel_shap, lime

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


def test_prepared_method_refuses_another_batch():
    model, x = convolutional(), images(3)
    for name in ("feature_ablation", "lime", "kernel_shap", "prediction_difference_analysis"):
        with pytest.raises(ValueError, match=f"{name}: prepared for 3 samples, got 2"):
            QUICK[name].prepare(model, x)(model, x[:2], classes(2))


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
