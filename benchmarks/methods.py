"""Question: what does each attribution method cost beside the bare call of the library that also offers it?

VGG-like CNN with module ReLUs, 3 x 32 x 32, 8 samples, the same parameters on both sides, in turn in one process;
medians. Before any timing the two attributions are asserted equal (stochastic methods: highly correlated).

    python benchmarks/methods.py [--repeats 7] [--json]
"""

from __future__ import annotations

import captum.attr as captum
import torch
from measuring import interleaved, parser, publish, ratio, shown, spread
from torch import nn
from torch.nn import functional as F
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite
from zennit.rules import Pass, ZPlus
from zennit.types import Activation, AvgPool, Convolution
from zennit.types import Linear as Dense

from lightning_sanity import attribution
from lightning_sanity.attribution.method import leaf

BATCH, STEPS, COPIES = 8, 16, 8


def network():
    torch.manual_seed(0)
    layers = []
    for channels, out in ((3, 32), (32, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64 * 64, 64), nn.ReLU(), nn.Linear(64, 10))


def resized(cam, inputs):
    return F.interpolate(cam, size=inputs.shape[-2:], mode="bilinear", align_corners=False)


def zennit_z_plus(model, inputs, target):
    layers = [(Activation, Pass()), (AvgPool, ZPlus()), (Convolution, ZPlus()), (Dense, ZPlus())]
    with Gradient(model, LayerMapComposite(layers)) as attributor:
        return attributor(inputs, lambda outputs: F.one_hot(target, outputs.shape[1]) * outputs)[1]


def noisy(model, inputs, target):
    tunnel = captum.NoiseTunnel(captum.Saliency(model))
    spread = float(0.15 * (inputs.max() - inputs.min()))
    options = {"nt_samples": COPIES, "nt_samples_batch_size": COPIES, "stdevs": spread, "abs": False}
    return tunnel.attribute(inputs, target=target, **options)


def cases():
    """Ours, the provider's call with the same parameters, and how alike the two must be."""
    last = "7"
    return {
        "gradient": (
            attribution.gradient(),
            lambda m, x, t: captum.Saliency(m).attribute(x, target=t, abs=False),
            1e-6,
        ),
        "input_x_gradient": (
            attribution.input_x_gradient(),
            lambda m, x, t: captum.InputXGradient(m).attribute(x, target=t),
            1e-6,
        ),
        "integrated_gradients": (
            attribution.integrated_gradients(n_steps=STEPS),
            lambda m, x, t: captum.IntegratedGradients(m).attribute(x, target=t, n_steps=STEPS, internal_batch_size=64),
            1e-5,
        ),
        "smoothgrad": (attribution.smoothgrad(n_samples=COPIES), noisy, None),
        "deeplift": (attribution.deeplift(), lambda m, x, t: captum.DeepLift(m).attribute(x, target=t), 1e-4),
        "guided_backprop": (
            attribution.guided_backprop(),
            lambda m, x, t: captum.GuidedBackprop(m).attribute(x, target=t),
            1e-5,
        ),
        "deconvnet": (attribution.deconvnet(), lambda m, x, t: captum.Deconvolution(m).attribute(x, target=t), 1e-5),
        "gradcam": (
            attribution.gradcam(layer=last),
            lambda m, x, t: resized(
                captum.LayerGradCam(m, m.get_submodule(last)).attribute(x, target=t, relu_attributions=True), x
            ),
            1e-5,
        ),
        "guided_gradcam": (
            attribution.guided_gradcam(layer=last),
            lambda m, x, t: captum.GuidedGradCam(m, m.get_submodule(last)).attribute(
                x, target=t, interpolate_mode="bilinear"
            ),
            None,  # captum aligns the corners of the resized map, we do not
        ),
        "occlusion": (
            attribution.occlusion(window=8, stride=8),
            lambda m, x, t: captum.Occlusion(m).attribute(
                x, target=t, sliding_window_shapes=(3, 8, 8), strides=(3, 8, 8), perturbations_per_eval=8
            ),
            1e-5,
        ),
        "lrp_z_plus": (attribution.lrp_z_plus(), zennit_z_plus, None),
    }


def assert_alike(name, ours, theirs, tolerance):
    a, b = ours.detach().expand_as(theirs).flatten(), theirs.detach().flatten()
    if tolerance is None:
        correlation = torch.corrcoef(torch.stack([a, b]))[0, 1]
        assert correlation > 0.8, f"{name}: correlation with the provider is {correlation:.2f}"
    else:
        assert (a - b).abs().max() <= tolerance * b.abs().max(), f"{name}: differs from the provider"


def line(row):
    seconds = f"{row['method']:22s} ours {shown(row['ours_ms'], 1)} ms, theirs {shown(row['theirs_ms'], 1)} ms"
    return f"{seconds}: ratio {shown(row['ratio'])}"


def main():
    given = parser(__doc__, repeats=7).parse_args()
    model, inputs = network().eval(), torch.rand(BATCH, 3, 32, 32)
    target = model(inputs).argmax(1)
    rows = []
    for name, (method, provider, tolerance) in cases().items():
        ours = method.prepare(model, inputs) if method.prepare is not None else method.attribute
        torch.manual_seed(0)
        found = ours(model, inputs, target)
        torch.manual_seed(0)
        assert_alike(name, found, provider(model, leaf(inputs), target), tolerance)
        if given.equality_only:
            continue
        sides = {
            "theirs": lambda call=provider: call(model, leaf(inputs), target),
            "ours": lambda call=ours: call(model, inputs, target),
        }
        times = interleaved(sides, given.repeats)
        milliseconds = {f"{side}_ms": spread([1e3 * t for t in found]) for side, found in times.items()}
        rows.append({"method": name, **milliseconds, "ratio": ratio(times, "ours", "theirs")})
    if given.equality_only:
        print(f"{len(cases())} methods agree with their providers")
        return
    publish(given, rows, line)


if __name__ == "__main__":
    main()
