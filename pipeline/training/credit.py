r"""Credit of single tokens, from a linear reward of the base's states.

A preference is one bit for some hundred tokens. Which of them earned it is in the states: what a
response is like can be read off their mean far better than a head can learn from the bit alone. So
two linear models are fitted before training, both in closed form, from the pairs it trains on:

- the reward, linear in the mean over a response's tokens of a layer's states: the direction u that
  solves (S + ridge) u = m, of the differences between chosen and rejected with their mean m and
  second moment S, which is a least-squares fit of every difference to 1. States are standardised
  per dimension, and the layer is the one whose reward ranks most pairs right that it was not fitted
  to;
- the baseline, linear in the state that a token was chosen from: what its return is expected to be.

With value v_t = u . h_t of the state that token t was chosen from, the return of a token is what
follows in its response, G_t = v_(t+1) + g v_(t+2) + g^2 v_(t+3) + ..., and its credit is
G_t - baseline(h_t) over the standard deviation of that. It has the place that the advantage has in
policy gradients (Sutton et al. 2000, "Policy Gradient Methods for Reinforcement Learning with
Function Approximation"); the value read from the next state is that of prefix scorers (Mudgal et
al. 2024, "Controlled Decoding from Language Models"), which need a pass for every candidate token
where a head says it for all of them at once.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from mav.cache_schema.errors import DataError
from mav.pipeline.loader.batch import Batch

MOST_PAIRS: Final = 4096
"""Linear models of some thousand numbers gain nothing from more, which the first so many are:
pairs lie in a random order."""
FEWEST_PAIRS: Final = 16
_FOLDS: Final = 4
_RIDGE: Final = 4.0
"""Times numbers over pairs, of the mean square of a dimension: much where pairs are few."""
_BASELINE_RIDGE: Final = 0.01


@dataclass(frozen=True, kw_only=True)
class TokenCredit:
    """What gives each response token its credit.

    Attributes:
        layer: Which of the cached layers is read, from 0.
        value: [W], u in the units of the states.
        value_offset: Added to the value.
        baseline: [W].
        baseline_offset: Added to the baseline.
        scale: Standard deviation of return less baseline.
        discount: g.
        accuracy: Share of pairs that a reward fitted to the others ranks right.
    """

    layer: int
    value: Tensor
    value_offset: float
    baseline: Tensor
    baseline_offset: float
    scale: float
    discount: float
    accuracy: float

    def of(self, batch: Batch) -> Tensor:
        """Return the credit of each response token of a batch, float32 [N]."""
        states = batch.states[:, self.layer].float()
        expected = states @ self.baseline.to(states.device) + self.baseline_offset
        return (self._returns(states, batch.offsets) - expected) / self.scale

    def _returns(self, states: Tensor, offsets: Tensor) -> Tensor:
        values = states @ self.value.to(states.device) + self.value_offset
        return returns(values, offsets, self.discount)


def returns(values: Tensor, offsets: Tensor, discount: float) -> Tensor:
    """Return what follows each token in its response, G_t = v_(t+1) + g G_(t+1), [N].

    The state behind the last token is in no cache; it counts as the mean of all, 0.

    Args:
        values: [N], of the states that tokens were chosen from.
        offsets: int64 [responses + 1].
        discount: g, from 0 to 1.
    """
    count, longest = len(values), int(offsets.diff().max())
    ends = offsets[1:].repeat_interleave(offsets.diff(), output_size=count)
    places = torch.arange(count, device=values.device)

    def behind(of: Tensor, by: int) -> Tensor:
        moved = of.new_zeros(count)
        moved[: max(count - by, 0)] = of[by:]
        return torch.where(places + by < ends, moved, 0.0)

    # After a round the sums hold twice as many of the values that follow.
    found, held = behind(values, 1), 1
    while held < longest:
        found = found + discount**held * behind(found, held)
        held *= 2
    return found


def fit_credit(
    stream: Callable[[], Iterator[Batch]], discount: float, device: torch.device
) -> TokenCredit:
    """Fit reward and baseline to pairs.

    Args:
        stream: Begins the stream of the pairs; it is read twice.
        discount: g of the returns.
        device: Where to compute sums over tokens.

    Raises:
        DataError: There are too few pairs, or no state differs from another.
    """
    moments, differences = _read_differences(stream, device)
    pairs = len(differences)
    if pairs < FEWEST_PAIRS:
        raise DataError(
            f"objective credit: got {pairs} pairs to train on, expected {FEWEST_PAIRS} or more; "
            f"use `objective` dpo"
        )
    mean, deviation = moments
    scaled = differences / deviation
    accuracy = [_cross_validated(scaled[:, layer]) for layer in range(scaled.shape[1])]
    layer = max(range(len(accuracy)), key=accuracy.__getitem__)
    value = (_reward(scaled[:, layer]) / deviation[layer]).float()
    offset = -float(mean[layer].float() @ value)
    reward = TokenCredit(
        layer=layer,
        value=value,
        value_offset=offset,
        baseline=torch.zeros_like(value),
        baseline_offset=0.0,
        scale=1.0,
        discount=discount,
        accuracy=accuracy[layer],
    )
    return _with_baseline(reward, stream, mean[layer], deviation[layer], device)


def _read_differences(
    stream: Callable[[], Iterator[Batch]], device: torch.device
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return mean and deviation of states, [K, W], and differences of pairs, all float64."""
    count, total, squares, differences = 0, None, None, []
    for on_host in stream():
        batch = on_host.to(device)
        states = batch.states.float()
        sums, of_squares = states.sum(0).cpu().double(), states.square().sum(0).cpu().double()
        total = sums if total is None else total + sums
        squares = of_squares if squares is None else squares + of_squares
        count += len(states)
        lengths = batch.offsets.diff()
        response = torch.repeat_interleave(
            torch.arange(len(lengths), device=device), lengths, output_size=len(states)
        )
        sums = states.new_zeros(len(lengths), *states.shape[1:]).index_add(0, response, states)
        means = sums / lengths[:, None, None]
        differences.append((means[0::2] - means[1::2]).cpu())
    assert total is not None and squares is not None, "there are pairs to train on"
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    # A dimension that is always the same says nothing, and is left at nothing.
    deviation = torch.where(deviation > 1e-6 * deviation.max(), deviation, math.inf)
    if not deviation.isfinite().any():
        raise DataError("objective credit: all states of the cache are alike; extract it again")
    return (mean, deviation), torch.cat(differences).double()


def _reward(differences: Tensor) -> Tensor:
    """Return the direction that ranks chosen over rejected, [W], of standardised [P, W]."""
    pairs, width = differences.shape
    second = differences.T @ differences / pairs
    ridge = _RIDGE * width / pairs * second.diagonal().mean()
    regular = second + ridge * torch.eye(width, dtype=second.dtype)
    found: Tensor = torch.linalg.solve(regular, differences.mean(0))
    return found


def _cross_validated(differences: Tensor) -> float:
    """Return the share of pairs ranked right by a reward fitted to the other folds."""
    fold = torch.arange(len(differences)) % _FOLDS
    right = 0
    for number in range(_FOLDS):
        direction = _reward(differences[fold != number])
        right += int((differences[fold == number] @ direction > 0).sum())
    return right / len(differences)


def _with_baseline(
    reward: TokenCredit,
    stream: Callable[[], Iterator[Batch]],
    mean: Tensor,
    deviation: Tensor,
    device: torch.device,
) -> TokenCredit:
    """Add the baseline, and the scale of what it leaves."""
    count, width = 0, len(mean)
    gram = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    moment = torch.zeros(width + 1, dtype=torch.float64)
    square = 0.0
    centre, scale = mean.float().to(device), deviation.float().to(device)
    for on_host in stream():
        batch = on_host.to(device)
        states = batch.states[:, reward.layer].float()
        followed = reward._returns(states, batch.offsets)
        inputs = torch.cat([(states - centre) / scale, torch.ones_like(states[:, :1])], dim=1)
        gram += (inputs.T @ inputs).cpu().double()
        moment += (inputs.T @ followed).cpu().double()
        square += float(followed.square().sum())
        count += len(states)
    gram, moment = gram / count, moment / count
    ridge = _BASELINE_RIDGE * torch.eye(width + 1, dtype=torch.float64)
    found = torch.linalg.solve(gram + ridge, moment)
    variance = square / count - float(2 * found @ moment - found @ gram @ found)
    if variance <= 0:
        raise DataError("objective credit: all tokens have the same return; use `objective` dpo")
    baseline = (found[:-1] / deviation).float()
    return TokenCredit(
        layer=reward.layer,
        value=reward.value,
        value_offset=reward.value_offset,
        baseline=baseline,
        baseline_offset=float(found[-1]) - float(mean.float() @ baseline),
        scale=math.sqrt(variance),
        discount=reward.discount,
        accuracy=reward.accuracy,
    )
