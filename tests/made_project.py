"""A project as people write it: ``python project.py fit --config config.yaml``."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split


class Digits(pl.LightningDataModule):
    """So many digits to train on, the others to validate."""

    def __init__(self, training: int = 1400, batch_size: int = 64):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        data = TensorDataset(images, torch.tensor(digits.target))
        sizes = [self.hparams.training, len(data) - self.hparams.training]
        self.training, self.validation = random_split(data, sizes, torch.Generator().manual_seed(0))

    def train_dataloader(self):
        return DataLoader(self.training, self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.validation, 256)


class Classifier(pl.LightningModule):
    """A small convolutional network."""

    def __init__(self, width: int = 16, lr: float = 0.003):
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(width * 16, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.hparams.lr)


if __name__ == "__main__":
    LightningCLI(Classifier, Digits)
