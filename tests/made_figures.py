"""Results to draw: ordinary, crowded, invalid and undefined ones."""

import math
from dataclasses import replace

import torch

from lightning_sanity.result import Coverage, Curve, Outcome, OutputChange, SanityResult, UnitCoverage, Verdict
from lightning_sanity.result.sanity_result import Pictures

UNITS = ("fc2", "fc1", "features.6", "features.3", "features.0")

NAN = math.nan


def make_result(*, methods=None, units=UNITS, trials=4, samples=6, similarities=("ssim", "spearman"), **changes):
    """Gradient passes, Guided Backprop fails, noise is a control; curves decay as their PSI says."""
    draw = torch.Generator().manual_seed(0)
    verdicts = methods or {
        "gradient": Verdict(Outcome.PASS, "it changes", 0.93, 0.88, 0.97, "spearman"),
        "guided_backprop": Verdict(Outcome.FAIL, "it stays", 0.31, 0.25, 0.38, "ssim"),
        "random": Verdict(Outcome.INCONCLUSIVE, "no signal", measure="ssim", gated=False),
    }
    depths = len(units)

    def curve(verdict):
        keep = 0.0 if math.isnan(verdict.psi) else 1 - verdict.psi
        steps = torch.linspace(1, 2 * keep, depths).clamp(0, 1) if keep else torch.zeros(depths)
        noise = torch.randn(2, trials, depths, samples, generator=draw) / 50
        return Curve(steps[:, None] + noise[0], noise[1], torch.full((3, samples), 1.0 if keep else 0.0))

    maps = torch.randint(-127, 128, (2, 4, 8, 8), generator=draw, dtype=torch.int8)
    kept = (1, (depths + 1) // 2, depths)
    falling = torch.linspace(0.9, 0.1, depths).expand(trials, -1)
    result = SanityResult(
        units=tuple(units),
        curves={(name, key): curve(verdict) for name, verdict in verdicts.items() for key in similarities},
        verdicts=verdicts,
        output_change=OutputChange(falling, falling**2, torch.ones(trials), torch.ones(trials)),
        coverage=Coverage(1.0, tuple(UnitCoverage(unit, (unit,), 9, ("normal",), (1.4,)) for unit in units)),
        valid=True,
        validity="every control came out as it must (random)",
        settings={"similarities": list(similarities), "order": "cascading", "criterion": {"min_psi": 0.65}},
        environment={"torch": torch.__version__},
        weights_digest="ab",
        probe_digest="cd",
        step=400,
        pictures=Pictures(
            torch.randint(0, 256, (2, 8, 8, 3), generator=draw, dtype=torch.uint8), kept, dict.fromkeys(verdicts, maps)
        ),
    )
    return replace(result, **changes)


def crowd(count):
    """As many gated methods with long names."""
    outcomes = list(Outcome)
    return {
        f"method_with_quite_a_long_name_{k}": Verdict(outcomes[k % 3], "because", 0.5, 0.4, 0.6, "spearman_support")
        for k in range(count)
    }


def invalid():
    return make_result(valid=False, validity="the control 'random', which is noise, came out PASS " + "and so on " * 15)


def nothing_defined():
    """A result in which every number is NaN."""
    base = make_result()
    curves = {key: Curve(c.values * NAN, c.floor * NAN, c.ceiling * NAN) for key, c in base.curves.items()}
    verdicts = {name: Verdict(Outcome.INCONCLUSIVE, "no map") for name in base.verdicts}
    change = OutputChange(*(getattr(base.output_change, name) * NAN for name in vars(base.output_change)))
    blank = Pictures(base.pictures.inputs, base.pictures.depths, {n: m * 0 for n, m in base.pictures.maps.items()})
    return replace(base, curves=curves, verdicts=verdicts, output_change=change, pictures=blank)


def in_rows(kind, length=10):
    """A result whose three methods have maps of a row: a signal's, a sentence's or a table's."""
    draw = torch.Generator().manual_seed(0)
    maps = torch.randint(-127, 128, (2, 4, 1, length), generator=draw, dtype=torch.int8)
    inputs = torch.randint(0, 256, (2, 2 if kind == "signal" else 1, length, 3), generator=draw, dtype=torch.uint8)
    words = tuple(tuple(f"word{k}" for k in range(length)) for _ in range(2)) if kind == "tokens" else ()
    base = make_result()
    return make_result(pictures=Pictures(inputs, (1, 3, 5), dict.fromkeys(base.verdicts, maps), kind, words))


def dead():
    """A result of which most maps are blank, so that no measure decided."""
    reason = "75% of the trained model's maps are constant or not finite (at most 10% allowed); take other samples"
    return make_result(methods={"gradcam": Verdict(Outcome.INCONCLUSIVE, reason), **make_result().verdicts})


EVIL = "<img src=x onerror=alert(1)>"
