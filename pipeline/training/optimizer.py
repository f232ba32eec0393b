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
from mav.pipeline.training.parallel import distribute_like, whole

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
        UsageError: What `adamw-8bit` needs is not there.
    """
    wanted = list(parameters)
    if name == "adamw":
        return torch.optim.AdamW(wanted, weight_decay=weight_decay, fused=True)
    if any(isinstance(parameter, DTensor) for parameter in wanted):
        raise UsageError("--optimizer adamw-8bit: its state cannot be sharded; use adamw")
    if wanted[0].device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UsageError("--optimizer adamw-8bit: on a CPU it needs a C++ compiler, such as g++")
    return _eight_bit(wanted, weight_decay)


def _eight_bit(parameters: list[nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise UsageError("--optimizer adamw-8bit needs torchao: pip install torchao") from error
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
    """Return the name in the head of each parameter of a wrapped scorer."""
    found = {}
    for name, parameter in module.named_parameters():
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        found[parameter] = name
    return found


def model_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a wrapped scorer's head, whole. All processes must call."""
    return {name: _stored(whole(p.detach())) for p, name in parameter_names(module).items()}


def load_model_state_dict(module: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Put weights into a wrapped scorer. All processes must call.

    Raises:
        KeyError: One is missing.
        RuntimeError: One has another shape.
    """
    with torch.no_grad():
        for parameter, name in parameter_names(module).items():
            parameter.copy_(distribute_like(stored[name], parameter))


def optimizer_state_dict(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Return an optimizer's state as named tensors, whole. All processes must call."""
    found: dict[str, Tensor] = {}
    for parameter, name in parameter_names(module).items():
        for key, value in optimizer.state[parameter].items():
            if hasattr(value, "codes"):
                parts = {f"{name}.{key}.{inner}": getattr(value, inner) for inner in _INNER}
                found |= {path: _stored(part) for path, part in parts.items()}
            else:
                found[f"{name}.{key}"] = _stored(whole(torch.as_tensor(value)))
    return found


def load_optimizer_state_dict(
    optimizer: torch.optim.Optimizer, module: nn.Module, stored: Mapping[str, Tensor]
) -> None:
    """Put state into an optimizer. All processes must call.

    Raises:
        KeyError: That of a parameter is missing.
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


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
