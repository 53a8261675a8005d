"""Question: what do the units of a ResNet-50 and one twin cost, beside one gradient attribution?

Planning (tracing one forward pass of one sample and grouping), plus re-initialising every unit once, against one
captum gradient of 8 images at 224 px. In turn in one process; medians.

    python benchmarks/planning.py [--repeats 5] [--json]
    python benchmarks/planning.py --steps

``--steps`` counts the layers and the steps of known architectures instead, and names the first, middle and last ones.
"""

from __future__ import annotations

import torch
from captum.attr import Saliency
from measuring import interleaved, parser, publish, ratio, shown, spread
from measuring.studied import Recurrent, UNet
from torchvision import models
from torchvision.models import resnet50

from lightning_sanity.model.clone import clone
from lightning_sanity.model.graph import trace
from lightning_sanity.randomization import reinitialize_, units
from lightning_sanity.randomization.unit import plan
from lightning_sanity.resources.random_streams import generator

ARCHITECTURES = {
    "ResNet-18": (models.resnet18, (3, 64, 64)),
    "Inception v3": (lambda: models.inception_v3(init_weights=False), (3, 80, 80)),
    "DenseNet-121": (models.densenet121, (3, 64, 64)),
    "ViT-B/16": (lambda: models.vit_b_16(image_size=64), (3, 64, 64)),
    "Swin-T": (models.swin_t, (3, 64, 64)),
    "U-Net": (UNet, (1, 16, 16)),
    "LSTM": (Recurrent, (16, 16)),
}


def counted(name):
    """Layers and steps of an architecture, and what some of its steps are called."""
    make, shape = ARCHITECTURES[name]
    model = make().eval()
    steps = plan(model, trace(model, (torch.rand(2, *shape),))).steps
    together = [step.name for step in steps if len(step.units) > 1]
    layers = sum(len(step.units) for step in steps)
    some = [steps[place].name for place in (0, len(steps) // 2, -1)]
    return f"{name}: {layers} layers, {len(steps)} steps; {', '.join(some)}; of several layers: {together[:3]}"


def attribution(model, inputs):
    Saliency(model).attribute(inputs.clone().requires_grad_(), target=0, abs=False)


def planning_and_twin(model, inputs):
    planned = units(model, inputs[:1])
    for unit in planned:
        reinitialize_(model, unit, "normal", generator(0, 0, unit.name))
    return planned


def line(row):
    gradient, twin = shown(row["attribution_seconds"]), shown(row["planning_and_twin_seconds"])
    return f"units and one twin {twin} s, one gradient of 8 images at 224 px {gradient} s: ratio {shown(row['ratio'])}"


def main():
    parsed = parser(__doc__, repeats=5)
    parsed.add_argument("--steps", action="store_true", help="count the steps of architectures")
    given = parsed.parse_args()
    torch.manual_seed(0)
    if given.steps:
        for name in ARCHITECTURES:
            print(counted(name), flush=True)
        return
    model, inputs = resnet50().eval(), torch.rand(8, 3, 224, 224)
    copied = clone(model)
    planned = planning_and_twin(copied, inputs)
    assert {name for unit in planned for name in unit.parameters} == {name for name, _ in model.named_parameters()}
    pairs = zip(model.named_parameters(), copied.parameters(), strict=True)
    assert [name for (name, a), b in pairs if torch.equal(a, b)] == []
    if given.equality_only:
        print(f"{len(planned)} units, every parameter changed")
        return
    sides = {
        "attribution": lambda: attribution(model, inputs),
        "planning_and_twin": lambda: planning_and_twin(copied, inputs),
    }
    times = interleaved(sides, given.repeats)
    row = {f"{side}_seconds": spread(found) for side, found in times.items()}
    publish(given, [row | {"ratio": ratio(times, "planning_and_twin", "attribution")}], line)


if __name__ == "__main__":
    main()
