"""The moving average of a head's weights."""

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mav.pipeline.training.optimizer import on_cpu, parameter_names


class AveragedWeights:
    """An exponential moving average of the weights of a wrapped model, in shards as they are.

    After step t, from 1, the average is d_t times itself plus 1 - d_t times the weights, where
    d_t = min(decay, (1 + t) / (10 + t)): an average over about the last tenth of few steps, and
    over 1 / (1 - decay) of many, so that the first weights do not stay in it. The form is that of
    TensorFlow's `ExponentialMovingAverage` with `num_updates`.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Begin with the weights as they are.

        Args:
            module: The wrapped model.
            decay: 0 or more and less than 1.
        """
        self._module = module
        self._decay = decay
        self._averages = {
            name: parameter.detach().clone() for parameter, name in self._named().items()
        }

    def update(self, steps: int) -> None:
        """Take the weights after so many steps in.

        Args:
            steps: Steps taken, this one included.
        """
        decay = min(self._decay, (1 + steps) / (10 + steps))
        for parameter, name in self._named().items():
            _local(self._averages[name]).lerp_(_local(parameter.detach()), 1 - decay)

    def swap(self) -> None:
        """Exchange averages and weights; done twice, both are as before, bit by bit."""
        for parameter, name in self._named().items():
            average, weight = _local(self._averages[name]), _local(parameter.detach())
            before = weight.clone()
            weight.copy_(average)
            average.copy_(before)

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages by name, unsharded and on the CPU. All processes must call."""
        return {name: on_cpu(average) for name, average in self._averages.items()}

    def _named(self) -> dict[nn.Parameter, str]:
        return parameter_names(self._module)


def _local(tensor: Tensor) -> Tensor:
    """Return this process's shard, which shares its memory with the tensor."""
    shard: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return shard
