import random

import numpy as np
import pytest
import torch
from torch import nn

from lightning_sanity import Outcome, parameter_randomization_test
from lightning_sanity.cli import demo
from lightning_sanity.randomization import units
from lightning_sanity.result.controls import CONTROLS


def quick(model, images, methods="gradient", **changes):
    return parameter_randomization_test(model, images, methods=methods, **{"trials": 2, "repeats": 1, **changes})


@pytest.fixture(scope="module")
def few(digits_network):
    model, images, _ = digits_network
    return model, images[:12]


def test_curves_have_a_value_per_trial_unit_and_sample(few):
    result = quick(*few, trials=3)
    curve = result.curves["gradient", "ssim"]
    assert curve.values.shape == curve.floor.shape == (3, len(result.units), 12)
    assert curve.values.dtype == torch.float32
    assert result.units == ("classifier.3", "classifier.1", "features.6", "features.3", "features.0")


def test_controls_have_their_known_similarities(few):
    result = quick(*few)
    for measure in ("spearman", "ssim"):
        assert result.curves["edge_detector", measure].values.sub(1).abs().max() < 1e-6
        assert result.curves["input_copy", measure].values.sub(1).abs().max() < 1e-6
    assert result.curves["random", "spearman"].mean.abs().max() < 0.05
    assert set(CONTROLS) <= set(result.verdicts)


def test_the_model_and_all_random_streams_are_left_as_they_were(digits_network):
    model, images, _ = digits_network
    model.features[1].train()
    try:
        before = {key: value.clone() for key, value in model.state_dict().items()}
        flags = [module.training for module in model.modules()]
        grads = [p.requires_grad for p in model.parameters()]
        streams = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        quick(model, images[:8], ["smoothgrad", "gradcam"])
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert [module.training for module in model.modules()] == flags
        assert [p.requires_grad for p in model.parameters()] == grads
        assert all(p.grad is None or (p.grad is not None and p.grad.isfinite().all()) for p in model.parameters())
        assert torch.equal(torch.get_rng_state(), streams[0])
        assert np.array_equal(np.random.get_state()[1], streams[1])
        assert random.getstate() == streams[2]
    finally:
        model.eval()


def test_the_same_seed_gives_the_same_result_and_another_does_not(few):
    one, two, other = quick(*few, seed=4), quick(*few, seed=4), quick(*few, seed=5)
    for key, curve in one.curves.items():
        assert torch.equal(curve.values.nan_to_num(), two.curves[key].values.nan_to_num()), key
    assert not torch.equal(one.curves["gradient", "ssim"].values, other.curves["gradient", "ssim"].values)


def test_a_method_gets_the_same_curve_whatever_runs_beside_it(few):
    alone = quick(*few, "smoothgrad", controls=False)
    beside = quick(*few, ["gradcam", "smoothgrad"])
    assert torch.equal(alone.curves["smoothgrad", "spearman"].values, beside.curves["smoothgrad", "spearman"].values)


def test_full_order_equals_the_last_step_of_the_cascade(few):
    cascade, full = quick(*few), quick(*few, order="full")
    assert full.units == ("all units",)
    last = cascade.curves["gradient", "ssim"].values[:, -1]
    assert torch.allclose(full.curves["gradient", "ssim"].values[:, 0], last, atol=1e-6)


def test_independent_order_restores_what_it_changed_before(few):
    independent, cascade = quick(*few, order="independent"), quick(*few)
    assert torch.equal(
        independent.curves["gradient", "ssim"].values[:, 0], cascade.curves["gradient", "ssim"].values[:, 0]
    )
    bottom = quick(*few, order="bottom_up")
    assert torch.allclose(
        independent.curves["gradient", "ssim"].values[:, -1], bottom.curves["gradient", "ssim"].values[:, 0], atol=1e-6
    )


def test_coverage_proves_that_every_used_parameter_changed(few):
    result = quick(*few)
    assert result.coverage.share == 1.0
    assert {name for unit in result.coverage.units for name in unit.parameters} == {
        n for n, _ in few[0].named_parameters()
    }
    assert all(change > 0 for unit in result.coverage.units for change in unit.relative_change)


def test_predictions_fall_to_chance_along_the_cascade(few):
    change = quick(*few, trials=5).output_change
    assert change.agreement[:, -1].mean() < 0.5
    assert change.correlation[:, -1].abs().mean() < 0.5


def test_any_function_is_a_method(few):
    def doubled(model, inputs, target):
        inputs = inputs.clone().requires_grad_()
        model(inputs).gather(1, target[:, None]).sum().backward()
        return 2 * inputs.grad

    result = quick(*few, [doubled, "gradient"])
    assert torch.allclose(
        result.curves["doubled", "spearman"].values, result.curves["gradient", "spearman"].values, atol=1e-6
    )


def test_a_method_that_raises_is_inconclusive_and_the_others_go_on(few):
    def broken(model, inputs, target):
        raise KeyError("no such layer")

    verdicts = quick(*few, {"broken": broken, "gradient": "gradient"}).verdicts
    assert verdicts["broken"].outcome is Outcome.INCONCLUSIVE
    assert "method 'broken' failed. Call it on a few samples" in verdicts["broken"].reason
    assert verdicts["gradient"].outcome is Outcome.PASS


def test_a_method_of_another_shape_is_inconclusive(few):
    verdict = quick(*few, {"flat": lambda model, inputs, target: inputs.flatten(1)}).verdicts["flat"]
    assert "returned shape (12, 256) for an input of shape (12, 1, 16, 16)" in verdict.reason


def test_guided_backprop_is_not_applicable_without_a_rectifier():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    verdict = quick(model, torch.randn(6, 1, 8, 8), "guided_backprop", target=1).verdicts["guided_backprop"]
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "no rectifier" in verdict.reason


def test_a_parameter_that_keeps_its_value_is_named_and_nothing_passes(few):
    def weights_only(module):
        if hasattr(module, "weight"):
            nn.init.normal_(module.weight, std=0.1)

    result = quick(*few, reinitialize=weights_only)
    assert result.coverage.share < 1
    assert "classifier.3.bias" in result.coverage.kept
    assert result.verdicts["gradient"].outcome is Outcome.INCONCLUSIVE
    assert "kept their trained values: classifier.3.bias" in result.verdicts["gradient"].reason


def test_a_model_whose_output_ignores_its_weights_is_refused(few):
    class Ignoring(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(256, 3)

        def forward(self, x):
            return 0 * self.layer(x.flatten(1)) + x.flatten(1)[:, 120:123]

    with pytest.raises(RuntimeError, match="ignores its weights"):
        quick(Ignoring(), few[1])


def test_a_collapsed_model_is_inconclusive():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    nn.init.constant_(model[1].bias, 0)
    model[1].bias.data[1] = 100.0
    result = quick(model, torch.rand(6, 1, 8, 8), ["gradient"])
    assert "predicts class 1 for all 6 samples" in result.verdicts["gradient"].reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "gradiant"}, "unknown attribution method 'gradiant'; did you mean gradient .*choose from: "),
        ({"similarities": ["psnr"]}, "unknown similarity 'psnr'; choose from"),
        ({"target": 10}, "target 10 is out of range: the model has 10 classes, 0 to 9"),
        ({"target": torch.zeros(3, dtype=torch.long)}, r"target must be a class index per sample \(12,\)"),
        ({"order": "up"}, "unknown order 'up'; choose from: cascading"),
        ({"granularity": "tensor"}, "unknown granularity 'tensor'"),
        ({"reinitialize": "zeros"}, "unknown re-initialisation 'zeros'"),
        ({"norm_stats": "none"}, "unknown norm_stats 'none'"),
        ({"trials": 0}, "trials must be an integer of at least 1, not 0"),
        ({"repeats": 10**30}, "repeats must be an integer of at most 1000"),
        ({"layer": "features.99", "methods": "gradcam"}, "layer 'features.99' is not a module of the model"),
    ],
)
def test_wrong_arguments_name_themselves_and_the_choices(few, changes, message):
    with pytest.raises(ValueError, match=message):
        quick(*few, **changes)


def test_one_score_per_sample_is_explained_without_a_target():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 1)).eval()
    result = quick(model, torch.rand(6, 1, 8, 8), "gradient")
    assert result.curves["gradient", "spearman"].values.isfinite().all()


def test_retarget_explains_each_models_own_prediction(few):
    seen = []

    def spy(model, inputs, target):
        seen.append(target.clone())
        return inputs.clone()

    quick(*few, spy, retarget=True, controls=False)
    assert any(not torch.equal(target, seen[0]) for target in seen)
    seen.clear()
    quick(*few, spy, controls=False)
    assert all(torch.equal(target, seen[0]) for target in seen)


def test_progress_ends_when_nothing_is_left(few):
    ticks = []
    quick(*few, progress=lambda done, total, label: ticks.append((done, total)))
    assert ticks[-1][0] == ticks[-1][1]
    assert all(done <= total for done, total in ticks)
    assert [done for done, _ in ticks] == sorted(done for done, _ in ticks)


GATED = {"methods": ("gradient", "guided_backprop"), "trials": 5, "repeats": 1}


@pytest.fixture(scope="module")
def by_default(digits_network):
    model, images, _ = digits_network
    return parameter_randomization_test(model, images[:24], **GATED).verdicts


@pytest.mark.parametrize("how", ["shuffle", "xavier", "normal"])
def test_psi_hardly_depends_on_the_strategy(digits_network, by_default, how):
    model, images, _ = digits_network
    other = parameter_randomization_test(model, images[:24], reinitialize=how, **GATED).verdicts
    for name in GATED["methods"]:
        assert other[name].psi == pytest.approx(by_default[name].psi, abs=0.1)


def test_psi_of_a_fresh_twin_agrees_with_redrawn_tensors(digits_network, by_default):
    model, images, _ = digits_network
    twin = parameter_randomization_test(model, images[:24], reinitialize=demo.DigitsClassifier, **GATED)
    assert twin.settings["reinitialize"] == "twin"
    assert twin.coverage.share == 1.0
    for name in GATED["methods"]:
        assert twin.verdicts[name].psi == pytest.approx(by_default[name].psi, abs=0.1)


def test_twins_with_positive_weights_only_make_the_run_invalid(few):
    def positive(module):
        for parameter in module.parameters(recurse=False):
            nn.init.uniform_(parameter)

    result = quick(*few, reinitialize=positive)
    assert not result.valid
    assert "scores of independently re-initialised models rise and fall together" in result.validity
    assert result.verdicts["gradient"].outcome is Outcome.INCONCLUSIVE
    assert "degenerate re-initialisation" in result.verdicts["gradient"].reason


def test_a_collapsed_signal_is_named_with_its_remedy(few):
    def tiny(module):
        for parameter in module.parameters(recurse=False):
            nn.init.normal_(parameter, std=1e-3)

    notes = " ".join(quick(*few, reinitialize=tiny).coverage.notes)
    assert "signal collapsed: input gradients" in notes
    assert "norm_stats='keep'" in notes


@pytest.mark.parametrize("policy", ["keep", "reset", "recalibrate"])
def test_running_statistics_follow_the_policy(digits_network, policy):
    model, images, _ = digits_network
    seen = []

    def spy(model, inputs, target):
        seen.append(model.get_buffer("features.1.running_mean").clone())
        return inputs.clone()

    quick(model, images[:8], spy, norm_stats=policy, controls=False)
    trained, last = seen[0], seen[-1]
    if policy == "keep":
        assert torch.equal(trained, last)
    elif policy == "reset":
        assert last.abs().max() == 0
    else:
        assert not torch.equal(trained, last)
        assert last.abs().max() > 0


def test_recalibration_sets_the_statistics_of_the_probe():
    from lightning_sanity.randomization.twins import recalibrate_

    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    inputs = torch.randn(64, 4)
    recalibrate_(model, units(model, inputs), lambda: model(inputs))
    assert torch.allclose(model[1].running_mean, model[0](inputs).mean(0), atol=1e-5)
    assert model[1].momentum == 0.1
    assert not model[1].training


def test_control_flow_that_depends_on_the_data_is_noted():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high = nn.Linear(64, 3), nn.Linear(64, 3)

        def forward(self, x):
            x = x.flatten(1)
            return self.high(x) if x.mean() > 0 else self.low(x)

    images = torch.randn(6, 1, 8, 8)
    images[:3] -= 2
    images[3:] += 5
    notes = quick(Branching(), images, target=torch.arange(6) % 3).coverage.notes
    assert any("part of the probe reads other parameters" in note for note in notes)


def test_pictures_show_new_noise_at_every_depth_and_the_same_edges(few):
    maps = quick(*few).pictures.maps
    assert not torch.equal(maps["random"][:, 1], maps["random"][:, 2])
    assert torch.equal(maps["edge_detector"][:, 0], maps["edge_detector"][:, -1])
    assert not torch.equal(maps["gradient"][:, 0], maps["gradient"][:, -1])
