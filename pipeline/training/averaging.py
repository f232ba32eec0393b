"""The moving average of a head's weights."""

from typing import Final, Literal

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mav.pipeline.training.optimizer import on_cpu, parameter_names

AVERAGE: Final = "average"
EMA: Final = "ema"
START: Final = "start"
_LAG: Final = 10
_EMA_POWER: Final = 0.5
_BIAS_POWER: Final = 0.2
"""TRL's defaults, which are those of the paper."""


class AveragedWeights:
    """An exponential moving average of the weights of a wrapped model, in shards as they are.

    After step t, from 1, the average is d_t times itself plus 1 - d_t times the weights, where
    d_t = min(decay, (1 + t) / (10 + t)): an average over about the last tenth of few steps, and
    over 1 / (1 - decay) of many, so that the first weights do not stay in it. The form is that of
    TensorFlow's `ExponentialMovingAverage` with `num_updates`.

    With `bema` it is TRL's `BEMACallback` at `update_freq` 1 and else its defaults: after step t

        ema_t     = (1 - b_t) ema_{t-1} + b_t w_t        b_t = (10 + t)^-0.5,  ema_0 = w_0
        average_t = ema_t + a_t (w_t - w_0)              a_t = (10 + t)^-0.2

    so that the average does not lag behind the weights. It keeps `ema` and the first weights too.
    Source: Block and Zhang 2025, "EMA Without the Lag: Bias-Corrected Iterate Averaging Schemes"
    (arXiv:2508.00180).

    Attributes:
        parts: Names of what is kept, the average first.
    """

    def __init__(self, module: nn.Module, decay: float | Literal["bema"]) -> None:
        """Begin with the weights as they are.

        Args:
            module: The wrapped model.
            decay: 0 or more and less than 1, or `bema`.
        """
        self._module = module
        self._decay = decay
        self.parts = (AVERAGE, EMA, START) if decay == "bema" else (AVERAGE,)
        self._kept = {
            part: {name: parameter.detach().clone() for parameter, name in self._named().items()}
            for part in self.parts
        }

    def update(self, steps: int) -> None:
        """Take the weights after so many steps in.

        Args:
            steps: Steps taken, this one included.
        """
        for parameter, name in self._named().items():
            weight = _local(parameter.detach())
            average, *others = (_local(self._kept[part][name]) for part in self.parts)
            if self._decay == "bema":
                ema, start = others
                share = (_LAG + steps) ** -_EMA_POWER
                ema.mul_(1 - share).add_(weight, alpha=share)
                average.copy_(ema + (_LAG + steps) ** -_BIAS_POWER * (weight - start))
            else:
                average.lerp_(weight, 1 - min(self._decay, (1 + steps) / (10 + steps)))

    def swap(self, part: str = AVERAGE) -> None:
        """Exchange averages and weights; done twice, both are as before, bit by bit.

        Args:
            part: What to exchange with the weights.
        """
        for parameter, name in self._named().items():
            average, weight = _local(self._kept[part][name]), _local(parameter.detach())
            before = weight.clone()
            weight.copy_(average)
            average.copy_(before)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return what is kept by part and name, unsharded and on the CPU. All processes call."""
        return {
            part: {name: on_cpu(tensor) for name, tensor in tensors.items()}
            for part, tensors in self._kept.items()
        }

    def _named(self) -> dict[nn.Parameter, str]:
        return parameter_names(self._module)


def _local(tensor: Tensor) -> Tensor:
    """Return this process's shard, which shares its memory with the tensor."""
    shard: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return shard
