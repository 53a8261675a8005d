"""The parameter randomization test by its definition: one sample, one depth, one trial after the other.

What becomes random together is written down by hand for every network. New values, maps and similarities are made
here, by autograd, scipy and scikit-image; from the library come only the streams that its draws are taken from.
"""

import fnmatch
import math
import warnings

import numpy as np
import torch
from scipy import stats
from skimage.metrics import structural_similarity

from lightning_sanity.resources.random_streams import generator

# Re-initialisation ----------------------------------------------------------------------------------------------------


def unit_of(model, written):
    """Name and parameters of a unit written as ``"name: part part"`` or ``"part part"``, which is named by its first.

    A part is a module, whose parameters it has, or a parameter; a star stands for anything.
    """
    name, colon, parts = written.rpartition(":")
    names = [key for key, _ in model.named_parameters()]
    found = []
    for part in parts.split():
        inside = [key for key in names if key == part or key.rpartition(".")[0] == part or fnmatch.fnmatch(key, part)]
        assert inside, f"{part} is no part of the network"
        found += [key for key in inside if key not in found]
    return (name if colon else parts.split()[0]), found


def steps_of(model, written):
    """Steps, from the output to the input, of units written with a plus between them."""
    return [[unit_of(model, unit.strip()) for unit in step.split("+")] for step in written]


def read_and_set(model, parameters):
    """Per tensor that a unit computes with, its value and what sets it: a parametrised one stands for what it makes."""
    found = {}
    for key in parameters:
        owner, parametrised, rest = key.partition(".parametrizations.")
        if parametrised:
            module, name = model.get_submodule(owner), rest.split(".")[0]
            found[owner, name] = getattr(module, name).detach(), lambda new, m=module, n=name: setattr(m, n, new)
        else:
            value = model.get_parameter(key).data
            found[key] = value, value.copy_
    return list(found.values())


def redraw(model, unit, seed, trial, heads=()):
    """Each tensor anew from the normal law with its own mean and standard deviation, in place.

    Matrices of a head are drawn around 0, with their root mean square, unless running statistics follow. Of a tensor
    of equal values nothing can be matched: it spreads by a tenth of its value, of zeros by as much as the largest
    tensor of the unit does.
    """
    name, parameters = unit
    rng = generator(seed, trial, name)
    tensors = read_and_set(model, parameters)
    largest = max((value for value, _ in tensors), key=torch.numel)
    of_largest = float(largest.std()) if largest.numel() > 1 else 0.0
    laws = []
    owners = {key.rpartition(".")[0] for key in parameters}
    followed = any(key.rpartition(".")[0] in owners and ".running_" in f".{key}" for key, _ in model.named_buffers())
    for value, _ in tensors:
        mean, spread = float(value.mean()), float(value.std()) if value.numel() > 1 else 0.0
        if set(parameters) & set(heads) and value.ndim > 1 and not followed:
            mean, spread = 0.0, float(value.square().mean().sqrt())
        laws.append((mean, spread if spread > 1e-5 * abs(mean) else 0.1 * abs(mean) or of_largest or 0.02))
    for (value, become), law in zip(tensors, laws, strict=True):
        become(torch.empty(value.shape).normal_(*law, generator=rng).to(value))


def depths_of(steps, order):
    """Per depth, the steps that are random there."""
    if order == "full":
        return [steps]
    if order == "independent":
        return [[step] for step in steps]
    walked = steps[::-1] if order == "bottom_up" else steps
    return [walked[: depth + 1] for depth in range(len(walked))]


def randomised(make, trained, steps, seed, trial, aside=(), twin=None, heads=()):
    """Another model with the same values, and new ones in these steps' units."""
    model = make()
    model.load_state_dict(trained.state_dict())
    for unit in [*aside, *(unit for step in steps for unit in step)]:
        if twin is None:
            redraw(model, unit, seed, trial, heads)
            continue
        owners = {key.rpartition(".")[0] for key in unit[1]}
        statistics = [key for key in twin if key.rpartition(".")[0] in owners and ".running_" in key]
        for key in (*unit[1], *statistics):
            model.state_dict()[key].copy_(twin[key])
    return model


# Maps -----------------------------------------------------------------------------------------------------------------


def gradient(kind, model, value, row, target):
    """The gradient of a sample's own score at that sample."""
    leaf = value.clone().requires_grad_()
    outputs = kind.scores(model, leaf)[row].reshape(-1)
    (slope,) = torch.autograd.grad(outputs[0 if target is None else target[row]], leaf)
    return slope[row]


def input_x_gradient(kind, model, value, row, target):
    return value[row] * gradient(kind, model, value, row, target)


def integrated_gradients(kind, model, value, row, target, points=6):
    """From zero, by Gauss and Legendre's points; the other samples stay as they are."""
    total = 0
    for place, weight in zip(*np.polynomial.legendre.leggauss(points), strict=True):
        changed = value.clone()
        changed[row] = value[row] * (1 + place) / 2
        total = total + weight / 2 * gradient(kind, model, changed, row, target)
    return value[row] * total


def guided_backprop(kind, model, value, row, target):
    """The gradient, of which every rectifier lets back what is positive."""
    rectifiers = [module for module in model.modules() if isinstance(module, torch.nn.ReLU)]
    handles = [each.register_full_backward_hook(lambda _, ours, theirs: (ours[0].clamp(min=0),)) for each in rectifiers]
    found = gradient(kind, model, value, row, target)
    for handle in handles:
        handle.remove()
    return found


def gradcam(kind, model, value, row, target):
    """What a layer made, weighted by the mean slope of each channel, rectified, enlarged."""
    kept = []
    handle = model.get_submodule(kind.layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    outputs = kind.scores(model, value.clone().requires_grad_())[row].reshape(-1)
    handle.remove()
    (slope,) = torch.autograd.grad(outputs[target[row]], kept[0])
    weight = slope[row].flatten(1).mean(1)
    cam = (kept[0][row] * weight[:, None, None]).sum(0).clamp(min=0).detach()
    sides = [size for axis, size in enumerate(value.shape) if axis not in (0, kind.channel)]
    return torch.nn.functional.interpolate(cam[None, None], sides, mode="bilinear", align_corners=False)[0, 0]


METHODS = {each.__name__: each for each in (gradient, input_x_gradient, integrated_gradients, guided_backprop, gradcam)}


def maps_of(explain, kind, model, value, target):
    """Signed and absolute maps of every sample, summed over the channels where there are any."""
    found = torch.stack([explain(kind, model, value, row, target) for row in range(len(value))]).numpy()
    if kind.channel is None or found.ndim < value.ndim:
        return found, np.abs(found)
    return found.sum(kind.channel), np.abs(found).sum(kind.channel)


# Similarities ---------------------------------------------------------------------------------------------------------


def _ranks(a, b, inside):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a constant map, whose correlation is NaN, as it should be
        return float(stats.spearmanr(a[inside], b[inside])[0])


def _scaled(a):
    return (a - a.min()) / (a.max() - a.min())


def _ssim(a, b):
    if a.min() == a.max() or b.min() == b.max():
        return math.nan
    window = min(11, *(side - 1 + side % 2 for side in a.shape))  # the largest odd one that fits
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    return structural_similarity(_scaled(a), _scaled(b), win_size=window, **options)


def similarities(kind, one, other, support):
    """Every measure of one trained map and another model's; ``support`` is the trained one's sample's."""
    (signed, magnitude), everywhere = one, np.zeros(one[0].shape, bool)
    everywhere[kind.reach] = True
    found = {
        "spearman": _ranks(magnitude, other[1], everywhere),
        "spearman_signed": _ranks(signed, other[0], everywhere),
    }
    if support is not None:
        found["spearman_support"] = _ranks(magnitude, other[1], support)
    if kind.picture and kind.reach is Ellipsis:
        found["ssim"] = _ssim(magnitude, other[1])
    return found


# The walk -------------------------------------------------------------------------------------------------------------


def walk(kind, make, model, value, target, steps, order, *, trials, seed, methods, aside=(), twins=None):
    """``(method, measure) -> (trials, depths, N, N)``: a trained map of sample i to another model's of sample j."""
    support = [None] * len(value)
    if kind.background:
        empty = value == 0
        support = (~(empty if kind.channel is None else empty.all(kind.channel))).numpy()
    depths = depths_of(steps, order)
    heads = [key for _, parameters in steps_of(model, kind.steps)[0] for key in parameters]
    trained = {name: maps_of(METHODS[name], kind, model, value, target) for name in methods}
    found = {}
    for trial in range(trials):
        for depth, random in enumerate(depths):
            beside = aside if order != "independent" or depth == 0 else ()
            twin = None if twins is None else twins[trial]
            changed = randomised(make, model, random, seed, trial, beside, twin, heads)
            for name in methods:
                made = maps_of(METHODS[name], kind, changed, value, target)
                for i in range(len(value)):
                    for j in range(len(value)):
                        one, other = (tuple(maps[row] for maps in of) for of, row in ((trained[name], i), (made, j)))
                        for measure, number in similarities(kind, one, other, support[i]).items():
                            shape = trials, len(depths), len(value), len(value)
                            table = found.setdefault((name, measure), torch.full(shape, math.nan, dtype=torch.float64))
                            table[trial, depth, i, j] = number
    return found


def shifts_of(floors, tables, atol):
    """Per trial and depth, how far away the sample is that every floor there is measured at; None if there is none."""
    trials, depths, samples, _ = next(iter(tables.values())).shape
    rows = torch.arange(samples)
    found = []
    for trial in range(trials):
        for depth in range(depths):

            def fits(shift, at=(trial, depth)):
                return all(
                    torch.allclose(
                        floors[key][at].double(), table[at][rows, (rows - shift) % samples], atol=atol, equal_nan=True
                    )
                    for key, table in tables.items()
                )

            found.append(next((shift for shift in range(1, samples) if fits(shift)), None))
    return found


def index(same, floor, absolute=False):
    """Parameter sensitivity index: 1 less the mean over steps of what is retained between the floor and 1."""
    same, floor = (same.double().abs(), floor.double().abs()) if absolute else (same.double(), floor.double())
    unrelated = floor.nanmean((0, 2)).nanmean()
    retained = (same.nanmean((0, 2)) - unrelated) / (1 - unrelated)
    return float(1 - retained.nanmean())
