"""The optimizer of a head, and its state as named tensors.

Names are those of the head's parameters, `project.weight.exp_avg`, so that a checkpoint does not
depend on how many processes wrote it.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mav.cache_schema.errors import UsageError
from mav.pipeline.runtime.choices import OptimizerName
from mav.pipeline.training.parallel import distribute_like, unshard

_PREFIXES: Final = ("module.", "head.")
_INNER: Final = ("codes", "scale", "qmap")


def make_optimizer(
    name: OptimizerName, parameters: Iterable[nn.Parameter], *, weight_decay: float
) -> torch.optim.Optimizer:
    """Return an optimizer; its learning rate is set at every step.

    Args:
        name: `adamw`; or `adamw-8bit`, torchao's, whose moments take a byte each, scaled in
            blocks of 256 (Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization").
        parameters: What to optimize.
        weight_decay: Decoupled decay.

    Raises:
        UsageError: What `adamw-8bit` needs is not available.
    """
    trained = list(parameters)
    if name == "adamw":
        return torch.optim.AdamW(trained, weight_decay=weight_decay, fused=True)
    if any(isinstance(parameter, DTensor) for parameter in trained):
        raise UsageError("optimizer: got 'adamw-8bit', whose state cannot be sharded; use adamw")
    if trained[0].device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UsageError(
            "optimizer: got 'adamw-8bit', which on a CPU needs a C++ compiler, such as g++"
        )
    return _eight_bit(trained, weight_decay)


def _eight_bit(parameters: list[nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise UsageError(
            "optimizer: got 'adamw-8bit', which needs torchao: pip install torchao"
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(parameters, lr=0.0, weight_decay=weight_decay)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def parameter_names(module: nn.Module) -> dict[nn.Parameter, str]:
    """Return the name in the head of each parameter of a wrapped model."""
    names = {}
    for name, parameter in module.named_parameters():
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        names[parameter] = name
    return names


def model_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a wrapped model's head, unsharded. All processes must call."""
    return {name: on_cpu(p.detach()) for p, name in parameter_names(module).items()}


def load_model_state_dict(module: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Load weights into a wrapped model. All processes must call.

    Args:
        module: The model.
        stored: Name in the head -> weight.

    Raises:
        KeyError: A weight is missing.
        RuntimeError: A weight has another shape.
    """
    with torch.no_grad():
        for parameter, name in parameter_names(module).items():
            parameter.copy_(distribute_like(stored[name], parameter))


def optimizer_state_dict(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Return an optimizer's state as named tensors, unsharded. All processes must call."""
    tensors: dict[str, Tensor] = {}
    for parameter, name in parameter_names(module).items():
        for key, value in optimizer.state[parameter].items():
            if hasattr(value, "codes"):
                parts = {f"{name}.{key}.{inner}": getattr(value, inner) for inner in _INNER}
                tensors |= {path: on_cpu(part) for path, part in parts.items()}
            else:
                tensors[f"{name}.{key}"] = on_cpu(torch.as_tensor(value))
    return tensors


def load_optimizer_state_dict(
    optimizer: torch.optim.Optimizer, module: nn.Module, stored: Mapping[str, Tensor]
) -> None:
    """Load an optimizer's state. All processes must call.

    Args:
        optimizer: The optimizer.
        module: The wrapped model whose parameters it optimizes.
        stored: What `optimizer_state_dict` returned.

    Raises:
        KeyError: The state of a parameter is missing.
    """
    for parameter, name in parameter_names(module).items():
        state: dict[str, Any] = {}
        for path, value in stored.items():
            if not path.startswith(f"{name}."):
                continue
            key, _, inner = path.removeprefix(f"{name}.").partition(".")
            if inner == _INNER[0]:
                state[key] = _eight_bit_state(path, stored, parameter.device)
            elif not inner:
                state[key] = _placed(value, parameter, fused=bool(optimizer.defaults.get("fused")))
        if not state:
            raise KeyError(name)
        optimizer.state[parameter] = state


def _placed(value: Tensor, parameter: nn.Parameter, *, fused: bool) -> Tensor:
    if value.shape == parameter.shape:
        return distribute_like(value, parameter)
    # A count of steps: fused optimizers want it beside the weights, others on the CPU.
    return value.to(parameter.device) if fused else value


def _eight_bit_state(path: str, stored: Mapping[str, Tensor], device: torch.device) -> Tensor:
    from torchao.optim.subclass_8bit import OptimState8bit

    stem = path.removesuffix(_INNER[0])
    parts = [stored[f"{stem}{inner}"].to(device) for inner in _INNER]
    state: Tensor = OptimState8bit(*parts, signed=stem.endswith("exp_avg."))
    return state


def on_cpu(tensor: Tensor) -> Tensor:
    """Return a tensor unsharded and on the CPU, itself if it is. All processes must call."""
    return unshard(tensor).detach().cpu().contiguous()
