"""Did every model learn the labels it was given? Without that, comparing models tells nothing about labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_sanity.explanation.probe import batch_size
from lightning_sanity.model.clone import evaluating
from lightning_sanity.model.outputs import logits

_LEVEL = 0.99  # of the chance interval, over all models together


@dataclass(frozen=True)
class Memorization:
    """Accuracies of the models of a data randomization test, in the order of the models.

    Args:
        true_train: Accuracy of each true-label model on its training set.
        permuted_train: Accuracy of each permuted-label model on the permuted labels it was trained on.
        permuted_test: Accuracy of each permuted-label model on the true labels of samples it was not trained on.
        test_samples: Number of those samples, as far as they are independent; see ``independent_samples``.
        chance: What ``permuted_test`` is expected to be: one over the number of classes where they are balanced.

    Raises:
        ValueError: If a number is not an accuracy.
    """

    true_train: tuple[float, ...]
    permuted_train: tuple[float, ...]
    permuted_test: tuple[float, ...]
    test_samples: int
    chance: float

    def __post_init__(self) -> None:
        for name in ("true_train", "permuted_train", "permuted_test"):
            values = tuple(float(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
            wrong = [value for value in values if not 0 <= value <= 1]
            if wrong:
                raise ValueError(f"Memorization: {name} must hold accuracies between 0 and 1, not {wrong[0]!r}")
        if not 0 < self.chance < 1:
            raise ValueError(f"Memorization: chance must lie between 0 and 1, not {self.chance!r}")
        if self.test_samples < 1:
            raise ValueError(f"Memorization: test_samples must be at least 1, not {self.test_samples!r}")

    def chance_interval(self) -> tuple[float, float]:
        """Test accuracies of models that know nothing of the true labels: a binomial interval, for all of them."""
        from scipy.stats import binom  # half a second to import

        level = 1 - (1 - _LEVEL) / max(len(self.permuted_test), 1)
        low, high = binom.interval(level, self.test_samples, self.chance)
        return float(low) / self.test_samples, float(high) / self.test_samples

    def unmet(self, true: int, permuted: int, least: float) -> str | None:
        """Which precondition is not met, if one is not.

        Args:
            true: Number of true-label models.
            permuted: Number of permuted-label models.
            least: Training accuracy that counts as memorised.

        Raises:
            ValueError: If there is not one number per model.
        """
        given = len(self.true_train), len(self.permuted_train), len(self.permuted_test)
        if given != (true, permuted, permuted):
            raise ValueError(
                f"Memorization: {true} true-label and {permuted} permuted-label models need as many accuracies, not "
                f"{given[0]} true_train, {given[1]} permuted_train and {given[2]} permuted_test"
            )
        low, high = self.chance_interval()
        found = [
            f"{kind}-label model {index} learned only {accuracy:.1%} of its training labels ({least:.0%} needed: train "
            "it longer)"
            for kind, accuracies in (("true", self.true_train), ("permuted", self.permuted_train))
            for index, accuracy in enumerate(accuracies)
            if accuracy < least
        ]
        found += [
            f"permuted-label model {index} has a test accuracy of {accuracy:.1%}, not of chance ({low:.1%} to "
            f"{high:.1%}): were its labels permuted?"
            for index, accuracy in enumerate(self.permuted_test)
            if not low <= accuracy <= high
        ]
        return "; ".join(found) or None


def memorization(
    models: Sequence[nn.Module],
    random_label_models: Sequence[nn.Module],
    training: tuple[Any, Tensor],
    permuted_labels: Sequence[Tensor],
    test: tuple[Any, Tensor],
    *,
    forward: Callable[..., Any] | None = None,
) -> Memorization:
    """Measure it, on labelled data that fits into memory.

    Args:
        models: Trained on the true labels.
        random_label_models: Trained on permuted ones.
        training: Inputs and true labels ``(N,)`` of the training set.
        permuted_labels: The labels ``(N,)`` that each of ``random_label_models`` was trained on.
        test: Inputs and true labels of samples that no model was trained on.
        forward: ``forward(model, *inputs) -> scores`` where calling the model is not enough.

    Raises:
        ValueError: If labels and inputs, or permuted labels and models, differ in number.
    """
    if len(permuted_labels) != len(random_label_models):
        raise ValueError(
            f"{len(random_label_models)} permuted-label models need as many permuted_labels, not {len(permuted_labels)}"
        )
    true = [confusion_of(model, *training, forward) for model in models]
    memorised = [
        confusion_of(model, training[0], labels, forward)
        for model, labels in zip(random_label_models, permuted_labels, strict=True)
    ]
    unseen = [confusion_of(model, *test, forward) for model in random_label_models]
    return Memorization(
        tuple(accuracy(counts) for counts in true),
        tuple(accuracy(counts) for counts in memorised),
        tuple(accuracy(counts) for counts in unseen),
        min(independent_samples(counts) for counts in unseen),
        chance(memorised[0], unseen[0]),
    )


def predicted(outputs: Tensor) -> Tensor:
    """Predicted classes ``(N,)``; of a single output per sample, a positive score means class 1."""
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return outputs.argmax(1)
    return (outputs.reshape(len(outputs)) > 0).long()


def confusion(outputs: Tensor, labels: Tensor) -> Tensor:
    """How often each class (row) was predicted to be each class (column), ``(classes, classes)`` int64."""
    classes = max(2, outputs.shape[1] if outputs.ndim == 2 else 2)
    cells = labels.reshape(-1).long() * classes + predicted(outputs)
    return torch.bincount(cells, minlength=classes**2).reshape(classes, classes)


def accuracy(counts: Tensor) -> float:
    """Share of right predictions in a confusion matrix."""
    return float(counts.trace() / counts.sum())


def chance(trained: Tensor, tested: Tensor) -> float:
    """Expected accuracy of predictions that occur as often as the training labels but know nothing of the sample.

    Args:
        trained: Confusion matrix of the training set.
        tested: Confusion matrix of the test set.
    """
    return float((trained.sum(1) / trained.sum() * tested.sum(1) / tested.sum()).sum())


def independent_samples(counts: Tensor) -> int:
    """As how many independent samples the test samples count, given a model's confusion matrix.

    A network that knows nothing of the true labels still predicts similar samples alike, and samples of a class are
    similar. Its accuracy then scatters more than that of coin tosses, by the Pearson dispersion of the cells off the
    diagonal, which say nothing about right or wrong.
    """
    classes, total = len(counts), counts.sum().double()
    freedom = (classes - 1) ** 2 - classes
    if freedom < 1:
        return int(total)
    expected = counts.sum(1, keepdim=True) * counts.sum(0, keepdim=True) / total
    off = ~torch.eye(classes, dtype=torch.bool, device=counts.device) & (expected > 0)
    dispersion = float(((counts - expected) ** 2 / expected)[off].sum()) / freedom
    return max(1, int(total / max(1.0, dispersion)))


@torch.no_grad()
def confusion_of(
    model: nn.Module, inputs: Any, labels: Tensor, forward: Callable[..., Any] | None = None, rows: int = 256
) -> Tensor:
    """A model's confusion matrix on labelled data, on the CPU; see ``confusion``.

    Raises:
        ValueError: If inputs and labels differ in number.
    """
    if batch_size(inputs) != len(labels):
        raise ValueError(f"{batch_size(inputs)} inputs need as many labels, not {len(labels)}")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    parts = []
    with evaluating(model):
        for start in range(0, len(labels), rows):
            few = tree_map(lambda t: t[start : start + rows].to(device), inputs)  # noqa: B023
            arguments = few if isinstance(few, tuple) else (few,)
            outputs = logits(forward(model, *arguments) if forward is not None else model(*arguments))
            parts.append(confusion(outputs, labels[start : start + rows].to(device)))
    return torch.stack(parts).sum(0).cpu()
