"""Whether a run can be trusted, and what each order and each step may say."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_sanity import Outcome, attribution, parameter_randomization_test
from lightning_sanity.explanation.measurements import agreement_of_twins
from lightning_sanity.parameter_randomization.judging import degenerate
from lightning_sanity.result.psi import sensitivity
from lightning_sanity.result.signal import signal


def quick(model, images, methods="gradient", **changes):
    return parameter_randomization_test(
        model, images, methods=methods, **{"trials": 3, "repeats": 2, "pictures": False, "progress": False, **changes}
    )


@pytest.fixture(scope="module")
def few(digits_network):
    model, images, _ = digits_network
    return model, images[:12]


# ------------------------------------------------------------------------------------------------- degenerate draws


class Shortcut(nn.Module):
    """A residual network whose strided 1x1 shortcuts lay one checkerboard on the gradients of all initialisations."""

    def __init__(self, width=8):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, width, 3, 1, 1), nn.Linear(4 * width, 10)
        self.main = nn.ModuleList(nn.Conv2d(width * k, 2 * width * k, 3, 2, 1) for k in (1, 2))
        self.side = nn.ModuleList(nn.Conv2d(width * k, 2 * width * k, 1, 2) for k in (1, 2))
        self.norm = nn.ModuleList(nn.BatchNorm2d(2 * width * k) for k in (1, 2))

    def forward(self, x):
        x = F.relu(self.stem(x))
        for main, side, norm in zip(self.main, self.side, self.norm, strict=True):
            x = F.relu(norm(main(x)) + side(x))
        return self.head(x.mean((2, 3)))


def of_twins(make, images, act=None, count=4):
    """Outputs ``(count, N, classes)`` of as many initialisations."""
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        model = make().eval()
        for parameter in model.parameters() if act is not None else ():
            act(parameter)
        found.append(model(images).detach())
    return torch.stack(found)


@pytest.mark.parametrize(
    "make", [Shortcut, lambda: nn.Sequential(nn.Flatten(), nn.Linear(1024, 32), nn.Linear(32, 10))]
)
def test_own_initialisations_answer_independently(make):
    assert agreement_of_twins(of_twins(make, torch.rand(12, 1, 32, 32))).mean().abs() < 0.3
    assert degenerate(of_twins(make, torch.rand(12, 1, 32, 32))) is None


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda p: nn.init.uniform_(p, 0, 1), "rise and fall together"),
        (lambda p: p.data.abs_(), "rise and fall together"),
        (lambda p: p.data.abs_().mul_(1e12), "anything finite"),
        (lambda p: nn.init.constant_(p, 0.1), "answers the same"),
        (nn.init.zeros_, "answers the same"),
    ],
    ids=["positive", "magnitudes", "large", "constants", "zeros"],
)
def test_draws_that_leave_nothing_to_chance_are_degenerate(act, words):
    assert words in degenerate(of_twins(Shortcut, torch.rand(12, 1, 32, 32), act))


def test_agreement_of_twins_is_the_correlation_of_each_score():
    outputs = torch.randn(3, 9, 2)
    expected = [
        [torch.corrcoef(torch.stack([outputs[t, :, k], outputs[t + 1, :, k]]))[0, 1] for k in range(2)]
        for t in range(2)
    ]
    torch.testing.assert_close(agreement_of_twins(outputs).float(), torch.tensor(expected))


def test_a_few_scores_that_agree_by_chance_say_nothing():
    rising = torch.arange(8.0)[None, :, None] * torch.arange(1.0, 5.0)[:, None, None]
    assert degenerate(rising) is None  # one score, three pairs
    assert degenerate(torch.cat([rising, rising], 2)) is not None
    assert degenerate(torch.randn(5, 2, 10)) is None  # two samples always rise or fall together
    assert degenerate(rising[:1]) is None


def test_a_signal_that_has_faded_is_no_degenerate_draw():
    assert degenerate(torch.randn(4, 1, 10).expand(4, 12, 10)) is None


def test_an_ordinary_residual_network_is_valid_with_its_own_initialisation():
    torch.manual_seed(5)
    result = quick(Shortcut().eval(), torch.rand(12, 1, 32, 32), target=torch.arange(12) % 10, reinitialize=Shortcut)
    assert "degenerate" not in result.validity


# ------------------------------------------------------------------------------------------------- controls


def test_the_positive_control_passes_and_the_gradient_is_a_method_like_any_other(few):
    result = quick(*few, "gradcam")
    assert result.valid, result.validity
    assert result.verdicts["output_pattern"].outcome is Outcome.PASS
    assert "output_pattern" in result.validity
    assert "gradient" not in result.validity
    assert not result.verdicts["gradient"].gated


class Wide(nn.Module):
    """A frozen look-up of the input does nearly all of the work."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 4)
        self.register_buffer("fixed", torch.randn(64, 4))

    def forward(self, x):
        return x.flatten(1) @ self.fixed + 1e-3 * self.head(x.flatten(1))


def test_a_model_that_hardly_uses_its_weights_does_not_pass_the_positive_control():
    result = quick(Wide().eval(), torch.rand(12, 1, 8, 8), target=torch.arange(12) % 4, constants=["fixed"])
    assert result.verdicts["output_pattern"].outcome is not Outcome.PASS
    assert not result.valid


def test_a_failing_positive_control_makes_the_run_invalid(few):
    class Half(nn.Module):
        """Its outputs keep half of what they were, whatever the weights."""

        def __init__(self, model, images):
            super().__init__()
            self.model = model
            self.register_buffer("kept", model(images).detach())

        def forward(self, x):
            return 0.02 * self.model(x) + self.kept[: len(x)]

    model, images = few
    result = quick(Half(model, images).eval(), images, target=torch.arange(12) % 10, constants=["kept"], trials=5)
    assert not result.valid
    assert "output_pattern" in result.validity or "did not change" in result.validity


# ------------------------------------------------------------------------------------------------- orders and steps


def test_a_single_step_and_other_orders_never_pass(few):
    for changes in ({"order": "full"}, {"max_steps": 1}, {"order": "bottom_up"}, {"order": "independent"}):
        result = quick(*few, ["gradient", "input_x_gradient"], **changes)
        assert result.verdicts["gradient"].outcome is Outcome.INCONCLUSIVE, changes
        assert "use order='cascading'" in result.verdicts["gradient"].reason
        assert not result.passed
        refused = Outcome.INCONCLUSIVE if changes.get("order") == "independent" else Outcome.FAIL
        assert result.verdicts["edge_detector"].outcome is refused, changes


def test_a_network_of_one_layer_is_judged_by_its_one_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    result = quick(model, torch.rand(16, 1, 12, 12), target=torch.arange(16) % 4, trials=5)
    assert len(result.units) == 1
    assert "never pass" not in result.verdicts["output_pattern"].reason


def test_max_steps_walks_some_of_the_steps_and_keeps_their_values(few):
    whole, sampled = quick(*few), quick(*few, max_steps=3)
    assert sampled.units == (whole.units[0], whole.units[2], whole.units[4])
    for name in ("gradient", "output_pattern"):
        torch.testing.assert_close(
            sampled.curves[name, "spearman"].values, whole.curves[name, "spearman"].values[:, [0, 2, 4]]
        )
    assert sampled.depth_weights == pytest.approx((0.3, 0.4, 0.3))
    assert sampled.coverage.share == 1.0
    assert sampled.settings["walked"] == [1, 3, 5]
    assert any("3 of 5 steps walked" in note for note in sampled.coverage.notes)


def test_the_index_of_a_result_is_that_of_its_curves_and_weights(few):
    result = quick(*few, max_steps=4)
    verdict = result.verdicts["gradient"]
    curve = result.curves["gradient", verdict.measure]
    found = sensitivity(
        curve.values,
        curve.floor,
        curve.ceiling,
        absolute=verdict.measure == "spearman_signed",
        weights=result.depth_weights,
    )
    assert (found.psi.value, found.psi.low) == pytest.approx((verdict.psi, verdict.psi_low))


class Idle(nn.Module):
    """A layer whose result is multiplied by zero."""

    def __init__(self):
        super().__init__()
        self.one, self.idle, self.head = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.one(x))
        return self.head((x + 0 * self.idle(x)).mean((2, 3)))


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("order", ["cascading", "bottom_up", "independent"])
def test_a_step_that_leaves_the_outputs_as_they_were_counts_for_nothing(order, engine):
    torch.manual_seed(0)
    result = quick(
        Idle().eval(), torch.rand(8, 1, 12, 12), target=torch.arange(8) % 4, order=order, engine=engine, controls=False
    )
    assert result.depth_weights == (0.5, 0.0, 0.5)
    assert any("stayed bitwise the same" in note and "idle" in note for note in result.coverage.notes)


# ------------------------------------------------------------------------------------------------- seeds and signal


def test_reproducibility_is_measured_beside_a_ceiling_of_one(few):
    result = quick(*few, {"smoothgrad": attribution.smoothgrad(n_samples=3), "gradient": "gradient"})
    assert result.reproducibility.keys() == {"smoothgrad", "random"}
    assert result.reproducibility["smoothgrad"].shape == (2, 12)
    assert 0.3 < float(result.reproducibility["smoothgrad"].mean()) < 0.999
    assert float(result.reproducibility["random"].mean().abs()) < 0.1
    assert all(bool((curve.ceiling == 1).all()) for curve in result.curves.values())


def test_a_sampling_method_is_unstable_with_few_samples_and_judged_with_many(few):
    def judged(samples):
        lime = attribution.lime(n_samples=samples)
        model, images = few
        return quick(model, images[:6], {"lime": lime}, trials=1, repeats=1, controls=False, max_steps=1)

    few_samples, many = judged(20), judged(400)
    assert "unstable: two runs of the method" in few_samples.verdicts["lime"].reason
    assert "unstable" not in many.verdicts["lime"].reason
    assert few_samples.reproducibility["lime"].mean() < 0.4 < 0.6 < many.reproducibility["lime"].mean()


def with_gradient(weight):
    """Noise that is drawn anew at every call, and a gradient of some weight."""
    plain = attribution.resolve("gradient")

    def attribute(model, inputs, target):
        found = plain.attribute(model, inputs, target)
        return torch.randn(found.shape) + weight * found / found.flatten(1).std(1)[:, None, None, None]

    return attribution.Method("mixed", attribute, stochastic=True, fresh=True)


@pytest.mark.parametrize(("weight", "found"), [(0.0, False), (3.0, True)])
def test_the_guard_refuses_noise_and_lets_mostly_gradient_through(few, weight, found):
    verdict = quick(*few, {"mixed": with_gradient(weight)}, controls=False).verdicts["mixed"]
    assert ("no signal" not in verdict.reason) is found


def test_the_guard_holds_its_level_on_noise():
    draw = torch.Generator().manual_seed(4)
    tables = (torch.randn(2, 9, 12, generator=draw) * 0.06 for _ in range(2000))
    wrong = sum(signal(both[0, :3], both[1]).found(0.05) for both in tables)
    assert wrong / 2000 < 0.06


# ------------------------------------------------------------------------------------------------- words


def test_maps_of_a_linear_model_have_a_sentence_of_their_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).eval()
    verdict = quick(model, torch.rand(12, 1, 8, 8)).verdicts["gradient"]
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "the same for every sample, as the gradient of a linear model is" in verdict.reason


@pytest.mark.parametrize(("count", "words"), [(1, "one sample has no other"), (2, "two samples are too few")])
def test_one_and_two_samples_are_told_what_is_missing(few, count, words):
    model, images = few
    verdict = quick(model, images[:count], target=torch.arange(count)).verdicts["gradient"]
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert words in verdict.reason


def test_a_map_of_one_value_is_told_as_that():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    verdict = quick(model, torch.randn(12, 1), target=torch.arange(12) % 3).verdicts["gradient"]
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "a map of one value" in verdict.reason


def test_one_predicted_class_is_told_with_what_to_do(few):
    class OneClass(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x) * 0.01 + F.one_hot(torch.full((len(x),), 3), 10)

    model, images = few
    verdict = quick(OneClass(model).eval(), images).verdicts["gradient"]
    assert "predicts class 3 for all 12 samples" in verdict.reason
    assert "target=" in verdict.reason
