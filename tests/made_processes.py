"""Real gloo processes, forked, that share a test."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lightning_sanity import parameter_randomization_test
from lightning_sanity.resources.processes import Share


def own(model, inputs, target):
    """A method that is explained one depth after the other."""
    return torch.autograd.grad(model(leaf := inputs.clone().requires_grad_()).logsumexp(1).sum(), leaf)[0]


METHODS = {name: name for name in ("gradient", "smoothgrad", "gradcam", "guided_backprop")} | {"own": own}

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
    given = {"trials": 2, "repeats": 2, "max_steps": 3, "methods": METHODS, "progress": False, **changes}
    result = parameter_randomization_test(model, images[:6], share=share, **given).to_dict()
    for key in ("seconds", "created"):
        result.pop(key)
    return json.loads(json.dumps(result))
