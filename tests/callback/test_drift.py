import pytest
import torch

from lightning_sanity import SanityResult, parameter_randomization_test
from lightning_sanity.callback.drift import drift
from lightning_sanity.cli import demo
from lightning_sanity.result.pictures import coarse
from lightning_sanity.similarity import spearman


def measured(model, images, **changes):
    given = {"methods": ["gradient", "gradcam"], "trials": 1, "repeats": 1, "max_steps": 1, "pictures": False}
    return parameter_randomization_test(model, images, **{**given, **changes})


@pytest.fixture(scope="module")
def before(digits_network):
    return measured(digits_network[0], digits_network[1][:12])


def test_maps_of_the_same_model_do_not_drift(digits_network, before, tmp_path):
    shown = measured(digits_network[0], digits_network[1][:12], pictures=True)
    again = SanityResult.from_json(shown.to_json(tmp_path / "r.json"))
    assert drift(before, again) == pytest.approx(dict.fromkeys(before.trained_maps, 1.0))


def test_a_file_without_pictures_holds_no_maps_either(before, tmp_path):
    again = SanityResult.from_json(before.to_json(tmp_path / "r.json"))
    assert again.trained_maps == {}
    assert before.trained_maps
    assert drift(before, again) == {}


def test_drift_is_the_correlation_of_the_maps(digits_network, before):
    model, images, labels = digits_network
    other = demo.DigitsClassifier().eval()
    after = measured(other, images[:12], target=labels[:12])
    found = drift(after, before)["gradient"]

    def maps(of, target):
        x = images[:12].clone().requires_grad_()
        (slope,) = torch.autograd.grad(of(x).gather(1, target[:, None]).sum(), x)
        return slope.abs().sum(1)

    assert found == pytest.approx(
        float(spearman(maps(other, labels[:12]), maps(model, model(images[:12]).argmax(1))).mean()), abs=0.02
    )
    assert drift(after, before)["input_copy"] == 1
    assert found < 0.6


def test_maps_of_other_inputs_are_not_compared(digits_network, before):
    other = measured(digits_network[0], digits_network[1][12:24])
    with pytest.raises(ValueError, match="different probes"):
        drift(other, before)


def test_coarse_maps_of_large_images_are_their_means():
    maps = torch.rand(2, 64, 96)
    expected = torch.nn.functional.adaptive_avg_pool2d(maps[:, None], (21, 32))
    expected = expected[:, 0] / expected.amax((2, 3))[..., None]
    assert (coarse(maps).float() / 255 - expected).abs().max() < 1 / 255
