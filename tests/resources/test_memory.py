"""What a test keeps in memory: little while it runs, nothing afterwards."""

import gc
import os
import time

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_sanity import SaliencySanityCallback, parameter_randomization_test
from lightning_sanity.attribution.differences import deepshap
from lightning_sanity.attribution.gradients import smoothgrad
from lightning_sanity.attribution.path import expected_gradients, integrated_gradients
from lightning_sanity.engine.path import NotTraceable
from lightning_sanity.engine.streams import TwoStream
from lightning_sanity.model.graph import trace
from lightning_sanity.randomization.twins import reinitializer
from lightning_sanity.randomization.unit import plan
from lightning_sanity.resources.memory import Meter, free


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


def test_twins_are_drawn_on_the_cpu_whatever_the_default_device(problem):
    drawn_on = []

    def factory():
        drawn_on.append(torch.empty(0).device.type)
        return Deep()

    model, inputs, _ = problem
    planned = plan(model, trace(model, (inputs,)))
    with torch.device("meta"):
        how = reinitializer(factory, model, planned, seed=0, twin_device="cpu")
        twin = how.twin(0)
    assert set(drawn_on) == {"cpu"}
    assert {parameter.device.type for parameter in twin.parameters()} == {"cpu"}


def test_twins_live_on_their_device_until_a_unit_is_copied(problem):
    with pytest.raises(ValueError, match=r"(?i)meta"):  # nothing can be read where nothing is stored
        check(*problem, reinitialize=Deep, twin_device="meta")


def test_where_twins_live_changes_no_number(problem):
    found = [
        check(*problem, reinitialize=Deep, twin_device=device).curves["gradient", "spearman"].values
        for device in (None, "cpu")
    ]
    assert torch.equal(*found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_twins_on_the_cpu_leave_a_gpu_its_memory():
    model, inputs = Deep().eval().cuda(), torch.rand(4, 32).cuda()
    size = sum(parameter.nbytes for parameter in model.parameters())
    peaks, curves = [], []
    for device in ("cuda", "cpu"):
        torch.cuda.reset_peak_memory_stats()
        result = check(model, inputs, torch.arange(4), reinitialize=Deep, twin_device=device, engine="plain")
        peaks.append(torch.cuda.max_memory_allocated())
        curves.append(result.curves["gradient", "spearman"].values)
    assert torch.equal(*curves)
    assert peaks[1] < peaks[0] - 0.9 * size


def test_an_unknown_device_of_twins_is_named(problem):
    with pytest.raises(ValueError, match="twin_device must be a device such as 'cpu' or 'cuda:1', not 'attic'"):
        check(*problem, twin_device="attic")
    with pytest.raises(MisconfigurationException, match="twin_device must be a device"):
        SaliencySanityCallback("gradient", twin_device="attic")


@pytest.fixture
def pictures():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip
    return model.eval(), torch.rand(5, 1, 12, 12), torch.arange(5)


def test_no_more_than_max_batch_samples_are_explained_at_once_with_the_same_maps(pictures):
    model, inputs, target = pictures
    methods = ("gradient", "gradcam", "feature_ablation", integrated_gradients(4, tolerance=10.0, max_batch=2))
    rows = []

    def watched(network, images):
        rows.append(len(images) if images.requires_grad else 0)
        return network(images)

    whole = check(model, inputs, target, methods=methods, engine="plain", controls=True, forward=watched)
    assert max(rows) > 2
    rows.clear()
    parts = check(model, inputs, target, methods=methods, max_batch=2, controls=True, forward=watched)
    assert max(rows) == 2
    assert parts.settings["max_batch"] == 2
    for key, curve in whole.curves.items():
        if key[0] != "random":
            # The pattern magnifies how little an untrained network says.
            nearly = 1e-3 if key[0] == "output_pattern" else 1e-4
            assert torch.allclose(curve.values, parts.curves[key].values, atol=nearly, equal_nan=True), key


@pytest.mark.parametrize("most", [1, 2])
def test_baselines_from_the_probe_are_the_whole_probe_however_few_are_explained_at_once(pictures, most):
    methods = {"deepshap": deepshap(tolerance=10.0), "expected_gradients": expected_gradients(n_samples=10)}
    whole, parts = (check(*pictures, methods=methods, max_batch=each) for each in (None, most))
    assert {name for name, _ in whole.curves} >= methods.keys()
    for key, curve in whole.curves.items():
        assert torch.allclose(curve.values, parts.curves[key].values, atol=1e-4, equal_nan=True), key


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


class Wide(nn.Module):
    """Nearly all of its memory is activations."""

    def __init__(self):
        super().__init__()
        deep = [part for _ in range(4) for part in (nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))]
        self.layers, self.head = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), *deep), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3)))


@pytest.fixture(scope="module")
def wide():
    torch.manual_seed(0)
    return Wide().eval(), torch.rand(8, 1, 24, 24), torch.arange(8) % 4


def limited(wide, limit, methods, **changes):
    """The result, and the peak above the trained model."""
    with Peak() as memory:
        result = check(*wide, methods=methods, repeats=2, max_steps=None, pictures=False, max_memory=limit, **changes)
    return result, memory.peak - sum(parameter.nbytes for parameter in wide[0].parameters())


def assert_same_maps(one, two):
    for key, curve in one.curves.items():
        torch.testing.assert_close(two.curves[key].values, curve.values, atol=1e-4, rtol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("method", "engine", "megabytes"),
    [
        ("guided_backprop", "auto", (6, 4, 3)),
        ("guided_backprop", "plain", (3, 2, 1.2)),
        pytest.param(integrated_gradients(8, tolerance=1e9), "auto", (12, 4), marks=pytest.mark.slow),
        pytest.param(smoothgrad(n_samples=8), "auto", (12, 4), marks=pytest.mark.slow),
        pytest.param(smoothgrad(n_samples=8), "plain", (6, 2), marks=pytest.mark.slow),
    ],
)
def test_a_limit_is_kept_as_predicted_and_changes_no_result(wide, method, engine, megabytes):
    free = check(*wide, methods=method, repeats=2, max_steps=None, pictures=False)
    assert free.settings["memory"] == {}
    for limit in (int(1e6 * size) for size in megabytes):
        result, peak = limited(wide, limit, method, engine=engine)
        assert set(result.settings["engine"].values()) == {"plain" if engine == "plain" else "two_stream"}
        assert peak <= 1.05 * limit
        assert result.settings["memory"]["predicted_bytes"] == pytest.approx(peak, rel=0.25)
        assert_same_maps(free, result)
        assert not any("max_memory was not kept" in note for note in result.coverage.notes)


def test_a_limit_is_kept_in_full_batches(wide, monkeypatch):
    def refuse(self, *arguments):
        raise NotTraceable("on purpose")

    monkeypatch.setattr(TwoStream, "__init__", refuse)
    free = check(*wide, methods="gradient", repeats=2, max_steps=None, pictures=False)
    for limit in (6_000_000, 3_000_000):
        result, peak = limited(wide, limit, "gradient")
        assert set(result.settings["engine"].values()) == {"full_batch"}
        assert peak <= 1.05 * limit
        assert result.settings["memory"]["predicted_bytes"] == pytest.approx(peak, rel=0.25)
        assert_same_maps(free, result)


def test_what_does_not_fit_at_all_is_explained_nevertheless_and_said(wide):
    free, _ = limited(wide, None, "gradient")
    result, _ = limited(wide, 100_000, "gradient")
    assert result.settings["engine"]["gradient"] == "plain"
    assert result.settings["memory"]["chunks"] == {"gradient": 1}
    assert any("max_memory was not kept" in note for note in result.coverage.notes)
    assert any("one after the other" in note for note in result.coverage.notes)
    assert_same_maps(free, result)


def test_a_model_for_one_batch_size_is_explained_whole(wide):
    class OneSize(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = wide[0]

        def forward(self, x):
            if len(x) != 8:
                raise ValueError("made for 8 samples")
            return self.net(x)

    result = check(OneSize().eval(), *wide[1:], max_memory=4_000_000)
    assert result.settings["memory"]["chunks"] == {}
    assert result.settings["memory"]["predicted_bytes"] > 0


def test_a_stochastic_method_keeps_its_batch_and_so_its_noise(wide):
    result = check(*wide, methods=smoothgrad(n_samples=10), max_memory=3_000_000)
    assert result.settings["memory"]["chunks"] == {}
    assert result.settings["memory"]["rows"]["smoothgrad"] < 64


@pytest.mark.parametrize("limit", ["2GB", 0, -1, True, 1e9])
def test_a_limit_that_is_no_number_of_bytes_is_refused(problem, limit):
    with pytest.raises(ValueError, match="max_memory must be a number of bytes"):
        check(*problem, max_memory=limit)


def test_a_recorded_pass_keeps_no_activations(wide):
    with Peak() as whole, torch.enable_grad():
        outputs = wide[0](wide[1])
    with Peak() as memory:
        trace(wide[0], (wide[1],))
    assert outputs.requires_grad
    assert memory.peak < 0.6 * whole.peak


def test_a_model_that_takes_gradients_itself_can_be_recorded(wide):
    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = wide[0]

        def forward(self, x):
            x = x.clone().requires_grad_()
            return torch.autograd.grad(self.net(x).square().sum(), x)[0].flatten(1)

    assert "net.head.weight" in trace(Squared(), (wide[1],)).uses


def test_the_meter_counts_what_is_alive_at_once_and_sees_it_go():
    with Meter() as meter:
        kept = torch.zeros(100)
        for _ in range(5):
            kept = kept + 1  # beside the old one, which goes then
        view = kept[10:]
        view.add_(1)
        del kept
        assert meter.alive == 400
        del view
    assert (meter.alive, meter.peak) == (0, 800)


def test_the_meter_leaves_out_what_was_there_before_and_sees_what_a_graph_keeps():
    there = torch.ones(100, requires_grad=True)
    with Meter() as meter:
        there.detach().mul_(2)
        assert meter.peak == 0
        score = (there.exp()).sum()  # the graph keeps the exponentials
        assert meter.alive == 404
        del score
    assert meter.alive == 0


def test_the_meter_takes_as_long_for_an_operation_however_many_tensors_there_are():
    def operations(there):
        with Meter() as meter:
            held = [torch.zeros(1) for _ in range(there)]
            begun = time.process_time()
            for _ in range(300):
                torch.zeros(1)
            seconds = time.process_time() - begun
        assert meter.peak >= 4 * len(held)
        return seconds

    operations(10)
    assert min(operations(4000) for _ in range(3)) < 5 * min(operations(10) for _ in range(3))


def test_what_is_free_is_no_more_than_the_machine_has():
    assert 0 <= free(torch.device("cpu")) <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
