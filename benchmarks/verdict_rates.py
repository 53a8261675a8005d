"""Question: how often is a verdict wrong, beside the two rules that people use now?

Planted methods ``input + weight * gradient`` go from insensitive to sensitive as the weight grows. Each is measured
once with many trials and samples on networks trained on digits; that bank is taken as the population, and its PSI says
which methods are insensitive (below ``min_psi``). Small studies are then drawn from it, and each is judged. A false
PASS is an insensitive method that passes, a false FAIL a sensitive one that fails. The two rules pass a method when the
mean similarity at full randomization is below a number: Spearman below 0.3, SSIM below 0.5.

    python benchmarks/verdict_rates.py [--repeats 200] [--seeds 0 1] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from dataclasses import replace

import torch

from lightning_sanity import Criterion, Outcome, attribution, parameter_randomization_test
from lightning_sanity.cli import demo
from lightning_sanity.result.verdict import MEASURES, Evidence, judge

WEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 1.1, 1.3, 1.6, 2.0, 3.0)
SIZES = ((3, 16), (5, 16), (5, 32), (10, 32), (20, 64))
RULES = {"Spearman < 0.3 at full depth": ("spearman", 0.3), "SSIM < 0.5 at full depth": ("ssim", 0.5)}


def methods(weights):
    planted = {f"x + {w:g} gradient": replace(attribution.input_plus_gradient(w), control=False) for w in weights}
    return {**planted, "gradient": "gradient", "guided_backprop": "guided_backprop"}


def bank(seed, weights, trials, samples, epochs=6):
    """One long test on a network trained from this seed."""
    training, validation = demo.digits()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    model, _ = demo.train(training, validation, epochs=epochs, seed=seed, **quiet)
    images = validation.tensors[0][:samples]
    given = {"trials": trials, "seed": seed, "controls": False, "pictures": False, "progress": False}
    return parameter_randomization_test(model, images, methods=methods(weights), **given)


def drawn(result, method, trials, samples):
    """The curves of a study of these trials and samples (indices into the bank)."""
    curves = {name: result.curves[method, name] for name in MEASURES if (method, name) in result.curves}
    return Evidence(
        values={name: curve.values[trials][:, :, samples] for name, curve in curves.items()},
        floor={name: curve.floor[trials][:, :, samples] for name, curve in curves.items()},
        ceiling={name: curve.ceiling[:, samples] for name, curve in curves.items()},
        # Planted maps hold the input, so that they always carry signal; the guard is not what is studied.
        noise=torch.ones(1, len(samples)),
        cross=torch.zeros(9, len(samples)),
        dead=0.0,
    )


def studied(result, method, trials, samples, repeats, rng):
    """How often each outcome comes out, and how often each rule passes the method."""
    counts = dict.fromkeys([*(o.value for o in Outcome), *RULES], 0)
    for _ in range(repeats):
        bank_trials, _, bank_samples = result.curves[method, "ssim"].values.shape
        evidence = drawn(
            result,
            method,
            torch.randint(bank_trials, (trials,), generator=rng),
            torch.randint(bank_samples, (samples,), generator=rng),
        )
        counts[judge(evidence, Criterion()).outcome.value] += 1
        for rule, (name, limit) in RULES.items():
            counts[rule] += int(evidence.values[name][:, -1].nanmean() < limit)
    return {key: count / repeats for key, count in counts.items()}


def rows(result, seed, sizes, repeats):
    rng = torch.Generator().manual_seed(seed)
    for method, verdict in result.verdicts.items():
        for trials, samples in sizes:
            found = studied(result, method, trials, samples, repeats, rng)
            yield {"seed": seed, "method": method, "psi": verdict.psi, "trials": trials, "samples": samples, **found}


def summary(table, sizes):
    """Per size, mean and worst rates over the methods: false PASS of the insensitive, false FAIL of the sensitive."""
    limit = Criterion().min_psi
    lines = []
    for trials, samples in sizes:
        here = [row for row in table if (row["trials"], row["samples"]) == (trials, samples)]
        insensitive, sensitive = [r for r in here if r["psi"] < limit], [r for r in here if r["psi"] >= limit]
        verdict = {
            "false_pass": [row["PASS"] for row in insensitive],
            "false_fail": [row["FAIL"] for row in sensitive],
            "open": [row["INCONCLUSIVE"] for row in here],
        }
        by_rule = {
            rule: {"false_pass": [row[rule] for row in insensitive], "false_fail": [1 - row[rule] for row in sensitive]}
            for rule in RULES
        }
        lines += [
            {"trials": trials, "samples": samples, "decided_by": name}
            | {key: {"mean": statistics.mean(values), "worst": max(values)} for key, values in rates.items()}
            for name, rates in {"verdict": verdict, **by_rule}.items()
        ]
    return lines


def shown(table, sizes):
    print("trials samples  decided by                     false PASS        false FAIL        open")
    for line in summary(table, sizes):
        rates = [line.get(key) for key in ("false_pass", "false_fail", "open")]
        text = "  ".join(f"{r['mean']:.3f} (<= {r['worst']:.2f})" if r else "" for r in rates)
        print(f"{line['trials']:6d} {line['samples']:7d}  {line['decided_by']:30s} {text}")
    most = sizes[-1]
    print(f"\nwith {most[0]} trials and {most[1]} samples:")
    print("seed  method               PSI    PASS  FAIL  open   Spearman rule  SSIM rule")
    for row in table:
        if (row["trials"], row["samples"]) == most:
            rates = f"{row['PASS']:.2f}  {row['FAIL']:.2f}  {row['INCONCLUSIVE']:.2f}"
            rules = "           ".join(f"{row[rule]:.2f}" for rule in RULES)
            print(f"{row['seed']:4d}  {row['method']:18s} {row['psi']:6.2f}  {rates}   {rules}")


def assert_equal_verdicts(result):
    """A study that draws the whole bank once has the verdict of the test itself."""
    for method, verdict in result.verdicts.items():
        trials, _, samples = result.curves[method, "ssim"].values.shape
        whole = judge(drawn(result, method, torch.arange(trials), torch.arange(samples)), Criterion())
        assert (whole.psi, whole.psi_low, whole.psi_high) == (verdict.psi, verdict.psi_low, verdict.psi_high), method


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--trials", type=int, default=40, help="of the bank")
    parser.add_argument("--samples", type=int, default=128, help="of the bank")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--equality-only", action="store_true", help="assert that a whole study has the test's verdict")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.equality_only:
        assert_equal_verdicts(bank(0, (0.1, 1.0), trials=2, samples=8, epochs=2))
        print("a study of the whole bank has the verdict of the test")
        return
    table = []
    for seed in given.seeds:
        result = bank(seed, WEIGHTS, given.trials, given.samples)
        assert_equal_verdicts(result)
        table += rows(result, seed, SIZES, given.repeats)
    if given.json:
        print(json.dumps({"torch": torch.__version__, "rows": table, "summary": summary(table, SIZES)}))
    else:
        shown(table, SIZES)


if __name__ == "__main__":
    main()
