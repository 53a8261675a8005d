"""What the forward pass computes beside the explained output changes nothing about it."""

import lightning.pytorch as pl
import pytest
import torch
from made_outputs import IMAGES, NETWORKS, Tasks, build
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity import SaliencySanityCallback, parameter_randomization_test
from lightning_sanity.explanation.targets import class_mask

QUICK = {"trials": 2, "repeats": 1, "controls": False, "pictures": False, "progress": False}
TARGET = torch.arange(6) % 3


def digit(model, images):
    return model(images)["digit"]


def tasks(others, **changes):
    given = {"methods": ("gradient", "gradcam", "smoothgrad"), "forward": digit, **QUICK, **changes}
    return parameter_randomization_test(build(Tasks, others), IMAGES, TARGET, **given)


def assert_same_walk(one, two):
    assert one.units == two.units
    assert set(one.curves) == set(two.curves)
    for key, curve in one.curves.items():
        torch.testing.assert_close(two.curves[key].values, curve.values, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(two.curves[key].floor, curve.floor, rtol=0, atol=0, equal_nan=True)
    for entry, other in zip(one.coverage.units, two.coverage.units, strict=True):
        assert entry == other
    assert two.coverage.share == 1


@pytest.mark.parametrize("granularity", ["layer", "block"])
@pytest.mark.parametrize("order", ["cascading", "bottom_up", "independent", "full"])
def test_curves_are_the_same_with_any_number_of_other_tasks(order, granularity):
    alone = tasks(0, order=order, granularity=granularity)
    for others in (1, 3, 8):
        assert_same_walk(alone, tasks(others, order=order, granularity=granularity))


@pytest.mark.parametrize("changes", [{"engine": "plain"}, {"max_steps": 2}, {"norm_stats": "recalibrate"}])
def test_curves_are_the_same_however_they_are_walked(changes):
    assert_same_walk(tasks(0, **changes), tasks(3, **changes))


@pytest.mark.parametrize("name", NETWORKS)
def test_curves_are_the_same_without_the_output_beside(name):
    make, inputs = NETWORKS[name]
    target = class_mask(1, torch.ones(6, 12, 12)) if name == "auxiliary loss" else TARGET
    results = [
        parameter_randomization_test(
            build(make, others), inputs, target, methods=("gradient", "input_x_gradient"), **QUICK
        )
        for others in (0, 1)
    ]
    assert_same_walk(*results)
    assert results[0].coverage.aside == ()
    assert results[1].coverage.aside != ()


def test_the_callback_measures_the_same_with_other_tasks(tmp_path):
    results = []
    for others in (0, 3):
        check = SaliencySanityCallback(
            "gradient", probe=IMAGES, trials=2, repeats=1, forward=digit, log_images=False, report=False, on_fail="warn"
        )
        trainer = pl.Trainer(
            callbacks=[check],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            default_root_dir=tmp_path / str(others),
        )
        trainer.validate(_Module(build(Tasks, others)), DataLoader(TensorDataset(IMAGES, TARGET), 6), verbose=False)
        results.append(check.result)
    assert_same_walk(*results)


class _Module(pl.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images)

    def validation_step(self, batch):
        return self(batch[0])["digit"].sum()


def test_what_is_not_explained_is_named_and_is_random_all_the_same():
    model, touched = build(Tasks, 2), {}

    def reset(module):
        for name, parameter in module.named_parameters(recurse=False):
            torch.nn.init.normal_(parameter)
            touched[name, tuple(parameter.shape)] = True

    result = parameter_randomization_test(
        model, IMAGES, TARGET, methods="gradient", forward=digit, reinitialize=reset, engine="plain", **QUICK
    )
    beside = {name for name, _ in model.named_parameters() if name.startswith("others.")}
    assert set(result.coverage.aside) == beside
    assert {("weight", (3, 8)), ("weight", (5, 8)), ("weight", (1, 5))} <= set(touched)
    assert result.coverage.unused == ()
    (note,) = [note for note in result.coverage.notes if "not for what is explained" in note]
    assert "others.0.0" in note
    assert "others.1" in note


@pytest.mark.parametrize("order", ["cascading", "bottom_up", "independent", "full"])
def test_coverage_has_an_entry_for_each_step_in_the_order_walked(order):
    result = tasks(1, order=order)
    assert tuple(entry.name for entry in result.coverage.units) == result.units
    depths = result.curves["gradient", "spearman"].values.shape[1]
    assert len(result.units) == depths
    covered = [name for entry in result.coverage.units for name in entry.parameters]
    explained = [name for name, _ in build(Tasks, 0).named_parameters()]
    assert sorted(covered) == sorted(explained)
    first = {"bottom_up": "trunk.first", "full": "all units"}.get(order, "digit")
    assert result.units[0] == first
