"""Where maps can differ from 0: outside a score's receptive field every model's map is 0, and nothing is compared."""

import pytest
import torch
from measuring.studied import Causal
from torch import nn

from lightning_sanity import parameter_randomization_test, targets
from lightning_sanity.attribution import resolve
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.explanation.reach import reach_of, too_narrow
from lightning_sanity.explanation.request import ask
from lightning_sanity.model.clone import Adapted

GRADIENT = resolve("gradient").attribute


def dense(width=3):
    """A score at every pixel, which sees ``2 width - 1`` pixels each way."""
    layers = [nn.Conv2d(1, 8, width, padding="same"), nn.ReLU(), nn.Conv2d(8, 8, width, padding="same"), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, 2, 1))


def asked(model, inputs, target=None):
    request = ask(model, inputs, target)
    face = model if request.forward is None else Adapted(model, request.forward)
    return Explanation(face.eval(), request.inputs, request.target, question=request.place)


def models(make, inputs, target=None, count=4):
    """The same batch, explained by models drawn one after the other."""
    for seed in range(count):
        torch.manual_seed(seed)
        model = make()
        classes = model(inputs).argmax(1) if target is None else target
        yield asked(model, inputs, classes)


@pytest.fixture
def forecaster():
    """A causal network that learned which of two series rises at the end."""
    torch.manual_seed(0)
    signals = torch.randn(64, 3, 36).cumsum(-1)
    labels = (signals[:, 0, -1] > signals[:, 0, -3]).long() + 2 * (signals[:, 1, -2] > signals[:, 1, -4]).long()
    model = Causal()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(signals), labels).backward()
        optimizer.step()
    return model, signals[:16]


def test_a_causal_network_is_reached_from_its_last_steps():
    found = reach_of(models(Causal, torch.randn(8, 3, 36)), GRADIENT)
    expected = torch.zeros(8, 1, 36, dtype=torch.bool)
    expected[..., -7:] = True
    assert torch.equal(found, expected)


def test_a_position_of_a_dense_output_is_reached_from_its_receptive_field():
    found = reach_of(models(dense, torch.randn(6, 1, 24, 24), lambda scores: scores[:, 1, 12, 9]), GRADIENT)
    expected = torch.zeros(6, 24, 24, dtype=torch.bool)
    expected[:, 10:15, 7:12] = True
    assert torch.equal(found, expected)


def test_each_sample_is_reached_from_what_it_is_asked_about():
    masks = torch.zeros(2, 24, 24)
    masks[0, 4, 4] = masks[1, 18, 20] = 1
    found = reach_of(models(dense, torch.randn(2, 1, 24, 24), targets.class_mask(1, masks)), GRADIENT)
    expected = torch.zeros(2, 24, 24, dtype=torch.bool)
    expected[0, 2:7, 2:7] = expected[1, 16:21, 18:23] = True
    assert torch.equal(found, expected)


def test_columns_that_a_table_network_never_reads_are_not_reached():
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, rows):
            return self.net(rows[:, :4])

    found = reach_of(models(First, torch.randn(8, 12)), GRADIENT)
    assert found.shape == (8, 1, 12)
    assert found[..., :4].all()
    assert not found[..., 4:].any()


def test_units_that_training_switched_off_hide_nothing():
    """What is 0 for the trained model alone can differ from 0: the next model's map there is another one."""

    def make():
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 3))
        with torch.no_grad():
            model[1].weight[:, 18:] *= torch.initial_seed() > 0  # the first model sees half of the input
        return model

    assert reach_of(models(make, torch.randn(8, 1, 6, 6), count=1), GRADIENT) is not None
    assert reach_of(models(make, torch.randn(8, 1, 6, 6), count=2), GRADIENT) is None


def test_a_black_background_is_reached_although_nothing_is_active_there():
    images = torch.zeros(8, 1, 16, 16)
    images[:, :, 6:9, 6:9] = torch.rand(8, 1, 3, 3)

    def make():
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        )

    assert reach_of(models(make, images, count=1), GRADIENT) is None


def test_a_border_that_strides_cut_off_leaves_maps_whole():
    def make():
        return nn.Sequential(nn.Conv2d(1, 8, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3))

    assert reach_of(models(make, torch.randn(8, 1, 17, 18)), GRADIENT) is None


def test_what_has_no_gradient_is_compared_as_a_whole():
    bits = torch.randint(0, 9, (4, 1, 8, 8))
    rounded = asked(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), bits, torch.zeros(4).long())
    assert reach_of([rounded], GRADIENT) is None


def test_models_are_drawn_only_while_they_matter():
    drawn = iter(models(Causal, torch.randn(4, 3, 6)))  # six steps, all of which are seen
    assert reach_of(drawn, GRADIENT) is None
    assert len(list(drawn)) == 3


def test_a_score_of_one_position_says_that_its_map_cannot_be_compared():
    result = parameter_randomization_test(
        dense(width=1), torch.randn(8, 1, 12, 12), lambda o: o[:, 1, 5, 5], methods="gradient", trials=2
    )
    assert "depends on 1 position of the input" in result.verdicts["gradient"].reason
    assert result.verdicts["gradient"].outcome.value == "INCONCLUSIVE"


def test_three_positions_can_be_ordered():
    assert too_narrow(None) is None
    assert too_narrow(torch.tensor([[[True, True, True, False]]])) is None
    assert "depends on 2 positions" in too_narrow(torch.tensor([[[True, True, True]], [[True, True, False]]]))


def test_a_forecast_from_the_last_step_passes(forecaster):
    model, signals = forecaster
    result = parameter_randomization_test(model, signals, methods=["gradient", "input_x_gradient"], trials=5)
    assert result.valid, result.validity
    assert result.verdicts["gradient"].passed, result.verdicts["gradient"].reason
    assert "maps are compared at 7 of 36 positions" in " ".join(result.notes)


@pytest.mark.parametrize("side", [12, 24])
def test_a_position_of_a_dense_output_gets_a_verdict(side):
    torch.manual_seed(0)
    model, images = dense(), torch.randn(16, 1, side, side)
    position = side // 2
    given = {"methods": ["gradient", "guided_backprop"], "trials": 5}
    result = parameter_randomization_test(model, images, lambda o: o[:, 1, position, position], **given)
    assert result.valid, result.validity
    assert result.verdicts["gradient"].passed, result.verdicts["gradient"].reason
    assert "maps are compared at 25 of" in " ".join(result.notes)


def test_small_maps_of_several_depths_are_compared_within_the_reach():
    """Shared walks compare the maps of all depths at once, each within the same mask."""
    torch.manual_seed(0)
    model, images = dense(), torch.randn(8, 1, 12, 12)
    given = {"methods": "gradient", "trials": 2, "controls": False}
    walked, plain = (
        parameter_randomization_test(model, images, lambda o: o[:, 1, 6, 6], engine=engine, **given)
        for engine in ("auto", "plain")
    )
    assert walked.settings["engine"]["gradient"] != "plain"
    one, two = (result.curves["gradient", "spearman"] for result in (walked, plain))
    assert torch.allclose(one.values, two.values, atol=1e-4)
    assert torch.allclose(one.floor, two.floor, atol=1e-4)


def test_looking_for_the_reach_leaves_the_trained_weights(forecaster):
    model, signals = forecaster
    found = []

    def watching(copied, inputs, target):
        found.append(copied.head.weight.detach().clone())
        return resolve("gradient")(copied, inputs, target)

    parameter_randomization_test(model, signals, methods={"watching": watching}, trials=1, controls=False)
    assert torch.equal(found[0], model.head.weight)
