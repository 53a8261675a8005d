"""Question: does it matter whether a question of yes or no is answered by one logit or by two?

Small networks learn one logit ``w x + b``. Two twins of each say the same with two: ``-w/2, w/2`` and ``0, w``. Their
indices are compared under the default draw, and under three laws for new weights: every tensor around its own mean;
the head around 0; everything that mixes channels around 0. The second moments are the trained ones in all.

    python benchmarks/one_or_two_logits.py [--networks cnn resnet] [--laws default own head zero] [--trials 100]
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from functools import partial

import torch
from measuring import studied
from measuring.studied import fitted
from torch import nn
from torch.nn import functional as F

from lightning_sanity import parameter_randomization_test
from lightning_sanity.resources.random_streams import isolated_rng

METHODS = ("gradient", "guided_backprop", "deconvnet")


def _odd(make, epochs=6):
    return make, studied.odd, epochs


def _tumours():
    return [(x, y.float()) for x, y in studied.tumours()]


NETWORKS = {
    "cnn": _odd(partial(studied.plain, nn.ReLU, classes=1)),
    "resnet": _odd(partial(studied.resnet, classes=1)),
    "groupnorm": _odd(partial(studied.resnet, classes=1, norm=partial(nn.GroupNorm, 4)), 10),
    "mlp": _odd(partial(studied.perceptron, classes=1)),
    "table": (partial(studied.perceptron, 30, 1), _tumours, 15),
}


def trained(name, seed):
    """A network of one logit, samples that it classifies correctly, and its accuracy."""
    make, data, epochs = NETWORKS[name]
    right = lambda outputs, labels: (outputs[:, 0] > 0) == (labels > 0)  # noqa: E731
    loss = lambda outputs, labels: F.binary_cross_entropy_with_logits(outputs[:, 0], labels)  # noqa: E731
    studied.NETWORKS["this"] = studied.Study(make, data, epochs=epochs, loss=loss, right=right)
    return fitted("this", seed)


def twin(model, other):
    """The same function by two logits: the second is the one logit, or half of it."""
    made = copy.deepcopy(model)
    head = made[-1]
    two = nn.Linear(head.in_features, 2)
    with torch.no_grad():
        for tensor, value in ((two.weight, head.weight), (two.bias, head.bias)):
            tensor.copy_(torch.cat([0 * value, value]) if other == "0, w" else torch.cat([-value / 2, value / 2]))
    made[-1] = two
    return made.eval()


def law(kind, model):
    """A function that redraws a module by one of the laws; what it matches travels with the modules."""
    if kind == "default":
        return "normal"
    for module in model.modules():
        module.moments = {}
        for name, value in module.named_parameters(recurse=False):
            mean, spread = float(value.mean()), float(value.std()) if value.numel() > 1 else 0.0
            spread = spread or 0.1 * abs(mean) or 0.02
            around_zero = value.ndim > 1 and (kind == "zero" or (kind == "head" and module is model[-1]))
            module.moments[name] = (0.0, (mean**2 + spread**2) ** 0.5) if around_zero else (mean, spread)

    def redraw(module):
        for name, value in module.named_parameters(recurse=False):
            value.data.normal_(*module.moments[name])

    return redraw


def measured(model, inputs, target, kind, trials, seed):
    """The index of every method."""
    given = {"trials": trials, "controls": False, "pictures": False, "progress": False, "seed": seed}
    given |= {"similarities": ("spearman", "spearman_signed", "ssim")} if inputs.ndim > 2 else {}
    found = parameter_randomization_test(
        model, inputs, target, methods=METHODS, reinitialize=law(kind, model), max_steps=8, **given
    )
    return {name: (v.psi, v.outcome.value) for name, v in found.verdicts.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--laws", nargs="*", choices=("default", "own", "head", "zero"), default=["default"])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--training", type=int, nargs="*", default=[0])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in given.networks:
        for training in given.training:
            model, inputs, accuracy = trained(name, training)
            head = model[-1].weight.detach()
            print(f"{name}, training {training}: accuracy {accuracy:.1%}, head {head.mean():.3f} +- {head.std():.3f}")
            for kind in given.laws:
                started = time.process_time()
                for label, net, target in (
                    ("w", model, 0),
                    ("-w/2, w/2", twin(model, "-w/2, w/2"), 1),
                    ("0, w", twin(model, "0, w"), 1),
                ):
                    found = measured(net, inputs[: given.samples], target, kind, given.trials, 0)
                    line = "  ".join(f"{method} {psi:.3f} {outcome}" for method, (psi, outcome) in found.items())
                    print(f"  {kind:8s} {label:10s} {line}", flush=True)
                print(f"  ({time.process_time() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    with isolated_rng(0):
        main()
