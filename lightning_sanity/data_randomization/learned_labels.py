"""Did every model learn the labels it was given, and were these random? Else maps tell nothing about labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_sanity.data_randomization.association import association
from lightning_sanity.data_randomization.label_access import LabelError, identity
from lightning_sanity.data_randomization.tallies import ACCURACY, EXPLAINED_VARIANCE, Tally, added, score, tally
from lightning_sanity.explanation.probe import batch_size
from lightning_sanity.model.clone import evaluating
from lightning_sanity.model.outputs import logits

_LEVEL = 0.99  # of what labels may agree by chance, over all models together
_LEVEL_OF_PREDICTIONS = 0.995  # of test accuracies, whose dispersion is estimated: 1.4 % false alarms at 0.99
_LEVEL_OF_ASSOCIATION = 1e-6  # where classes are rare, larger ones come by chance more often than they say
_HARDLY_CHANGED = 0.9  # of samples that keep their label by chance: of the data, so that no draw decides
_FEW_CLASSES = 0.3  # chance above which predictions of few classes tell nothing about labels


@dataclass(frozen=True)
class Memorization:
    """How well the models of a data randomization test learned their labels, in the order of the models.

    Whether labels were random is told by the labels, where ``label_agreement`` is known. Predictions tell it badly: a
    network that learned random labels by heart predicts similar samples alike, so that with two classes, or classes
    that lie apart, its accuracy is anywhere, and they are not asked then.

    Args:
        true_train: Accuracy of each true-label model on its training set.
        permuted_train: Accuracy of each random-label model on the random labels it was trained on.
        permuted_test: Accuracy of each random-label model on the true labels of samples it was not trained on; may be
            empty where ``label_agreement`` is given.
        test_samples: Number of those samples, as far as they are independent; see ``independent_samples``. 0 =
            unknown: then they tell nothing.
        chance: What ``permuted_test`` is expected to be: one over the number of classes where they are balanced; NaN
            where it is unknown.
        label_agreement: Share of the training samples of each random-label model whose label is their true one.
        label_chance: What that share is expected to be.
        label_samples: Number of training samples.
        label_association: Of each random-label model, see ``association.association``; may be empty, NaN is unknown.
        measure: What the first three hold: see ``tallies.Score``.

    Raises:
        ValueError: If a number is out of its range.
    """

    true_train: tuple[float, ...]
    permuted_train: tuple[float, ...]
    permuted_test: tuple[float, ...] = ()
    test_samples: int = 0
    chance: float = float("nan")
    label_agreement: tuple[float, ...] = ()
    label_chance: float = float("nan")
    label_samples: int = 0
    measure: str = ACCURACY
    label_association: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        least = float("-inf") if self.measure == EXPLAINED_VARIANCE else 0.0
        for name in ("true_train", "permuted_train", "permuted_test", "label_agreement", "label_association"):
            values = tuple(float(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
            lowest = 0.0 if name.startswith("label_") else least
            wrong = [value for value in values if not lowest <= value <= 1 and value == value]
            if wrong:
                raise ValueError(f"Memorization: {name} must hold accuracies between 0 and 1, not {wrong[0]!r}")
        for name in ("chance", "label_chance"):
            value = getattr(self, name)
            if not 0 < value < 1 and value == value:
                raise ValueError(f"Memorization: {name} must lie between 0 and 1, not {value!r}")
        for name in ("test_samples", "label_samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"Memorization: {name} must not be negative, not {getattr(self, name)!r}")

    def unmet(self, true: int, permuted: int, least: float) -> str | None:
        """Which precondition is not met, if one is not.

        Args:
            true: Number of true-label models.
            permuted: Number of random-label models.
            least: Training accuracy that counts as memorised.

        Raises:
            ValueError: If there is not one number per model.
        """
        self._check_counts(true, permuted)
        found = [
            *self._not_learned("true", self.true_train, least),
            *self._not_learned("random", self.permuted_train, least),
        ]
        return "; ".join(found + (self._not_random() if self.label_agreement else self._not_by_chance())) or None

    def _not_learned(self, kind: str, accuracies: Sequence[float], least: float) -> list[str]:
        """One sentence about all models that learned too little, if there are any."""
        few = [(index, accuracy) for index, accuracy in enumerate(accuracies) if not accuracy >= least]
        if not few:
            return []
        (first, lowest), others = few[0], few[1:]
        return [
            f"{kind}-label model {first} learned only {lowest:.1%} of its training labels"
            + "".join(f", model {index} only {accuracy:.1%}" for index, accuracy in others)
            + f" ({least:.0%} needed, {self.measure}: train {'them' if others else 'it'} longer)"
        ]

    def untold(self) -> str | None:
        """Why nothing tells whether the labels were random, if so."""
        if self.label_agreement or self._predictions_tell():
            return None
        why = "of few classes" if self.chance > _FEW_CLASSES else "without a number of independent samples"
        return (
            f"whether the labels were random was not checked: predictions {why} cannot tell; pass the "
            "RandomLabelDataModule, or Memorization(label_agreement=...)"
        )

    def _check_counts(self, true: int, permuted: int) -> None:
        given = len(self.true_train), len(self.permuted_train), len(self.permuted_test), len(self.label_agreement)
        if self.label_association and len(self.label_association) != given[3]:
            raise ValueError(
                f"Memorization: {given[3]} label_agreement need as many label_association, or none, not "
                f"{len(self.label_association)}"
            )
        if given[:2] != (true, permuted) or not {*given[2:]} <= {0, permuted} or not any(given[2:]):
            raise ValueError(
                f"Memorization: {true} true-label and {permuted} random-label models need as many accuracies, not "
                f"{given[0]} true_train, {given[1]} permuted_train, {given[2]} permuted_test and {given[3]} "
                "label_agreement (one of the latter two may be empty)"
            )

    def _predictions_tell(self) -> bool:
        return bool(self.permuted_test) and self.test_samples > 0 and self.chance <= _FEW_CLASSES

    def _not_random(self) -> list[str]:
        """Models whose labels were the true ones more often than by chance, or hardly changed."""
        if not self.label_samples or self.label_chance != self.label_chance:
            raise ValueError("Memorization: label_agreement needs label_chance and label_samples beside it")
        most = self._interval(self.label_samples, self.label_chance, _LEVEL)[1]
        found = [
            f"random-label model {index} was trained on {agreement:.1%} true labels ({self.label_chance:.1%} by "
            f"chance, at most {most:.1%}): were all its labels permuted?"
            for index, agreement in enumerate(self.label_agreement)
            if agreement > most
        ]
        found += [
            f"random-label model {index} was trained on {agreement:.0%} true labels by chance, so frequent is one "
            "class: it learned nearly the same, and its maps say nothing about labels"
            for index, agreement in enumerate(self.label_agreement)
            if self.label_chance > _HARDLY_CHANGED and agreement <= most
        ]
        found += [
            f"random-label model {index} was trained on labels that are seldom the true ones and yet go together with "
            f"them (p = {probability:.1g}), as if they were renamed: draw them at random"
            for index, probability in enumerate(self.label_association)
            if probability < _LEVEL_OF_ASSOCIATION and self.label_agreement[index] <= most
        ]
        return found

    def _not_by_chance(self) -> list[str]:
        """Models that know the labels of samples that they never saw."""
        if not self._predictions_tell():
            return []
        low, high = self.chance_interval()
        return [
            f"random-label model {index} has a test accuracy of {accuracy:.1%}, not of chance ({low:.1%} to "
            f"{high:.1%}): were its labels permuted?"
            for index, accuracy in enumerate(self.permuted_test)
            if not low <= accuracy <= high
        ]

    def chance_interval(self) -> tuple[float, float]:
        """Test accuracies of models that know nothing of the true labels: a binomial interval, for all of them."""
        return self._interval(self.test_samples, self.chance, _LEVEL_OF_PREDICTIONS)

    def _interval(self, samples: int, chance: float, level: float) -> tuple[float, float]:
        from scipy.stats import binom  # half a second to import

        level = 1 - (1 - level) / max(len(self.permuted_train), 1)
        low, high = binom.interval(level, samples, chance)
        return float(low) / samples, float(high) / samples


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
        training: Inputs and true labels of the training set: class indices, rows of several labels, numbers, masks,
            whatever ``tallies.tally`` takes.
        permuted_labels: The labels that each of ``random_label_models`` was trained on.
        test: Inputs and true labels of samples that no model was trained on.
        forward: ``forward(model, *inputs) -> scores`` where calling the model is not enough.

    Raises:
        ValueError: If labels and inputs, or permuted labels and models, differ in number.
    """
    if len(permuted_labels) != len(random_label_models):
        raise ValueError(
            f"{len(random_label_models)} random-label models need as many permuted_labels, not {len(permuted_labels)}"
        )
    true = [tally_of(model, *training, forward) for model in models]
    learned = [
        tally_of(model, training[0], labels, forward)
        for model, labels in zip(random_label_models, permuted_labels, strict=True)
    ]
    unseen = [tally_of(model, *test, forward) for model in random_label_models]
    found = [agreement(training[1], labels) for labels in permuted_labels]
    return combined(true, learned, unseen, found)


@dataclass(frozen=True)
class Agreement:
    """How often random labels are the true ones.

    Attributes:
        share: Of the samples.
        chance: The same share, were the random labels exchanged among the samples.
        samples: How many there are.
        association: Probability of labels that go together this much, were they random; NaN if unknown.
    """

    share: float
    chance: float
    samples: int
    association: float = float("nan")


def agreement(true: Sequence[Any] | Tensor, assigned: Sequence[Any] | Tensor) -> Agreement | None:
    """How often the labels ``assigned`` are those in ``true``; None where labels cannot be compared."""
    if len(true) != len(assigned) or not len(true):
        return None
    try:
        own, given = (list(map(identity, _listed(labels))) for labels in (true, assigned))
    except LabelError:
        return None
    place = {key: index for index, key in enumerate(dict.fromkeys([*own, *given]))}
    a, b = (torch.tensor([place[key] for key in keys]) for keys in (own, given))
    shares = [each.bincount(minlength=len(place)).double() / len(a) for each in (a, b)]
    share, by_chance = float((a == b).double().mean()), float((shares[0] * shares[1]).sum())
    return Agreement(share, by_chance, len(a), association(_listed(true), _listed(assigned)))


def all_known(found: Sequence[Agreement]) -> bool:
    """Whether it could be told of all of them whether their labels go together with the true ones."""
    return all(math.isfinite(each.association) for each in found)


def _listed(labels: Sequence[Any] | Tensor) -> Sequence[Any]:
    if not isinstance(labels, Tensor):
        return labels
    return labels.tolist() if labels.ndim == 1 else list(labels)


def combined(
    true: Sequence[Tally], learned: Sequence[Tally], unseen: Sequence[Tally], found: Sequence[Agreement | None]
) -> Memorization:
    """Everything that was counted, as one.

    Args:
        true: Of each true-label model on its training set.
        learned: Of each random-label model on its own.
        unseen: Of each random-label model on samples it was not trained on; may be empty.
        found: How often the labels of each random-label model are the true ones, where known.
    """
    scores = [[score(sums) for sums in each] for each in (true, learned, unseen)]
    tables = [each.confusion for each in scores[2]]
    samples, by_chance = 0, float("nan")
    trained = scores[1][0].confusion
    if tables and trained is not None and all(table is not None for table in tables):
        samples = min(independent_samples(table) for table in tables if table is not None)
        by_chance = chance(trained, tables[0])  # type: ignore[arg-type]
    known = [each for each in found if each is not None]
    told = len(known) == len(learned)
    return Memorization(
        tuple(each.value for each in scores[0]),
        tuple(each.value for each in scores[1]),
        tuple(each.value for each in scores[2]),
        samples,
        by_chance if 0 < by_chance < 1 else float("nan"),
        tuple(each.share for each in known) if told else (),
        min(max(each.chance for each in known), 1 - 1e-9) if told else float("nan"),
        min(each.samples for each in known) if told else 0,
        scores[1][0].measure,
        tuple(each.association for each in known) if told and all_known(known) else (),
    )


def chance(trained: Tensor, tested: Tensor) -> float:
    """Expected accuracy of predictions that occur as often as the training labels but know nothing of the sample.

    Args:
        trained: Confusion matrix of the training set.
        tested: Confusion matrix of the test set.
    """
    return float((trained.sum(1) / trained.sum() * tested.sum(1) / tested.sum()).sum())


def independent_samples(counts: Tensor) -> int:
    """As how many independent samples the test samples count, given a model's confusion matrix; 0 = unknown.

    A network that knows nothing of the true labels still predicts similar samples alike, and samples of a class are
    similar. Its accuracy then scatters more than that of coin tosses, by the Pearson dispersion of the cells off the
    diagonal, which say nothing about right or wrong. Below four classes nothing is left to see that from.
    """
    classes, total = len(counts), counts.sum().double()
    freedom = (classes - 1) ** 2 - classes
    if freedom < 1:
        return 0
    expected = counts.sum(1, keepdim=True) * counts.sum(0, keepdim=True) / total
    off = ~torch.eye(classes, dtype=torch.bool, device=counts.device) & (expected > 0)
    dispersion = float(((counts - expected) ** 2 / expected)[off].sum()) / freedom
    return max(1, int(total / max(1.0, dispersion)))


@torch.no_grad()
def tally_of(
    model: nn.Module, inputs: Any, labels: Tensor, forward: Callable[..., Any] | None = None, rows: int = 256
) -> Tally:
    """How well a model predicts labelled data, on the CPU; see ``tallies.tally``.

    Raises:
        ValueError: If inputs and labels differ in number.
    """
    if batch_size(inputs) != len(labels):
        raise ValueError(f"{batch_size(inputs)} inputs need as many labels, not {len(labels)}")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    sums: Tally | None = None
    with evaluating(model):
        for start in range(0, len(labels), rows):
            few = tree_map(lambda t: t[start : start + rows].to(device), inputs)  # noqa: B023
            arguments = few if isinstance(few, tuple) else (few,)
            outputs = logits(forward(model, *arguments) if forward is not None else model(*arguments))
            sums = added(sums, tally(outputs, labels[start : start + rows]))
    return {name: value.cpu() for name, value in (sums or {}).items()}
