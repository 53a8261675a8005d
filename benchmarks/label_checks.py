"""Question: how often are random labels called not random, and how often are others found out?

Labels are drawn and permuted, a thousand times per situation; nothing is trained. "Kept" is the share of samples that
keep their true label while the others' are permuted: at 0 every alarm is false. "Renamed" labels are those of another
class each, "in pairs" those permuted within pairs of classes. "Too alike" is how often it is said, rightly, that most
samples keep their label by chance. Of predictions, whole clusters of test samples are predicted alike, as networks do
that learned random labels by heart; "knows" is the share of clusters whose true class is predicted.

    python benchmarks/label_checks.py [--draws 1000] [--tries 200] [--json]
"""

import json

import torch
from measuring import parser

from lightning_sanity.data_randomization.learned_labels import Memorization, agreement, chance, independent_samples

CLASSES = {
    "two": [1 / 2] * 2,
    "three": [0.2, 0.3, 0.5],
    "five": [1 / 5] * 5,
    "ten": [1 / 10] * 10,
    "a hundred": [1 / 100] * 100,
    "80 to 20": [0.8, 0.2],
    "95 to 5": [0.95, 0.05],
}
SIZES = (200, 1000)
KEPT = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
KNOWS = (0.0, 0.05, 0.1, 0.2, 0.5)
UNMET = 0.95


def permuted(labels, rng):
    """The same labels in another order."""
    return labels[torch.randperm(len(labels), generator=rng)]


def partly(labels, kept, rng):
    """Labels of which that share stays where it is."""
    assigned, moved = labels.clone(), torch.randperm(len(labels), generator=rng)[round(kept * len(labels)) :]
    assigned[moved] = permuted(labels[moved], rng)
    return assigned


def in_pairs(labels, rng):
    """Labels permuted within classes 0 and 1, 2 and 3, and so on."""
    assigned = labels.clone()
    for pair in (labels // 2).unique():
        inside = labels // 2 == pair
        assigned[inside] = permuted(labels[inside], rng)
    return assigned


def said(labels, assigned):
    """What is said against labels of a model that learned them by heart: that they are not random, or too alike."""
    found = agreement(labels, assigned)
    known = Memorization(
        (1.0,),
        (1.0,),
        label_agreement=(found.share,),
        label_chance=min(found.chance, 1 - 1e-9),
        label_samples=found.samples,
        label_association=(found.association,) if found.association == found.association else (),
    )
    reason = known.unmet(1, 1, UNMET) or ""
    return "were all its labels permuted?" in reason or "as if they were renamed" in reason, "so frequent" in reason


def of_labels(frequencies, size, draws, tries):
    """Alarms per kind of labels."""
    rng, shares = torch.Generator().manual_seed(0), torch.tensor(frequencies)

    def rate(change, repeats, what=0):
        alarms = 0
        for _ in range(repeats):
            labels = torch.multinomial(shares, size, True, generator=rng)
            alarms += said(labels, change(labels))[what]
        return alarms / repeats

    rates = {f"kept {kept:g}": rate(lambda x, k=kept: partly(x, k, rng), tries if kept else draws) for kept in KEPT}
    rates["renamed"] = rate(lambda labels: (labels + 1) % len(frequencies), tries)
    rates["in pairs"] = rate(lambda labels: in_pairs(labels, rng), tries) if len(frequencies) > 3 else float("nan")
    rates["too alike"] = rate(lambda labels: permuted(labels, rng), tries, 1)
    return rates


def of_predictions(classes, size, together, draws, tries):
    """Alarms where nothing but predictions on test samples is known; clusters of so many samples."""
    rng = torch.Generator().manual_seed(0)
    trained = torch.eye(classes).long() * 100

    def alarm(knows):
        clusters = size // together
        labels = torch.arange(clusters) % classes
        guessed = torch.randint(classes, (clusters,), generator=rng)
        right = torch.rand(clusters, generator=rng) < knows
        guessed = torch.where(right, labels, guessed)
        table = torch.bincount(labels * classes + guessed, minlength=classes**2).reshape(classes, classes) * together
        accuracy = float(table.trace() / table.sum())
        known = Memorization((1.0,), (1.0,), (accuracy,), independent_samples(table), chance(trained, table))
        return known.unmet(1, 1, UNMET) is not None

    return {
        f"knows {knows:g}": sum(alarm(knows) for _ in range(tries if knows else draws)) / (tries if knows else draws)
        for knows in KNOWS
    }


def main():
    made = parser(__doc__)
    made.add_argument("--draws", type=int, default=1000, help="where every alarm is false")
    made.add_argument("--tries", type=int, default=200, help="where none should be missing")
    arguments = made.parse_args()
    if arguments.equality_only:
        labels = torch.arange(200) % 10
        assert said(labels, labels)[0]
        assert said(labels, (labels + 1) % 10)[0]
        assert not any(said(labels, permuted(labels, torch.Generator().manual_seed(0))))
        print("true and renamed labels are found out, permuted ones are not called so")
        return
    tables = {
        "labels": {
            f"{name}, {size}": of_labels(frequencies, size, arguments.draws, arguments.tries)
            for name, frequencies in CLASSES.items()
            for size in SIZES
        },
        "predictions": {
            f"{classes} classes, {size} samples, {together} alike": of_predictions(
                classes, size, together, arguments.draws, arguments.tries
            )
            for classes, size, together in ((5, 400, 1), (10, 400, 1), (10, 400, 4), (10, 2000, 10), (100, 2000, 4))
        },
    }
    if arguments.json:
        print(json.dumps(tables, indent=1))
        return
    for name, rows in tables.items():
        columns = list(next(iter(rows.values())))
        print(f"\n| {name} | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
        for row, rates in rows.items():
            print(f"| {row} | {' | '.join(f'{rates[key]:.3f}' for key in columns)} |")


if __name__ == "__main__":
    main()
