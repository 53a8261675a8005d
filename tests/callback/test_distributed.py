"""Several processes on the CPU: every rank gets one probe and logs one value, that of one process."""

import json

import lightning.pytorch as pl
import pytest
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity import SaliencySanityCallback, SanityResult
from lightning_sanity.cli import demo


def fit(folder, **changes):
    training, validation = demo.digits()
    small = TensorDataset(*(tensor[:768] for tensor in training.tensors))
    pl.seed_everything(3, verbose=False)
    callback = SaliencySanityCallback("gradient", probe=8, trials=2, repeats=1, max_steps=2, log_images=False)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=[callback],
        **changes,
    )
    trainer.fit(demo.DigitsClassifier(), DataLoader(small, 16), DataLoader(validation, 64))
    return trainer


@pytest.mark.filterwarnings("ignore:.*sync_dist")
@pytest.mark.filterwarnings("ignore:.*use_distributed_sampler|.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*number of training batches")
@pytest.mark.filterwarnings("ignore:saliency maps failed")
def test_two_processes_log_one_result_of_one_probe(tmp_path):
    two = fit(tmp_path / "two", devices=2, strategy="ddp_fork")
    one = fit(tmp_path / "one")
    results = [SanityResult.from_json(tmp_path / name / "sanity" / "latest.json") for name in ("two", "one")]
    assert results[0].probe_ids == results[1].probe_ids
    assert float(two.callback_metrics["sanity/gradient/psi"]) == pytest.approx(
        results[0].verdicts["gradient"].psi, abs=1e-6
    )
    assert one.callback_metrics.keys() == two.callback_metrics.keys()
    assert results[0].step == 24  # 768 images, 16 a batch, 2 processes


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Using `DistributedSampler`|saliency maps failed|.*sync_dist")
@pytest.mark.parametrize("devices", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes_finds_the_same_of_the_same_weights(tmp_path, digits_network, devices):
    model, images, labels = digits_network
    found, logged = [], []
    for number in (1, devices):
        callback = SaliencySanityCallback(
            ["gradient", "smoothgrad", "guided_backprop"], probe=8, trials=3, repeats=2, max_steps=3
        )
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=number,
            strategy="auto" if number == 1 else "ddp_fork",
            logger=False,
            enable_progress_bar=False,
            default_root_dir=tmp_path,
            callbacks=[callback],
        )
        trainer.validate(model, DataLoader(TensorDataset(images, labels), 100), verbose=False)
        found.append(json.loads((tmp_path / "sanity" / "latest.json").read_text()))
        logged.append({key: float(value) for key, value in trainer.callback_metrics.items() if "sanity" in key})
    for measured in (*found, *logged):
        for key in ("seconds", "created", "sanity/seconds"):
            measured.pop(key, None)
    assert found[0] == found[1]
    assert logged[0] == logged[1]
