"""A head on one process or many: single, copied to each (DDP), or in shards (FSDP2)."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.ops.projection import Projection
from mav.pipeline.training.loss import PreferenceModel, last_layer

Parallelism = Literal["single", "ddp", "fsdp"]


def parallelism_of(accelerator: Accelerator, *, shard: bool) -> Parallelism:
    """Return how the head is distributed over the processes.

    Args:
        accelerator: What was launched; a launch configured for FSDP shards.
        shard: Whether sharding was also asked for.
    """
    if accelerator.num_processes == 1:
        return "single"
    return "fsdp" if shard or accelerator.is_fsdp2 else "ddp"


def wrap(
    head: AlignmentHead,
    accelerator: Accelerator,
    parallelism: Parallelism,
    *,
    bf16: bool,
    wants_kl: bool = False,
) -> tuple[Any, Projection | None]:
    """Move a head to the accelerator's device and make it a module that can be trained.

    Args:
        head: The head.
        accelerator: Where to compute.
        parallelism: How the head is distributed.
        bf16: Whether products are computed in bfloat16.
        wants_kl: See `PreferenceModel`.

    Returns:
        A `PreferenceModel`, wrapped for several processes, whose parameters are those to optimize;
        and the head's last layer with what it keeps between steps, or None where it is sharded or
        no product with the vocabulary.
    """
    head.to(accelerator.device)
    if parallelism == "fsdp":
        # The weights are gathered at every call, so nothing of them can be kept.
        model = PreferenceModel(head, bf16=bf16, wants_kl=wants_kl)
        return _shard(model, accelerator, bf16=bf16), None
    if parallelism == "single":
        # Kept for the whole run: allocating gigabytes of gradients at each step is slow.
        for parameter in head.parameters():
            parameter.grad = torch.zeros_like(parameter)
    projection = None
    if not head.config.acts_on_state:
        projection = last_layer(head, bf16=bf16, accumulates_grad=parallelism == "single")
    model = PreferenceModel(head, bf16=bf16, projection=projection, wants_kl=wants_kl)
    return accelerator.prepare(model), projection


def gradient_sync(
    module: Any, accelerator: Accelerator, parallelism: Parallelism, *, last: bool
) -> AbstractContextManager[Any]:
    """Return a context for a micro-batch; gradients are communicated after the last one.

    Args:
        module: What `wrap` returned.
        accelerator: Where it computes.
        parallelism: How the head is distributed.
        last: Whether this is the step's last micro-batch.
    """
    if parallelism == "fsdp":
        module.set_requires_gradient_sync(last)
        return contextlib.nullcontext()
    return contextlib.nullcontext() if last else accelerator.no_sync(module)


def reshard(module: Any, parallelism: Parallelism) -> None:
    """Make the parameters those that the optimizer holds again, after FSDP gathered them."""
    if parallelism == "fsdp":
        module.reshard()


def _shard(model: PreferenceModel, accelerator: Accelerator, *, bf16: bool) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # the base's log-probabilities are float32
    )
    # The last layer is reached by its weight and not by a call, so all is one unit.
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def unshard(tensor: Tensor) -> Tensor:
    """Return the full tensor of one that may be sharded. All processes must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a full tensor on the device and in the shards of another."""
    tensor = tensor.to(other.device)
    if isinstance(other, DTensor):
        return distribute_tensor(tensor, other.device_mesh, other.placements)
    return tensor
