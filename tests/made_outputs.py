"""Networks with outputs beside the one that is explained; the explained part has the same weights with and without."""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.segmentation.fcn import FCN, FCNHead

from lightning_sanity.resources.random_streams import generator, isolated_rng

IMAGES = torch.rand(6, 1, 12, 12, generator=generator("images of several outputs"))
IDS = torch.randint(9, (6, 7), generator=generator("ids of several outputs"))


class Trunk(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3)

    def forward(self, x):
        return F.relu(self.second(F.relu(self.norm(self.first(x)))))


class Tasks(nn.Module):
    """Some more tasks, one of them with two layers and a normalisation, computed before and after the explained one."""

    def __init__(self, others):
        super().__init__()
        self.trunk, self.digit = Trunk(), nn.Linear(8, 4)
        self.others = nn.ModuleList(
            nn.Linear(8, 3) if k else nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1))
            for k in range(others)
        )

    def forward(self, x):
        features = self.trunk(x).mean((2, 3))
        before = {f"task{k}": head(features) for k, head in enumerate(self.others) if k % 2}
        after = {f"task{k}": head(features) for k, head in enumerate(self.others) if not k % 2}
        return {**before, "digit": self.digit(features), **after}


class Reconstructing(nn.Module):
    """(logits, reconstruction)."""

    def __init__(self, others):
        super().__init__()
        self.trunk, self.head = Trunk(), nn.Linear(8, 4)
        self.decoder = nn.ConvTranspose2d(8, 1, 5) if others else None

    def forward(self, x):
        maps = self.trunk(x)
        scores = self.head(maps.mean((2, 3)))
        return (scores, self.decoder(maps)) if self.decoder is not None else scores


class Projecting(nn.Module):
    """{projection, logits}."""

    def __init__(self, others):
        super().__init__()
        self.trunk, self.head = Trunk(), nn.Linear(8, 4)
        self.projection = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)) if others else None

    def forward(self, x):
        features = self.trunk(x).mean((2, 3))
        beside = {} if self.projection is None else {"projection": self.projection(features)}
        return {**beside, "logits": self.head(features)}


class ActorCritic(nn.Module):
    """(policy, value): two small networks on one torso."""

    def __init__(self, others):
        super().__init__()
        self.torso, self.actor = Trunk(), nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
        self.critic = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)) if others else None

    def forward(self, x):
        features = self.torso(x).mean((2, 3))
        if self.critic is None:
            return self.actor(features)
        value = self.critic(features)
        return self.actor(features), value


class _Backbone(nn.Module):
    def __init__(self, others):
        super().__init__()
        self.low, self.high, self.others = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1), others

    def forward(self, x):
        low = F.relu(self.low(x))
        high = F.relu(self.high(low))
        return {"out": high, "aux": low} if self.others else {"out": high}


def fully_convolutional(others):
    """torchvision's FCN with its auxiliary loss."""
    head = FCNHead(12, 3)
    return FCN(_Backbone(others), head, FCNHead(8, 3) if others else None)


class SegmentingClassifier(nn.Module):
    """A U-Net whose bottleneck also gives a class; the class is explained."""

    def __init__(self, others):
        super().__init__()
        self.down, self.deep, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1), nn.Linear(8, 4)
        self.up, self.mask = (nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(12, 1, 1)) if others else (None, None)

    def forward(self, x):
        skip = F.relu(self.down(x))
        deep = F.relu(self.deep(F.max_pool2d(skip, 2)))
        scores = self.head(deep.mean((2, 3)))
        if self.up is None:
            return {"logits": scores}
        return {"mask": self.mask(torch.cat([self.up(deep), skip], 1)), "logits": scores}


class Pooling(nn.Module):
    """A text encoder with a pooler that a classifier of mean states does not use."""

    def __init__(self, others):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.embedding, self.position = nn.Embedding(9, 8), nn.Embedding(7, 8)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, 3)
        self.pooler = nn.Linear(8, 8) if others else None

    def forward(self, ids):
        states = self.encoder(self.embedding(ids) + self.position(torch.arange(ids.shape[1])))
        beside = () if self.pooler is None else (torch.tanh(self.pooler(states[:, 0])),)
        return (self.head(states.mean(1)), *beside)


NETWORKS = {
    "reconstruction": (Reconstructing, IMAGES),
    "projection": (Projecting, IMAGES),
    "critic": (ActorCritic, IMAGES),
    "auxiliary loss": (fully_convolutional, IMAGES),
    "mask": (SegmentingClassifier, IMAGES),
    "pooler": (Pooling, IDS),
}


def build(make, others):
    """With so many outputs beside the explained one; what explains has the same weights for any number."""
    with isolated_rng(0):
        explained = make(0).eval()
        for module in explained.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean)
        made = make(others).eval()
    made.load_state_dict(explained.state_dict(), strict=False)
    return made
