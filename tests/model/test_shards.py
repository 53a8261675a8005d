"""The folder of a sharded distributed checkpoint has the digest of its model, whatever pieces it lies in."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from made_results import made
from torch import nn
from torch.distributed import checkpoint as distributed
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from lightning_sanity.cli import main
from lightning_sanity.model.checkpoint import digests, load
from lightning_sanity.model.clone import weights_digest


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


class WithState(nn.Module):
    """With extra state, a part of which is a dictionary."""

    def __init__(self):
        super().__init__()
        self.net = model()

    def get_extra_state(self):
        return {"version": 3, "scale": torch.tensor(0.5)}

    def set_extra_state(self, state):
        pass


STATES = {
    "as lightning saves it": lambda: {"model": model().state_dict(), "optimizer_0": {"state": {"0": torch.ones(9)}}},
    "as a state_dict": lambda: model().state_dict(),
    "under state_dict": lambda: {"state_dict": model().state_dict(), "epoch": 3},
    "in a wrapper": lambda: {"model": {f"net.{name}": value for name, value in model().state_dict().items()}},
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_what_torch_writes_has_the_digest_of_its_model(state, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process only
        distributed.save(state(), checkpoint_id=tmp_path / "best.ckpt")
    assert weights_digest(model()) in digests(tmp_path / "best.ckpt")
    assert weights_digest(model(1)) not in digests(tmp_path / "best.ckpt")


def test_extra_state_counts(tmp_path):
    module = WithState()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distributed.save({"model": module.state_dict()}, checkpoint_id=tmp_path)
    assert digests(tmp_path)[0] == weights_digest(module)


class Written:
    """A checkpoint in pieces by hand: rows of every tensor in two files, as two processes would write them."""

    def __init__(self, state):
        self.state, self.files = state, {"__0_0.distcp": b"", "__1_0.distcp": b""}
        self.kinds, self.places, self.paths = {}, {}, {}
        for name, value in state.items():
            fqn = f"model.{name}"
            rows = 0 if value.ndim == 0 else (len(value) + 1) // 2
            parts = [((), value)] if value.ndim == 0 else [((0,), value[:rows]), ((rows,), value[rows:])]
            chunks = []
            for (start, part), file in zip(parts, self.files, strict=False):
                offsets = torch.Size([*start, *[0] * (value.ndim - len(start))])
                chunks.append(ChunkStorageMetadata(offsets, part.shape))
                self.places[MetadataIndex(fqn, offsets, len(chunks) - 1)] = self.add(file, part)
            self.kinds[fqn] = TensorStorageMetadata(TensorProperties(dtype=value.dtype), value.shape, chunks)
            self.paths[fqn] = ("model", name)

    def add(self, file, value):
        raw = io.BytesIO()
        torch.save(value.clone() if isinstance(value, torch.Tensor) else value, raw)
        start = len(self.files[file])
        self.files[file] += raw.getvalue()
        return _StorageInfo(file, start, len(raw.getvalue()))

    def to(self, folder):
        folder.mkdir(exist_ok=True)
        for name, raw in self.files.items():
            (folder / name).write_bytes(raw)
        metadata = Metadata(self.kinds, self.paths, self.places)
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        return folder


def test_pieces_of_two_processes_come_together(tmp_path):
    folder = Written(model().state_dict()).to(tmp_path / "two")
    assert digests(folder)[0] == weights_digest(model())
    assert {name: value.tolist() for name, value in load(folder).items()} == {
        name: value.tolist() for name, value in model().state_dict().items()
    }


WEIGHT = MetadataIndex("model.3.weight", torch.Size([0, 0]))
OTHER = MetadataIndex("model.3.weight", torch.Size([2, 0]))


class Evil:
    def __reduce__(self):
        return (print, ("this ran",))


def edit(written, index, **changes):
    info = copy.copy(written.places[index])
    for name, value in changes.items():
        setattr(info, name, value)
    written.places[index] = info


def resized(written, size):
    written.kinds["model.3.weight"].size = torch.Size(size)


DAMAGED = {
    "a path out of the folder": (lambda w: edit(w, WEIGHT, relative_path="../outside"), "not in the folder"),
    "an absolute path": (lambda w: edit(w, WEIGHT, relative_path="/etc/passwd"), "not in the folder"),
    "no path": (lambda w: edit(w, WEIGHT, relative_path=""), "is missing"),
    "a file that is not there": (lambda w: edit(w, WEIGHT, relative_path="gone"), "is missing"),
    "past the end": (lambda w: edit(w, WEIGHT, length=1 << 40), "does not hold"),
    "before the beginning": (lambda w: edit(w, WEIGHT, offset=-5), "lies nowhere"),
    "transformed": (lambda w: edit(w, WEIGHT, transform_descriptors=["zstd"]), "compressed or encrypted"),
    "the same twice": (lambda w: w.places.update({OTHER: w.places[WEIGHT]}), "lies outside|are missing"),
    "a missing piece": (lambda w: w.places.pop(OTHER), "are missing"),
    "no pieces": (lambda w: [w.places.pop(WEIGHT), w.places.pop(OTHER)], "are missing"),
    "overlapping pieces": (
        lambda w: w.places.update({MetadataIndex("model.3.weight", torch.Size([1, 0])): w.places[WEIGHT]}), "overlap",
    ),
    "a larger tensor": (lambda w: resized(w, [9, 16]), "are missing"),
    "a huge tensor": (lambda w: resized(w, [1 << 40, 16]), "times the size"),
    "other axes": (lambda w: resized(w, [3, 16, 1]), "lies outside"),
    "another kind": (lambda w: w.kinds.update({"model.3.weight": BytesStorageMetadata()}), "lies in 2 places"),
    "an object in the place of a kind": (lambda w: w.kinds.update({"model.3.weight": Evil()}), "hold no TensorStorage"),
    "an object in the place of a place": (lambda w: w.places.update({WEIGHT: Evil()}), "hold no _StorageInfo"),
    "no dictionaries": (lambda w: setattr(w, "places", [1]), "no tensors and no files"),
    "a value that holds others": (lambda w: w.paths.update({"model.3.bias": ("model", "3.weight", "x")}), "is a value"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "says"), DAMAGED.values(), ids=DAMAGED)
def test_what_does_not_fit_is_refused_and_nothing_runs(damage, says, tmp_path, capsys):
    written = Written(model().state_dict())
    damage(written)
    (tmp_path / "outside").write_bytes(b"x" * 100_000)
    with pytest.raises(ValueError, match=says):
        digests(written.to(tmp_path / "checkpoint"))
    assert "this ran" not in capsys.readouterr().out


def test_an_object_among_the_pieces_is_not_built(tmp_path, capsys):
    written = Written(model().state_dict())
    written.kinds["model.extra"] = BytesStorageMetadata()
    written.paths["model.extra"] = ("model", "extra")
    written.places[MetadataIndex("model.extra")] = written.add("__0_0.distcp", Evil())
    with pytest.raises(ValueError, match=r"cannot be compared: its weights hold 'extra'"):
        digests(written.to(tmp_path / "checkpoint"))
    assert "this ran" not in capsys.readouterr().out


def test_a_folder_without_metadata_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="consolidate_checkpoint"):
        digests(tmp_path)


def test_the_gate_takes_a_folder_and_records_all_of_its_bytes(tmp_path):
    folder = Written(model().state_dict()).to(tmp_path / "best.ckpt")
    result = made(weights_digest=weights_digest(model())).to_json(tmp_path / "result.json")
    arguments = ["gate", str(result), "--weights", str(folder)]
    assert main([*arguments, "--record", str(tmp_path / "release.json")]) == 0
    assert main([*arguments, "--verify", str(tmp_path / "release.json")]) == 0
    (folder / "meta.pt").write_bytes(b"another byte")
    assert main([*arguments, "--verify", str(tmp_path / "release.json")]) == 1
    Written(model(1).state_dict()).to(folder)
    assert main(arguments) == 1
