"""Question: does the set of methods "that cannot be told apart from the best" hold the best, and do gains keep.

Scores of ten methods are drawn with known means: what makes a sample hard is shared by all of them, the rest is drawn
by several laws, also skewed, heavy-tailed, correlated and of yes and no. Coverage is the share of studies whose set
holds the truly best method (the first of them where several are), and in which every interval of one kind holds at
once. A search among settings that are all the same but for noise must find a gain whose interval holds 0 on the half
that judges, and does not on the half that chose.

    python benchmarks/contests.py [--repeats 100] [--json]
"""

from __future__ import annotations

import torch
from measuring import parser, publish

from lightning_sanity.choice.contest import compare
from lightning_sanity.choice.halves import split, tune

SAMPLES = (4, 16, 128)
MEANS = {
    "one best": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
    "close": [0.7, 0.72, 0.74, 0.76, 0.78, 0.8, 0.82, 0.84, 0.86, 0.9],
    "all alike": [0.5] * 10,
}


def _normal(shape, rng):
    return 0.3 * torch.randn(shape, generator=rng)


def _skewed(shape, rng):
    return 0.3 * (torch.empty(shape).exponential_(1.0, generator=rng) - 1)


def _heavy(shape, rng):
    """Student's t with three degrees of freedom."""
    chi = torch.randn((3, *shape), generator=rng).square().mean(0)
    return 0.2 * torch.randn(shape, generator=rng) / chi.sqrt()


def _families(shape, rng):
    """Methods in pairs that make nearly the same mistakes."""
    shared = torch.randn(shape[0] // 2, shape[1], generator=rng).repeat_interleave(2, 0)
    return 0.3 * (0.95 * shared + 0.05 * torch.randn(shape, generator=rng))


def _unequal(shape, rng):
    """The worse a method the noisier."""
    return torch.linspace(0.8, 0.1, shape[0])[:, None] * torch.randn(shape, generator=rng)


LAWS = {"normal": _normal, "skewed": _skewed, "heavy": _heavy, "families": _families, "unequal": _unequal}


def study(means, law, samples, rng):
    """Scores ``{method: (N,)}`` of one study, the last two of them baselines of mean 0."""
    known = torch.tensor([*means, 0.0, 0.0])
    hard = torch.randn(samples, generator=rng)
    if law == "yes and no":  # a pointing game
        chance = (0.1 + 0.8 * known / known.max().clamp_min(1))[:, None]
        drawn = (torch.rand(len(known), samples, generator=rng) < chance).double()
        known = chance[:, 0]
    else:
        drawn = known[:, None] + hard + LAWS[law]((len(known), samples), rng)
    names = [*(f"m{i}" for i in range(len(means))), "random", "edges"]
    return dict(zip(names, drawn, strict=True)), dict(zip(names, known.tolist(), strict=True))


def covered(means, law, samples, repeats, rng):
    """Rates over studies: the best in the set, its size, all intervals right, baselines beaten though they are not."""
    found = {"best in set": 0, "size": 0, "all distances": 0, "all over baselines": 0, "unjust": 0}
    for repeat in range(repeats):
        scores, known = study(means, law, samples, rng)
        contest = compare(scores, ("random", "edges"), seed=repeat)
        most = max(known[name] for name in contest.names)
        truly = [name for name in contest.names if known[name] == most]
        found["best in set"] += truly[0] in contest.tied
        found["size"] += len(contest.tied) / len(contest.names)
        found["all distances"] += all(
            low - 1e-6 <= known[name] - max(known[n] for n in contest.names if n != name) <= high + 1e-6
            for name, (low, high) in ((n, (i.low, i.high)) for n, i in contest.behind.items())
        )
        found["all over baselines"] += all(
            i.low - 1e-6 <= known[a] - known[b] <= i.high + 1e-6 for (a, b), i in contest.over.items()
        )
        found["unjust"] += any(contest.beats_baselines(n) and known[n] <= known["random"] for n in contest.names)
    return {key: total / repeats for key, total in found.items()}


def tuned(law, samples, settings, repeats, rng):
    """How often the interval of a gain holds 0 where all settings are the same but for noise, on either half."""
    held = {"judging half": 0, "tuning half": 0, "default kept": 0}
    for repeat in range(repeats):
        drawn = torch.randn(samples, generator=rng) + LAWS[law]((settings, samples), rng)
        scores = {f"s{i}": row for i, row in enumerate(drawn)}
        found = tune(scores, "s0", split(samples, seed=repeat))
        held["judging half"] += found.gain.low <= 0 <= found.gain.high
        held["tuning half"] += found.promised.low <= 0 <= found.promised.high
        held["default kept"] += found.kept == "s0"
    return {key: total / repeats for key, total in held.items()}


def rows(repeats, seed=0):
    rng = torch.Generator().manual_seed(seed)
    for law in (*LAWS, "yes and no"):
        for name, means in MEANS.items():
            for samples in SAMPLES:
                rates = covered(means, law, samples, repeats, rng)
                yield {"law": law, "means": name, "samples": samples, **rates}
    for law in LAWS:
        for samples in (8, 16, 64):
            yield {"law": law, "tuning": 12, "samples": samples, **tuned(law, samples, 12, 4 * repeats, rng)}


def line(row):
    of = f"{row['law']:11s} {row.get('means', 'tuning of 12'):13s} {row['samples']:4d}"
    numbers = {key: value for key, value in row.items() if key not in ("law", "means", "samples", "tuning")}
    return f"{of}  " + "  ".join(f"{key} {value:.3f}" for key, value in numbers.items())


def assert_the_best_is_held(repeats=10):
    """On a few studies of the plainest kind, well below the rate that the full run shows."""
    rng = torch.Generator().manual_seed(0)
    few, many = (covered(MEANS["one best"][::3], "normal", n, repeats, rng) for n in (4, 128))
    assert few["best in set"] >= 0.9, few
    assert many["best in set"] >= 0.9, many
    assert few["size"] > 1.5 * many["size"], (few, many)
    assert tuned("normal", 32, 12, 4 * repeats, rng)["judging half"] >= 0.85


def main():
    given = parser(__doc__, repeats=100).parse_args()
    if given.equality_only:
        assert_the_best_is_held()
        print("the set holds the best, large with 4 samples and small with 128; gains of noise hold 0")
        return
    publish(given, rows(given.repeats), line)


if __name__ == "__main__":
    main()
