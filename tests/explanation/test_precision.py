"""Sixteen bits: what underflows or overflows in them is named with the way out, and in 32 bits nothing is."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity import Outcome, SaliencySanityCallback, data_randomization_test

WAY_OUT = 'precision="32"'
COUNTS = 30000  # of a 16-bit detector


class OnCounts(pl.LightningModule):
    """A trained network that takes images as counts, so that its gradients are small."""

    def __init__(self, trained, scale):
        super().__init__()
        self.trained, self.scale = copy.deepcopy(trained), scale

    def forward(self, inputs):
        return self.trained(inputs / COUNTS) * self.scale

    def validation_step(self, batch, batch_idx):
        self.log("score", self(batch[0]).float().mean())


def verdict_of(network, folder, trainers, scale=1.0, method="gradient", **changes):
    model, images, labels = network
    given = {"probe": 12, "trials": 3, "repeats": 1, "max_steps": 2, "log_images": False, "report": False}
    callback = SaliencySanityCallback({"method": method}, **{**given, **changes})
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(callbacks=[callback], default_root_dir=folder, precision=trainers, **quiet)
    loader = DataLoader(TensorDataset(images[:64] * COUNTS, labels[:64]), 64)
    (logged,) = trainer.validate(OnCounts(model, scale), loader, verbose=False)
    assert all(torch.tensor(value).isfinite() for key, value in logged.items() if key.startswith("sanity/"))
    return callback.result.verdicts["method"]


def constant(model, inputs, target):
    return torch.ones_like(inputs)


@pytest.mark.parametrize(
    ("scale", "what"),
    [
        (1e-4, "every map of the trained model is constant"),
        (2e-3, "every map was constant"),
        (1e5, "output holds NaN or infinity"),
    ],
    ids=["underflow", "mostly underflow", "overflow"],
)
def test_what_sixteen_bits_cannot_hold_is_inconclusive_and_float32_the_way_out(digits_network, tmp_path, scale, what):
    verdict = verdict_of(digits_network, tmp_path, "16-true", scale)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert what in verdict.reason
    assert WAY_OUT in verdict.reason


@pytest.mark.parametrize("scale", [1e-4, 1e5])
def test_the_way_out_leads_out(digits_network, tmp_path, scale):
    assert verdict_of(digits_network, tmp_path, "16-true", scale, precision="32").outcome is Outcome.PASS


@pytest.mark.parametrize(("trainers", "named"), [("bf16-mixed", True), ("32-true", False)])
def test_a_constant_map_is_blamed_on_precision_only_where_it_was_low(digits_network, tmp_path, trainers, named):
    verdict = verdict_of(digits_network, tmp_path, trainers, method=constant)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert (WAY_OUT in verdict.reason) is named


def test_a_method_without_sixteen_bit_arithmetic_says_so_with_the_way_out(digits_network, tmp_path):
    def unable(model, inputs, target):
        return torch.linalg.inv(inputs @ inputs.mT)

    verdict = verdict_of(digits_network, tmp_path, "16-true", method=unable)
    assert "Half" in verdict.reason
    assert WAY_OUT in verdict.reason


def test_the_label_test_names_the_way_out_too(digits_network):
    model, images, _ = digits_network
    pair = [copy.deepcopy(model).bfloat16() for _ in range(2)]
    torch.nn.init.normal_(pair[1].features[0].weight)
    given = {"methods": {"constant": constant}, "repeats": 1, "controls": False, "progress": False}
    result = data_randomization_test(*pair, images[:8].bfloat16(), **given)
    assert "model.float()" in result.verdicts["constant"].reason
