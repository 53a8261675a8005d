"""A newcomer's first model, data and trainer: as small as they can be."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Small(pl.LightningModule):
    """Two linear layers that tell where a bright patch is."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("loss", self.training_step(batch, batch_idx))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.02)


def patches(count=64, batch=16):
    """Noise ``(N, 1, 8, 8)`` in which one quarter is bright: the class."""
    labels = torch.arange(count) % 4
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for place, label in enumerate(labels.tolist()):
        images[place, 0, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 1
    return DataLoader(TensorDataset(images, labels), batch)


def quick_trainer(folder, *callbacks, **changes):
    """Two epochs, quietly."""
    given = {
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**given, **changes})
