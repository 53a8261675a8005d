"""First models as tutorials write them: small, real, soon trained, around every common kind of network.

Each is a LightningModule with saved hyper-parameters whose ``network`` builds what it calls.
"""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.densenet import DenseNet
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.resnet import BasicBlock, ResNet


class Classifier(pl.LightningModule):
    """What every tutorial writes around a network, hyper-parameters saved."""

    def __init__(self, width=16, classes=10, channels=1, learning_rate=2e-3):
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.net = self.network(width, classes, channels)

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.learning_rate)


class Convolutional(Classifier):
    def network(self, width, classes, channels):
        layers = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * width, classes))


class VGG(Classifier):
    """Batch normalisation, rectifiers in place, dropout before the head."""

    def network(self, width, classes, channels):
        layers = []
        for given, made in ((channels, width), (width, width), (width, 2 * width), (2 * width, 2 * width)):
            layers += [nn.Conv2d(given, made, 3, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU(inplace=True)]
            layers += [nn.MaxPool2d(2)] if given == made else []
        head = [nn.Flatten(), nn.Linear(32 * width, 64), nn.ReLU(inplace=True), nn.Dropout(0.5)]
        return nn.Sequential(*layers, *head, nn.Linear(64, classes))


class GroupNormed(Classifier):
    def network(self, width, classes, channels):
        layers = [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(4, width), nn.SiLU()]
        layers += [nn.Conv2d(width, 2 * width, 3, 2, 1), nn.GroupNorm(4, 2 * width), nn.SiLU()]
        layers += [nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.GroupNorm(4, 2 * width), nn.SiLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, classes))


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


class StridedResNet(Classifier):
    def network(self, width, classes, channels):
        stem = [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        blocks = [Residual(width, width, 1), Residual(width, 2 * width, 2), Residual(2 * width, 2 * width, 1)]
        return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes))


class TorchvisionResNet(Classifier):
    """One block per stage, its first two strides taken out as for CIFAR."""

    def network(self, width, classes, channels):
        net = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=classes)
        net.conv1, net.maxpool = nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.Identity()
        return net


class MobileNet(Classifier):
    """Inverted residuals, depthwise convolutions, ReLU6."""

    def network(self, width, classes, channels):
        rows = [[1, width, 1, 1], [4, width, 2, 1], [4, 2 * width, 1, 2]]
        net = MobileNetV2(classes, 1.0, rows, dropout=0.1)
        net.features[0][0] = nn.Conv2d(channels, 32, 3, 1, 1, bias=False)
        return net


class DenselyConnected(Classifier):
    def network(self, width, classes, channels):
        net = DenseNet(8, (2, 2), width, bn_size=2, num_classes=classes)
        net.features.conv0, net.features.pool0 = nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.Identity()
        return net


class Patches(nn.Module):
    """A vision transformer: patches, a class token, positions, two layers."""

    def __init__(self, width, classes, channels):
        super().__init__()
        self.embed = nn.Conv2d(channels, width, 4, 4)
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
    def network(self, width, classes, channels):
        return Patches(2 * width, classes, channels)


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
    def network(self, width, classes, channels):
        blocks = [nn.Conv2d(channels, width, 2, 2), Depthwise(width), nn.Conv2d(width, 2 * width, 2, 2)]
        pooled = [Depthwise(2 * width), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*blocks, *pooled, nn.Linear(2 * width, classes))


class Perceptron(Classifier):
    def network(self, width, classes, channels):
        layers = [nn.Flatten(), nn.Linear(256 * channels, 4 * width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(4 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, classes))


class Experts(nn.Module):
    """Three perceptrons, weighed by a fourth."""

    def __init__(self, width, classes):
        super().__init__()
        self.gate = nn.Linear(256, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(256, 2 * width), nn.ReLU(), nn.Linear(2 * width, classes)) for _ in range(3)
        )

    def forward(self, images):
        flat = images.flatten(1)
        scores = torch.stack([expert(flat) for expert in self.experts], -1)
        return (scores * self.gate(flat).softmax(1)[:, None]).sum(-1)


class Mixture(Classifier):
    def network(self, width, classes, channels):
        return Experts(width, classes)


class Autoencoder(Classifier):
    """A bottleneck that must also draw its input again; only the scores are what a call returns."""

    def network(self, width, classes, channels):
        self.decoder = nn.Sequential(nn.Linear(2 * width, 64), nn.ReLU(), nn.Linear(64, 256))
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 2 * width), nn.ReLU())
        return nn.Sequential(self.encoder, nn.Linear(2 * width, classes))

    def training_step(self, batch, batch_idx):
        drawn = self.decoder(self.encoder(batch[0]))
        return super().training_step(batch, batch_idx) + F.mse_loss(drawn, batch[0].flatten(1))


class SingleLogit(Convolutional):
    """Is the digit odd? One number per image."""

    def network(self, width, classes, channels):
        return super().network(width, 1, channels)

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(self(batch[0])[:, 0], (batch[1] % 2).float())

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", ((self(batch[0])[:, 0] > 0) == (batch[1] % 2 > 0)).float().mean())


class MultiLabel(Convolutional):
    """Odd, at least five, with a loop: each yes or no."""

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", ((self(batch[0]) > 0) == (batch[1] > 0.5)).float().mean())


class TwoHeads(Classifier):
    """Which digit, and is it odd? A tuple of both."""

    def network(self, width, classes, channels):
        self.digit, self.parity = nn.Linear(2 * width, classes), nn.Linear(2 * width, 2)
        layers = [nn.Conv2d(channels, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images):
        features = self.net(images)
        return self.digit(features), self.parity(features)

    def training_step(self, batch, batch_idx):
        digit, parity = self(batch[0])
        return F.cross_entropy(digit, batch[1]) + F.cross_entropy(parity, batch[1] % 2)

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", (self(batch[0])[0].argmax(1) == batch[1]).float().mean())


class Bottleneck(nn.Module):
    """A U-Net of one level."""

    def __init__(self, width, channels):
        super().__init__()
        self.down, self.inner = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.up, self.out = nn.ConvTranspose2d(2 * width, width, 2, 2), nn.Conv2d(2 * width, 2, 3, padding=1)

    def forward(self, images):
        skipped = F.relu(self.down(images))
        return self.out(torch.cat([skipped, F.relu(self.up(F.relu(self.inner(skipped))))], 1))


class Segmenter(Classifier):
    """Is a pixel ink? With a bottleneck and a skip, as U-Nets have."""

    def network(self, width, classes, channels):
        return Bottleneck(width, channels)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), (batch[0][:, 0] > 0.5).long())

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", (self(batch[0]).argmax(1) == (batch[0][:, 0] > 0.5)).float().mean())


class Flat(Classifier):
    """A perceptron for the thirteen columns of a table."""

    def network(self, width, classes, channels):
        return nn.Sequential(nn.Linear(13, 2 * width), nn.ReLU(), nn.Linear(2 * width, classes))


class Beside(nn.Module):
    """A linear path beside a deep one."""

    def __init__(self, columns, width, classes):
        super().__init__()
        self.wide = nn.Linear(columns, classes)
        self.deep = nn.Sequential(
            nn.Linear(columns, 2 * width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(2 * width, width)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, values):
        return self.wide(values) + self.head(F.relu(self.deep(values)))


class WideAndDeep(Classifier):
    def network(self, width, classes, channels):
        return Beside(13, width, classes)


class Regression(Classifier):
    """How far a disease will have come in a year, from ten columns."""

    def network(self, width, classes, channels):
        return nn.Sequential(nn.Linear(10, 2 * width), nn.ReLU(), nn.Linear(2 * width, 1))

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch[0])[:, 0], batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", 1 - F.mse_loss(self(batch[0])[:, 0], batch[1]) / batch[1].var())  # share explained


class Recurrent(nn.Module):
    """Reads ``(N, C, T)`` step by step; the mean of what it remembers decides, or the last."""

    def __init__(self, cells, classes, last):
        super().__init__()
        self.cells, self.head, self.last = cells, nn.Linear(cells.hidden_size, classes), last

    def forward(self, signals):
        outputs, _ = self.cells(signals.transpose(1, 2))
        return self.head(outputs[:, -1] if self.last else outputs.mean(1))


class LongShortTerm(Classifier):
    def network(self, width, classes, channels):
        return Recurrent(nn.LSTM(channels, width, batch_first=True), classes, last=False)


class Gated(Classifier):
    """Two layers of gated units."""

    def network(self, width, classes, channels):
        return Recurrent(nn.GRU(channels, 2 * width, 2, batch_first=True), classes, last=True)


class Signals(Classifier):
    def network(self, width, classes, channels):
        layers = [nn.Conv1d(channels, width, 5, padding=2), nn.ReLU(), nn.Conv1d(width, width, 5, 2), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, classes))


class Causal(nn.Module):
    """A block of a temporal convolutional network: dilated, weights normalised, nothing from the future."""

    def __init__(self, given, made, dilation):
        super().__init__()
        self.reach = 2 * dilation
        self.mix = nn.utils.parametrizations.weight_norm(nn.Conv1d(given, made, 3, dilation=dilation))
        self.shortcut = nn.Conv1d(given, made, 1) if given != made else nn.Identity()

    def forward(self, signals):
        return F.relu(F.relu(self.mix(F.pad(signals, (self.reach, 0)))) + self.shortcut(signals))


class Temporal(Classifier):
    def network(self, width, classes, channels):
        blocks = [Causal(channels, width, 1), Causal(width, width, 2), Causal(width, width, 4)]
        return nn.Sequential(*blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, classes))


class Words(nn.Module):
    """A transformer over token ids."""

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
    def network(self, width, classes, channels):
        return Words(2 * width, classes)


class Phrases(nn.Module):
    """Windows of three words; the strongest match of each kind decides. Word 0 fills up."""

    def __init__(self, words, width, classes):
        super().__init__()
        self.table, self.mix = nn.Embedding(words, width, padding_idx=0), nn.Conv1d(width, 2 * width, 3, padding=1)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, ids):
        return self.head(F.relu(self.mix(self.table(ids).transpose(1, 2))).amax(2))


class TextConvolutional(Classifier):
    def network(self, width, classes, channels):
        return Phrases(2000, width, classes)
