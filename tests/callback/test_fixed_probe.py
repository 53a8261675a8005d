"""The probe of a run: formed once, on rank 0, and the same at every validation and on every process."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from made_hostile import CLASSES, Images, Small, drawing, loader, observer, quiet, trainer

from lightning_sanity.callback.fixed_probe import FixedProbe, Read
from lightning_sanity.callback.narration import Narration
from lightning_sanity.resources.processes import Share


def probe_of(given, seed=0):
    return FixedProbe(given, seed, single_precision=False, narration=Narration("sanity", verbose=False))


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A trainer that has validated, and its module."""
    run = trainer(tmp_path_factory.mktemp("run"), [], max_epochs=1)
    with quiet():
        run.fit(Small(), loader(Images(drawing("none"))), loader(Images(drawing("none"))))
    return run, run.lightning_module


def test_a_probe_is_formed_once(running):
    probe = probe_of(6)
    assert not probe.known
    formed = probe.of(*running, Share(), {})
    assert probe.known
    assert probe.of(*running, Share(), {"probe_ids": [1, 2], "probe_digest": "other"}) is formed


def test_other_processes_get_rank_0s_probe(running):
    meet, parts = Barrier(2), [None, None]

    def of(rank):
        def gather(part):
            parts[rank] = part
            meet.wait(60)
            found = list(parts)
            meet.wait(60)
            return found

        return probe_of(6 if rank == 0 else "not looked at").of(*running, Share(rank, 2, gather), {})

    with ThreadPoolExecutor(2) as threads:
        ours, theirs = threads.map(of, range(2))
    assert theirs.digest == ours.digest == probe_of(6).of(*running, Share(), {}).digest


def test_samples_of_a_checkpoint_are_taken_again(running):
    first = probe_of(6, seed=1).of(*running, Share(), {})
    state = {"probe_ids": list(first.ids), "probe_digest": first.digest}
    assert probe_of(6, seed=2).of(*running, Share(), state).digest == first.digest


def test_another_probe_than_the_checkpoints_is_said(running):
    with pytest.warns(UserWarning, match="the curves before and after do not join"):
        probe_of(6).of(*running, Share(), {"probe_digest": "that of other samples"})


def test_other_samples_of_a_test_set_are_no_news(running, recwarn):
    run, module = running
    probe, before = probe_of(6), run.state.fn
    run.state.fn = TrainerFn.TESTING
    try:
        probe.of(run, module, Share(), {"probe_digest": "that of other samples"})
    finally:
        run.state.fn = before
    assert not recwarn.list


def test_an_error_of_the_model_is_told_with_both_shapes(running):
    probe = probe_of((torch.zeros(2, 1, 8, 8), torch.zeros(2)))
    error = ValueError("Small cannot be explained: calling it on the probe failed")
    assert probe.beside_a_batch(error) is error  # there is no probe yet
    probe.see(running[0], (torch.zeros(4, 1, 9, 9), torch.zeros(4)), first=True, main=True)
    probe.of(*running, Share(), {})
    said = str(probe.beside_a_batch(error))
    assert said.endswith("The probe is float32 (2, 1, 8, 8), a validation batch float32 (4, 1, 9, 9).")
    other = RuntimeError("anything else")
    assert probe.beside_a_batch(other) is other


def test_what_is_read_makes_the_probe_in_its_order():
    read = Read(5)
    for start in (0, 4, 8):
        read.offer((torch.arange(start, start + 4.0)[:, None], torch.arange(4) % CLASSES))
    probe = read.probe()
    assert probe.inputs[0].flatten().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_second_run_forms_a_probe_of_its_own(tmp_path):
    measured = observer()
    digests = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        data = [(torch.randn(1, 8, 8), k % CLASSES) for k in range(16)]
        with quiet():
            trainer(tmp_path, [measured], max_epochs=1).fit(Small(), loader(data), loader(data))
        digests.append(measured.result.probe_digest)
    assert digests[0] != digests[1]


# ------------------------------------------------------------------------------------------------ the batch as it is


class OfTwo(Small):
    """Takes two images; a step calls it with what it takes of its batch."""

    def forward(self, image, other):
        return super().forward(image) + super().forward(other)

    def training_step(self, batch, batch_idx):
        return self(*batch[:2]).square().mean()

    def validation_step(self, batch, batch_idx):
        self(*batch[:2])


class OfPairs(OfTwo):
    def training_step(self, batch, batch_idx):
        return self(*batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self(*batch[0])


class OfKeys(OfTwo):
    def forward(self, site, img):
        return super().forward(img, site)

    def training_step(self, batch, batch_idx):
        return self(batch["site"], batch["img"]).square().mean()

    def validation_step(self, batch, batch_idx):
        self(batch["site"], batch["img"])


class OfBatches(OfTwo):
    def forward(self, batch):
        assert all(name.startswith("scan") for name in batch["name"])
        return super().forward(batch["img"], batch["site"])

    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self(batch)


def pairs(form):
    images = Images(drawing("none"), size=24)
    return [form(image, image.flip(-1), index % CLASSES) for index, (image, _) in enumerate(images)]


BATCHES = {
    "(a, b, y)": (OfTwo, lambda a, b, y: (a, b, y)),
    "((a, b), y)": (OfPairs, lambda a, b, y: ((a, b), y)),
    "a dictionary with a key per argument": (OfKeys, lambda a, b, y: {"img": a, "site": b, "y": y}),
    "a dictionary as it is": (OfBatches, lambda a, b, y: {"y": y, "name": f"scan {y}", "site": b, "img": a}),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_model_is_given_its_batch_as_its_forward_takes_it(tmp_path, kind):
    module, form = BATCHES[kind]
    watch = observer(target=1)
    with quiet():
        trainer(tmp_path, [watch], max_epochs=1).fit(module(), loader(pairs(form)), loader(pairs(form)))
    assert watch.result is not None
    assert ("gradient", "spearman") in watch.result.curves


def test_a_validation_set_smaller_than_the_probe_is_explained_whole(tmp_path):
    images = Images(drawing("none"), size=12)
    watch = observer(probe=16, target=1)
    run = trainer(tmp_path, [watch], max_epochs=1)
    with quiet(), pytest.warns(UserWarning, match="probe=16 samples were asked for, and validation has 12"):
        run.fit(Small(), loader(images), loader(images))
    assert len(watch.result.probe_ids) == 12
