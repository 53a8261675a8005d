"""Modules and data that would notice a test do not: with the callback everything is as without it."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from made_hostile import Counting, Images, Logging, Small, Stream, drawing, loader, observer, quiet, trainer
from made_trainings import assert_identical
from torch.utils.data import DataLoader, RandomSampler

from lightning_sanity.callback.fixed_probe import stream_warning


def after(folder, model, data, callbacks, **changes):
    """What a run leaves: weights, metrics, and the given attributes of the model."""
    pl.seed_everything(0, verbose=False)
    run = trainer(folder, callbacks, **changes)
    made, (training, validation) = model(), data()
    with quiet():
        run.fit(made, training, validation)
    metrics = {key: value for key, value in run.callback_metrics.items() if not key.startswith("sanity/")}
    return made, made.state_dict(), metrics


def plain():
    return loader(Images(drawing("none"))), loader(Images(drawing("none")))


def both(tmp_path, model, data, **changes):
    measured = observer()
    with_callback = after(tmp_path / "with", model, data, [measured], **changes)
    without = after(tmp_path / "without", model, data, [], **changes)
    assert measured.result is not None, measured.unmeasured
    assert_identical(with_callback[1:], without[1:])
    return measured, with_callback[0], without[0]


def test_what_forward_logs_is_the_users_own_passes_alone(tmp_path):
    rows = {}
    for name, callbacks in (("with", [observer()]), ("without", [])):
        logger = CSVLogger(tmp_path / name, name="", version="")
        _, _, metrics = after(tmp_path / name, Logging, plain, callbacks, logger=logger)
        written = (tmp_path / name / "metrics.csv").read_text().splitlines()
        at = written[0].split(",").index("calls")
        rows[name] = metrics["norm"], sum(bool(row.split(",")[at]) for row in written[1:])
    assert rows["with"] == rows["without"]


def test_hooks_count_the_users_own_passes_alone(tmp_path):
    counted = {}
    for name, callbacks in (("with", [observer()]), ("without", [])):
        model, weights, metrics = after(tmp_path / name, Counting, plain, callbacks)
        counted[name] = model.counted, model.norms, vars(model.outside), metrics["mean"], weights
    assert_identical(counted["with"], counted["without"])


@pytest.mark.parametrize("kind", ["numpy", "python", "torch"])
def test_a_generator_that_both_data_sets_share_goes_on_as_without(tmp_path, kind):
    def data():
        noise = drawing(kind)
        return loader(Images(noise)), loader(Images(noise))

    both(tmp_path, Small, data)


def test_a_data_set_does_not_see_that_it_was_asked(tmp_path):
    asked = []

    def data():
        asked.append(Images(drawing("none")))
        return loader(Images(drawing("none"))), loader(asked[-1])

    both(tmp_path, Small, data)
    assert asked[0].asked == asked[1].asked


def test_a_sampler_with_a_generator_goes_on_as_without(tmp_path):
    def data():
        draw = torch.Generator().manual_seed(0)
        images = Images(drawing("none"))
        return DataLoader(images, 8, shuffle=True, generator=draw), DataLoader(
            images, 8, sampler=RandomSampler(images, generator=draw), generator=draw
        )

    both(tmp_path, Small, data)


def test_a_stream_loses_no_sample_to_the_probe(tmp_path):
    def data():
        stream = Stream(Images(drawing("numpy")))
        return loader(stream), loader(stream)

    measured, _, _ = both(tmp_path, Small, data)
    assert measured.result.probe_ids is None


def test_transfer_hooks_that_count_do_not_count_the_probe(tmp_path):
    class Transferring(Small):
        moved = 0

        def on_after_batch_transfer(self, batch, dataloader_idx):
            self.moved += 1
            return batch

    _, one, other = both(tmp_path, Transferring, plain)
    assert one.moved == other.moved


def test_a_probe_from_a_stream_of_ones_own_is_said_before_training(tmp_path):
    stream = Stream(Images(drawing("none")))
    run = trainer(tmp_path, [observer(probe=loader(stream))], max_epochs=1)
    training = loader(Images(drawing("none")))
    with quiet(), pytest.warns(UserWarning, match=r"cannot be put back \(generator\).*Pass the probe as tensors"):
        run.fit(Small(), training, training)
    assert stream_warning(loader(Images(drawing("numpy")))) is None
    assert stream_warning(16) is None


def test_a_stream_that_is_too_short_is_explained_whole_and_that_is_said(tmp_path):
    run = trainer(tmp_path, [observer(probe=32)], max_epochs=1)
    with quiet(), pytest.warns(UserWarning, match="probe=32 samples were asked for, and validation has 24"):
        run.fit(Small(), loader(Images(drawing("none"))), loader(Stream(Images(drawing("none")))))
    assert run.current_epoch == 1
