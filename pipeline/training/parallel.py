"""A head on one process or many: alone, copied to each (DDP), or cut into shards (FSDP2)."""

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

Wrapping = Literal["alone", "copied", "sharded"]


def parallelism_of(accelerator: Accelerator, *, shard: bool) -> Wrapping:
    """Return how the head is spread over the processes.

    Args:
        accelerator: What was launched; a launch configured for FSDP shards.
        shard: Whether sharding was asked for beside.
    """
    if accelerator.num_processes == 1:
        return "alone"
    return "sharded" if shard or accelerator.is_fsdp2 else "copied"


class ParallelHead:
    """A scorer spread over the processes.

    Attributes:
        wrapping: How.
        module: What is called; its parameters are those to optimize.
        projection: The head's last layer with what it keeps; None where it is sharded.
    """

    def __init__(
        self, head: AlignmentHead, accelerator: Accelerator, *, bf16: bool, shard: bool
    ) -> None:
        """Put a head on the accelerator's device and wrap it."""
        self.wrapping = parallelism_of(accelerator, shard=shard)
        self.projection: Projection | None = None
        head.to(accelerator.device)
        if self.wrapping == "sharded":
            # The weights are gathered at every call, so nothing of them can be kept.
            self.module: Any = _sharded(PreferenceModel(head, bf16=bf16), accelerator, bf16=bf16)
            return
        alone = self.wrapping == "alone"
        if alone:
            # Kept across steps: allocating gigabytes of gradients each step is slow.
            for parameter in head.parameters():
                parameter.grad = torch.zeros_like(parameter)
        self.projection = last_layer(head, bf16=bf16, accumulates=alone)
        self.module = accelerator.prepare(
            PreferenceModel(head, bf16=bf16, projection=self.projection)
        )

    def synchronised(self, accelerator: Accelerator, *, last: bool) -> AbstractContextManager[Any]:
        """Return a context for a micro-batch; gradients are communicated after the last one."""
        if self.wrapping == "sharded":
            self.module.set_requires_gradient_sync(last)
            return contextlib.nullcontext()
        return contextlib.nullcontext() if last else accelerator.no_sync(self.module)

    def settle(self) -> None:
        """Reshard, so that parameters are again the shards the optimizer holds."""
        if self.wrapping == "sharded":
            self.module.reshard()

    def weights_changed(self) -> None:
        """Forget what was derived from the weights."""
        if self.projection is not None:
            self.projection.weight_changed()

    def clip(self, most: float) -> Tensor:
        """Clip the gradient to a norm; return the norm it had."""
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), most)
        return whole(norm)


def _sharded(scorer: PreferenceModel, accelerator: Accelerator, *, bf16: bool) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # the base's log-probabilities are float32
    )
    # The last layer is reached by its weight and not by a call, so all is one unit.
    return fully_shard(scorer, mesh=mesh, mp_policy=policy)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that may be sharded as a whole one. All processes must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor on the device and in the shards of another."""
    tensor = tensor.to(other.device)
    if isinstance(other, DTensor):
        return distribute_tensor(tensor, other.device_mesh, other.placements)
    return tensor
