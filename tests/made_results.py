"""Results made of drawn similarities and judged as real ones are: quick, and as good or bad as a test needs."""

from dataclasses import asdict, replace
from datetime import datetime, timezone

import torch

import lightning_sanity
from lightning_sanity.result import Coverage, Criterion, Curve, Grounds, OutputChange, SanityResult, UnitCoverage
from lightning_sanity.result.controls import validated
from lightning_sanity.result.evidence import RANDOM_LABELS, judged_anew
from lightning_sanity.result.verdict import Evidence, judge

NOW = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)
PASSING, FAILING, OPEN = 0.1, 0.9, 0.415  # mean similarity to the trained model's map


def void(result, reason):
    """The result if something were wrong with its run."""
    verdicts, valid, validity = validated(result.verdicts, reason)
    return replace(result, verdicts=verdicts, valid=valid, validity=validity)


def made(similarity=None, *, controls=True, criterion=None, trials=6, samples=24, spread=0.05, **changes):
    """A result with one gated method per entry of ``similarity``; controls that come out as they must."""
    similarity = {"gradcam": PASSING} if similarity is None else similarity
    criterion = criterion or Criterion()
    rng = torch.Generator().manual_seed(0)

    def about(mean, *shape, width=spread):
        return mean + width * torch.randn(*shape, generator=rng)

    wanted = {
        **similarity,
        **({"output_pattern": 0.15, "gradient": 0.15, "edge_detector": 1.0, "random": 0.0} if controls else {}),
    }
    curves, verdicts, grounds = {}, {}, {}
    for name, mean in wanted.items():
        width = 0.0 if name == "edge_detector" else spread
        values, floor = about(mean, trials, 3, samples, width=width), about(0.1, trials, 3, samples, width=0.02)
        ceiling = torch.ones(1, samples)
        noise = about(0.9, 3, samples, width=0.02) if name != "random" else about(0.3, 3, samples)
        curves[name, "spearman"] = Curve(values, floor, ceiling)
        grounds[name] = Grounds(noise, about(0.3, 9, samples))
        evidence = Evidence(
            {"spearman": values}, {"spearman": floor}, {"spearman": ceiling}, noise, grounds[name].cross, 0.0
        )
        verdicts[name] = judge(evidence, criterion, gated=name in similarity)
    given = {
        "units": ("head", "middle", "stem"),
        "curves": curves,
        "verdicts": verdicts,
        "output_change": OutputChange(
            torch.rand(trials, 3, generator=rng),
            torch.rand(trials, 3, generator=rng),
            torch.ones(trials),
            torch.ones(trials),
        ),
        "coverage": Coverage(
            1.0,
            tuple(
                UnitCoverage(name, (f"{name}.weight",), 4, ("normal",), (1.3,)) for name in ("head", "middle", "stem")
            ),
        ),
        "valid": True,
        "validity": "every control came out as it must",
        "settings": {
            "test": "parameter_randomization",
            "methods": list(similarity),
            "controls": [name for name in wanted if name not in similarity],
            "order": "cascading",
            "trials": trials,
            "samples": samples,
            "criterion": asdict(criterion),
        },
        "environment": {"torch": "2", "lightning-sanity": lightning_sanity.__version__},
        "weights_digest": "f" * 64,
        "probe_digest": "a" * 64,
        "step": 7,
        "seconds": 1.5,
        "created": NOW.isoformat(),
        "grounds": grounds,
    }
    return SanityResult(**{**given, **changes})


def made_of_labels(similarity=None, *, others=("1" * 64, "2" * 64), **changes):
    """The same of the data randomization test: three models of either kind, of which the first is the one in question.

    Trained again, the maps are alike by .8.
    """
    result = made(similarity, trials=9)
    shape = (3, 24)
    again = 0.8 + 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    settings = {
        **result.settings,
        "test": "data_randomization",
        "models": [3, 3],
        "seed": 0,
        "memorization": {"train_accuracy": [1.0] * 3},
        "weights_digests": [result.weights_digest, *others],
    }
    del settings["order"]
    unit = UnitCoverage(RANDOM_LABELS, ("head.weight",), 4, ("trained on random labels",), (1.3,))
    result = replace(
        result,
        units=(RANDOM_LABELS,),
        curves={
            key: Curve(
                curve.values[:, :1], curve.floor[:, :1], torch.ones(shape) if key[0] == "edge_detector" else again
            )
            for key, curve in result.curves.items()
        },
        coverage=Coverage(1.0, (unit,)),
        settings=settings,
    )
    return replace(result, **{"verdicts": judged_anew(result), **changes})
