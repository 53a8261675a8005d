"""Ten first runs: a newcomer's model with saved hyper-parameters, the callback with its defaults, a few epochs."""

import warnings

import lightning.pytorch as pl
import pytest
from made_first_runs import quick_trainer
from measuring import newcomers, samples
from torch.utils.data import DataLoader

from lightning_sanity import SaliencySanityCallback, targets

pytestmark = pytest.mark.slow

RUNS = [
    (newcomers.Convolutional, samples.digit_images, {}, 4),
    (newcomers.StridedResNet, samples.digit_images, {}, 3),
    (newcomers.VisionTransformer, samples.digit_images, {}, 8),
    (newcomers.ConvNeXt, samples.digit_images, {}, 8),
    (newcomers.Perceptron, samples.digit_images, {}, 4),
    (newcomers.LongShortTerm, samples.waves, {"classes": 3, "learning_rate": 1e-2}, 8),
    (newcomers.Signals, samples.waves, {"classes": 3, "learning_rate": 5e-3}, 5),
    (newcomers.Text, samples.sentences, {"classes": 4, "learning_rate": 5e-3}, 6),
    (newcomers.Flat, samples.wines, {"classes": 3, "learning_rate": 1e-2}, 8),
    (newcomers.Segmenter, samples.digit_images, {}, 2),
]
NEEDED = {newcomers.Segmenter: {"target": targets.class_mask(1)}}


@pytest.mark.parametrize(("model", "data", "parameters", "epochs"), RUNS, ids=[run[0].__name__ for run in RUNS])
def test_a_first_run_is_valid_and_says_what_came_out(tmp_path, capsys, model, data, parameters, epochs):
    pl.seed_everything(0, verbose=False)
    training, validation = data()
    measured = SaliencySanityCallback(**NEEDED.get(model, {}))
    run = quick_trainer(tmp_path, measured, max_epochs=epochs, check_val_every_n_epoch=epochs)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run.fit(model(**parameters), DataLoader(training, 32, shuffle=True), DataLoader(validation, 256))
    assert run.callback_metrics["accuracy"] > 0.6
    assert not [one for one in found if "could not be run" in str(one.message)]
    result = measured.result
    assert result.valid, result.validity
    assert result.coverage.share == 1.0
    shown = capsys.readouterr().out
    assert f"report: {tmp_path / 'sanity' / 'report.html'}" in shown
    for name in ("gradient", "gradcam", "guided_backprop"):
        verdict = result.verdicts[name]
        assert f"{name} {verdict.outcome.value}" in shown  # the line of the validation
        assert verdict.passed == all(low >= 0.65 for _, low, _ in verdict.psi_of.values()) or verdict.psi != verdict.psi
        assert verdict.passed or verdict.reason.split(":")[0] in " ".join(shown.split())


def test_a_segmenter_without_a_target_is_told_which_one(tmp_path):
    training, validation = samples.digit_images()
    run = quick_trainer(tmp_path, SaliencySanityCallback(), max_epochs=1, limit_train_batches=1)
    with pytest.warns(UserWarning, match="class_mask for segmentation"):
        run.fit(newcomers.Segmenter(), DataLoader(training, 32), DataLoader(validation, 256))
