"""Text beside images: global and local integrated gradients along the cascade, after Kokhlikyan et al. 2021.

A transformer that tells where real sentences come from, and the CNN of the demo on real digits. Multiplying by the
input keeps an image's map alive; summed over the dimensions of an embedding, it keeps nothing of a sentence's.
"""

import argparse
from pathlib import Path

import sentences
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lightning_sanity import parameter_randomization_test
from lightning_sanity.attribution import integrated_gradients
from lightning_sanity.cli import demo
from lightning_sanity.explanation.tokens import token_scores
from lightning_sanity.report import tokens

TEXT = ("cosine_signed", "spearman_signed", "euclidean_signed")
IMAGE = ("ssim", "spearman", "spearman_signed")
VARIANTS = (
    ("integrated_gradients", "C1", "global: multiplied by the input", -0.2),
    ("integrated_gradients_local", "C0", "local: not multiplied", 0.2),
)
TITLES = {
    "cosine_signed": "cosine with signs",
    "spearman_signed": "rank correlation with signs",
    "euclidean_signed": "closeness with signs",
    "ssim": "structural similarity",
    "spearman": "rank correlation of magnitudes",
}


def panel(axes, result, measure, title):
    for name, colour, label, aside in VARIANTS:
        means = result.curves[name, measure].values.nanmean(2)  # (trials, depths)
        style = {"boxprops": {"facecolor": colour}, "medianprops": {"color": "black"}, "sym": "", "patch_artist": True}
        axes.boxplot(
            means.numpy(), positions=[k + aside for k in range(means.shape[1])], widths=0.3, label=label, **style
        )
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set(ylim=(-1, 1), ylabel="similarity to the trained map")
    axes.set_xticks([0, means.shape[1] - 1], ["output alone", "all layers"])
    axes.set_title(f"{title}: {TITLES[measure]}\n({measure})", fontsize=11, loc="left")


def main(out="text", steps=300, epochs=6, trials=10, samples=32, points=16):
    data = sentences.sentences()
    model = sentences.train(data.part(0, 1400), steps)
    probe = data.part(1400, 1400 + samples)
    methods = ("gradient", *(integrated_gradients(points, multiply_by_inputs=whole) for whole in (True, False)))
    text = parameter_randomization_test(model, probe.ids, methods=methods, trials=trials)
    validation = demo.digits()[1]
    network, _ = demo.train(*demo.digits(), epochs=epochs, seed=0, logger=False, enable_checkpointing=False)
    image = parameter_randomization_test(network, validation.tensors[0][:samples], methods=methods, trials=trials)
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    parts = ((text, TEXT, "text"), (image, IMAGE, "image"))
    for row, (result, measures, title) in zip(figure.subplots(2, 3), parts, strict=True):
        for axes, measure in zip(row, measures, strict=True):
            panel(axes, result, measure, title)
    keys = [Patch(facecolor=colour, edgecolor="black", label=label) for _, colour, label, _ in VARIANTS]
    figure.legend(handles=keys, loc="outside upper center", ncols=2, frameon=False, fontsize=12)
    figure.supxlabel(
        "re-initialised, from the output down; a box holds the middle half of the trials, its line the median"
    )
    Path(out).mkdir(exist_ok=True, parents=True)
    figure.savefig(Path(out) / "text.png", dpi=100)
    scores, real = token_scores(model, probe.ids[:6], method="integrated_gradients")
    words = [[data.words[i] for i in ids[kept]] for ids, kept in zip(probe.ids[:6], real, strict=True)]
    titles = [sentences.SOURCES[int(k)] for k in model(probe.ids[:6]).argmax(1)]
    tokens.draw(words, scores, titles).savefig(Path(out) / "tokens.png", dpi=100)
    return text, image


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="text")
    main(**vars(parser.parse_args()))
