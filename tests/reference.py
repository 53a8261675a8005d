"""Slow, obvious versions of what the library computes; the oracles of the tests."""

import itertools
import math
import warnings

import numpy as np
import torch

# Perturbation ---------------------------------------------------------------------------------------------------------


def shapley_values(game, players):
    """Shapley values of ``game(frozenset) -> float`` by their definition, over every coalition."""
    values = []
    for player in range(players):
        others = [other for other in range(players) if other != player]
        total = 0.0
        for size in range(players):
            weight = math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players)
            for coalition in itertools.combinations(others, size):
                total += weight * (game(frozenset(coalition) | {player}) - game(frozenset(coalition)))
        values.append(total)
    return values


def bilinear(cells, size, row, column):
    """Value at a pixel of ``cells`` enlarged to ``size``, pixel centres aligned, borders repeated."""
    position = []
    for pixel, count, target in ((row, cells.shape[0], size[0]), (column, cells.shape[1], size[1])):
        exact = min(max((pixel + 0.5) * count / target - 0.5, 0.0), count - 1.0)
        low = min(int(exact), count - 1)
        position.append((low, min(low + 1, count - 1), exact - low))
    (top, bottom, down), (left, right, across) = position
    above = cells[top, left] * (1 - across) + cells[top, right] * across
    below = cells[bottom, left] * (1 - across) + cells[bottom, right] * across
    return above * (1 - down) + below * down


def rise_expectation(output, image, grid, p):
    """Expectation of RISE for one ``(C, H, W)`` image over every grid of cells and every shift, in numpy."""
    height, width = image.shape[1:]
    cell = (-(-height // grid), -(-width // grid))
    size = ((grid + 1) * cell[0], (grid + 1) * cell[1])
    expected = np.zeros((height, width))
    for kept in itertools.product((0.0, 1.0), repeat=grid * grid):
        cells = np.array(kept).reshape(grid, grid)
        probability = p ** cells.sum() * (1 - p) ** (grid * grid - cells.sum())
        large = np.array([[bilinear(cells, size, row, column) for column in range(size[1])] for row in range(size[0])])
        for down, across in itertools.product(range(cell[0]), range(cell[1])):
            mask = large[down : down + height, across : across + width]
            expected += probability / (cell[0] * cell[1]) * output(image * mask) * mask / p
    return expected


def conditional_gaussian(mean, covariance, known, values):
    """Mean and covariance of the unknown elements of a Gaussian given the known ones."""
    unknown = [index for index in range(len(mean)) if index not in set(known)]
    gain = covariance[np.ix_(unknown, known)] @ np.linalg.inv(covariance[np.ix_(known, known)])
    return (
        mean[unknown] + gain @ (values - mean[known]),
        covariance[np.ix_(unknown, unknown)] - gain @ covariance[np.ix_(known, unknown)],
    )


def prediction_difference(probabilities, image, target, window, ring, stride, draw):
    """Prediction difference analysis of one ``(C, H, W)`` image, window by window and pixel by pixel.

    ``draw(top, left)`` gives the patches ``(S, C, window, window)`` that replace the window there.
    """
    height, width = image.shape[1:]
    total, count = np.zeros((height, width)), np.zeros((height, width))

    def log_odds(probability):
        return np.log2(probability) - np.log2(1 - probability)

    before = log_odds(probabilities(image)[target])
    for top in range(0, height - window + 1, stride):
        for left in range(0, width - window + 1, stride):
            mean = 0.0
            patches = draw(top, left)
            for patch in patches:
                changed = image.copy()
                changed[:, top : top + window, left : left + window] = patch
                mean += probabilities(changed)[target] / len(patches)
            for row in range(top, top + window):
                for column in range(left, left + window):
                    total[row, column] += before - log_odds(mean)
                    count[row, column] += 1
    return total / count


# ------------------------------------------------------------------------------------------- gradients and feature maps


def guided(network, image, target, masked):
    """Guided Backprop (``masked``) or the deconvnet of one image through a plain sequence of layers, by hand."""
    values = [image[None]]
    for layer in network:
        values.append(layer(values[-1].detach().clone().requires_grad_()))
    signal = torch.zeros_like(values[-1])
    signal[0, target] = 1.0
    for layer, before in zip(reversed(network), reversed(values[:-1]), strict=True):
        before = before.detach().clone().requires_grad_()
        if isinstance(layer, torch.nn.ReLU):
            signal = signal.clamp(min=0)
            if masked:
                signal = signal * (before.detach() > 0)
        else:
            (signal,) = torch.autograd.grad(layer(before), before, signal)
    return signal[0]


def feature_gradient(bottom, top, image, target):
    """A feature map (C, h, w) of one image and the gradient of the target's score there."""
    features = bottom(image[None]).detach().requires_grad_()
    (slope,) = torch.autograd.grad(top(features)[0, target], features)
    return features.detach()[0], slope[0]


def gradcam_plus_plus(features, slope):
    """Grad-CAM++ with its loops written out, for the score exp(S)."""
    channels, height, width = features.shape
    result = torch.zeros(height, width, dtype=features.dtype)
    for k in range(channels):
        total, weight = float(features[k].sum()), 0.0
        for i in range(height):
            for j in range(width):
                g = float(slope[k, i, j])
                below = 2 * g**2 + total * g**3
                weight += (g**2 / below if below != 0 else 0.0) * max(g, 0.0)
        result += weight * features[k]
    return result.clamp(min=0)


def layercam(features, slope):
    """LayerCAM with its loop over channels."""
    return sum(features[k] * slope[k].clamp(min=0) for k in range(len(features))).clamp(min=0)


def scorecam(network, features, image, target):
    """Score-CAM, one masked image at a time."""
    scores = []
    for channel in features:
        low, high = channel.min(), channel.max()
        mask = (channel - low) / (high - low) if high > low else torch.zeros_like(channel)
        mask = torch.nn.functional.interpolate(
            mask[None, None], size=image.shape[1:], mode="bilinear", align_corners=False
        )
        scores.append(network(image[None] * mask[0])[0, target] if high > low else torch.tensor(-torch.inf))
    weights = torch.stack(scores).softmax(0)
    return sum(w * channel for w, channel in zip(weights, features, strict=True)).clamp(min=0)


def rollout(attentions, residual=0.5):
    """Attention rollout of one sample from (heads, tokens, tokens) of each layer."""
    result = torch.eye(attentions[0].shape[-1])
    for attention in attentions:
        mixed = (1 - residual) * attention.mean(0) + residual * torch.eye(len(result))
        result = mixed @ result
    return result


# Comparison -----------------------------------------------------------------------------------------------------------


def quietly(function):
    """Captum warns about what it does to inputs and hooks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function().detach()


def error(a, b):
    """The largest difference as a share of the largest value of ``b``."""
    return float((a - b).abs().max() / b.abs().max())
