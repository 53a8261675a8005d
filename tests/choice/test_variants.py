"""Methods with other parameters: written as calls, offered where one failed."""

import pickle

import pytest
import torch

from lightning_sanity import Outcome
from lightning_sanity.attribution import resolve, smoothgrad
from lightning_sanity.choice.variants import repairs, settings
from lightning_sanity.result import Verdict
from tests.made_choices import probe, trained


def test_a_call_is_the_method_with_these_parameters():
    (images, labels), model = probe(3), trained()
    named = resolve("smoothgrad(n_samples=5, noise=0.3)")
    assert named.name == "smoothgrad(n_samples=5, noise=0.3)"
    torch.manual_seed(0)
    expected = smoothgrad(n_samples=5, noise=0.3)(model, images, labels)
    torch.manual_seed(0)
    assert torch.equal(named(model, images, labels), expected)
    torch.manual_seed(0)
    assert torch.equal(pickle.loads(pickle.dumps(named))(model, images, labels), expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("smoothgrd(n_samples=5)", "did you mean smoothgrad"),
        ("smoothgrad(samples=5)", "unknown parameter 'samples'"),
        ("smoothgrad(5)", "keyword arguments"),
        ("smoothgrad(n_samples=__import__('os'))", "cannot be read"),
        ("smoothgrad(n_samples=)", "cannot be read"),
        ("smoothgrad(**{})", "cannot be read|keyword"),
    ],
)
def test_what_is_no_such_call_is_refused_and_nothing_is_run(text, said):
    with pytest.raises(ValueError, match=said):
        resolve(text)


def test_a_control_that_is_called_counts_like_any_method():
    assert resolve("input_plus_gradient(weight=0.1)").control is False


def failing(reason="the map keeps too much", outcome=Outcome.FAIL):
    return Verdict(outcome, reason)


def test_a_failing_global_method_is_offered_without_its_factor():
    assert repairs({"integrated_gradients": failing()}, []) == ["integrated_gradients_local"]
    known = {"integrated_gradients": failing(), "integrated_gradients_local": failing()}
    assert repairs(known, []) == []


def test_an_unstable_method_is_offered_with_more_samples():
    verdict = failing("unstable: give it more samples (n_samples)", Outcome.INCONCLUSIVE)
    assert repairs({"smoothgrad": verdict}, []) == ["smoothgrad(n_samples=100)"]


def test_a_failing_class_activation_map_is_offered_on_other_layers():
    assert repairs({"gradcam": failing()}, ["a.b", "c"]) == ["gradcam(layer='a.b')", "gradcam(layer='c')"]


def test_what_passed_and_what_is_not_ours_needs_no_repair():
    assert repairs({"gradcam": Verdict(Outcome.PASS, ""), "mine": failing()}, ["a"]) == []


def test_every_setting_that_tuning_tries_is_a_method():
    for name in ("smoothgrad", "gradcam", "integrated_gradients_local", "occlusion", "gradient"):
        for setting in settings(name, ["0"], image=True):
            assert resolve(setting).name == setting
