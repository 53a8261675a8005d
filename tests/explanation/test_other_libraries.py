"""The recipes of the example, against the real libraries, as far as they are installed."""

import pytest
import torch
from made_examples import load
from torch import nn

from lightning_sanity import Outcome, parameter_randomization_test
from lightning_sanity.attribution import resolve, resolve_all
from lightning_sanity.explanation.guests import Guests

example = load("other_libraries")
BRIEF = {"trials": 1, "repeats": 1, "controls": False, "pictures": False}
RECIPES = example.recipes(torch.zeros(2, 1, 16, 16))
GRAD_CAMS = {
    "pytorch_grad_cam": example.pytorch_grad_cam("GradCAM"),
    "monai": example.monai_grad_cam(),
    "torchcam": example.torchcam("GradCAM"),
    "captum": example.captum_layer_grad_cam(),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*non-tuple sequence:UserWarning"),  # MONAI's occlusion
    pytest.mark.filterwarnings("ignore:The set_:PendingDeprecationWarning"),  # SHAP's colours
    pytest.mark.filterwarnings("ignore:.*backward hook:UserWarning"),
]


@pytest.fixture(scope="module")
def trained():
    model, images = example.trained(steps=60)
    return model, images[:5], model(images[:5]).argmax(1).detach()


def called(model, x, target, function):
    """Maps of a function as the test has them: one call, as a guest; and what was said of it."""
    guests = Guests([(model, model)])
    maps = guests.invite(resolve_all({"visitor": function}))["visitor"](model, x, target)
    return maps, guests.notes


def between_0_and_1(maps):
    low, high = maps.flatten(1).amin(1), maps.flatten(1).amax(1)
    return (maps - low.reshape(-1, 1, 1, 1)) / (high - low).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("library", RECIPES)
def test_every_recipe_is_measured_and_leaves_the_model_as_it_was(trained, library):
    pytest.importorskip(library)
    model, x, target = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = parameter_randomization_test(model, x, target, methods=RECIPES[library], max_steps=2, **BRIEF)
    assert {name for name, _ in result.curves} == RECIPES[library].keys()
    assert all(bool(torch.isfinite(curve.values).any()) for curve in result.curves.values())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


@pytest.mark.parametrize("library", GRAD_CAMS)
def test_the_grad_cam_of_every_library_is_ours(trained, library):
    pytest.importorskip(library)
    model, x, target = trained
    ours, _ = called(model, x, target, resolve("gradcam", example.LAYER))
    theirs, _ = called(model, x, target, GRAD_CAMS[library])
    torch.testing.assert_close(
        between_0_and_1(theirs.as_subclass(torch.Tensor)), between_0_and_1(ours), rtol=0, atol=1e-5
    )


def test_the_grad_cams_of_all_libraries_get_one_index(trained):
    for library in GRAD_CAMS:
        pytest.importorskip(library)
    model, x, target = trained
    methods = {**GRAD_CAMS, "ours": resolve("gradcam", example.LAYER)}
    result = parameter_randomization_test(model, x, target, methods=methods, **{**BRIEF, "trials": 2})
    for name in GRAD_CAMS:
        assert result.verdicts[name].psi == pytest.approx(result.verdicts["ours"].psi, abs=1e-3)
        assert result.verdicts[name].outcome is result.verdicts["ours"].outcome


def test_monais_occlusion_of_a_linear_model_is_what_its_squares_contribute():
    pytest.importorskip("monai")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    x, target = torch.rand(2, 1, 16, 16), torch.tensor([0, 2])
    theirs, _ = called(model, x, target, example.monai_occlusion(side=4, overlap=0.0))
    contribution = (x.flatten(1) * model[1].weight[target].detach()).reshape(2, 1, 16, 16)
    squares = nn.functional.interpolate(nn.functional.avg_pool2d(contribution, 4) * 16, (16, 16))
    torch.testing.assert_close(theirs.as_subclass(torch.Tensor), squares, rtol=0, atol=1e-5)


def test_shaps_gradients_on_a_linear_model_are_weights_times_the_distance_from_the_background():
    pytest.importorskip("shap")
    torch.manual_seed(0)
    model, background = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.zeros(4, 1, 4, 4)
    x, target = torch.rand(3, 1, 4, 4), torch.tensor([0, 2, 1])
    expected = x * model[1].weight[target].reshape(3, 1, 4, 4)
    exact, _ = called(model, x, target, example.shap_deep(background))
    torch.testing.assert_close(exact, expected.detach(), rtol=1e-4, atol=1e-5, check_dtype=False)
    drawn, _ = called(model, x, target, example.shap_gradient(background, samples=400))
    torch.testing.assert_close(drawn, expected.detach(), rtol=0, atol=0.02, check_dtype=False)


def test_zennits_attributor_is_the_composite_given_itself(trained):
    pytest.importorskip("zennit")
    from zennit.composites import EpsilonPlusFlat

    model, x, target = trained
    theirs, _ = called(model, x, target, example.zennit("EpsilonPlusFlat"))
    ours, _ = called(model, x, target, EpsilonPlusFlat())
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)


def test_attentions_of_a_hugging_face_model_are_its_own():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=4, num_channels=1, num_labels=4)
    model = transformers.ViTForImageClassification(config).eval()
    x, seen = torch.rand(5, 1, 16, 16), {}

    def attention(model, x, target):
        maps = example.transformers_attention()(model, x, target).detach()
        seen.setdefault("trained", maps)
        return maps

    result = parameter_randomization_test(model, x, torch.arange(5) % 4, methods={"attention": attention}, **BRIEF)
    assert result.verdicts["attention"].outcome in Outcome
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    expected = model(x, output_attentions=True).attentions[-1].mean(1)[:, 0, 1:].unflatten(1, (4, 4))
    torch.testing.assert_close(seen["trained"], expected)
