"""Classes and objects of captum and composites of zennit as methods."""

import captum.attr as captum
import pytest
import torch
from made_networks import Functional, cnn
from reference import quietly

from lightning_sanity.attribution import Method, resolve
from lightning_sanity.attribution.gradient_cam import gradcam


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
