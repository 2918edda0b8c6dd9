"""FSDP2: each rank loads one shard of the frozen base; layers are gathered one at a time.

All ranks must run the same passes in the same order, since each pass
gathers the layers one after the other; a rank with an additional pass would wait forever. The
adapter is replicated on every rank.
"""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mergeforget.distributed import world_size
from mergeforget.errors import InputError, ResourceError


def sharded_loading() -> Any:
    """Return the configuration with which transformers loads one shard per rank.

    Raises:
        ResourceError: This version of transformers does not synchronise the adapter over ranks.
    """
    if not hasattr(transformers.Trainer, "_sync_replicated_trainable_parameters"):
        raise ResourceError(
            f"transformers {transformers.__version__} cannot train an adapter on a sharded "
            "model. Upgrade it (pip install -U transformers), or launch with --multi_gpu."
        )
    from transformers.distributed.configuration_utils import DistributedConfig

    return DistributedConfig(fsdp_size=world_size())


def check_cut(model: Any) -> None:
    """Raise InputError if the layers are not sharded separately, so all are gathered at once."""
    layers = model.config.get_text_config().num_hidden_layers
    if sum(isinstance(module, FSDPModule) for module in model.modules()) <= layers:
        raise InputError(
            f"transformers does not shard {type(model).__name__.removeprefix('FSDP')} by layers, "
            "so FSDP would save no memory. Launch with --multi_gpu."
        )


def unsharded_class(module: nn.Module) -> type:
    """Return the class that a module had before it was sharded."""
    return type(module).__mro__[2] if isinstance(module, FSDPModule) else type(module)


def full_weight(model: nn.Module, module: Any) -> Tensor:
    """Return a module's weight; of a sharded module a full copy on each rank."""
    for one in model.modules():
        if isinstance(one, FSDPModule):
            one.reshard()  # the gathered weight of the last pass uses shared memory
    weight: Any = module.weight
    full: Tensor = weight.full_tensor().detach() if isinstance(weight, DTensor) else weight
    return full


def trained(model: Any) -> dict[str, Tensor]:
    """Return the trained weights by name; PEFT would gather the whole model for them."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
