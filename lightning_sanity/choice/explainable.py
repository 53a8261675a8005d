"""Is there anything to explain? Told by a pass or two, before any method is run.

Maps of an untrained network, or of one that has learnt nothing that holds for these samples, can pass every test of
dependence on weights: they do depend on them. That there is nothing to be explained must be seen in the outputs.
"""

from __future__ import annotations

import math

import torch
from scipy import stats
from torch import Tensor, nn

ALPHA = 0.05
"""Level of the test that predictions know the labels."""
LEAST_INFORMATION = 0.05
"""Nats that predicted classes must tell of a sample. Own initialisations of convolutional networks, transformers and
recurrent networks give .0000 to .02, trained classifiers .5 and more."""
_NORMS = (nn.modules.batchnorm._BatchNorm,)


def nothing_to_explain(model: nn.Module, outputs: Tensor, labels: Tensor | None) -> str | None:
    """Why there is nothing to explain on this batch, in one sentence, or None.

    Args:
        model: Whose running statistics are looked at.
        outputs: Of the model ``(N, classes)``; of others only the weights are looked at.
        labels: True classes ``(N,)``, where they are known.

    Raises:
        ValueError: If there is not one label for each sample, or one is no class of the model.
    """
    scores = outputs.detach().double().cpu()
    if labels is not None and labels.shape[:1] != scores.shape[:1]:
        raise ValueError(f"labels must be one for each of the {len(scores)} samples, not of shape {(*labels.shape,)}")
    classifies = scores.ndim == 2 and scores.shape[1] > 1 and bool(scores.isfinite().all())
    if classifies and labels is not None and labels.ndim == 1 and not labels.is_floating_point():
        odd = labels[(labels < 0) | (labels >= scores.shape[1])].tolist()
        if odd:
            raise ValueError(
                f"label {odd[0]} is no class of the model, which gives {scores.shape[1]} scores, from 0 on"
            )
        return _at_chance(scores, labels.cpu())
    if (found := untouched_statistics(model)) is not None:
        return found
    return _uninformative(scores) if classifies else None


def _at_chance(scores: Tensor, labels: Tensor) -> str | None:
    """Whether the predictions know the labels no better than naming the most frequent class would."""
    samples = len(labels)
    right = int((scores.argmax(1) == labels).sum())
    chance = max(float(labels.unique(return_counts=True)[1].max()) / samples, 1 / scores.shape[1])
    if chance >= 1:
        return None
    p = float(stats.binom.sf(right - 1, samples, chance))
    if p <= ALPHA:
        return None
    return (
        f"the model predicts {right} of {samples} labels, and naming the most frequent class would predict "
        f"{chance * samples:.0f} (p = {p:.2g}): it has learnt nothing that holds for these samples, or its classes are "
        "numbered otherwise than labels="
    )


def untouched_statistics(model: nn.Module) -> str | None:
    """Whether no normalisation layer has ever seen a batch, as in a network that was built and never trained."""
    norms = [module for module in model.modules() if isinstance(module, _NORMS)]
    layers = [module for module in norms if isinstance(module.running_mean, Tensor)]
    means, spreads = ([getattr(layer, name) for layer in layers] for name in ("running_mean", "running_var"))
    fresh = all(bool((mean == 0).all()) for mean in means) and all(bool((spread == 1).all()) for spread in spreads)
    if not layers or not fresh:
        return None
    return (
        f"the running statistics of all {len(layers)} normalisation layers are those of a new layer (mean 0, variance "
        "1): the model was never trained, or its checkpoint was not loaded"
    )


def _uninformative(scores: Tensor) -> str | None:
    """Whether predicted probabilities hardly depend on the input: mutual information of sample and predicted class."""
    log = scores.log_softmax(1)
    mean = log.exp().mean(0)
    information = float((log.exp() * (log - mean.clamp_min(torch.finfo(mean.dtype).tiny).log())).sum(1).mean())
    if len(scores) < 2 or information >= LEAST_INFORMATION:
        return None
    most = min(math.log(len(scores)), math.log(scores.shape[1]))
    return (
        f"the predicted probabilities hardly depend on the input: they tell {max(information, 0.0):.4f} nats of a "
        f"sample, of {most:.2f} that they could (at least {LEAST_INFORMATION:g} needed), as those of an untrained "
        "network do. Is the right checkpoint loaded? If the model is known to be good, pass labels="
    )
