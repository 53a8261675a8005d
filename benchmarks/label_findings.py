"""Question: does the data randomization test find what is expected, and do its 95 % intervals hold?

Two kinds of networks learn three sets of pictures by heart, with true labels and with random ones, many times each. The
index of all of them is what a study of a few models and pictures estimates. Studies are drawn without replacement, so
that their errors are too small by the square root of 1 - n / N; they are enlarged by that before coverage is counted.
Groups of three models that share none are studies of their own: their verdicts are the findings.

    python benchmarks/label_findings.py [--models 12] [--studies 100] [--sets digits faces figures] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from itertools import combinations

import torch
from torch import nn
from torch.nn import functional as F

from lightning_sanity import Criterion, data_randomization_test
from lightning_sanity.cli import demo
from lightning_sanity.data_randomization import memorization
from lightning_sanity.result.dri import judge_labels, label_sensitivity
from lightning_sanity.result.verdict import MEASURES, SIGNED, Evidence

SIZES = (3, 5)
TRAINED_ON = 160


# ------------------------------------------------------------------------------------------------------------- pictures


def digits():
    training, unseen = demo.digits()
    return *(t[:TRAINED_ON] for t in training.tensors), *unseen.tensors


def faces():
    """Real faces and other parts of photographs, 16 x 16."""
    from skimage.data import lfw_subset

    images = F.interpolate(torch.tensor(lfw_subset(), dtype=torch.float32)[:, None], size=(16, 16), mode="area")
    labels = torch.arange(200) // 100
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    few = 120
    return images[order[:few]], labels[order[:few]], images[order[few:]], labels[order[few:]]


def figures():
    """Crosses, frames, bars and discs somewhere in noise, 16 x 16."""
    rng = torch.Generator().manual_seed(0)
    count = TRAINED_ON + 200
    labels = torch.randint(4, (count,), generator=rng)
    images = 0.3 * torch.rand(count, 1, 16, 16, generator=rng)
    places = torch.randint(1, 9, (count, 2), generator=rng)
    shapes = torch.zeros(4, 6, 6)
    shapes[0, 2:4], shapes[0, :, 2:4] = 1, 1
    shapes[1] = 1
    shapes[1, 1:5, 1:5] = 0
    shapes[2, :, 1:3] = 1
    shapes[3, 1:5, 1:5] = 1
    for image, label, (y, x) in zip(images, labels, places.tolist(), strict=True):
        image[0, y : y + 6, x : x + 6] += 0.6 * shapes[label]
    return images[:TRAINED_ON], labels[:TRAINED_ON], images[TRAINED_ON:], labels[TRAINED_ON:]


SETS = {"digits": digits, "faces": faces, "figures": figures}


# ------------------------------------------------------------------------------------------------------------- networks


class Transformer(nn.Module):
    """Patches of 4 x 4, two layers."""

    def __init__(self, classes, width=32):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.place = nn.Parameter(0.1 * torch.randn(1, 16, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        """Scores ``(N, classes)``."""
        tokens = self.patches(images).flatten(2).mT + self.place
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens.mean(1))


def convolutional(classes):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, classes),
    )


NETWORKS = {"convolutional": convolutional, "transformer": Transformer}


def trained(make, images, labels, classes, seed, epochs=300):
    """A network that knows the labels by heart, in eval mode."""
    torch.manual_seed(seed)
    model = make(classes)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(images)).split(40):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            if bool((model(images).argmax(1) == labels).all()):
                break
    return model.eval()


# -------------------------------------------------------------------------------------------------------------- studies


def bank(name, network, models, samples):
    """The test on all models at once."""
    images, labels, unseen, answers = SETS[name]()
    classes = int(labels.max()) + 1
    given = [labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(k))] for k in range(models)]
    true = [trained(NETWORKS[network], images, labels, classes, k) for k in range(models)]
    permuted = [trained(NETWORKS[network], images, each, classes, 5_000 + k) for k, each in enumerate(given)]
    known = memorization(true, permuted, (images, labels), given, (unseen, answers))
    methods = ["gradient", "guided_backprop", "input_x_gradient"] + ["gradcam"] * (network == "convolutional")
    options = {"methods": methods, "memorization": known, "repeats": 1, "pictures": False, "progress": False}
    result = data_randomization_test(true, permuted, unseen[:samples], **options)
    assert result.valid, result.validity
    return result


def drawn(result, method, true, permuted, samples):
    """What a study of these models and samples (indices into the bank) would have measured."""
    count = result.settings["models"][1]
    pairs = [one * count + other for one in true for other in permuted]
    place = {pair: k for k, pair in enumerate(combinations(range(result.settings["models"][0]), 2))}
    again = [place[min(a, b), max(a, b)] for k, a in enumerate(true) for b in true[k + 1 :]]
    curves = {name: result.curves[method, name] for name in MEASURES if (method, name) in result.curves}
    return Evidence(
        {name: curve.values[pairs][:, :, samples] for name, curve in curves.items()},
        {name: curve.floor[pairs][:, :, samples] for name, curve in curves.items()},
        {name: curve.ceiling[again][:, samples] for name, curve in curves.items()},
        noise=torch.ones(1, len(samples)),  # the guard is not what is studied
        cross=torch.zeros(9, len(samples)),
        dead=0.0,
    )


def index(evidence, name, size):
    return label_sensitivity(
        evidence.values[name], evidence.floor[name], evidence.ceiling[name], size, absolute=name == SIGNED
    )


def studied(result, method, size, studies, rng):
    """Coverage and median width per measure, and how often each verdict is given."""
    models, samples = result.settings["models"][0], next(iter(result.curves.values())).values.shape[-1]
    few = samples * size // models  # the same share of both
    enlarged = 1 / math.sqrt(1 - size / models)
    whole = drawn(result, method, range(models), range(models), range(samples))
    truth = {name: index(whole, name, (models, models)).psi.value for name in whole.values}
    held, widths, verdicts = {name: [] for name in truth}, {name: [] for name in truth}, []
    for _ in range(studies):
        picks = [torch.randperm(count, generator=rng)[:n].tolist() for count, n in ((models, size),) * 2]
        study = drawn(result, method, *picks, torch.randperm(samples, generator=rng)[:few].tolist())
        verdicts.append(judge_labels(study, (size, size), Criterion()).outcome.value)
        for name, true in truth.items():
            found = index(study, name, (size, size))
            if found.separation_low > 0:  # else it has no say
                error = enlarged * (true - found.psi.value)
                held[name].append(abs(error) <= found.psi.high - found.psi.value)
                widths[name].append(found.psi.high - found.psi.low)
    table = {
        name: {
            "index": truth[name],
            "coverage": statistics.mean(held[name]),
            "width": statistics.median(widths[name]),
            "studies": len(held[name]),
        }
        for name in truth
        if len(held[name]) >= studies / 4
    }
    return table, {kind: verdicts.count(kind) / studies for kind in ("PASS", "FAIL", "INCONCLUSIVE")}


def findings(result, method, size=3):
    """The verdicts of studies that share no models, all samples."""
    models, samples = result.settings["models"][0], next(iter(result.curves.values())).values.shape[-1]
    found = []
    for start in range(0, models - size + 1, size):
        study = drawn(result, method, *(range(start, start + size),) * 2, range(samples))
        found.append(judge_labels(study, (size, size), Criterion()))
    return [f"{verdict.outcome.value} {verdict.psi:.2f}" for verdict in found]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=12, help="of each kind, network and set")
    parser.add_argument("--samples", type=int, default=80)
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--equality-only", action="store_true", help="a small bank, and a study of it all equals it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.equality_only:
        result = bank("figures", "convolutional", 3, 12)
        everything = drawn(result, "gradient", range(3), range(3), range(12))
        assert index(everything, "spearman", (3, 3)).psi.value == result.verdicts["gradient"].psi_of["spearman"][0]
        print("a study of all models and samples equals the test of them")
        return
    rng, rows = torch.Generator().manual_seed(0), []
    for name in arguments.sets:
        for network in NETWORKS:
            result = bank(name, network, arguments.models, arguments.samples)
            for method in (name for name, verdict in result.verdicts.items() if verdict.gated):
                row = {"set": name, "network": network, "method": method, "findings": findings(result, method)}
                for size in SIZES:
                    row[f"{size}+{size}"] = studied(result, method, size, arguments.studies, rng)
                rows.append(row)
                if not arguments.json:
                    print(name, network, method, "; ".join(row["findings"]), sep=" | ")
                    for size in SIZES:
                        table, verdicts = row[f"{size}+{size}"]
                        print(f"    {size}+{size}", verdicts)
                        for measure, values in table.items():
                            print("       ", measure, {key: round(value, 2) for key, value in values.items()})
    for size in SIZES:
        shares = [each["coverage"] for row in rows for each in row[f"{size}+{size}"][0].values()]
        print(f"{size}+{size}: coverage {statistics.mean(shares):.3f}, least {min(shares):.2f}, of {len(shares)}")
    if arguments.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
