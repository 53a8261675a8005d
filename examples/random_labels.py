"""The data randomization test on real digits: do maps change when the network learned permuted labels?

Trains three networks on the true and three on permuted labels, each until it knows its labels by heart, and compares
their maps. Prints a table, writes pictures, and can be stopped and started again.

python examples/random_labels.py --out random_labels [--models 3] [--samples 128]
"""

import argparse
import warnings
from functools import partial
from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader

from lightning_sanity.attribution import integrated_gradients
from lightning_sanity.cli.demo import DigitsClassifier, digits
from lightning_sanity.data_randomization import random_label_experiment
from lightning_sanity.report import figures
from lightning_sanity.report.label_figures import label_maps

METHODS = {
    "gradient": "gradient",
    "gradcam": "gradcam",
    "guided_backprop": "guided_backprop",
    # A network that learned by heart is so steep that the usual 32 steps do not add up to its output.
    "integrated_gradients": integrated_gradients(n_steps=64),
}


class Digits(L.LightningDataModule):
    def __init__(self, size):
        super().__init__()
        self.training, self.validation = digits()
        self.training.tensors = tuple(tensor[:size] for tensor in self.training.tensors)

    def train_dataloader(self):
        return DataLoader(self.training, 64, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.validation, 256)


def markdown(result):
    lines = ["| method | verdict | DRI [95 %] | decided by | p |", "|---|---|---|---|---|"]
    for name, verdict in result.verdicts.items():
        defined = verdict.psi == verdict.psi
        index = f"{verdict.psi:.2f} [{verdict.psi_low:.2f}, {verdict.psi_high:.2f}]" if defined else "undefined"
        p = "-" if verdict.p_dependence is None else f"{verdict.p_dependence:.2g}"
        shown = name if verdict.gated else f"{name} (control)"
        lines.append(f"| {shown} | {verdict.outcome.value} | {index} | {verdict.measure or '-'} | {p} |")
    return "\n".join(lines)


def main(out="random_labels", models=3, samples=128, size=700, methods=None, max_epochs=100, seed=0, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        result = random_label_experiment(
            partial(DigitsClassifier, 2e-3),
            Digits(size),
            out=out,
            models=models,
            probe=samples,
            trainer={"max_epochs": max_epochs, "accelerator": "cpu", "log_every_n_steps": 1},
            methods=methods or METHODS,
            seed=seed,
            **{"stop_at": 0.97, **options},
        )
    folder = Path(out)
    label_maps(result).savefig(folder / "label_maps.png", dpi=100)
    figures.verdicts(result).savefig(folder / "verdicts.png", dpi=100)
    (folder / "random_labels.md").write_text(markdown(result) + "\n", encoding="utf-8")
    print(markdown(result))
    print(f"\n{result.validity}\nLook at {folder / 'label_maps.png'}; everything is in {folder / 'result.json'}.")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="random_labels")
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--samples", type=int, default=128)
    main(**vars(parser.parse_args()))
