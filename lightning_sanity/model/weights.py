"""The weights of a module, whether this process holds them whole or only its shards of them.

FSDP2 and tensor parallelism keep a parameter as a ``DTensor``, of which every process holds a part. For a forward pass
FSDP2 gathers the parts and puts the whole parameter in their place, and it may leave it there: what is then written to
the parts never reaches the next pass. So every access here drops gathered copies first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

if torch.distributed.is_available():
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, Replicate
else:  # a build without it has no shards

    class DTensor(Tensor):  # type: ignore[no-redef]
        """Nothing is one."""

    class FSDPModule:  # type: ignore[no-redef]
        """Nothing is one."""


def is_shard(held: Any) -> bool:
    """Whether this is a tensor of which this process holds only a part."""
    return isinstance(held, DTensor)


def is_sharded(module: nn.Module) -> bool:
    """Whether this process holds only parts of some parameters, so that no copy of the module can be made."""
    return any(map(is_shard, module.parameters())) or bool(gathering_modules(module))


def gathering_modules(module: nn.Module) -> list[nn.Module]:
    """The outermost modules that gather their shards for a forward pass."""
    found: list[nn.Module] = []
    waiting: list[nn.Module | None] = [module]
    while waiting:  # at every access to weights, so without the names that ``children`` would make
        child = waiting.pop()
        if isinstance(child, FSDPModule):
            found.append(child)
        elif child is not None:
            waiting += child._modules.values()
    return found


def drop_gathered(module: nn.Module) -> None:
    """Put every shard back in the place of its gathered parameter, also after a pass that broke off midway."""
    for root in gathering_modules(module):
        for child in root.modules():
            if isinstance(child, FSDPModule):
                child.reshard()
        # What a broken pass left behind; older torch cannot forget it, and none has anything before the first pass.
        with suppress(AttributeError):
            root.reset_iter_state()  # type: ignore[operator]


@contextmanager
def told_of_gathering(module: nn.Module, act: Callable[[], None]) -> Iterator[None]:
    """Calls ``act`` whenever a forward pass inside the block has put gathered parameters in place of shards."""

    def hook(child: nn.Module, arguments: Any) -> None:
        act()

    handles = [child.register_forward_pre_hook(hook) for child in module.modules() if isinstance(child, FSDPModule)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def part_of(tensor: Tensor) -> Tensor | None:
    """The very tensor in which this process holds its part, or None of a tensor that is no wrapper of one."""
    return getattr(tensor, "_local_tensor", None) if isinstance(tensor, DTensor) else getattr(tensor, "elem", None)


@torch.no_grad()
def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor; of a sharded one every process must ask for it."""
    if not isinstance(tensor, DTensor):
        return tensor
    here = tensor.to_local().to(tensor.device_mesh.device_type)  # shards that are kept on the CPU travel by the device
    on_mesh = DTensor.from_local(
        here, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
    whole_tensor: Tensor = on_mesh.full_tensor()
    return whole_tensor.to(tensor.device)


@torch.no_grad()
def _scatter(value: Tensor, shard: DTensor) -> None:
    """Keep of a whole value, which every process has, this process's part."""
    everywhere = [Replicate()] * shard.device_mesh.ndim
    on_mesh = DTensor.from_local(value, shard.device_mesh, everywhere, run_check=False)
    shard.to_local().copy_(on_mesh.redistribute(placements=shard.placements).to_local())


@torch.no_grad()
def values(module: nn.Module) -> dict[str, Tensor]:
    """What this process holds of each parameter and buffer, to be read or written in place."""
    drop_gathered(module)
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: t.to_local() if isinstance(t, DTensor) else t.detach() for name, t in named}


def snapshot(module: nn.Module, kept: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A copy of ``values``; of those that ``kept`` holds elsewhere, no second copy."""
    saved = {}
    for name, tensor in values(module).items():
        same = None if kept is None else kept.get(name)
        if same is None or same.data_ptr() == tensor.data_ptr() or not _equal(same, tensor):
            same = tensor.clone()
        saved[name] = same
    return saved


def _equal(one: Tensor, two: Tensor) -> bool:
    return one.dtype == two.dtype and one.device == two.device and torch.equal(one, two)


@torch.no_grad()
def restore(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Write a snapshot back; no process waits for another."""
    for name, tensor in values(module).items():
        tensor.copy_(saved[name])


@contextmanager
def whole(module: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """The named parameters are ordinary whole ones inside the block; what they hold at its end goes to the shards.

    So whatever re-initialises a parameter draws for a sharded module what it draws for any other. It takes memory for
    these parameters on every process, as a forward pass does.
    """
    drop_gathered(module)
    places = {name: (module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names}
    found: dict[str, Any] = {name: owner._parameters[leaf] for name, (owner, leaf) in places.items()}
    shards = {name: shard for name, shard in found.items() if isinstance(shard, DTensor)}
    try:
        for name, shard in shards.items():
            owner, leaf = places[name]
            owner._parameters[leaf] = nn.Parameter(gathered(shard).detach(), requires_grad=False)
        yield
        for name, shard in shards.items():
            owner, leaf = places[name]
            _scatter(getattr(owner, leaf).detach(), shard)
    finally:
        for name in shards:
            owner, leaf = places[name]
            owner._parameters[leaf] = found[name]


@contextmanager
def zeroed(module: nn.Module) -> Iterator[None]:
    """All parameters are zero inside the block."""
    if is_sharded(module):
        saved = snapshot(module)
        parameters = {name for name, _ in module.named_parameters()}
        with torch.no_grad():
            for name, tensor in values(module).items():
                if name in parameters:
                    tensor.zero_()
        try:
            yield
        finally:
            restore(module, saved)
        return
    before = {name: parameter.data for name, parameter in module.named_parameters()}
    zeros = _zeros(before.values())
    for parameter in module.parameters():
        parameter.data = zeros(parameter)  # in place of the values, which are not even read
    try:
        yield
    finally:
        for name, parameter in module.named_parameters():
            parameter.data = before[name]


def _zeros(tensors: Iterable[Tensor]) -> Callable[[Tensor], Tensor]:
    """Makes zeros like each of some tensors; ordinary ones of one type lie in the memory of the largest of them."""
    largest: dict[tuple[torch.dtype, torch.device], int] = {}
    for tensor in tensors:
        kind = tensor.dtype, tensor.device
        largest[kind] = max(largest.get(kind, 0), tensor.numel())
    memory: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(tensor: Tensor) -> Tensor:
        kind = tensor.dtype, tensor.device
        if type(tensor.data) is not Tensor or not tensor.is_contiguous():
            return torch.zeros_like(tensor)
        if kind not in memory:
            memory[kind] = torch.zeros(largest[kind], dtype=tensor.dtype, device=tensor.device)
        return memory[kind][: tensor.numel()].view(tensor.shape)

    return like


def own_class(module: nn.Module) -> type:
    """The module's own class, where sharding has put another one over it."""
    return next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))
