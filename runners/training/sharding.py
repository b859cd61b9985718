"""What the processes of one training know of each other, and FSDP2's settings where accelerate's do not fit.

Sharding, gradient reduction and checkpoints of shards are accelerate's and torch's. Outside such a training there is
one process, and everything here says so.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ...models.matrices import low_rank_layers


def process_count() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes what all have made."""
    return process_count() == 1 or dist.get_rank() == 0


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only its share of the parameters."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """Gather a sharded model's tensors on the CPU of the main process; all processes call this, the others get {}."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return dict(state)


def skeleton(model: nn.Module) -> nn.Module:
    """Return a copy of a model without the numbers of its parameters, to be filled by `collect`."""
    # The memo of `deepcopy`: for each parameter it takes the one on the meta device instead of a copy.
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, empty)


def collect(model: nn.Module, into: nn.Module) -> nn.Module | None:
    """Gather a sharded model in its `skeleton`, on the CPU of the main process; the others get None."""
    state = whole_state(model)
    if not is_main():
        return None
    # The state may have a tied parameter under one of its names alone; each is made once, which keeps the tie.
    parameters: dict[nn.Parameter, nn.Parameter] = {}
    for name, parameter in into.named_parameters(remove_duplicate=False):
        if parameter not in parameters and name in state:
            parameters[parameter] = nn.Parameter(state[name], parameter.requires_grad)
    for module in into.modules():
        for name, empty in module._parameters.items():
            if empty is not None:
                module._parameters[name] = parameters[empty]
    # Buffers are not sharded, and those that are not persistent are missing from the state.
    for path, buffer in model.named_buffers():
        owner, _, name = path.rpartition(".")
        into.get_submodule(owner)._buffers[name] = buffer.cpu()
    return into


def shards() -> bool:
    """Whether accelerate was asked to shard what the processes train."""
    return process_count() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def use_fsdp2_on_cpus(accelerator: Any) -> None:
    """Have accelerate shard over CPU processes as it does over GPUs: it reads its FSDP settings only where GPUs are."""
    from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState

    if shards() and accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def fit_settings(accelerator: Any, model: nn.Module) -> None:
    """Change FSDP2's settings where the model or exactness asks for it.

    A factor that decoder layers share lies in the first of them and is read in the others, so it must stay gathered
    from one to the next. With bfloat16, gradients are summed over the processes in float32, as one process adds them.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = accelerator.state.fsdp_plugin
    if _shares_across(model, set(getattr(model, "_no_split_modules", None) or ())):
        plugin.reshard_after_forward = False
    if accelerator.mixed_precision == "bf16":
        plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)


def _shares_across(model: nn.Module, units: set[str]) -> bool:
    """Whether a module outside the unit (decoder layer) of a shared factor uses it."""
    owner = {
        layer: name
        for name, module in model.named_modules()
        if type(module).__name__ in units
        for layer in module.modules()
    }
    layers = low_rank_layers(model).values()
    return any(layer.source is not None and owner.get(layer) != owner.get(layer.source) for layer in layers)
