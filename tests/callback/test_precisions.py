"""Whatever precision a Trainer works in: training ends normally, and what is kept is float32."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity import SaliencySanityCallback, SanityResult, data_randomization_test, parameter_randomization_test
from lightning_sanity.cli import demo
from lightning_sanity.release.gating import gate
from lightning_sanity.release.policy import Policy

PRECISIONS = ("32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed")
KEPT = {torch.float32, torch.uint8, torch.int8}  # what a file can hold


class Labelled(demo.DigitsClassifier):
    """Without torchmetrics' accuracy, which takes no half precision on a CPU."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)  # Adam's second moments leave the range of float16


def tensors_of(held):
    if isinstance(held, torch.Tensor):
        yield held
    elif hasattr(held, "__dataclass_fields__"):
        yield from tensors_of([getattr(held, name) for name in held.__dataclass_fields__])
    elif isinstance(held, (list, tuple)):
        for each in held:
            yield from tensors_of(each)
    elif hasattr(held, "values") and callable(held.values):
        yield from tensors_of(list(held.values()))


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "saliency maps failed")
        warnings.filterwarnings("ignore", ".*number of training batches.*")
        warnings.filterwarnings("ignore", ".*You passed `Trainer.accelerator='cpu', precision='16-mixed'")
        yield


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_ends_and_the_result_can_be_read(tmp_path, precision):
    training, validation = demo.digits()
    measured = SaliencySanityCallback(
        ["gradient", "smoothgrad"], probe=8, trials=2, repeats=1, max_steps=2, diagnostics=("entropy",)
    )
    trainer = pl.Trainer(
        callbacks=[measured],
        max_epochs=1,
        precision=precision,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    small = TensorDataset(*(tensor[:128] for tensor in training.tensors))
    trainer.fit(Labelled(), DataLoader(small, 64), DataLoader(validation, 397))
    assert trainer.global_step == 2
    assert measured.result.verdicts["gradient"].psi > 0.3
    assert {tensor.dtype for tensor in tensors_of(measured.result)} <= KEPT
    read = SanityResult.from_json(next(tmp_path.rglob("latest.json")))
    assert read.verdicts["gradient"] == measured.result.verdicts["gradient"]
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_get_the_verdicts_of_full_precision_and_the_gate_reads_them(tmp_path, digits_network, precision):
    model, images, labels = digits_network
    same = Labelled()
    same.load_state_dict(model.state_dict())
    measured = SaliencySanityCallback(["gradient", "guided_backprop"], probe=8, trials=5, max_steps=2, log_images=False)
    trainer = pl.Trainer(
        callbacks=[measured],
        precision=precision,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.validate(same, DataLoader(TensorDataset(images[:64], labels[:64]), 64), verbose=False)
    result = measured.result
    assert result.verdicts["gradient"].outcome.value == "PASS", result.verdicts["gradient"].reason
    assert result.verdicts["guided_backprop"].outcome.value == "FAIL", result.verdicts["guided_backprop"].reason
    assert gate(tmp_path / "sanity", Policy(require=["gradient"])).exit_code == 0
    assert gate(tmp_path / "sanity").exit_code == 1
    assert {tensor.dtype for tensor in tensors_of(result)} <= KEPT


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float64], ids=str)
def default(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def test_the_default_type_of_the_caller_decides_no_number(digits_network, default):
    model, images, _ = digits_network
    given = {"methods": ("gradient", "guided_backprop"), "trials": 2, "max_steps": 2, "progress": False}
    here = parameter_randomization_test(model, images[:8], **given)
    torch.set_default_dtype(torch.float32)
    there = parameter_randomization_test(model, images[:8], **given)
    assert {tensor.dtype for tensor in tensors_of(here)} <= KEPT
    assert here.curves.keys() == there.curves.keys()
    for one, other in zip(tensors_of(here.curves), tensors_of(there.curves), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert here.verdicts["gradient"] == there.verdicts["gradient"]


def test_the_label_test_keeps_float32_under_any_default_type(digits_network, default):
    model, images, _ = digits_network
    other = demo.DigitsClassifier().float().eval()
    given = {"methods": ("gradient", "smoothgrad"), "repeats": 1, "controls": False, "progress": False}
    result = data_randomization_test(model, other, images[:8], **given)
    assert {tensor.dtype for tensor in tensors_of(result)} <= KEPT
