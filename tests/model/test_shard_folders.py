"""Folders that two processes wrote together, and those of other tools: the digest of the one model, or the way out."""

import json
import os
import pickle
import warnings

import pytest
import torch
from made_processes import in_processes
from made_results import made
from torch import nn
from torch.distributed import checkpoint as distributed
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_sanity.cli import main
from lightning_sanity.model.checkpoint import digests
from lightning_sanity.model.clone import weights_digest


def model(seed=0):
    """Whose tensors do not all divide by two."""
    torch.manual_seed(seed)
    head = nn.Linear(20, 33), nn.ReLU(), nn.Linear(33, 3)
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), *head).eval()


def sharded(mesh, module):
    for layer in (module[0], module[3], module[5]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def in_columns(mesh, module):
    return parallelize_module(module, mesh, {"3": ColwiseParallel(), "5": RowwiseParallel()})


def with_optimizer(mesh):
    """As Lightning's strategies lay it out."""
    module = sharded(mesh, model())
    optimizer = torch.optim.Adam(module.parameters(), 0.0)
    module(torch.ones(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    state, moments = get_state_dict(module, optimizer)
    return {"model": state, "optimizer_0": moments}


def of_fsdp_1(mesh):
    module = FullyShardedDataParallel(model(), device_id=torch.device("cpu"))
    with FullyShardedDataParallel.state_dict_type(module, StateDictType.SHARDED_STATE_DICT):
        return {"model": module.state_dict()}


SAVED = {
    "fully_shard": lambda mesh: sharded(mesh, model()).state_dict(),
    "fully_shard with moments": with_optimizer,
    "fully_shard of another model": lambda mesh: {"model": sharded(mesh, model(1)).state_dict()},
    "fully_shard under state_dict": lambda mesh: {"state_dict": sharded(mesh, model()).state_dict(), "epoch": 1},
    "tensor parallel": lambda mesh: {"model": in_columns(mesh, model()).state_dict()},
    "FSDP 1": of_fsdp_1,
}
WRITERS = {
    "one file per tensor": lambda path: distributed.FileSystemWriter(path, single_file_per_rank=False),
    "two files per process": lambda path: distributed.FileSystemWriter(path, thread_count=2),
}


def written(share, folder):
    """Every layout, one folder each."""
    warnings.simplefilter("ignore")
    mesh = init_device_mesh("cpu", (share.world,))
    for name, state in SAVED.items():
        distributed.save(state(mesh), checkpoint_id=folder / name)
    held = sharded(mesh, model()).state_dict()
    for name, writer in WRITERS.items():
        distributed.save({"model": held}, storage_writer=writer(folder / name))
    distributed.async_save({"model": held}, checkpoint_id=folder / "in the background").result()
    return True


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    if not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip(f"FSDP2 of torch {torch.__version__} gathers nothing on a CPU")
    folder = tmp_path_factory.mktemp("shards")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking
        assert in_processes(2, folder, lambda share: written(share, folder)) == [True, True]
    return folder


@pytest.mark.parametrize("name", [*SAVED, *WRITERS, "in the background"])
def test_what_two_processes_wrote_has_the_digest_of_the_one_model(name, folders):
    assert len([path for path in (folders / name).iterdir() if path.suffix == ".distcp"]) >= 2
    seed = 1 if "another" in name else 0
    assert weights_digest(model(seed)) in digests(folders / name)
    assert weights_digest(model(1 - seed)) not in digests(folders / name)


def test_the_gate_decides_by_a_folder_as_by_the_plain_file(folders, tmp_path):
    result = made(weights_digest=weights_digest(model())).to_json(tmp_path / "result.json")
    torch.save({"state_dict": model().state_dict()}, tmp_path / "plain.ckpt")
    for weights, code in (
        (tmp_path / "plain.ckpt", 0),
        (folders / "fully_shard with moments", 0),
        (folders / "fully_shard of another model", 1),
    ):
        assert main(["gate", str(result), "--weights", str(weights)]) == code


# ----------------------------------------------------------------------------------------------------- of other tools


def of_an_index(folder, module, *, suffix="safetensors", **changes):
    """A folder as transformers saves a large model: tensors in two files, and the index."""
    index, folder = {}, folder / suffix
    folder.mkdir()
    state = list(module.state_dict().items())
    safe = pytest.importorskip("safetensors.torch").save_file if suffix == "safetensors" else None
    stem, save = ("model", safe) if suffix == "safetensors" else ("pytorch_model", torch.save)
    for number, part in enumerate((state[:5], state[5:]), 1):
        name = f"{stem}-{number:05d}-of-00002.{suffix}"
        save(dict(part), folder / name)
        index |= dict.fromkeys(dict(part), name)
    about = {"metadata": {"total_size": 1}, "weight_map": index | changes}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_files_with_an_index_have_the_digest_of_their_model(suffix, tmp_path):
    folder = of_an_index(tmp_path, model(), suffix=suffix)
    assert digests(folder)[0] == weights_digest(model())
    result = made(weights_digest=weights_digest(model())).to_json(tmp_path / "result.json")
    assert main(["gate", str(result), "--weights", str(folder)]) == 0


def test_transformers_own_index_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    network = transformers.BertModel(transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **sizes))
    network.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert digests(tmp_path)[0] == weights_digest(network)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"0.bias": "../plain.safetensors"}, "not in the folder"),
        ({"0.bias": "/etc/passwd"}, "not in the folder"),
        ({"0.bias": 3}, "not in the folder"),
        ({"0.bias": "model-00002-of-00002.safetensors"}, "other tensors than its index says"),
        ({"more": "model-00002-of-00002.safetensors"}, "other tensors than its index says"),
        ({"0.bias": "model.safetensors.index.json"}, "cannot be read as a checkpoint"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(changes, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        digests(of_an_index(tmp_path, model(), **changes))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000])
def test_an_index_that_is_none_is_refused(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="weight_map"):
        digests(tmp_path)


def of_deepspeed(folder, stage):
    """A folder as Lightning's DeepSpeedStrategy leaves it; parameters of stage 3 lie with the optimizer."""
    inner = folder / "best.ckpt" / "checkpoint"
    inner.mkdir(parents=True)
    state = model().state_dict()
    held = {
        "module": {name: torch.empty(0) if stage == 3 else value for name, value in state.items()},
        "buffer_names": ["1.running_mean", "1.running_var", "1.num_batches_tracked"],
        "param_shapes": [{name: value.shape for name, value in model().named_parameters()}],
        "ds_config": {"zero_optimization": {"stage": stage}},
        "pytorch-lightning_version": "2.6.0",
    }
    prefix = "zero_pp_rank_0_" if stage == 3 else ""
    torch.save(held, inner / f"{prefix}mp_rank_00_model_states.pt")
    (folder / "best.ckpt" / "latest").write_text("checkpoint")
    return inner


@pytest.mark.parametrize("stage", [2, 3])
def test_a_folder_of_deepspeed_is_refused_with_what_makes_one_file_of_it(stage, tmp_path):
    inner = of_deepspeed(tmp_path, stage)
    for folder in (inner, inner.parent):
        with pytest.raises(ValueError, match="convert_zero_checkpoint_to_fp32_state_dict") as caught:
            digests(folder)
        assert f"({str(inner.parent)!r}, 'one.ckpt')" in str(caught.value)


def test_what_that_makes_of_it_has_the_digest_of_the_model(tmp_path):
    (file,) = of_deepspeed(tmp_path, 3).iterdir()
    client = torch.load(file, weights_only=False)
    del client["module"]
    torch.save(client | {"state_dict": model().state_dict()}, tmp_path / "one.ckpt")
    assert digests(tmp_path / "one.ckpt")[0] == weights_digest(model())


@pytest.mark.parametrize(("stage", "same"), [(2, True), (3, False)])
def test_a_file_of_deepspeed_counts_with_what_it_holds(stage, same, tmp_path):
    (file,) = of_deepspeed(tmp_path, stage).iterdir()
    assert (weights_digest(model()) in digests(file)) is same


def test_a_folder_of_checkpoints_names_them(tmp_path):
    for epoch in range(7):
        torch.save(model().state_dict(), tmp_path / f"epoch={epoch}.ckpt")
    with pytest.raises(ValueError, match=r"name the file in it .*\(epoch=0\.ckpt, .*epoch=4\.ckpt and 2 more\)"):
        digests(tmp_path)


class Runs:
    """Pickles as a call of anything."""

    def __init__(self, function, argument):
        self.made = function, (argument,)

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("place", [".metadata", "pytorch_model.bin"])
@pytest.mark.parametrize("function", [exec, eval, open, __import__, os.system, os.mkdir])
def test_what_a_file_in_a_folder_pickles_as_a_call_is_not_called(function, place, tmp_path, monkeypatch):
    folder = tmp_path / "best.ckpt"
    folder.mkdir()
    monkeypatch.chdir(folder)
    bomb = Runs(function, "touch canary" if function is os.system else "open('canary', 'w')")
    if place == ".metadata":
        (folder / place).write_bytes(pickle.dumps(bomb))
    else:
        torch.save({"weight": torch.ones(1), "bomb": bomb}, folder / place)
        index = {"weight_map": dict.fromkeys(("weight", "bomb"), place)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    there = {path.name for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"cannot be (read|compared)"):
        digests(folder)
    assert {path.name for path in folder.iterdir()} == there
