"""Small networks of many kinds, with the steps in which they become random written down by hand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from made_hidden import ByAttribute, experts
from made_mixing import WAYS, Mixing
from made_paths import AttentionPooling, Branches, Flat, OwnRecurrent, RankOne
from torch import nn
from torch.nn import functional as F

SAMPLES = 3


@dataclass(frozen=True)
class Kind:
    """A network and what is right of it.

    Attributes:
        build: Makes it.
        shape: Of one sample.
        steps: From the output to the input, as ``reference_walk.steps_of`` reads them.
        channel: The axis that maps are summed over, if any.
        scores: ``(model, explained input) -> (N, classes)``.
        options: What the test is told.
        given: ``value -> inputs`` where the test is given more than the explained ones.
        picture: Whether maps are images of at least 7 pixels a side.
        background: Whether most of an input is zero.
        blocks: Steps of blocks.
        listed: Names or expressions, and the steps that they make.
        aside: Units that become random with the first step and are none.
        layer: Whose output Grad-CAM weighs.
        one: Whether there is one score, and no class.
        reach: The part of a map on which the score depends.
        samples: How many are explained.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    steps: list[str]
    channel: int | None = None
    scores: Callable[..., Any] = lambda model, value: model(value)
    options: Mapping[str, Any] = field(default_factory=dict)
    given: Callable[[Any], Any] = lambda value: value
    picture: bool = False
    background: bool = False
    blocks: list[str] | None = None
    listed: tuple[list[str], list[str]] | None = None
    aside: tuple[str, ...] = ()
    layer: str | None = None
    one: bool = False
    reach: Any = ...
    samples: int = SAMPLES


def of(run, **modules):
    """A network of named modules and parameters and how it runs them."""

    class Made(nn.Module):
        def __init__(self):
            super().__init__()
            for name, module in modules.items():
                setattr(self, name, module() if callable(module) and not isinstance(module, nn.Module) else module)

        def forward(self, *inputs, **named):
            return run(self, *inputs, **named)

    return Made()


def mlp(*norm):
    return nn.Sequential(nn.Linear(6, 8), *norm, nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3))


def drawn(norm):
    """A normalisation as training may leave it, statistics included."""
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.add_(torch.rand_like(tensor))
    return norm


def cnn(channels=2, **options):
    return nn.Sequential(
        nn.Conv2d(channels, 5, 3, padding=1, **options),
        drawn(nn.BatchNorm2d(5)),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def recurrent(kind, time=1, turn=False, **options):
    both = 2 if options.get("bidirectional") else 1
    return of(
        lambda m, x: m.head(m.body(x.transpose(1, 2) if turn else x)[0].mean(time)),
        body=kind(4, 5, batch_first=True, **options),
        head=nn.Linear(5 * both, 3),
    )


def cell(m, x):
    state = x.new_zeros(len(x), 5), x.new_zeros(len(x), 5)
    for t in range(x.shape[1]):
        state = m.cell(x[:, t], state)
    return m.head(state[0])


def residual(m, x):
    x = F.relu(m.stem(x))
    x = F.relu(m.skip(x) + m.norm2(m.conv2(F.relu(m.norm1(m.conv1(x))))))
    return m.head(x.mean((2, 3)))


def vit(m, x):
    x = m.patches(x).flatten(2).transpose(1, 2)
    x = torch.cat([m.token.expand(len(x), -1, -1), x], 1) + m.position
    return m.head(m.layer(x)[:, 0])


def separable(m, x):
    return m.head(F.gelu(m.point(F.relu(m.depth(F.relu(m.stem(x)))))).mean((2, 3)))


def convnext(m, x):
    x = m.stem(x)
    y = F.layer_norm(m.depth(x).movedim(1, 3), (4,), m.norm_weight, m.norm_bias)
    return m.head((x + (m.down(F.gelu(m.up(y))) * m.scale).movedim(3, 1)).mean((2, 3)))


def graph(m, x):
    near = torch.linspace(0, 1, 49, dtype=x.dtype).reshape(7, 7).sin().softmax(1)
    return m.out(torch.tanh(m.second(near @ torch.tanh(m.first(near @ x))))).mean(1)


def film(m, x):
    return m.head(F.relu(m.frame(x.flatten(0, 1))).mean((2, 3)).unflatten(0, x.shape[:2]).mean(1))


def unet(m, x):
    down = torch.tanh(m.down(x))
    return m.out(torch.cat([x, torch.tanh(m.up(torch.tanh(m.deep(down))))], 1))


def heads(m, x):
    hidden = torch.tanh(m.body(x))
    return {"site": m.other(hidden), "logits": m.head(hidden)}


def query_key_value(m, x):
    weights = (m.query(x) @ m.key(x).transpose(1, 2) / 2).softmax(2)
    return m.head(torch.tanh(m.out(weights @ m.value(x))).mean(1))


def first_score(model, value):
    return model(value)[:, :1]


def inner(size=6):
    return nn.Linear(size, size)


def block(name):
    """A step of all that branches hold."""
    return " + ".join(f"{name}.{branch}" for branch in BRANCHES)


BRANCHES = ("short", "plain", "middle.0", "middle.2", "long.0", "long.2", "long.4")


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = inner(), inner()

    def forward(self, x):
        return x + self.two(F.relu(self.one(x)))


def middle_of(outputs):
    return outputs[:, 1, 2:6, 2:6].mean((1, 2))


WITHIN = slice(0, 8), slice(0, 8)
"""Of the input, what a mean over rows and columns 2 to 5 of the outputs depends on."""


RNN_STEPS = ["head", "body.l1: body.*_l1*", "body.l0: body.*_l0*"]


def encoder(prefix, before):
    """Steps of a transformer layer whose normalisations follow; then of what lies before it."""
    p = f"{prefix}."
    return [
        f"{p}linear2 {p}norm2",
        f"{p}linear1",
        f"{p}self_attn.out_proj {p}norm1",
        f"{p}self_attn.in_proj_weight {p}self_attn.in_proj_bias",
        *before,
    ]


def grouped(steps, *counts):
    """So many steps at a time as one."""
    rest = iter(steps)
    return [" + ".join(next(rest) for _ in range(count)) for count in counts]


KINDS = {
    "one layer": Kind(lambda: nn.Linear(9, 3), (9,), ["weight: weight bias"]),
    "three layers": Kind(mlp, (6,), ["4", "2", "0"], listed=(["[02]", "4"], ["4", "2 + 0"])),
    "batch normalisation": Kind(
        lambda: mlp(nn.BatchNorm1d(8)), (6,), ["5", "3", "0 1"], listed=(["1"], ["5 + 3", "1", "0"])
    ),
    "drawn batch normalisation": Kind(lambda: mlp(drawn(nn.BatchNorm1d(8))), (6,), ["5", "3", "0 1"]),
    "statistics alone": Kind(lambda: mlp(nn.BatchNorm1d(8, affine=False)), (6,), ["5", "3", "0"]),
    "layer normalisation first": Kind(
        lambda: nn.Sequential(nn.LayerNorm(6), mlp()), (6,), ["1.4", "1.2", "1.0: 0 1.0"]
    ),
    "image": Kind(
        cnn,
        (2, 12, 10),
        ["8", "4", "0 1"],
        1,
        picture=True,
        layer="4",
        blocks=["8", "4", "0 1"],
        listed=(["0", "1"], ["8 + 4", "1", "0"]),
    ),
    "image on an empty ground": Kind(cnn, (2, 12, 10), ["8", "4", "0 1"], 1, picture=True, background=True, layer="4"),
    "image without channels": Kind(
        lambda: of(lambda m, x: m.net(x[:, None]), net=cnn(1)),
        (12, 10),
        ["net.8", "net.4", "net.0 net.1"],
        picture=True,
    ),
    "image, channels last": Kind(
        lambda: of(lambda m, x: m.net(x.movedim(3, 1)), net=cnn(3)),
        (11, 10, 3),
        ["net.8", "net.4", "net.0 net.1"],
        3,
        picture=True,
        background=True,
    ),
    "groups": Kind(lambda: cnn(5, groups=5), (5, 8, 9), ["8", "4", "0 1"], 1, picture=True),
    "separable convolutions": Kind(
        lambda: of(
            separable,
            head=nn.Linear(5, 3),
            point=nn.Conv2d(6, 5, 1),
            depth=nn.Conv2d(6, 6, 3, groups=6),
            stem=nn.Conv2d(2, 6, 3),
        ),
        (2, 9, 9),
        ["head", "point", "depth", "stem"],
        1,
        picture=True,
    ),
    "residual block": Kind(
        lambda: of(
            residual,
            stem=nn.Conv2d(2, 4, 3, padding=1),
            conv1=nn.Conv2d(4, 4, 3, padding=1, bias=False),
            norm1=drawn(nn.BatchNorm2d(4)),
            conv2=nn.Conv2d(4, 4, 3, padding=1, bias=False),
            norm2=drawn(nn.BatchNorm2d(4)),
            skip=nn.Conv2d(4, 4, 1),
            head=nn.Linear(4, 3),
        ),
        (2, 8, 8),
        ["head", "conv2 norm2 + skip", "conv1 norm1", "stem"],
        1,
        picture=True,
    ),
    "inverted bottleneck with a layer scale": Kind(
        lambda: of(
            convnext,
            stem=nn.Conv2d(2, 4, 2, stride=2),
            depth=nn.Conv2d(4, 4, 3, padding=1, groups=4),
            norm_weight=lambda: nn.Parameter(torch.ones(4)),
            norm_bias=lambda: nn.Parameter(torch.zeros(4)),
            up=nn.Linear(4, 8),
            down=nn.Linear(8, 4),
            scale=lambda: nn.Parameter(torch.full((4,), 0.5)),
            head=nn.Linear(4, 3),
        ),
        (2, 8, 8),
        ["head", "down scale", "up", "depth norm_weight norm_bias", "stem"],
        1,
        picture=True,
    ),
    "branches": Kind(
        Branches,
        (6,),
        [
            "head",
            "two.short + two.plain + two.middle.2 + two.long.4",
            "two.middle.0 + two.long.2",
            "two.long.0",
            "one.short + one.plain + one.middle.2 + one.long.4",
            "one.middle.0 + one.long.2",
            "one.long.0",
            "stem",
        ],
        blocks=["head", block("two"), block("one"), "stem"],
    ),
    "residual blocks": Kind(
        lambda: of(
            lambda m, x: m.head(m.b(m.a(torch.tanh(m.stem(x))))),
            stem=inner(),
            a=Residual(),
            b=Residual(),
            head=nn.Linear(6, 3),
        ),
        (6,),
        ["head", "b.two", "b.one", "a.two", "a.one", "stem"],
        blocks=["head", "b.two + b.one", "a.two + a.one", "stem"],
        listed=(["a", "stem"], ["head + b.two + b.one", "a.two + a.one", "stem"]),
    ),
    "ensemble": Kind(
        lambda: of(
            lambda m, x: sum(each(x) for each in m.members) / 3, members=nn.ModuleList([mlp() for _ in range(3)])
        ),
        (6,),
        [" + ".join(f"members.{k}.{layer}" for k in range(3)) for layer in (4, 2, 0)],
    ),
    "wide and deep": Kind(
        lambda: of(lambda m, x: m.wide(x) + m.deep(x), wide=nn.Linear(6, 3), deep=mlp()),
        (6,),
        ["wide + deep.4", "deep.2", "deep.0"],
    ),
    "several layers in one module": Kind(Flat, (6,), ["w3", "w2 b2 scale", "w1 b1"]),
    "the same in a container": Kind(
        lambda: nn.Sequential(Flat()),
        (6,),
        ["0.w3", "0.w2 0.b2 0.scale", "0.w1 0.b1"],
        blocks=["0.w3 + 0.w2 0.b2 0.scale + 0.w1 0.b1"],
    ),
    "one layer used twice": Kind(
        lambda: of(
            lambda m, x: m.head(m.again(m.again(m.first(x).tanh()).tanh()).tanh()),
            first=nn.Linear(6, 8),
            again=nn.Linear(8, 8),
            head=nn.Linear(8, 3),
        ),
        (6,),
        ["head", "again", "first"],
    ),
    "adapter of rank one": Kind(
        RankOne, (6,), ["head", "base + high", "low", "first"], scores=first_score, one=True, options={"target": 0}
    ),
    "attention pooling": Kind(AttentionPooling, (7, 6), ["head", "score", "features"], 2, one=True),
    "weight normalisation": Kind(
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.Tanh(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 3, bias=False))
        ),
        (6,),
        ["2: 2.parametrizations.weight.*", "0"],
    ),
    "signal": Kind(
        lambda: nn.Sequential(
            nn.Conv1d(3, 5, 3), nn.ReLU(), nn.Conv1d(5, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)
        ),
        (3, 15),
        ["5", "2", "0"],
        1,
    ),
    "volume, channels last": Kind(
        lambda: of(
            lambda m, x: m.head(F.relu(m.conv(x.movedim(4, 1))).mean((2, 3, 4))),
            conv=nn.Conv3d(2, 4, 2),
            head=nn.Linear(4, 3),
        ),
        (4, 5, 6, 2),
        ["head", "conv"],
        4,
    ),
    "film": Kind(lambda: of(film, frame=nn.Conv2d(3, 4, 3), head=nn.Linear(4, 3)), (4, 3, 7, 7), ["head", "frame"], 2),
    "LSTM of two layers": Kind(
        lambda: recurrent(nn.LSTM, num_layers=2),
        (9, 4),
        RNN_STEPS,
        2,
        blocks=[RNN_STEPS[0], " + ".join(RNN_STEPS[1:])],
        listed=(["body"], [RNN_STEPS[0], " + ".join(RNN_STEPS[1:])]),
    ),
    "GRU, both ways": Kind(lambda: recurrent(nn.GRU, num_layers=2, bidirectional=True), (9, 4), RNN_STEPS, 2),
    "RNN, features first": Kind(lambda: recurrent(nn.RNN, turn=True), (4, 9), ["head", "body: body.*_l0"], 1),
    "recurrent cell": Kind(lambda: of(cell, cell=nn.LSTMCell(4, 5), head=nn.Linear(5, 3)), (6, 4), ["head", "cell"], 2),
    "recurrence by hand": Kind(
        OwnRecurrent,
        (6, 4),
        ["head", "into + again: again bias"],
        2,
        scores=first_score,
        one=True,
        options={"target": 0},
    ),
    "transformer": Kind(
        lambda: of(
            lambda m, x: m.head(m.layer(m.embed(x)).mean(1)),
            embed=nn.Linear(4, 8),
            layer=nn.TransformerEncoderLayer(8, 2, 12, batch_first=True),
            head=nn.Linear(8, 3),
        ),
        (7, 4),
        ["head", *encoder("layer", ["embed"])],
        2,
        listed=(["layer.self_attn"], grouped(["head", *encoder("layer", ["embed"])], 3, 2, 1)),
    ),
    "vision transformer": Kind(
        lambda: of(
            vit,
            patches=nn.Conv2d(2, 8, 4, stride=4),
            token=lambda: nn.Parameter(torch.randn(1, 1, 8)),
            position=lambda: nn.Parameter(torch.randn(1, 7, 8)),
            layer=nn.TransformerEncoderLayer(8, 2, 12, batch_first=True),
            head=nn.Linear(8, 3),
        ),
        (2, 12, 8),
        ["head", *encoder("layer", ["patches: patches token position"])],
        1,
        picture=True,
    ),
    "query, key and value": Kind(
        lambda: of(
            query_key_value,
            **{name: nn.Linear(6, 6) for name in ("query", "key", "value", "out")},
            head=nn.Linear(6, 3),
        ),
        (5, 6),
        ["head", "out", "query + key + value"],
        2,
    ),
    "graph": Kind(
        lambda: of(graph, first=nn.Linear(5, 6), second=nn.Linear(6, 6), out=nn.Linear(6, 3)),
        (7, 5),
        ["out", "second", "first"],
        2,
    ),
    "features and logits": Kind(
        lambda: of(lambda m, x: (lambda h: (h, m.head(h)))(torch.tanh(m.body(x))), body=inner(), head=nn.Linear(6, 3)),
        (6,),
        ["head", "body"],
        scores=lambda model, value: model(value)[1],
        options={"output": 1},
    ),
    "two heads": Kind(
        lambda: of(heads, body=inner(), other=nn.Linear(6, 2), head=nn.Linear(6, 3)),
        (6,),
        ["head", "body"],
        scores=lambda model, value: model(value)["logits"],
        aside=("other",),
    ),
    "one logit": Kind(lambda: nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 1)), (9,), ["2", "0"], one=True),
    "one number": Kind(
        lambda: of(lambda m, x: m.head(torch.tanh(m.body(x)))[:, 0], body=nn.Linear(9, 6), head=nn.Linear(6, 1)),
        (9,),
        ["head", "body"],
        one=True,
    ),
    "two inputs": Kind(
        lambda: of(
            lambda m, x, age: m.head(torch.tanh(m.body(x) + m.age(age))),
            body=inner(),
            age=nn.Linear(1, 6),
            head=nn.Linear(6, 3),
        ),
        (6,),
        ["head", "body + age"],
        scores=lambda model, value: model(value, AGE),
        given=lambda value: (value, AGE),
    ),
    "inputs by name": Kind(
        lambda: of(lambda m, *, age, image: m.net(image * age[..., None, None]), net=cnn()),
        (2, 8, 8),
        ["net.8", "net.4", "net.0 net.1"],
        1,
        scores=lambda model, value: model(age=AGE, image=value),
        given=lambda value: {"image": value, "age": AGE},
        options={"explain": "image"},
        picture=True,
    ),
    "segmenter": Kind(
        lambda: of(
            unet,
            down=nn.Conv2d(2, 4, 2, stride=2),
            deep=nn.Conv2d(4, 4, 3, padding=1),
            up=nn.ConvTranspose2d(4, 4, 2, stride=2),
            out=nn.Conv2d(6, 3, 1),
        ),
        (2, 12, 12),
        ["out", "up", "deep", "down"],
        1,
        scores=lambda model, value: middle_of(model(value)),
        options={"target": middle_of},
        picture=True,
        one=True,
        reach=WITHIN,
    ),
    "samples that meet": Kind(lambda: Mixing(WAYS["standardised"]), (10,), ["layers.2", "layers.1", "layers.0"]),
    "a cache": Kind(
        lambda: nn.Sequential(nn.Linear(20, 20), nn.Tanh(), ByAttribute()), (20,), ["2.head", "2.below 2.biases", "0"]
    ),
    "experts": Kind(
        experts,
        (20,),
        ["head", "experts.0", "router", "below"],
        aside=(f"(never read): {' '.join(f'experts.{k}' for k in range(1, 6))}",),
    ),
}
MEETING = {
    f"samples meet: {way}": Kind(lambda mix=mix: Mixing(mix), (10,), ["layers.2", "layers.1", "layers.0"], samples=4)
    for way, mix in WAYS.items()
}
AGE = torch.linspace(-1, 1, SAMPLES, dtype=torch.float64)[:, None]
