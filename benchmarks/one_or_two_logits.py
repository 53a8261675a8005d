"""Question: does it matter whether a question of yes or no is answered by one logit or by two?

Small networks learn one logit ``w x + b``; a twin of each says the same with two, ``-w/2, w/2`` or ``0, w``. Their
indices are compared under the default draw, and under three laws for new weights: every tensor around its own mean;
the head around 0; everything that mixes channels around 0. The mean squares are the trained ones in all. Beside each
index the standard error that so many trials leave, and before them how far a random head orders the samples as the
trained one does: the mean correlation of their scores, around the mean of the head's weights and around 0.

    python benchmarks/one_or_two_logits.py [--networks small cnn] [--laws default own] [--trials 200] [--training 0 1 2]
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
from lightning_sanity.randomization import units
from lightning_sanity.resources.random_streams import isolated_rng

METHODS = ("gradient", "guided_backprop", "deconvnet")
TWINS = ("-w/2, w/2", "0, w")


def small():
    """Three layers."""
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1))


def _large():
    return [(x, (y > 4).float()) for x, y in studied.digits()]


def _tumours():
    return [(x, y.float()) for x, y in studied.tumours()]


NETWORKS = {
    "small": (small, _large, 15),
    "cnn": (partial(studied.plain, nn.ReLU, classes=1), studied.odd, 6),
    "resnet": (partial(studied.resnet, classes=1), studied.odd, 6),
    "group_norm": (partial(studied.resnet, classes=1, norm=partial(nn.GroupNorm, 4)), studied.odd, 10),
    "mlp": (partial(studied.perceptron, classes=1), studied.odd, 6),
    "table": (partial(studied.perceptron, 30, 1), _tumours, 15),
}


def _right(outputs, labels):
    return (outputs[:, 0] > 0) == (labels > 0)


def _loss(outputs, labels):
    return F.binary_cross_entropy_with_logits(outputs[:, 0], labels)


def trained(name, seed):
    """A network of one logit, samples that it classifies correctly, and its accuracy."""
    make, data, epochs = NETWORKS[name]
    studied.NETWORKS["this"] = studied.Study(make, data, epochs=epochs, loss=_loss, right=_right)
    return fitted("this", seed)


def twin(model, kind):
    """The same function by two logits: the second is the one logit, or half of it."""
    made = copy.deepcopy(model)
    two = nn.Linear(made[-1].in_features, 2)
    with torch.no_grad():
        for tensor, value in ((two.weight, made[-1].weight), (two.bias, made[-1].bias)):
            tensor.copy_(torch.cat([0 * value, value]) if kind == "0, w" else torch.cat([-value / 2, value / 2]))
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


def measured(model, inputs, target, kind, trials):
    """The index of every method, with the standard error that the trials leave."""
    given = {"trials": trials, "controls": False, "pictures": False, "progress": False, "max_steps": 8}
    result = parameter_randomization_test(
        model, inputs, target, methods=METHODS, reinitialize=law(kind, model), **given
    )
    found = {}
    for name, verdict in result.verdicts.items():
        if (name, verdict.measure) in result.curves:
            curve = result.curves[name, verdict.measure]
            by_trial = curve.values.nanmean((1, 2)) / (1 - curve.floor.nanmean())
            found[name] = verdict.psi, float(by_trial.std()) / trials**0.5
    return found


def kept(model, inputs, draws=500):
    """Mean correlation of trained and random scores over the samples, by heads around their mean and around 0."""
    with torch.no_grad():
        features, weight = model[:-1](inputs).double(), model[-1].weight[0].double()
    rng, found = torch.Generator().manual_seed(0), []
    for mean, spread in ((weight.mean(), weight.std()), (0.0, weight.square().mean().sqrt())):
        drawn = torch.randn(draws, len(weight), generator=rng, dtype=torch.double) * spread + mean
        scores = torch.cat([weight[None], drawn]) @ features.T
        found.append(float(torch.corrcoef(scores)[0, 1:].mean()))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--laws", nargs="*", choices=("default", "own", "head", "zero"), default=["default"])
    parser.add_argument("--twins", nargs="*", choices=TWINS, default=TWINS[:1])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--training", type=int, nargs="*", default=[0])
    parser.add_argument("--equality-only", action="store_true", help="assert that twins say the same by the same steps")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.equality_only:
        model, inputs = small().eval(), studied.digits()[1][0][:4]
        for kind, share in zip(TWINS, (0.5, 1.0), strict=True):
            two = twin(model, kind)
            torch.testing.assert_close(two(inputs)[:, 1], share * model(inputs)[:, 0])
            assert [unit.name for unit in units(two, inputs)] == [unit.name for unit in units(model, inputs)]
        print("one logit and two say the same, by the same steps")
        return
    for name in given.networks:
        for training in given.training:
            model, inputs, accuracy = trained(name, training)
            own, zero = kept(model, inputs[:64])
            print(f"{name}, training {training}: accuracy {accuracy:.1%}; random heads agree by {own:.2f}, {zero:.2f}")
            for kind in given.laws:
                started = time.process_time()
                for label, net in {"w": model, **{each: twin(model, each) for each in given.twins}}.items():
                    found = measured(net, inputs[: given.samples], net[-1].out_features - 1, kind, given.trials)
                    shown = "  ".join(f"{method} {psi:.3f} +- {error:.3f}" for method, (psi, error) in found.items())
                    print(f"  {kind:8s} {label:10s} {shown}", flush=True)
                print(f"  ({time.process_time() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    with isolated_rng(0):
        main()
