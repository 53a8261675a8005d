"""Networks that symbolic tracing cannot take apart."""

from types import SimpleNamespace

import torch
from made_walks import IMAGES
from torch import nn
from torch.nn import functional as F

SEQUENCES = torch.rand(5, 6, 4, generator=torch.Generator().manual_seed(5))


class Keywords(nn.Module):
    """Takes what it is given, returns an object that only ``forward=`` knows."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, **given):
        assert isinstance(given["image"], torch.Tensor)
        return SimpleNamespace(scores=self.head(F.relu(self.stem(given["image"])).mean((2, 3))))


class Shaped(nn.Module):
    """Goes by the image's size, and by the number of samples as a number."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.body = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        if x.shape[-1] > 8:
            x = F.max_pool2d(x, 2)
        x = self.body(x)
        return self.head(x.reshape(int(x.shape[0]), 8, len(x[0, 0].flatten())).relu_().mean(2))


class TimeMajor(nn.Module):
    """Samples lie second inside; the state is made for so many of them."""

    def __init__(self):
        super().__init__()
        self.inward, self.recurrent, self.head = nn.Linear(4, 6), nn.LSTM(6, 5, num_layers=2), nn.Linear(5, 4)

    def forward(self, x):
        state = torch.zeros(2, len(x), 5), x.new_zeros(2, len(x), 5)
        found, _ = self.recurrent(self.inward(x).transpose(0, 1), state)
        return self.head(found[-1])


class Scaled(nn.Module):
    """Holds a weight beside modules that hold theirs."""

    def __init__(self, channels):
        super().__init__()
        self.inner, self.scale = nn.Conv2d(channels, channels, 3, padding=1), nn.Parameter(torch.rand(channels, 2))

    def forward(self, given):
        x = given["x"]
        return {"x": x + F.relu(self.inner(x)) * self.scale.mean(1)[:, None, None], "size": x.shape[-1]}


class Nested(nn.Module):
    """Weights around weights, each used three times, handed on in dictionaries."""

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 6, 3), Scaled(6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(len(x.shape) - 1):
            x = self.block({"x": x})["x"]
        return self.head(x.amax((2, 3)))


class Attending(nn.Module):
    """A module that reads its child's weight, positions without rows, a token of the model's own."""

    def __init__(self):
        super().__init__()
        self.inward, self.positions = nn.Linear(4, 8), nn.Embedding(7, 8)
        self.token, self.attention = nn.Parameter(torch.randn(1, 1, 8)), nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.inward(x)], 1)
        x = (x + self.positions(torch.arange(7, device=x.device))).transpose(0, 1)
        return self.head(self.attention(x, x, x)[0][0])


class Halves(nn.Module):
    """Sends the batch through in two parts, whose rows are not those of two depths."""

    def __init__(self):
        super().__init__()
        self.body, self.inner, self.head = nn.Linear(432, 6), nn.Linear(6, 432), nn.Linear(432, 4)

    def forward(self, x):
        found = torch.cat([self.inner(self.body(part)) for part in x.flatten(1).chunk(2)])
        return self.head(found)


class Sized(Halves):
    """Cuts a batch beyond some size."""

    def forward(self, x):
        found = torch.cat([self.inner(self.body(part)) for part in x.flatten(1).split(8)])
        return self.head(found)


class Handing(nn.Module):
    """Can be traced, but a depth begins between two modules that hand on several values at once."""

    def __init__(self):
        super().__init__()
        self.below, self.above = nn.LSTM(4, 6, batch_first=True), nn.LSTM(6, 6, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        found, state = self.below(x)
        return self.head(self.above(found, state)[0][:, -1])


def by_key(model, image):
    return model(image=image).scores


UNTRACEABLE = {
    "keywords": (Keywords, IMAGES, by_key),
    "shapes": (Shaped, IMAGES),
    "time-major LSTM": (TimeMajor, SEQUENCES),
    "nested weights": (Nested, IMAGES),
    "attention": (Attending, SEQUENCES),
    "halves": (Halves, IMAGES),
}
