"""A model of which every process holds a part (FSDP2): a layer is whole only while it is passed.

All processes make the same passes in the same order, whatever rows they have: each pass gathers
the layers one after the other. A process that made one more would wait for the others for ever.
What is trained beside it, an adapter, every process has whole.
"""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mergeforget.distributed import count
from mergeforget.errors import InputError, ResourceError


def reading() -> Any:
    """How transformers reads a model in parts: each process its own, none ever all of them.

    Raises:
        ResourceError: this transformers would train an adapter upon it in each process by itself.
    """
    if not hasattr(transformers.Trainer, "_sync_replicated_trainable_parameters"):
        raise ResourceError(
            f"transformers {transformers.__version__} cannot train an adapter on a model that is "
            "cut into parts. Upgrade it (pip install -U transformers), or launch with --multi_gpu."
        )
    from transformers.distributed.configuration_utils import DistributedConfig

    return DistributedConfig(fsdp_size=count())


def check_cut(model: Any) -> None:
    """Raise InputError where the layers are no parts by themselves, but gathered all at once."""
    layers = model.config.get_text_config().num_hidden_layers
    if sum(isinstance(module, FSDPModule) for module in model.modules()) <= layers:
        raise InputError(
            f"transformers has no plan of how to cut {type(model).__name__.removeprefix('FSDP')} "
            "into its layers, so that FSDP would spare no memory. Launch with --multi_gpu."
        )


def kind(module: nn.Module) -> type:
    """The class that a module had before it was cut up."""
    return type(module).__mro__[2] if isinstance(module, FSDPModule) else type(module)


def whole(model: nn.Module, module: Any) -> Tensor:
    """A module's weight; where processes hold parts of it, a copy of all of them in each."""
    for one in model.modules():
        if isinstance(one, FSDPModule):
            one.reshard()  # the last pass may have left the weight whole, in memory that is reused
    weight: Any = module.weight
    found: Tensor = weight.full_tensor().detach() if isinstance(weight, DTensor) else weight
    return found


def trained(model: Any) -> dict[str, Tensor]:
    """What is trained, by name. PEFT by itself would gather the whole model to save an adapter."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
