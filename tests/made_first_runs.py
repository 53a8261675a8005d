"""A newcomer's first models and data: small, real, and soon trained."""

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_wine
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity.cli import demo


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


class Classifier(pl.LightningModule):
    """What every tutorial writes around a network, hyper-parameters saved."""

    def __init__(self, width=16, classes=10, learning_rate=2e-3):
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.net = self.network(width, classes)

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.learning_rate)


class Convolutional(Classifier):
    def network(self, width, classes):
        layers = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * width, classes))


class Residual(nn.Module):
    """Two convolutions beside a shortcut, which is strided and projected where the size changes."""

    def __init__(self, given, made, stride):
        super().__init__()
        self.first, self.second = nn.Conv2d(given, made, 3, stride, 1, bias=False), nn.Conv2d(made, made, 3, 1, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(made), nn.BatchNorm2d(made)])
        self.shortcut = nn.Conv2d(given, made, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, values):
        inner = F.relu(self.norms[0](self.first(values)))
        return F.relu(self.norms[1](self.second(inner)) + self.shortcut(values))


class ResNet(Classifier):
    def network(self, width, classes):
        stem = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        blocks = [Residual(width, width, 1), Residual(width, 2 * width, 2), Residual(2 * width, 2 * width, 1)]
        return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes))


class Patches(nn.Module):
    """A vision transformer: patches, a class token, positions, two layers."""

    def __init__(self, width, classes):
        super().__init__()
        self.embed = nn.Conv2d(1, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        patches = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], 1) + self.places
        return self.head(self.encoder(tokens)[:, 0])


class VisionTransformer(Classifier):
    def network(self, width, classes):
        return Patches(2 * width, classes)


class Depthwise(nn.Module):
    """A ConvNeXt block."""

    def __init__(self, width):
        super().__init__()
        self.mix, self.norm = nn.Conv2d(width, width, 5, padding=2, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 1e-1))

    def forward(self, values):
        inner = self.norm(self.mix(values).movedim(1, -1))
        return values + (self.scale * self.down(F.gelu(self.up(inner)))).movedim(-1, 1)


class ConvNeXt(Classifier):
    def network(self, width, classes):
        blocks = [nn.Conv2d(1, width, 2, 2), Depthwise(width), nn.Conv2d(width, 2 * width, 2, 2), Depthwise(2 * width)]
        return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes))


class Perceptron(Classifier):
    def network(self, width, classes):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(256, 4 * width), nn.ReLU(), nn.Linear(4 * width, 2 * width), nn.ReLU(),
            nn.Linear(2 * width, classes),
        )  # fmt: skip


class Flat(Perceptron):
    """The same for the thirteen columns of a table."""

    def network(self, width, classes):
        return nn.Sequential(nn.Linear(13, 2 * width), nn.ReLU(), nn.Linear(2 * width, classes))


class Recurrent(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.cells, self.head = nn.LSTM(1, width, batch_first=True), nn.Linear(width, classes)

    def forward(self, signals):
        return self.head(self.cells(signals.transpose(1, 2))[0].mean(1))


class LongShortTerm(Classifier):
    def network(self, width, classes):
        return Recurrent(width, classes)


class Signals(Classifier):
    def network(self, width, classes):
        layers = [nn.Conv1d(1, width, 5, padding=2), nn.ReLU(), nn.Conv1d(width, width, 5, 2), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, classes))


class Words(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.table = nn.Embedding(30, width)
        self.places = nn.Parameter(0.02 * torch.randn(1, 12, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, ids):
        return self.head(self.encoder(self.table(ids) + self.places).mean(1))


class Text(Classifier):
    def network(self, width, classes):
        return Words(2 * width, classes)


class Segmenter(Classifier):
    """Is a pixel ink? With a bottleneck and a skip, as U-Nets have."""

    def network(self, width, classes):
        return Bottleneck(width)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), (batch[0][:, 0] > 0.5).long())

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", (self(batch[0]).argmax(1) == (batch[0][:, 0] > 0.5)).float().mean())


class Bottleneck(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.down, self.inner = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.up, self.out = nn.ConvTranspose2d(2 * width, width, 2, 2), nn.Conv2d(2 * width, 2, 3, padding=1)

    def forward(self, images):
        skipped = F.relu(self.down(images))
        return self.out(torch.cat([skipped, F.relu(self.up(F.relu(self.inner(skipped))))], 1))


def digit_images():
    training, validation = demo.digits()
    return TensorDataset(*(tensor[:800] for tensor in training.tensors)), validation


def waves():
    """Noisy sines ``(N, 1, 48)`` of three frequencies."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    phase = 6.3 * torch.rand(600, 1, generator=rng)
    time = torch.linspace(0, 6.3, 48)
    signals = torch.sin((1.0 + 2 * labels[:, None]) * time + phase) + 0.2 * torch.randn(600, 48, generator=rng)
    return halves(signals[:, None], labels)


def sentences():
    """Token ids ``(N, 12)`` in which one of four words is the class."""
    rng = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(4, 30, (600, 12), generator=rng), torch.arange(600) % 4
    ids[torch.arange(600), torch.randint(0, 12, (600,), generator=rng)] = labels
    return halves(ids, labels)


def wines():
    """Thirteen standardised columns of 178 wines of three kinds."""
    values, labels = load_wine(return_X_y=True)
    values = torch.as_tensor((values - values.mean(0)) / values.std(0), dtype=torch.float32)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    return halves(values[order], torch.as_tensor(labels)[order])


def halves(values, labels):
    cut = 2 * len(values) // 3
    return TensorDataset(values[:cut], labels[:cut]), TensorDataset(values[cut:], labels[cut:])
