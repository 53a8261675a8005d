"""What a test keeps in memory: little while it runs, nothing afterwards."""

import gc

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_sanity import parameter_randomization_test


class Peak(TorchDispatchMode):
    """Bytes of all storages that operations inside the block return and that are alive at once, at most."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                key = storage._cdata
                if key not in self.alive:
                    self.alive[key] = torch.multiprocessing.reductions.StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


class Deep(nn.Module):
    """Nearly all of its memory is weights: 8 MB in 8 layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 512), *(nn.Linear(512, 512) for _ in range(8)), nn.Linear(512, 4))

    def forward(self, x):
        return self.layers(x)


def check(*problem, **changes):
    given = {"methods": "gradient", "trials": 1, "repeats": 1, "max_steps": 2, "progress": False, "controls": False}
    return parameter_randomization_test(*problem, **{**given, **changes})


@pytest.fixture
def problem():
    return Deep().eval(), torch.rand(4, 32), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("how", ["normal", Deep])
def test_the_peak_is_the_trained_model_one_clone_one_twin_and_a_layer_at_a_time(problem, how):
    size = sum(parameter.nbytes for parameter in problem[0].parameters())
    with Peak() as memory:
        check(*problem, reinitialize=how, max_steps=None, engine="plain")
    assert memory.peak < 3.5 * size  # a layer is an eighth, and some temporaries are as large as one


def test_explaining_all_depths_at_once_takes_one_more_twin(problem):
    size = sum(parameter.nbytes for parameter in problem[0].parameters())
    with Peak() as memory:
        result = check(*problem, max_steps=None)
    assert result.settings["engine"]["gradient"] == "two_stream"
    assert memory.peak < 4.5 * size


def tensors():
    gc.collect()
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return len(found), sum(map(size_of, found))


def size_of(tensor):
    try:
        return tensor.nbytes
    except RuntimeError:  # torch 2.6 may keep a tensor that was given neither type nor memory
        return 0


def test_ten_tests_in_a_row_leave_nothing_behind(problem):
    check(*problem)
    before = tensors()
    for _ in range(10):
        check(*problem)
    assert tensors() == before


def test_a_test_that_breaks_leaves_nothing_behind(problem):
    def broken(done, total, label):
        if done > 1:
            raise RuntimeError("broken on purpose")

    check(*problem)
    before = tensors()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="on purpose"):
            check(*problem, progress=broken)
    assert tensors() == before
