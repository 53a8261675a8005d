"""What the trained model's maps say before any weight is random."""

import pytest
import torch
from torch import nn

from lightning_sanity import data_randomization_test, parameter_randomization_test
from lightning_sanity.attribution import resolve
from lightning_sanity.explanation.explainer import Explainer
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.explanation.measurements import Track
from lightning_sanity.parameter_randomization.settings import Settings
from lightning_sanity.parameter_randomization.study import Study
from lightning_sanity.parameter_randomization.timing import clock
from lightning_sanity.parameter_randomization.trained_maps import TrainedModel
from lightning_sanity.resources.processes import Share
from lightning_sanity.resources.random_streams import isolated_rng
from lightning_sanity.similarity import resolve as similarity


def track_of(model, inputs, target, method):
    chosen = resolve(method)
    methods = {method: (chosen, chosen.attribute)}
    settings = Settings(2, 0, False, "keep", (), ())
    trained = TrainedModel(
        Study(model, {}, Explanation(model, inputs, target), methods, [similarity("spearman")], None),
        settings,
        Explainer(methods, 0),
        Share(),
    )
    track = Track()
    with isolated_rng(0, torch.device("cpu")):
        trained.share_passes(None, clock(torch.device("cpu")), None)
        trained.refer(method, track, clock(torch.device("cpu")))
    return track


SAME = torch.zeros(6, dtype=torch.long)
FEW = {"controls": False, "progress": False, "repeats": 2}


@pytest.mark.parametrize(
    ("build", "target", "method", "alike"),
    [
        (lambda: nn.Linear(8, 3), SAME, "gradient", True),
        (lambda: nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 3)), SAME, "gradient", True),
        (lambda: nn.Sequential(nn.Linear(8, 3), nn.Softmax(1)), SAME, "input_copy", False),
        (lambda: nn.Sequential(nn.Linear(8, 1), nn.Sigmoid()), None, "gradient", True),
        (lambda: nn.Linear(8, 3), torch.arange(6) % 3, "gradient", False),
        (lambda: nn.Linear(8, 3), SAME, "input_x_gradient", False),
        (lambda: nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)), SAME, "gradient", False),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(8, 3)), SAME, "input_copy", False),
    ],
)
def test_one_map_for_all_samples_is_told_from_maps_of_their_own(build, target, method, alike):
    inputs = torch.randn(6, 8)
    of_weights = parameter_randomization_test(build().eval(), inputs, target, methods=method, trials=2, **FEW)
    of_labels = data_randomization_test(build().eval(), build().eval(), inputs, target, methods=method, **FEW)
    for result in (of_weights, of_labels):
        assert ("the map is the same for every sample" in result.verdicts[method].reason) is alike


def test_maps_without_any_value_are_no_map_for_all():
    model = nn.Linear(8, 3).eval()
    nn.init.zeros_(model.weight)
    track = track_of(model, torch.randn(6, 8), SAME, "gradient")
    assert track.dead == 1
    result = parameter_randomization_test(model, torch.randn(6, 8), SAME, methods="gradient", trials=2, **FEW)
    assert "the same for every sample" not in result.verdicts["gradient"].reason
