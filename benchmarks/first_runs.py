"""Question: what does a first run say, and is it right?

Twenty-five small models as tutorials write them, hyper-parameters saved, the callback and the Trainer as they come, a
few epochs, two seeds each: what the terminal said, the verdicts, the seconds. A run that is invalid, or not measured,
or whose gradient does not pass although its index lies above the threshold, is shown with the cause that the user is
told. ``--transcripts FOLDER`` keeps every word. Two of the models need an argument that the callback asks for; they are
run without it and with it.

    python benchmarks/first_runs.py [--models ConvNeXt Text] [--seeds 0 1] [--transcripts said] [--json]
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import lightning.pytorch as pl
from measuring import newcomers, now, parser, publish, samples
from torch.utils.data import DataLoader

from lightning_sanity import Criterion, SaliencySanityCallback, targets

THREE = {"classes": 3, "learning_rate": 1e-2}


@dataclass(frozen=True)
class Run:
    """A model, its data, its own arguments, how long it trains, and what the callback is given."""

    model: type
    data: object
    epochs: int
    parameters: dict = field(default_factory=dict)
    given: dict = field(default_factory=dict)


RUNS = {
    "Convolutional": Run(newcomers.Convolutional, samples.digit_images, 5),
    "VGG": Run(newcomers.VGG, samples.digit_images, 4),
    "GroupNormed": Run(newcomers.GroupNormed, samples.digit_images, 4),
    "StridedResNet": Run(newcomers.StridedResNet, samples.digit_images, 3),
    "TorchvisionResNet": Run(newcomers.TorchvisionResNet, samples.digit_images, 2),
    "MobileNet": Run(newcomers.MobileNet, samples.digit_images, 5),
    "DenselyConnected": Run(newcomers.DenselyConnected, samples.digit_images, 6),
    "VisionTransformer": Run(newcomers.VisionTransformer, samples.digit_images, 8),
    "ConvNeXt": Run(newcomers.ConvNeXt, samples.digit_images, 8),
    "Perceptron": Run(newcomers.Perceptron, samples.digit_images, 5),
    "Mixture": Run(newcomers.Mixture, samples.digit_images, 5),
    "Autoencoder": Run(newcomers.Autoencoder, samples.digit_images, 6),
    "SingleLogit": Run(newcomers.SingleLogit, samples.digit_images, 5),
    "MultiLabel": Run(newcomers.MultiLabel, samples.answered_digits, 6, {"classes": 3}),
    "TwoHeads": Run(newcomers.TwoHeads, samples.digit_images, 6, {"learning_rate": 1e-2}),
    "TwoHeads, output=0": Run(newcomers.TwoHeads, samples.digit_images, 6, {"learning_rate": 1e-2}, {"output": 0}),
    "Segmenter": Run(newcomers.Segmenter, samples.digit_images, 2),
    "Segmenter, target": Run(newcomers.Segmenter, samples.digit_images, 2, {}, {"target": targets.class_mask(1)}),
    "Flat": Run(newcomers.Flat, samples.wines, 8, THREE),
    "WideAndDeep": Run(newcomers.WideAndDeep, samples.wines, 8, THREE),
    "Regression": Run(newcomers.Regression, samples.patients, 8, {"learning_rate": 1e-2}),
    "LongShortTerm": Run(newcomers.LongShortTerm, samples.waves, 8, THREE),
    "Gated": Run(newcomers.Gated, samples.digit_rows, 6, {"channels": 16}),
    "Signals": Run(newcomers.Signals, samples.waves, 5, {"classes": 3, "learning_rate": 5e-3}),
    "Temporal": Run(newcomers.Temporal, samples.waves, 5, {"classes": 3, "learning_rate": 5e-3}),
    "Text": Run(newcomers.Text, samples.sentences, 6, {"classes": 4, "learning_rate": 5e-3}),
    "TextConvolutional": Run(newcomers.TextConvolutional, samples.documentation, 5, {"classes": 3}),
}


def tried(name, seed, folder):
    """One first run: ``(callback, accuracy, seconds in training and test, what the terminal said)``."""
    run, said = RUNS[name], io.StringIO()
    pl.seed_everything(seed, verbose=False)
    training, validation = run.data()
    callback = SaliencySanityCallback(**run.given)
    trainer = pl.Trainer(
        max_epochs=run.epochs,
        accelerator="cpu",
        callbacks=[callback],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = run.model(**run.parameters)
    loaders = DataLoader(training, 32, shuffle=True), DataLoader(validation, 256)
    started = now()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("default")
        trainer.fit(model, *loaders)
    return callback, float(trainer.callback_metrics["accuracy"]), now() - started, said.getvalue()


def row(name, seed, transcripts):
    """What came out, and whether the terminal said so."""
    with tempfile.TemporaryDirectory() as folder:
        callback, accuracy, seconds, said = tried(name, seed, folder)
    if transcripts is not None:
        transcripts.mkdir(parents=True, exist_ok=True)
        (transcripts / f"{re.sub('[^A-Za-z0-9]+', '_', name)}-{seed}.txt").write_text(said)
    found = {"model": name, "seed": seed, "accuracy": accuracy, "seconds": seconds, "trouble": ""}
    found["warnings"] = said.count("UserWarning: ") - said.count("does not have many workers")
    result, words = callback.result, " ".join(said.split())
    assert "Traceback" not in said, f"{name}: an error reached the terminal"
    if result is None:
        assert " ".join(callback.unmeasured.split()) in words, f"{name}: nobody was told that nothing was measured"
        return found | {"verdicts": "-", "test_seconds": 0.0, "trouble": f"not measured: {callback.unmeasured}"}
    gated = {key: verdict for key, verdict in result.verdicts.items() if verdict.gated}
    for key, verdict in gated.items():
        assert f"{key} {verdict.outcome.value}" in words or not result.valid, f"{name}: {key} was not told"
    found["verdicts"] = ", ".join(f"{key} {v.outcome.value} {v.psi:.2f}" for key, v in gated.items())
    found["test_seconds"] = result.seconds
    gradient = gated["gradient"]
    if not result.valid:
        found["trouble"] = f"not valid: {result.validity}"
    elif gradient.psi >= Criterion().min_psi and not gradient.passed:
        found["trouble"] = f"gradient {gradient.outcome.value}: {gradient.reason}"
    assert " ".join(found["trouble"].split(": ", 1)[-1].split()) in words, f"{name}: the cause was not told"
    return found


def line(found):
    words = (
        f"{found['model']:18s} {found['seed']}  accuracy {found['accuracy']:.2f}  {found['seconds']:5.1f} s, last test "
        f"{found['test_seconds']:4.1f} s  {found['warnings']} warnings  {found['verdicts']}"
    )
    return words + (f"\n    {found['trouble']}" if found["trouble"] else "")


def main():
    flags = parser(__doc__, repeats=1)
    flags.add_argument("--models", nargs="+", choices=list(RUNS), default=list(RUNS))
    flags.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    flags.add_argument("--transcripts", type=Path, help="a folder for what the terminal said")
    given = flags.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    quick = [("Flat", 0), ("TwoHeads", 0)]
    runs = quick if given.equality_only else [(name, seed) for name in given.models for seed in given.seeds]
    publish(given, (row(name, seed, given.transcripts) for name, seed in runs), line)


if __name__ == "__main__":
    main()
