"""Question: are the verdicts on a pretrained ImageNet network right, whatever the seed?

EfficientNet-Lite0 with published weights on photographs that packages carry: nobody trained it for this test. Methods
have their defaults, integrated gradients the number of steps that adds up. Gradient, SmoothGrad, local integrated
gradients and Grad-CAM should pass; Guided Backprop, Guided Grad-CAM, input x gradient and integrated gradients should
not. A line per seed and group of methods, printed as it comes.

    pip install -e ".[photos]"
    python benchmarks/pretrained_verdicts.py [--seeds 0 1 2] [--side 64] [--groups fast integrated smooth]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
import warnings

from lightning_sanity import parameter_randomization_test

GROUPS = {
    "fast": ("gradient", "gradcam", "guided_backprop", "guided_gradcam", "input_x_gradient"),
    "integrated": ("integrated_gradients_local", "integrated_gradients"),
    "smooth": ("smoothgrad",),
}
PASSING = ("gradient", "smoothgrad", "integrated_gradients_local", "gradcam")


def measured(model, inputs, group, seed, trials, max_steps):
    """One line: verdicts of a group of methods under one seed."""
    started = time.process_time()
    options = {"trials": trials, "max_steps": max_steps, "seed": seed, "pictures": False, "progress": False}
    result = parameter_randomization_test(model, inputs, methods=GROUPS[group], **options)
    verdicts = {
        name: {
            "outcome": verdict.outcome.value,
            "psi": verdict.psi,
            "low": verdict.psi_low,
            "high": verdict.psi_high,
            "measure": verdict.measure,
            "wrong": verdict.outcome.value == ("FAIL" if name in PASSING else "PASS"),
            "reason": verdict.reason,
        }
        for name, verdict in result.verdicts.items()
        if name in GROUPS[group]
    }
    again = {name: float(values.nanmean()) for name, values in result.reproducibility.items() if name in verdicts}
    said = {"valid": result.valid, "validity": result.validity, "verdicts": verdicts, "two runs agree": again}
    effort = {name: found for name, found in result.settings["effort"].items() if name in verdicts}
    return {"seed": seed, "group": group, **said, "effort": effort, "seconds": time.process_time() - started}


def shown(row):
    """The line in words."""
    lines = [f"seed {row['seed']}: {row['validity']} ({row['seconds']:.0f} s) {row['effort'] or ''}"]
    for name, v in row["verdicts"].items():
        interval = f"{v['psi']:5.2f} [{v['low']:5.2f}, {v['high']:5.2f}]"
        agreement = f", two runs agree by {row['two runs agree'][name]:.2f}" if name in row["two runs agree"] else ""
        false = "  <- FALSE" if v["wrong"] else ""
        lines.append(f"  {name:27s} {interval} {v['outcome']:12s} by {v['measure']}{agreement}{false}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--groups", nargs="*", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--side", type=int, default=64, help="of the photographs, in pixels")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=4)
    parser.add_argument("--views", type=int, default=12, help="of six photographs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--equality-only", action="store_true", help="assert the order of two methods on few images")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        print("the extra 'photos' is not installed")
        return
    from lightning_sanity.cli import photos

    model = photos.pretrained()
    inputs = photos.standardised(photos.photographs(given.side))[: given.views]
    if given.equality_only:
        row = measured(model, inputs[:6], "fast", 0, 2, 2)
        assert row["valid"], row["validity"]
        assert row["verdicts"]["guided_backprop"]["psi"] < 0.65 < row["verdicts"]["gradient"]["psi"]
        print("guided backprop < 0.65 < gradient")
        return
    for group in given.groups:
        for seed in given.seeds:
            row = measured(model, inputs, group, seed, given.trials, given.max_steps)
            print(json.dumps(row) if given.json else shown(row), flush=True)


if __name__ == "__main__":
    main()
