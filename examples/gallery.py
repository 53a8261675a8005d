"""The figure of the original paper on a pretrained network: maps along the cascade, with a verdict on every row.

    python examples/gallery.py                        # cascade.png, verdicts.png, curves.png and maps.png in gallery/

EfficientNet-Lite0 with ImageNet weights on photographs that packages carry; see the extra ``photos``.
"""

import argparse
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from lightning_sanity import parameter_randomization_test
from lightning_sanity.cli import photos
from lightning_sanity.report import figures

CHEAP = ("gradient", "gradcam", "layercam", "guided_backprop", "guided_gradcam", "input_x_gradient", "deconvnet")
TITLES = {
    "gradient": "Gradient",
    "gradcam": "Grad-CAM",
    "guided_backprop": "Guided\nBackprop",
    "guided_gradcam": "Guided\nGrad-CAM",
}
COLOURS = {"PASS": "#2c7a4b", "FAIL": "#b3402a", "INCONCLUSIVE": "#5b4a9e"}


def cascade(result, sample=0, methods=tuple(TITLES)):
    """Magnitudes of one sample's maps: a row per method, from the trained network's to the last step's."""
    pictures = result.pictures
    columns = 2 + len(pictures.depths)
    figure = Figure(figsize=(9.2, 0.55 + 1.32 * len(methods)), layout="constrained", facecolor="white")
    axes = figure.subplots(len(methods), columns, squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.03})
    share = [f"{round(100 * depth / len(result.units))} % of\nlayers random" for depth in pictures.depths]
    for row, name in zip(axes, methods, strict=True):
        verdict = result.verdicts[name]
        for axis, shown in zip(row, (pictures.inputs[sample], *pictures.maps[name][sample]), strict=True):
            colours = shown.numpy() if shown.ndim == 3 else colormaps["inferno"](shown.abs().float().numpy() / 127)
            axis.imshow(colours, interpolation="bilinear")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        words = f"{TITLES.get(name, name)}\n{verdict.outcome.value}"
        row[0].set_ylabel(words, color=COLOURS[verdict.outcome.value], fontsize=10, fontweight="bold")
    for axis, title in zip(axes[0], ("input", "trained\nnetwork", *share), strict=True):
        axis.set_title(title, fontsize=10)
    return figure


def main(out="gallery", size=160, trials=3, max_steps=8, methods=CHEAP):
    model, images = photos.pretrained(), photos.photographs(size)
    inputs = photos.standardised(images)
    with torch.no_grad():
        print("classes of ImageNet:", dict(zip(images, model(inputs).argmax(1).tolist(), strict=True)))
    result = parameter_randomization_test(model, inputs, methods=list(methods), trials=trials, max_steps=max_steps)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    cascade(result, methods=[name for name in TITLES if name in methods]).savefig(folder / "cascade.png", dpi=120)
    for name in ("verdicts", "curves", "maps"):
        getattr(figures, name)(result).savefig(folder / f"{name}.png", dpi=100)
    result.to_json(folder / "result.json")
    result.to_html(folder / "report.html")
    print(result)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="gallery")
    parser.add_argument("--size", type=int, default=160, help="side in pixels")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=CHEAP)
    main(**vars(parser.parse_args()))
