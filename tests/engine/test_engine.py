"""Every network that re-initialisation is tested on gives the same result with the engine and without."""

import logging

import made_families
import pytest
import torch
from made_exotic import EXOTIC
from torch import nn

from lightning_sanity import parameter_randomization_test, targets
from lightning_sanity.explanation.dependence import in_one
from lightning_sanity.explanation.explainer import Explainer
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.model.clone import Adapted

UNEXPLAINED = {"embedding bag"}
"""Networks without a result: token ids have no gradient, and an ``EmbeddingBag`` gives no embedding per token."""
QUICK = ("resnet18", "squeezenet1_1", "shufflenet_v2_x0_5")
SLOW = ("inception_v3", "densenet121", "vit_b_32", "swin_t", "mobilenet_v3_small", "regnet_y_400mf")
CONTINUOUS = ("cosine", "pearson")
"""Ranks of a handful of features hide small differences; these do not."""


def result(model, inputs, engine, target=None, **options):
    target = torch.arange(len(inputs)) % 2 if target is None else target
    given = {"methods": "gradient", "trials": 1, "repeats": 1, "controls": False, "progress": False, "pictures": False}
    return parameter_randomization_test(model, inputs, target, engine=engine, **given | options)


def assert_equal_on_both_paths(model, inputs, caplog, **options):
    """The path that was taken, after every curve was found equal to the plain loop's."""
    with caplog.at_level(logging.DEBUG, "lightning_sanity"):
        fast = result(model, inputs, "auto", **options)
    slow = result(model, inputs, "plain", **options)
    assert fast.curves.keys() == slow.curves.keys() != set()
    assert any(bool(curve.values.isfinite().any()) for curve in fast.curves.values())
    for key, curve in fast.curves.items():
        for ours, theirs in ((curve.values, slow.curves[key].values), (curve.floor, slow.curves[key].floor)):
            assert torch.allclose(ours, theirs, atol=1e-5, equal_nan=True), key
    assert torch.allclose(fast.output_change.correlation, slow.output_change.correlation, atol=1e-5, equal_nan=True)
    return fast.engine["gradient"]


@pytest.mark.parametrize("name", [name for name in EXOTIC if name not in UNEXPLAINED])
@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated")
def test_exotic_networks_give_the_same_result_on_both_paths(name, caplog):
    make, inputs = EXOTIC[name]
    torch.manual_seed(0)
    path = assert_equal_on_both_paths(make().eval(), inputs, caplog, similarities=CONTINUOUS)
    assert path == "two_stream"
    assert not [record for record in caplog.records if "plain loop" in record.getMessage()]


TARGETS = {
    "a function": lambda outputs: outputs[:, 0].flatten(1).sum(1) if outputs.ndim == 4 else outputs.sum(1),
    "a class's pixels": targets.class_mask(0, torch.ones(2, 12, 12)),
}
"""Targets that look at what they are given before they use it."""


@pytest.mark.parametrize("name", TARGETS)
def test_targets_take_the_shared_walks(name, caplog):
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)).eval()
    images = torch.rand(2, 3, 12, 12)
    assert assert_equal_on_both_paths(model, images, caplog, target=TARGETS[name]) == "two_stream"


def test_questions_put_to_other_samples_are_walked_with_all_depths(monkeypatch):
    """Where each sample is asked about a region of its own, unrelated maps answer the same question."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)).eval()
    images, regions = torch.rand(5, 3, 12, 12), (torch.rand(5, 12, 12) > 0.5).float()
    asked, explained = targets.class_mask(0, regions), []
    methods = ["gradient", "guided_backprop", "input_x_gradient"]
    explain = Explainer.__call__
    monkeypatch.setattr(Explainer, "__call__", lambda *given: explained.append(given[1]) or explain(*given))

    def walked(engine, trials):
        explained.clear()
        found = result(model, images, engine, asked, **{"methods": methods, "trials": trials})
        return found, len(explained)

    (_, once), (shared, thrice), (plain, _) = walked("auto", 1), walked("auto", 3), walked("plain", 3)
    assert once == thrice
    for key, curve in shared.curves.items():
        assert torch.allclose(curve.floor, plain.curves[key].floor, atol=1e-5, equal_nan=True), key


@pytest.mark.parametrize("name", UNEXPLAINED)
def test_networks_without_a_result_say_why(name):
    make, inputs = EXOTIC[name]
    torch.manual_seed(0)
    verdict = result(make().eval(), inputs, "auto").verdicts["gradient"]
    assert "no gradient" in verdict.reason


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_torchvision_families_take_the_shared_walks(name, caplog):
    model, side = made_families.build(name)
    for parameter in model.parameters():  # some heads start at zero, which is no model
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    images = torch.rand(2, 3, side, side) * torch.tensor([1e3, -1e3]).reshape(
        2, 1, 1, 1
    )  # an untrained one hardly reacts
    assert assert_equal_on_both_paths(model, images, caplog, max_steps=2) == "two_stream"


@pytest.mark.parametrize("name", [name for name in EXOTIC if name not in UNEXPLAINED])
@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated")
def test_exotic_networks_take_their_samples_apart(name):
    make, inputs = EXOTIC[name]
    model = make().eval()
    what = Explanation(Adapted(model).eval(), inputs, None)
    assert not in_one(what, what.outputs())
