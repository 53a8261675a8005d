"""Question: is ``min_psi = 0.65`` a sensible threshold, and is any verdict wrong, on networks of two dozen families?

Every network of ``measuring/studied.py`` is trained in seconds on real data. Every method gets its PSI with the 95 %
interval; so do planted methods, of which the truth is known. Counted are false PASSes, false FAILs, and how many
verdicts are left INCONCLUSIVE: of planted methods on all networks, of published ones on those that the literature's
verdicts are about, convolutional networks on images. The last lines say which thresholds would separate.

    python benchmarks/thresholds.py [--trials auto] [--samples 16] [--networks resnet mlp] [--json]
    python benchmarks/thresholds.py --as-released [--networks resnet]
    python benchmarks/thresholds.py --draws [--networks plain_relu]

``--as-released`` judges again what came out open or false of the published methods, as ``lightning-sanity check`` does
for a release: 64 samples, 20 trials, a dozen steps, every method with its own defaults.
``--draws`` asks for one network what the number of draws does to methods that draw.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from dataclasses import replace

import torch
from measuring.studied import NETWORKS, fitted
from torch.nn import functional as F

from lightning_sanity import attribution, parameter_randomization_test
from lightning_sanity.attribution.method import Method, first, output_gradient

METHODS = {
    "gradient": "gradient",
    "smoothgrad": attribution.smoothgrad(n_samples=8),
    "gradcam": "gradcam",
    "integrated_gradients_local": attribution.integrated_gradients_local(n_steps=8, tolerance=1.0),
    "guided_gradcam": "guided_gradcam",
    "guided_backprop": "guided_backprop",
    "input_x_gradient": "input_x_gradient",
    "integrated_gradients": attribution.integrated_gradients(n_steps=8, tolerance=1.0),
}
PASSING = tuple(METHODS)[:4]
FAILING = tuple(METHODS)[5:]
"""Methods that depend on the model and those that do not; the literature puts Guided GradCAM between them."""


def _unit(value):
    largest = value.flatten(1).abs().amax(1).clamp_min(torch.finfo(value.dtype).tiny)
    return value / largest.reshape(-1, *[1] * (value.ndim - 1))


def _edges_with_gradient(model, inputs, target):
    """Edges of the input, modulated by a root of the gradient's magnitude."""
    edges = attribution.resolve("edge_detector")(model, inputs, target)
    return edges * _unit(output_gradient(model, inputs, target)).abs().pow(0.2)


def _fixed(model, inputs, target):
    value = first(inputs)
    drawn = torch.randn(value.shape[1:], generator=torch.Generator().manual_seed(0))
    return drawn.expand_as(value).clone()


def _blurred(model, inputs, target):
    """The input's neighbourhoods: a map that looks like an explanation and never sees the model."""
    value = first(inputs)
    flat = value.reshape(len(value), -1, value.shape[-1])
    return F.avg_pool1d(flat, 3, 1, 1).reshape(value.shape)


def _gradient_with_input(model, inputs, target):
    """The gradient, and a little of the input: depends on the model."""
    value, gradient = first(inputs), output_gradient(model, inputs, target)
    return gradient / gradient.flatten(1).std(1).reshape(-1, *[1] * (value.ndim - 1)) + 0.1 * _unit(value)


def _plus(weight):
    return replace(attribution.input_plus_gradient(weight), control=False)


INSENSITIVE = {
    "x + 0.1 gradient": _plus(0.1),
    "x + 0.3 gradient": _plus(0.3),
    "edges x gradient^0.2": Method("edges x gradient^0.2", _edges_with_gradient),
    "one fixed map": Method("one fixed map", _fixed),
    "blurred input": Method("blurred input", _blurred),
}
SENSITIVE = {"gradient + x / 10": Method("gradient + x / 10", _gradient_with_input)}
"""Planted methods: the first must not pass, the second must not fail."""


def measured(name, trials, samples, seed=0, methods=None, **given):
    """One network's line of the table."""
    started = time.process_time()
    model, inputs, accuracy = fitted(name, seed)
    words = not inputs.is_floating_point()
    planted = {} if words else INSENSITIVE | SENSITIVE  # they have no word for the input of words
    given = {"trials": trials, "seed": seed, "pictures": False, "progress": False} | given | NETWORKS[name].given()
    trained = time.process_time() - started
    result = parameter_randomization_test(model, inputs[:samples], methods=methods or METHODS | planted, **given)
    return {
        "network": name,
        "steps": result.settings["steps"],
        "accuracy": accuracy,
        "valid": result.valid,
        "validity": result.validity,
        "verdicts": {
            key: {
                "outcome": v.outcome.value,
                "psi": v.psi,
                "low": v.psi_low,
                "high": v.psi_high,
                "measure": v.measure,
                "of": {measure: interval[0] for measure, interval in v.psi_of.items()},
                "reason": v.reason,
            }
            for key, v in result.verdicts.items()
        },
        "seconds": [trained, time.process_time() - started - trained],
    }


def applicable(row, names):
    """What a row says of methods that mean something on its network."""
    found = row["verdicts"]
    return {name: found[name] for name in names if name in found and "not applicable" not in found[name]["reason"]}


def counted(rows):
    """False verdicts, open ones, and the thresholds that would separate."""
    wrong = {"false PASS": [], "false FAIL": [], "open": []}
    judged, least, most = 0, [], []
    for row in rows:
        known = NETWORKS[row["network"]].agreed
        must = applicable(row, (*PASSING, *SENSITIVE) if known else ())
        must_not = applicable(row, (*FAILING, *INSENSITIVE) if known else INSENSITIVE)
        published = {name: v for name, v in {**must, **must_not}.items() if name in METHODS}
        wrong["false FAIL"] += [(row["network"], name) for name, v in must.items() if v["outcome"] == "FAIL"]
        wrong["false PASS"] += [(row["network"], name) for name, v in must_not.items() if v["outcome"] == "PASS"]
        wrong["open"] += [(row["network"], name) for name, v in published.items() if v["outcome"] == "INCONCLUSIVE"]
        judged += len(published)
        least += [(v["psi"], row["network"], name) for name, v in must.items() if not math.isnan(v["psi"])]
        most += [(v["psi"], row["network"], name) for name, v in must_not.items() if not math.isnan(v["psi"])]
    return {**wrong, "judged": judged, "least": sorted(least)[:8], "most": sorted(most, reverse=True)[:8]}


def released(row, seed=0):
    """The row with those of its verdicts on published methods judged again that are open or false."""
    found = counted([row])
    again = [name for kind in ("open", "false PASS", "false FAIL") for _, name in found[kind] if name in METHODS]
    if not again:
        return row
    judged = measured(row["network"], 20, 64, seed, methods=tuple(again))
    verdicts = {name: judged["verdicts"][name] for name in again}
    seconds = [one + other for one, other in zip(row["seconds"], judged["seconds"], strict=True)]
    return row | {"verdicts": row["verdicts"] | verdicts, "valid": judged["valid"], "seconds": seconds, "again": again}


def shown(row):
    lines = [
        f"{row['network']}: {row['steps']} steps, accuracy {row['accuracy']:.1%}, {row['validity']} "
        f"({row['seconds'][0]:.0f} + {row['seconds'][1]:.0f} s)"
    ]
    lines += [f"  as for a release: {', '.join(row['again'])}"] if "again" in row else []
    for name, v in row["verdicts"].items():
        if name in {**METHODS, **INSENSITIVE, **SENSITIVE, "output_pattern": None}:
            interval = f"{v['psi']:5.2f} [{v['low']:5.2f}, {v['high']:5.2f}]"
            rest = f"by {v['measure']}" if not math.isnan(v["psi"]) else v["reason"][:110]
            lines.append(f"  {name:27s} {interval} {v['outcome']:12s} {rest}")
    return "\n".join(lines)


def summed_up(rows):
    found = counted(rows)
    lines = [f"{len(rows)} networks, {sum(row['valid'] for row in rows)} runs valid"]
    for kind in ("false PASS", "false FAIL"):
        lines.append(f"{kind}: {len(found[kind])} {found[kind] or ''}")
    lines.append(f"open: {len(found['open'])} of {found['judged']} {found['open'] or ''}")
    for kind, text in (("least", "smallest PSI that should pass"), ("most", "largest PSI that should not")):
        lines.append(f"{text}: " + ", ".join(f"{psi:.2f} {name} ({network})" for psi, network, name in found[kind]))
    return "\n".join(lines)


def drawing(name, trials, samples, draws=(20, 100, 500, 2500)):
    """What the number of draws does to the agreement of two runs and to PSI."""
    model, inputs, _ = fitted(name)
    methods = {f"lime {n}": attribution.lime(segments=25, n_samples=n) for n in draws}
    methods |= {f"smoothgrad {n}": attribution.smoothgrad(n_samples=n) for n in (4, 16, 64)}
    given = {"trials": trials, "max_steps": 4, "pictures": False, "progress": False, "controls": False}
    result = parameter_randomization_test(model, inputs[:samples], methods=methods, **given)
    lines = [f"{name}: agreement of two runs, PSI [95 %], verdict"]
    for key, v in result.verdicts.items():
        again = float(result.reproducibility[key].nanmean())
        first_step = float(result.curves[key, "spearman"].values[:, 0].nanmean())
        lines.append(
            f"  {key:14s} {again:.2f}  {v.psi:.2f} [{v.psi_low:.2f}, {v.psi_high:.2f}] {v.outcome.value} by {v.measure}"
            f"; random head: Spearman {first_step:.2f}"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS))
    parser.add_argument("--trials", type=lambda text: text if text == "auto" else int(text), default="auto")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--as-released", action="store_true", help="judge again what is open or false, as a release is")
    parser.add_argument("--draws", action="store_true", help="what the number of draws does")
    parser.add_argument("--equality-only", action="store_true", help="assert the order on one small network")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.equality_only:
        model, images, _ = fitted("plain_relu", epochs=3)
        methods = ("gradient", "guided_backprop")
        found = parameter_randomization_test(model, images[:8], methods=methods, trials=2, progress=False).verdicts
        assert found["edge_detector"].psi < 0.05 < found["guided_backprop"].psi < 0.65 < found["gradient"].psi
        print("edge detector < guided backprop < 0.65 < gradient")
        return
    if given.draws:
        for name in given.networks or ["plain_relu"]:
            print(drawing(name, given.trials, given.samples), flush=True)
        return
    rows = []
    for name in given.networks or NETWORKS:
        rows.append(measured(name, given.trials, given.samples, given.seed, max_steps=6))
        print(json.dumps(rows[-1]) if given.json else shown(rows[-1]), flush=True)
    if not given.json:
        print(summed_up(rows))
    if given.as_released:
        rows = [released(row, given.seed) for row in rows]
        for row in (row for row in rows if "again" in row):
            print(json.dumps(row) if given.json else shown(row), flush=True)
        if not given.json:
            print(summed_up(rows))


if __name__ == "__main__":
    main()
