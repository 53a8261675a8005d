"""Question: do the models that people really use go through the test as they are, and is what it did to them right?

Small models of more than sixty families, built from configurations with drawn weights. Of each: the call, the steps
beside those that an engineer would list, the share of what was re-initialised, how alike the gradient's maps are when
every weight is random (Spearman) beside those of a freshly built model, the path, seconds, and what was said.

    python benchmarks/model_families.py [--families BERT CLIP] [--library timm] [--json]
"""

from __future__ import annotations

import math
import time

import torch
from measuring import parser, publish
from measuring.families import families
from measuring.models import CLASSES, Family, built

from lightning_sanity import parameter_randomization_test

SAMPLES = 6
QUICK = ("ResNet-18", "M5", "LSTM")
GIVEN = {"methods": "gradient", "repeats": 1, "pictures": False, "progress": False}


def measured(name: str, family: Family, fresh: bool = True):
    """A row of the table."""
    row = {"family": name, "library": family.library, "expected": family.steps, "said": ""}
    started = time.perf_counter()
    try:
        model, inputs = built(family), family.inputs(SAMPLES)
        target = torch.arange(SAMPLES) % CLASSES if isinstance(family.target, str) else family.target
        found = parameter_randomization_test(model, inputs, target, trials=3, max_steps=4, **GIVEN, **family.options)
        verdict = found.verdicts["gradient"]
        row |= {
            "steps": found.settings["steps"],
            "coverage": found.coverage.share,
            "similarity": _at_full_depth(found),
            "engine": found.settings["engine"].get("gradient", "-"),
            "verdict": verdict.outcome.value,
            "psi": verdict.psi,
            "valid": found.valid,
            "said": verdict.reason if math.isnan(verdict.psi) else found.validity if not found.valid else "",
            "notes": list(found.coverage.notes),
        }
        row["seconds"] = time.perf_counter() - started
        if fresh:
            twin = parameter_randomization_test(
                model,
                inputs,
                target,
                trials=2,
                order="full",
                controls=False,
                reinitialize=family.build,
                **GIVEN,
                **family.options,
            )
            row |= {"fresh": _at_full_depth(twin), "fresh_notes": list(twin.coverage.notes)}
    except Exception as error:
        row |= {"said": f"{type(error).__name__}: {error}", "seconds": time.perf_counter() - started}
    return row


def _at_full_depth(found) -> float:
    curve = found.curves.get(("gradient", "spearman"))
    return math.nan if curve is None else float(curve.values[:, -1].nanmean())


def line(row):
    if "steps" not in row:
        return f"{row['family']:22s} {row['library']:12s} {row['seconds']:5.1f} s  {row['said']}"
    expected = "-" if row["expected"] is None else row["expected"]
    fresh = row.get("fresh", math.nan)
    return (
        f"{row['family']:22s} {row['library']:12s} {row['steps']:3d}/{expected!s:3s} coverage {row['coverage']:.3f} "
        f"full depth {row['similarity']:5.2f} fresh {fresh:5.2f} {row['engine']:10s} {row['seconds']:5.1f} s "
        f"{row['verdict']:12s} {row['psi']:5.2f} {row['said']}"
    )


def main():
    flags = parser(__doc__, repeats=1)
    every = families()
    flags.add_argument("--families", nargs="+", choices=list(every))
    flags.add_argument("--library", choices=sorted({family.library for family in every.values()}))
    given = flags.parse_args()
    names = given.families or [name for name, each in every.items() if given.library in (None, each.library)]
    rows = []
    for name in QUICK if given.equality_only else names:
        rows.append(measured(name, every[name], fresh=not given.equality_only))
        if not given.json:
            print(line(rows[-1]), flush=True)
    if given.equality_only:
        assert all(row["steps"] == row["expected"] and row["coverage"] == 1 for row in rows), rows
    publish(given, rows if given.json else [], line)


if __name__ == "__main__":
    main()
