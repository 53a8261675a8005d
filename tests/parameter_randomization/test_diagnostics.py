import math

import pytest
import torch
from scipy.stats import spearmanr

from lightning_sanity import Criterion, SanityResult, parameter_randomization_test
from lightning_sanity.attribution import resolve
from lightning_sanity.explanation.maps import Explanation, Maps
from lightning_sanity.parameter_randomization.complexity import efficient_mprt
from lightning_sanity.parameter_randomization.diagnostics import NAMES, between_classes, other_classes
from lightning_sanity.resources.random_streams import isolated_rng
from lightning_sanity.result.signal import dependence, holm
from lightning_sanity.similarity import spearman


@pytest.fixture(scope="module")
def diagnosed(digits_network):
    """Every diagnostic of a passing and a failing method."""
    model, images, _ = digits_network
    methods = ["gradient", "guided_backprop", "input_x_gradient"]
    return parameter_randomization_test(
        model, images[:24], methods=methods, trials=6, repeats=1, pictures=False, diagnostics=NAMES
    )


def test_random_logit_equals_direct_calls(digits_network, diagnosed):
    model, images, _ = digits_network
    images = images[:24]
    scores = model(images).detach()
    target = scores.argmax(1)
    method = resolve("gradient")
    trained = method(model, images, target).sum(1)
    drawn = other_classes(target, scores, 0)["random_logit"]
    expected = [
        spearmanr(trained[i].abs().flatten(), method(model, images, other).sum(1)[i].abs().flatten()).statistic
        for other in drawn
        for i in range(24)
    ]
    assert diagnosed.diagnostics["gradient"]["random_logit"] == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_random_logit_tells_a_map_of_the_class_from_one_of_the_image(diagnosed):
    found = diagnosed.diagnostics
    assert found["guided_backprop"]["random_logit"] > 0.6
    assert found["edge_detector"]["random_logit"] == found["edge_detector"]["runner_up_ssim"] == pytest.approx(1)
    assert found["gradient"]["random_logit"] < 0.55
    assert found["gradient"]["random_logit_signed"] < 0.1


def test_other_classes_are_never_the_explained_one():
    scores = torch.randn(50, 4)
    target = scores.argmax(1)
    found = other_classes(target, scores, seed=3)
    assert len(found["random_logit"]) == 3
    assert all((other != target).all() for others in found.values() for other in others)
    assert torch.equal(found["runner_up"][0], scores.argsort(1)[:, -2])


@pytest.mark.parametrize(("target", "outputs"), [(None, torch.randn(4)), (torch.zeros(4).long(), torch.randn(4, 1))])
def test_a_single_output_has_no_other_class(target, outputs):
    assert other_classes(target, outputs, 0) == {}


def test_structure_between_classes_ignores_a_flipped_sign():
    signed = torch.randn(3, 12, 12)
    found = between_classes("k", Maps(signed, signed.abs()), [Maps(-signed, signed.abs())])
    assert torch.allclose(found["k_ssim"], torch.ones(3).double())
    assert torch.allclose(found["k_signed"], -torch.ones(3).double())


def test_entropy_rise_is_that_of_the_fully_randomised_model(digits_network, diagnosed):
    assert diagnosed.diagnostics["edge_detector"]["entropy_rise"] == pytest.approx(0, abs=1e-9)
    rise = diagnosed.diagnostics["gradient"]["entropy_rise"]
    model, images, _ = digits_network
    trained = resolve("gradient")(model, images[:24], model(images[:24]).argmax(1)).abs().sum(1)
    assert rise == pytest.approx(float(efficient_mprt(trained, torch.randn_like(trained).abs()).mean()), abs=0.3)


def test_cross_image_rule_agrees_with_the_curve(diagnosed):
    for name in ("gradient", "guided_backprop", "input_x_gradient"):
        row = diagnosed.diagnostics[name]
        last = float(diagnosed.curves[name, "spearman"].mean[-1])
        assert row["cross_image_passes"] == float(last < row["cross_image"])
    assert diagnosed.diagnostics["input_x_gradient"]["cross_image_passes"] == 0
    assert diagnosed.diagnostics["gradient"]["cross_image_passes"] == 1


def test_dependence_rejects_for_methods_that_look_at_the_model_only(diagnosed):
    verdicts = diagnosed.verdicts
    assert verdicts["gradient"].p_dependence < 0.01
    assert verdicts["guided_backprop"].p_dependence < 0.01  # dependence is necessary, not sufficient
    assert verdicts["edge_detector"].p_dependence > 0.01
    assert verdicts["random"].p_dependence > 0.01
    assert diagnosed.diagnostics["gradient"]["p_dependence"] == verdicts["gradient"].p_dependence


def test_dependence_is_calibrated_on_a_map_that_ignores_the_model(digits_network):
    """500 repeats of the null: an edge detector under input noise, 10 trials, 16 samples."""
    model, images, _ = digits_network
    edge, repeats, trials = resolve("edge_detector"), 500, 10
    with isolated_rng(0):
        images = images[:16]
        what = Explanation(model, images, None)
        trained = edge(model, images).abs().sum(1)
        rejected = []
        for repeat in range(repeats):
            noisy = what.with_noise([repeat * (trials + 1) + k for k in range(trials + 1)])
            maps = edge(model, noisy.inputs).abs().sum(1)
            same = spearman(trained.repeat(trials + 1, 1, 1), maps).reshape(trials + 1, -1)
            rejected.append(dependence(same[0], same[1:]))
    found = torch.tensor(rejected)
    assert 0.03 <= (found <= 0.05).float().mean() <= 0.07
    assert (found <= 0.01).float().mean() <= 0.02


def test_noise_of_a_sample_does_not_depend_on_the_batch(digits_network):
    model, images, _ = digits_network
    many, few = (Explanation(model, images[:n], None).with_noise([1, 2]).inputs for n in (8, 3))
    assert torch.equal(many.reshape(2, 8, -1)[:, :3], few.reshape(2, 3, -1))
    assert not torch.equal(many[0] - images[0], many[1] - images[1])


def test_holm_equals_the_textbook_steps():
    given = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": math.nan}
    found = holm(given)
    assert [found[k] for k in "abcd"] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(found["e"])


def test_diagnostics_survive_the_round_trip(diagnosed, tmp_path):
    again = SanityResult.from_json(diagnosed.to_json(tmp_path / "r.json"))
    assert again.diagnostics.keys() == diagnosed.diagnostics.keys()
    for name, row in diagnosed.diagnostics.items():
        assert dict(again.diagnostics[name]) == pytest.approx(row, nan_ok=True)


def test_an_unknown_diagnostic_is_named():
    with pytest.raises(ValueError, match="unknown diagnostic 'vibes'; choose from: cross_image"):
        parameter_randomization_test(torch.nn.Linear(2, 2), torch.rand(3, 2), methods="gradient", diagnostics=["vibes"])


def test_trials_are_added_only_while_a_verdict_is_open(digits_network):
    model, images, _ = digits_network
    given = {"methods": ["gradient", "guided_gradcam"], "repeats": 1, "pictures": False}
    # The threshold is put where guided_gradcam is, so that its verdict stays open.
    psi = parameter_randomization_test(model, images[:12], trials=5, **given).verdicts["guided_gradcam"].psi
    auto = parameter_randomization_test(model, images[:12], trials="auto", criterion=Criterion(min_psi=psi), **given)
    run = auto.settings["trials_run"]
    assert run["gradient"] == run["edge_detector"] == 5
    assert run["guided_gradcam"] in (10, 20)
    fixed = parameter_randomization_test(model, images[:12], trials=run["guided_gradcam"], **given)
    one, other = (r.curves["guided_gradcam", "ssim"].values for r in (auto, fixed))
    assert torch.equal(one.nan_to_num(), other.nan_to_num())


def test_settled_verdicts_need_no_more_trials(digits_network):
    model, images, _ = digits_network
    auto = parameter_randomization_test(
        model, images[:12], methods=["gradient", "input_x_gradient"], trials="auto", repeats=1, pictures=False
    )
    assert set(auto.settings["trials_run"].values()) == {5}
