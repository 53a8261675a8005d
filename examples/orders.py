"""Four orders of re-initialisation on the same network: output first, input first, one layer at a time, all at once."""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from lightning_sanity import parameter_randomization_test
from lightning_sanity.cli import demo
from lightning_sanity.explanation.probe import from_dataset

METHODS = ("gradient", "gradcam", "guided_backprop", "input_x_gradient")
ORDERS = {
    "cascading": "cascading: output first",
    "bottom_up": "bottom-up: input first",
    "independent": "independent: one layer at a time",
}


def figure(results):
    """One panel per order, a curve per method with its range over trials; diamonds: everything at once."""
    drawn, axes = plt.subplots(1, len(ORDERS), figsize=(13, 4), sharey=True, layout="constrained")
    for axis, (order, title) in zip(axes, ORDERS.items(), strict=True):
        units = results[order].units
        for name in METHODS:
            curve = results[order].curves[name, "spearman"].values.nanmean(2)  # (trials, depths)
            (line,) = axis.plot(curve.mean(0), marker="o", label=name)
            axis.fill_between(range(len(units)), curve.amin(0), curve.amax(0), color=line.get_color(), alpha=0.2, lw=0)
            full = results["full"].curves[name, "spearman"].mean[0]
            axis.plot(len(units) - 0.4, full, marker="D", color=line.get_color(), clip_on=False)
        axis.set(title=title, xticks=range(len(units)), xlabel="re-initialised", ylim=(-0.05, 1.02))
        axis.set_xticklabels(units, rotation=30, ha="right")
    axes[0].set_ylabel("Spearman correlation of magnitudes\nwith the trained network's map")
    axes[1].legend(loc="center", bbox_to_anchor=(0.5, 0.6), fontsize=8)
    drawn.suptitle("1 = the map did not change; diamonds: all layers at once")
    return drawn


def main(out="orders", trials=5, samples=24, epochs=6, seed=0):
    training, validation = demo.digits()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    model, _ = demo.train(training, validation, epochs=epochs, seed=seed, **quiet)
    images = from_dataset(validation, samples, seed=seed).inputs
    results = {
        order: parameter_randomization_test(
            model, images, methods=METHODS, order=order, trials=trials, seed=seed, pictures=False, progress=False
        )
        for order in (*ORDERS, "full")
    }
    print(f"{'PSI':18s} " + "  ".join(f"{order:>11s}" for order in results))
    for name in METHODS:
        print(f"{name:18s} " + "  ".join(f"{result.verdicts[name].psi:11.2f}" for result in results.values()))
    path = Path(out)
    path.mkdir(parents=True, exist_ok=True)
    figure(results).savefig(path / "orders.png", dpi=100)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="orders")
    parser.add_argument("--trials", type=int, default=5)
    main(**vars(parser.parse_args()))
