"""Do kinks cause the infidelity of integrated gradients? Along the cascade, with and without them.

Softplus takes the place of the rectifiers and LogSumExp that of maximum pooling. Infidelity and max-sensitivity of
local and global integrated gradients are measured as layers are re-initialised. Kokhlikyan et al., "Investigating
sanity checks for saliency maps with image and text classification", 2021 (arXiv:2106.07475).
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from lightning_sanity import attribution
from lightning_sanity.cli import demo
from lightning_sanity.explanation.probe import from_dataset
from lightning_sanity.model.clone import clone
from lightning_sanity.quality import infidelity, max_sensitivity, smooth
from lightning_sanity.randomization import reinitialize_, units
from lightning_sanity.resources.random_streams import generator

STEPS = 16
METHODS = {
    "local": attribution.integrated_gradients_local(n_steps=STEPS),
    "global": attribution.integrated_gradients(n_steps=STEPS),
}


def cascade(model, images):
    """The trained clone, then the same clone after every further unit, with the name of that unit."""
    copied = clone(model)
    yield "trained", copied
    for unit in units(copied, images[:2]):
        reinitialize_(copied, unit, "normal", generator(0, unit.name))
        yield unit.name, copied


def measured(network, images, target, method):
    """Both measures for one method: infidelity as a share of the mean squared change of the output."""
    maps = METHODS[method](network, images, target)
    # A local map says what a small change does; a global one, which holds the factor x - x0, what removal does.
    local = method == "local"
    law = {"perturbation": "gaussian", "noise": 0.03} if local else {"perturbation": "square", "multiplied": True}
    torch.manual_seed(0)
    gap = infidelity(network, images, maps, target, n_samples=20, **law)
    torch.manual_seed(0)
    nothing = infidelity(network, images, torch.zeros_like(maps), target, n_samples=20, **law)
    torch.manual_seed(0)
    change = max_sensitivity(network, images, METHODS[method], target, n_samples=4)
    return float((gap / nothing).nanmedian()), float(change.nanmedian())


def main(out="smoothing_study", samples=16, epochs=6, seed=0, beta=5.0, sharpness=5.0):
    training, validation = demo.digits()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    model, _ = demo.train(training, validation, epochs=epochs, seed=seed, **quiet)
    (images,) = from_dataset(validation, samples, seed=seed).inputs
    target = model.eval()(images).argmax(1)
    found, names = {}, []
    for name, network in cascade(model, images):
        names.append(name)
        for kind, explained in (("original", network), ("smoothed", smooth(network, beta, sharpness))):
            for method in METHODS:
                found.setdefault((method, kind), []).append(measured(explained, images, target, method))
    drawn, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for position, (axis, title) in enumerate(zip(axes, ("infidelity, normalised", "max-sensitivity"), strict=True)):
        for (method, kind), values in found.items():
            style = {"color": "C0" if method == "local" else "C1", "linestyle": "-" if kind == "original" else "--"}
            axis.plot([value[position] for value in values], marker="o", label=f"{method}, {kind}", **style)
        axis.set(title=title, xticks=range(len(names)), ylim=(0, None))
        axis.set_xticklabels(names, rotation=30, ha="right")
    axes[0].set_ylabel("median over samples; lower is better")
    axes[1].legend(loc="center", bbox_to_anchor=(0.5, 0.36))
    drawn.suptitle("Integrated gradients as layers are re-initialised, output first")
    Path(out).mkdir(parents=True, exist_ok=True)
    drawn.savefig(Path(out) / "smoothing_study.png", dpi=100)
    for (method, kind), values in found.items():
        print(f"{method:6s} {kind:8s}  infidelity {' '.join(f'{v[0]:5.2f}' for v in values)}"
              f"   max-sensitivity {' '.join(f'{v[1]:5.2f}' for v in values)}")  # fmt: skip
    return names, found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="smoothing_study")
    main(**vars(parser.parse_args()))
