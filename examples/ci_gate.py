"""A training program, as a build system runs it before a release; see github_workflow.yaml.

python examples/ci_gate.py fit --config examples/lightning_cli.yaml
"""

import lightning as L
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader

from lightning_sanity.cli.demo import DigitsClassifier, digits


class Digits(L.LightningDataModule):
    def setup(self, stage):
        self.training, self.validation = digits()

    def train_dataloader(self):
        return DataLoader(self.training, 64, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.validation, 256)


if __name__ == "__main__":
    LightningCLI(DigitsClassifier, Digits, seed_everything_default=0)
