"""The models of both kinds, trained on true and on random labels, and whether they can be told apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_sanity.data_randomization.distinct import (
    NEARLY,
    check_distinct,
    largest_difference,
    of_one_function,
    of_one_run,
)
from lightning_sanity.data_randomization.evidence import memorization_on
from lightning_sanity.data_randomization.learned_labels import Memorization, chance, independent_samples

_SAME_PREDICTIONS = 1e-4  # level at which predictions of both kinds of models agree more than by chance


@dataclass(frozen=True)
class Groups:
    """The models of both kinds: trained on the true labels, and on random ones."""

    true: Sequence[nn.Module]
    permuted: Sequence[nn.Module]

    @classmethod
    def of(cls, true: nn.Module | Sequence[nn.Module], permuted: nn.Module | Sequence[nn.Module]) -> Groups:
        """The groups, of which each may be one model.

        Raises:
            ValueError: If one is empty.
            TypeError: If something in them is no module.
        """
        return cls(_group("model", true), _group("random_label_model", permuted))

    @property
    def all(self) -> list[nn.Module]:
        """All models, those of the true labels first."""
        return [*self.true, *self.permuted]

    @property
    def sizes(self) -> tuple[int, int]:
        """How many there are of each kind."""
        return len(self.true), len(self.permuted)

    def check_distinct(self) -> None:
        """Refuse copies of one model."""
        for kind, models in (("true", self.true), ("random", self.permuted)):
            check_distinct(models, kind)

    def memorization(
        self,
        given: Memorization | pl.LightningDataModule | Sequence[pl.LightningDataModule] | None,
        forward: Callable[..., Any] | None,
    ) -> Memorization | None:
        """How well they learned their labels, measured where it was not given."""
        if given is None or isinstance(given, Memorization):
            return given
        return memorization_on(given, self.true, self.permuted, forward=forward)

    def shared(self) -> str | None:
        """Whether a random-label model is one of the true-label ones."""
        for one, other in product(range(len(self.true)), range(len(self.permuted))):
            difference = largest_difference(self.true[one], self.permuted[other])
            if difference <= NEARLY:
                return f"random-label model {other} is true-label model {one}: their weights differ by {difference:.2g}"
        return None

    def one_as_several(self, outputs: Tensor) -> str | None:
        """Whether two of the models are one, or of one training.

        Args:
            outputs: Of all models ``(K, N, ...)``.
        """
        kinds = {"true": self.true, "random": self.permuted}
        return self.shared() or of_one_run(kinds) or of_one_function(outputs, self.sizes)

    def prediction(self, outputs: Tensor) -> Tensor:
        """Scores ``(N, ...)`` that stand for all true-label models, of the outputs ``(K, N, ...)`` of all models."""
        outputs = outputs[: len(self.true)]
        if len(outputs) == 1 or outputs.ndim != 3:
            return outputs.mean(0) if outputs.is_floating_point() else outputs[0]
        return outputs.float().softmax(2).mean(0)

    def alike(self, outputs: Tensor) -> str | None:
        """Whether a random-label model predicts like a true-label one, so that its labels cannot have been random.

        Similar samples are predicted alike whatever was learned, so that fewer samples count than there are; with two
        or three classes how many cannot be told, and nothing is said.

        Args:
            outputs: Of all models ``(K, N, ...)``.
        """
        if outputs.ndim != 3:
            return None
        from scipy.stats import binomtest  # half a second to import

        true = len(self.true)
        predicted, samples, classes = outputs.argmax(2).cpu(), outputs.shape[1], outputs.shape[2]
        for one, other in product(range(true), range(true, len(outputs))):
            cells = torch.bincount(predicted[one] * classes + predicted[other], minlength=classes**2)
            table = cells.reshape(classes, classes)
            count = independent_samples(table)
            same, by_chance = int(table.trace()), chance(table, table.T)
            likely = binomtest(round(same / samples * count), count, by_chance, "greater").pvalue if count else 1.0
            if likely < _SAME_PREDICTIONS:
                return (
                    f"random-label model {other - true} predicts the class of true-label model {one} for {same} of "
                    f"{samples} samples ({by_chance * samples:.0f} expected): were its labels permuted?"
                )
        return None


def _group(name: str, given: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    models = [given] if isinstance(given, nn.Module) and not isinstance(given, nn.ModuleList) else list(given)
    if not models:
        raise ValueError(f"{name} is empty: pass a model or several")
    for each in models:
        if not isinstance(each, nn.Module):
            raise TypeError(f"{name} must be a torch.nn.Module or several, not {type(each).__name__}")
    return models
