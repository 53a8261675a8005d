"""Trainers of the second package name, where it is installed."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity import SaliencySanityCallback
from lightning_sanity.cli import demo

pl = pytest.importorskip("pytorch_lightning")


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = demo.DigitsClassifier().features
        self.head = torch.nn.Linear(512, 10)

    def forward(self, images):
        return self.head(self.network(images).flatten(1))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


@pytest.mark.filterwarnings("ignore:saliency maps failed|.*number of training batches|Be aware that when using")
@pytest.mark.parametrize("own", [True, False])
def test_a_trainer_of_the_other_package_logs_monitors_and_restores(tmp_path, own):
    from lightning_sanity.pytorch_lightning import SaliencySanityCallback as Own

    training, validation = demo.digits()
    small = DataLoader(TensorDataset(*(tensor[:256] for tensor in training.tensors)), 64)
    kind = Own if own else SaliencySanityCallback
    given = {"probe": 8, "trials": 1, "repeats": 1, "max_steps": 2, "report": False, "log_images": False}
    checkpoint = pl.callbacks.ModelCheckpoint(tmp_path, monitor="sanity/gradient/psi", mode="max", filename="best")
    arguments = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    first = kind("gradient", **given)
    trainer = pl.Trainer(max_epochs=1, callbacks=[first, checkpoint], default_root_dir=tmp_path, **arguments)
    trainer.fit(Classifier(), small, DataLoader(validation, 397))
    assert first.result.step == 4
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)["callbacks"]
    state = next(value for key, value in saved.items() if "SaliencySanityCallback" in key)
    assert state["matches_measured"] is True
    second = kind("gradient", **given)
    trainer = pl.Trainer(callbacks=[second], default_root_dir=tmp_path, **arguments)
    (logged,) = trainer.validate(
        Classifier(), DataLoader(validation, 397), ckpt_path=tmp_path / "best.ckpt", verbose=False
    )
    assert logged["sanity/gradient/psi"] == pytest.approx(float(checkpoint.best_model_score), abs=1e-6)


@pytest.mark.filterwarnings("ignore:saliency maps failed")
def test_its_callback_may_be_given_bare(tmp_path):
    from lightning_sanity.pytorch_lightning import SaliencySanityCallback as Own

    trainer = pl.Trainer(callbacks=Own("gradient"), default_root_dir=tmp_path, logger=False)
    assert any(isinstance(one, Own) for one in trainer.callbacks)
