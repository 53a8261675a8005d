"""The measure follows the labels: accuracy, exact match, explained variance or IoU, each against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score, r2_score
from torch.nn.functional import one_hot

from lightning_sanity.data_randomization.tallies import TallyError, added, score, tally

RNG = torch.Generator().manual_seed(0)
N = 60


def rand(*shape):
    return torch.rand(*shape, generator=RNG)


def randn(*shape):
    return torch.randn(*shape, generator=RNG)


def in_batches(outputs, labels, size=16):
    """The sums of all batches; adding them up must not change what the labels are."""
    sums = None
    for start in range(0, len(labels), size):
        sums = added(sums, tally(outputs[start : start + size], labels[start : start + size]))
    return score(sums)


CLASSES = torch.randint(4, (N,), generator=RNG)
SCORES = randn(N, 4) + 1.5 * one_hot(CLASSES, 4)
RIGHT = accuracy_score(CLASSES, SCORES.argmax(1))
BITS = (rand(N, 5) > 0.6).long()
LOGITS = randn(N, 5) + 6 * (BITS - 0.5)
EXACT = float(((LOGITS > 0) == (BITS > 0)).all(1).float().mean())
SIGNS, ONE = BITS[:, 0], LOGITS[:, 0]
HIT = accuracy_score(SIGNS, ONE > 0)
NUMBERS = randn(N, 3)
GUESSES = NUMBERS + 0.5 * randn(N, 3)
MASKS = torch.randint(3, (N, 4, 4), generator=RNG)
DENSE = randn(N, 3, 4, 4) + 2 * one_hot(MASKS, 3).movedim(-1, 1)
OVERLAP = jaccard_score(MASKS.flatten(), DENSE.argmax(1).flatten(), average="macro")
BINARY = (MASKS > 0)[:, None]
SURE = randn(N, 1, 4, 4) + 3 * (BINARY.float() - 0.5)
COVER = jaccard_score(BINARY.flatten(), SURE.flatten() > 0)

KINDS = {
    "classes": (SCORES, CLASSES, "accuracy", RIGHT),
    "classes in a column": (SCORES, CLASSES[:, None], "accuracy", RIGHT),
    "classes in floating point": (SCORES, CLASSES.float(), "accuracy", RIGHT),
    "classes in 8 bits": (SCORES.bfloat16().float(), CLASSES.byte(), "accuracy", RIGHT),
    "one-hot rows": (SCORES, one_hot(CLASSES, 4).float(), "accuracy", RIGHT),
    "smoothed rows": (SCORES, 0.9 * one_hot(CLASSES, 4) + 0.025, "accuracy", RIGHT),
    "several labels": (LOGITS, BITS.float(), "exact match", EXACT),
    "several labels as integers": (LOGITS, BITS, "exact match", EXACT),
    "several labels, sigmoid outputs": (LOGITS.sigmoid(), BITS.float(), "exact match", EXACT),
    "one logit": (ONE, SIGNS, "accuracy", HIT),
    "one logit in a column": (ONE[:, None], SIGNS.float(), "accuracy", HIT),
    "one sigmoid output": (ONE.sigmoid()[:, None], SIGNS[:, None].float(), "accuracy", HIT),
    "numbers": (GUESSES, NUMBERS, "explained variance", r2_score(NUMBERS, GUESSES, multioutput="variance_weighted")),
    "one number": (GUESSES[:, :1], NUMBERS[:, 0], "explained variance", r2_score(NUMBERS[:, 0], GUESSES[:, 0])),
    "masks of classes": (DENSE, MASKS, "IoU", OVERLAP),
    "one mask": (SURE, BINARY.float(), "IoU", COVER),
    "one mask without a channel": (SURE, BINARY[:, 0].float(), "IoU", COVER),
    "one mask, sigmoid outputs": (SURE.sigmoid(), BINARY.float(), "IoU", COVER),
    "tokens": (DENSE.flatten(2).movedim(1, 2), MASKS.flatten(1), "accuracy", accuracy_score(
        MASKS.flatten(), DENSE.argmax(1).flatten()
    )),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_measure_follows_the_labels_and_equals_scikit_learns(kind):
    outputs, labels, measure, expected = KINDS[kind]
    found = in_batches(outputs, labels)
    assert found.measure == measure
    assert found.value == pytest.approx(float(expected), abs=1e-6)


def test_a_batch_of_zeros_and_ones_does_not_make_classes_of_numbers():
    numbers = torch.tensor([0.0, 1.0, 1.0, 0.0, 2.5, 3.0])
    assert in_batches(numbers + 0.1, numbers, size=4).measure == "explained variance"


def test_ignored_pixels_do_not_count():
    ignored = MASKS.clone()
    ignored[:, 0] = -100
    expected = jaccard_score(MASKS[:, 1:].flatten(), DENSE.argmax(1)[:, 1:].flatten(), average="macro")
    assert in_batches(DENSE, ignored).value == pytest.approx(expected, abs=1e-6)


def test_numbers_that_do_not_vary_have_no_explained_variance():
    assert np.isnan(in_batches(GUESSES, torch.full((N, 3), 2.5)).value)


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (SCORES, rand(N), r"labels of shape \(60,\) .* do not fit outputs of shape \(60, 4\)"),
        (SCORES, CLASSES + 1, "label 4 has no output: the model has 4, for classes 0 to 3"),
        (SCORES, rand(N, 3), "do not fit"),
        (SCORES, CLASSES[:-1], "do not fit"),
    ],
)
def test_labels_that_do_not_belong_to_the_outputs_are_refused(outputs, labels, message):
    with pytest.raises(TallyError, match=message):
        tally(outputs, labels)
