"""Several processes share a test; real gloo processes, forked."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lightning_sanity import parameter_randomization_test
from lightning_sanity.budget import Interrupted
from lightning_sanity.shares import PeerFailed, Share

METHODS = ("gradient", "smoothgrad", "gradcam", "edge_detector", "input_copy", "random")
forking = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def gather(part):
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return parts


def _enter(rank, world, folder, work):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    found = work(Share(rank, world, gather))
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def in_processes(world, folder, work):
    """What ``work(share)`` returns on each of ``world`` processes."""
    mp.start_processes(_enter, (world, folder, work), nprocs=world, start_method="fork")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def whole(model, images, share, **changes):
    given = {
        "trials": 2,
        "repeats": 2,
        "max_steps": 3,
        "methods": METHODS,
        "progress": False,
        "engine": "plain",
        **changes,
    }
    result = parameter_randomization_test(model, images[:6], share=share, **given).to_dict()
    for key in ("seconds", "created"):
        result.pop(key)
    return json.loads(json.dumps(result))


def test_owners_have_about_equally_much_to_do():
    costs = {item: 1.0 + item % 7 for item in range(50)}
    owners = Share(0, 3).owners(costs)
    loads = [sum(cost for item, cost in costs.items() if owners[item] == rank) for rank in range(3)]
    assert max(loads) - min(loads) <= 1.0


@forking
@pytest.mark.parametrize(
    ("world", "changes"),
    [
        (2, {}),
        pytest.param(4, {}, marks=pytest.mark.slow),
        pytest.param(2, {"order": "independent", "norm_stats": "recalibrate"}, marks=pytest.mark.slow),
    ],
)
def test_any_number_of_processes_finds_the_same_to_the_last_bit(digits_network, tmp_path, world, changes):
    model, images, _ = digits_network
    alone = whole(model, images, Share(), **changes)
    for found in in_processes(world, tmp_path, lambda share: whole(model, images, share, **changes)):
        assert found == alone


@forking
def test_each_process_explains_about_its_part(digits_network, tmp_path):
    model, images, _ = digits_network

    def count(share):
        calls = []

        def counting(model, inputs, target):
            calls.append(1)
            return torch.autograd.grad(model(leaf := inputs.clone().requires_grad_()).sum(), leaf)[0]

        whole(model, images, share, methods={"counting": counting}, trials=4, max_steps=5, controls=False)
        return len(calls)

    total = count(Share())
    assert all(count <= 0.65 * total for count in in_processes(2, tmp_path, count))


@forking
def test_a_method_that_raises_on_one_process_is_given_up_on_all(digits_network, tmp_path):
    model, images, _ = digits_network

    def work(share):
        def broken(model, inputs, target):
            if share.rank == 1:
                raise ValueError("broken on purpose")
            return torch.autograd.grad(model(leaf := inputs.clone().requires_grad_()).sum(), leaf)[0]

        return whole(model, images, share, methods={"broken": broken, "gradient": "gradient"})

    one, two = in_processes(2, tmp_path, work)
    assert one == two
    assert "broken on purpose" in one["verdicts"]["broken"]["reason"]
    assert one["verdicts"]["gradient"]["psi"] > 0.3


@forking
@pytest.mark.parametrize("error", [OSError, Interrupted])
def test_a_process_that_fails_releases_the_others(tmp_path, error):
    def work(share):
        try:
            if share.rank == 1:
                raise error("gone")
            share.exchange("a part")
        except Exception as caught:
            share.fail(caught)
            return [type(caught).__name__, str(caught)]

    first, second = in_processes(2, tmp_path, work)
    wanted = Interrupted if error is Interrupted else PeerFailed
    assert first[0] == wanted.__name__
    assert "gone (on rank 1)" in first[1]
    assert second == [error.__name__, "gone"]


@forking
def test_processes_that_are_short_of_time_and_memory_walk_the_same(digits_network, tmp_path):
    model, images, _ = digits_network
    limits = {"max_seconds": 3.0, "max_memory": 3_000_000, "trials": 500, "methods": "gradient", "pictures": False}
    one, two = in_processes(2, tmp_path, lambda share: whole(model, images, share, **limits))
    assert one["settings"]["thinned"]["trials"][1] == 500
    for found in (one, two):
        assert found["settings"].pop("cost")["measured_seconds"] > 0
    assert one == two
