"""Question: is the time that a test is told to take still the time that it takes?

Seven kinds of runs. At 10, 25, 50 and 75 % of each the time that was told last is divided by what was left when it was
told; 1 is right, the goal is 1.5 at most, either way. Kinds of work before the first trial are foreseen by passes, and
those after it by the last trial.

    python benchmarks/remaining.py [--kinds "one method" text] [--json]
"""

from __future__ import annotations

import time
from functools import partial

import torch
from measuring import parser, publish
from measuring.networks import NETWORKS

from lightning_sanity import parameter_randomization_test

SHARES = (0.1, 0.25, 0.5, 0.75)
GOAL = 1.5
MANY = ("gradient", "gradcam", "guided_backprop", "smoothgrad(n_samples=10)", "occlusion(window=8, stride=8)")


class Sentences(torch.nn.Module):
    """An encoder of token ids."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(100, 64)
        layer = torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.encoder, self.head = torch.nn.TransformerEncoder(layer, 6), torch.nn.Linear(64, 5)

    def forward(self, ids):
        """Scores ``(N, 5)``."""
        return self.head(self.encoder(self.embedding(ids)).mean(1))


def slope(model, inputs, target):
    inputs = inputs.clone().requires_grad_()
    return torch.autograd.grad(model(inputs).gather(1, target[:, None]).sum(), inputs)[0]


def on(network, side, **options):
    problem = NETWORKS[network](side, 8)
    return partial(parameter_randomization_test, problem.model, problem.inputs, problem.target, **options)


def text(**options):
    ids = torch.randint(100, (16, 24))
    return partial(parameter_randomization_test, Sentences().eval(), ids, torch.arange(16) % 5, **options)


KINDS = {
    "one method": partial(on, "resnet18", 64, methods="gradient", trials=5),
    "one method, one trial": partial(on, "resnet18", 64, methods="gradient", trials=1),
    "five methods": partial(on, "resnet18", 32, methods=MANY, trials=3, max_steps=6),
    "plain loop": partial(on, "resnet18", 32, methods=("gradient", "gradcam"), trials=4, max_steps=6, engine="plain"),
    "own function": partial(on, "resnet18", 32, methods={"slope": slope}, trials=5, max_steps=6),
    "U-Net": partial(on, "unet", 64, methods="gradient", trials=5),
    "text": partial(text, methods=("gradient", "smoothgrad(n_samples=8)", "occlusion"), trials=5),
}


def told(kind):
    """The run's seconds, and at each share of it the time that was told over the true one, with what was being done."""
    torch.manual_seed(0)
    run, ticks = KINDS[kind](), []
    run(progress=lambda done, total, label: ticks.append((time.perf_counter(), done / 1000, total / 1000, label)))
    begun, ended = ticks[0][0] - ticks[0][1], ticks[-1][0]
    found = []
    for share in SHARES:
        before = [tick for tick in ticks if tick[0] <= begun + share * (ended - begun)]
        if before:
            when, done, total, label = before[-1]
            found.append((share, (total - done) / (ended - when), label))
    return {"kind": kind, "seconds": ended - begun, "told": found, "goal": GOAL}


def main(arguments=None):
    flags = parser(__doc__)
    flags.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    given = flags.parse_args(arguments)
    torch.set_num_threads(1)
    if given.equality_only:
        last = []
        on("unet", 32, methods="gradient", trials=1)(progress=lambda done, total, label: last.append((done, total)))
        assert last[-1][0] == last[-1][1] > 0
        print("nothing is left at the end")
        return
    publish(given, [told(kind) for kind in given.kinds], described)


def described(row):
    each = ", ".join(f"at {share:.0%} {ratio:.2f} ({label})" for share, ratio, label in row["told"])
    return f"{row['kind']}, {row['seconds']:.1f} s: {each}"


if __name__ == "__main__":
    main()
