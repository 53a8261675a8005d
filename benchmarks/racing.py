"""Question: do early verdicts equal those of the whole test, and what do they save.

Studies are drawn from the bank of `verdict_rates.py`: one long test on a network trained on digits, of planted methods
``input + weight * gradient`` from insensitive to sensitive, of the gradient and of Guided Backprop. Every study is
judged twice: whole, and look by look as a race does, where what is settled costs no further trials. A study counts as
equal if the verdicts on all of its methods are. The naive race beside it takes the 95 % interval at every look.

    python benchmarks/racing.py [--repeats 500] [--bank FILE] [--json]
"""

from __future__ import annotations

from dataclasses import replace

import torch
from measuring import parser, publish
from verdict_rates import WEIGHTS, bank, drawn

from lightning_sanity import Criterion, SanityResult
from lightning_sanity.choice.racing import SPEND, early, levels
from lightning_sanity.result.psi import LEVEL
from lightning_sanity.result.verdict import judge

LOOKS = {(20, 64): (3, 4, 6, 9, 13, 20), (20, 16): (3, 4, 6, 9, 13, 20), (10, 32): (3, 4, 6, 10), (5, 16): (3, 5)}
"""Per size of the whole test (trials, samples), after how many trials a race looks."""


def first_trials(evidence, trials):
    """What was known after so many trials."""
    values, floor = ({name: t[:trials] for name, t in of.items()} for of in (evidence.values, evidence.floor))
    return replace(evidence, values=values, floor=floor)


def raced(evidence, looks, wanted, criterion):
    """The outcome of a race, and after how many trials it was settled."""
    for trials, level in zip(looks[:-1], wanted, strict=False):
        verdict = early(first_trials(evidence, trials), criterion, level)
        if verdict is not None:
            return verdict.outcome, trials
    return judge(evidence, criterion).outcome, looks[-1]


def studies(result, size, repeats, rng, spend=SPEND):
    """Rates of a number of studies: all verdicts equal, verdicts that differ, share of the explanations made."""
    trials, samples = size
    looks, criterion = LOOKS[size], Criterion()
    sides = {
        "race": levels([look / trials for look in looks], spend),
        "naive": [LEVEL] * len(looks),
    }
    found = {side: {"equal": 0, "differ": 0, "explained": 0.0} for side in sides}
    for _ in range(repeats):
        chosen = [torch.randint(n, (k,), generator=rng) for n, k in zip(_size(result), size, strict=True)]
        evidence = {method: drawn(result, method, *chosen) for method in result.verdicts}
        whole = {method: judge(each, criterion).outcome for method, each in evidence.items()}
        for side, wanted in sides.items():
            ends = {method: raced(each, looks, wanted, criterion) for method, each in evidence.items()}
            differ = sum(ends[method][0] is not whole[method] for method in whole)
            found[side]["equal"] += differ == 0
            found[side]["differ"] += differ / len(whole)
            found[side]["explained"] += sum(spent for _, spent in ends.values()) / (trials * len(whole))
    for side, totals in found.items():
        yield {"trials": trials, "samples": samples, "side": side} | {k: v / repeats for k, v in totals.items()}


def _size(result):
    trials, _, samples = next(iter(result.curves.values())).values.shape
    return trials, samples


def line(row):
    return (
        f"{row['trials']:3d} trials {row['samples']:3d} samples  {row['side']:5s}  all equal {row['equal']:.3f}  "
        f"verdicts that differ {row['differ']:.4f}  explained {row['explained']:.2f}"
    )


def assert_a_race_with_one_look_is_the_test(result):
    """Without an early look nothing can differ."""
    for method in result.verdicts:
        whole = drawn(result, method, *(torch.arange(n) for n in _size(result)))
        assert raced(whole, (_size(result)[0],), (), Criterion())[0] is result.verdicts[method].outcome, method


def main():
    flags = parser(__doc__, repeats=500)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--trials", type=int, default=40, help="of the bank")
    flags.add_argument("--samples", type=int, default=128, help="of the bank")
    flags.add_argument("--bank", help="a result in JSON, from an earlier run; it is written there if it is missing")
    given = flags.parse_args()
    if given.equality_only:
        assert_a_race_with_one_look_is_the_test(bank(0, (0.1, 1.0), trials=2, samples=8, epochs=2))
        print("a race that looks once is the whole test")
        return
    result = _kept_bank(given)
    assert_a_race_with_one_look_is_the_test(result)
    rng = torch.Generator().manual_seed(given.seed)
    publish(given, (row for size in LOOKS for row in studies(result, size, given.repeats, rng)), line)


def _kept_bank(given):
    try:
        return SanityResult.from_json(given.bank)
    except (FileNotFoundError, TypeError):
        result = bank(given.seed, WEIGHTS, given.trials, given.samples)
        if given.bank:
            result.to_json(given.bank)
        return result


if __name__ == "__main__":
    main()
