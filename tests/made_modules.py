"""Models of thirty kinds that people train, save, ship or write by mistake; each ``(model, inputs)``."""

import threading
import warnings

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

IMAGES = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """What all of them compute."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def features(self, x):
        return F.relu(self.norm(self.conv(x))).mean((2, 3))

    def forward(self, x):
        return 4 * self.head(self.features(x))


def net():
    torch.manual_seed(1)
    return Net().eval()


def quietly(act):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return act()


class _Around(nn.Module):
    def __init__(self, **kept):
        super().__init__()
        self.net = net()
        for name, value in kept.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.net(x)


def around(function, **kept):
    """A module that holds the network and calls it as the function does."""
    made = _Around(**kept)
    kind = type("Around", (_Around,), {"forward": lambda self, *inputs: function(self, *inputs)})
    made.__class__ = kind
    return made.eval()


def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).eval()


def initialized_lazily():
    torch.manual_seed(1)
    made = lazy()
    made(IMAGES)
    return made


def quantized():
    return quietly(lambda: torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8))


def with_graph(self, x):
    scores = self.net(x)
    self.outputs.append(scores.sum())
    self.latest = {"scores": [scores], "pair": (scores, 1)}
    return scores


def normalizing_in_place(self, x):
    x.sub_(0.3).div_(0.5)
    return self.net(x)


def without_gradient(self, x):
    with torch.no_grad():
        features = self.net.features(x)
    return self.net.head(features)


def through_numpy(self, x):
    return self.net(torch.from_numpy(x.detach().cpu().numpy() * 2))


def frozen():
    made = net()
    made.requires_grad_(False)
    return made


def pruned():
    made = net()
    prune.l1_unstructured(made.conv, "weight", 0.5)
    return made


def parametrized():
    made = net()
    parametrizations.weight_norm(made.head)
    return made


def tied():
    made = net()
    made.other = made.head
    return made


OTHER_WEIGHTS = {
    "pruned weights",
    "normalised weights",
    "one score (N,)",
    "a lazy module after its first pass",
    "normalisation in place",
    "a list of two tensors",
    "uint8 images",
}
"""Kinds that compute something else than the plain module."""
WORKS = {
    "a plain module": lambda: (net(), IMAGES),
    "a compiled module": lambda: (torch.compile(net(), backend="eager"), IMAGES),
    "a lazy module after its first pass": lambda: (initialized_lazily(), IMAGES),
    "frozen parameters": lambda: (frozen(), IMAGES),
    "pruned weights": lambda: (pruned(), IMAGES),
    "normalised weights": lambda: (parametrized(), IMAGES),
    "a module under two names": lambda: (tied(), IMAGES),
    "left in training mode": lambda: (net().train(), IMAGES),
    "(loss, logits)": lambda: (around(lambda self, x: (self.net(x).logsumexp(1).mean(), self.net(x))), IMAGES),
    "a dictionary of outputs": lambda: (around(lambda self, x: {"logits": self.net(x), "size": 3}), IMAGES),
    "one score (N,)": lambda: (around(lambda self, x: self.net(x)[:, 0]), IMAGES),
    "graph tensors in lists and dictionaries": lambda: (around(with_graph, outputs=[]), IMAGES),
    "normalisation in place": lambda: (around(normalizing_in_place), IMAGES),
    "float64 images": lambda: (net(), IMAGES.double()),
    "a float64 model": lambda: (net().double(), IMAGES.double()),
    "float32 images, a float64 model": lambda: (net().double(), IMAGES),
    "uint8 images": lambda: (around(lambda self, x: self.net(x.float() / 255)), (IMAGES * 255).byte()),
    "NumPy images": lambda: (net(), IMAGES.numpy()),
    "images in channels-last memory": lambda: (net(), IMAGES.to(memory_format=torch.channels_last)),
    "a slice of images": lambda: (net(), IMAGES.repeat_interleave(2, 0)[::2]),
    "a list of images": lambda: (around(lambda self, x: self.net(torch.stack(list(x)))), list(IMAGES)),
    "a list of two tensors": lambda: (around(lambda self, x: self.net(x[0] + x[1])), ([IMAGES, IMAGES],)),
    "data parallel": lambda: (nn.DataParallel(net()), IMAGES),
}
REFUSED = {
    "scripted": (lambda: (quietly(lambda: torch.jit.script(net())), IMAGES), "made from"),
    "traced": (lambda: (quietly(lambda: torch.jit.trace(net(), IMAGES)), IMAGES), "made from"),
    "frozen script": (lambda: (quietly(lambda: torch.jit.freeze(torch.jit.script(net()))), IMAGES), "made from"),
    "exported": (lambda: (torch.export.export(net(), (IMAGES,)).module(), IMAGES), "made from"),
    "an exported program": (lambda: (torch.export.export(net(), (IMAGES,)), IMAGES), "made from"),
    "a lazy module before its first pass": (lambda: (lazy(), IMAGES), "lazy"),
    "packed int8 weights": (lambda: (quantized(), IMAGES), "test the float model"),
    "a backbone under no_grad": (lambda: (around(without_gradient), IMAGES), "No gradient reaches the input"),
    "detached features": (lambda: (around(lambda s, x: s.net.head(s.net.features(x).detach())), IMAGES), "no gradient"),
    "through NumPy": (lambda: (around(through_numpy), IMAGES), "nothing to re-initialise"),
    "0-d": (lambda: (around(lambda self, x: self.net(x).sum()), IMAGES), "one score or one row"),
    "a lock": (lambda: (around(lambda self, x: self.net(x), lock=threading.Lock()), IMAGES), "lock"),
    "random in eval mode": (lambda: (around(lambda s, x: s.net(x + torch.rand_like(x))), IMAGES), "random in eval"),
    "one image": (lambda: (net(), IMAGES[:1]), "one sample"),
    "no parameters": (lambda: (nn.Sequential(nn.Flatten(), nn.Softmax(1)), IMAGES), "re-initialise"),
    "text for images": (lambda: (net(), ["a", "b"]), "tensor"),
    "uint8 images, a float32 model": (lambda: (net(), (IMAGES * 255).byte()), r"inputs.float\(\) / 255"),
    "images of two sizes": (lambda: (net(), [IMAGES[0], IMAGES[1, :, 1:]]), "crop, resize or pad"),
    "a function": (lambda: (net().forward, IMAGES), "torch.nn.Module"),
}
