r"""The preference losses of training, as functions of log-probabilities of whole responses.

Of the chosen response w and the rejected response l, of n_w and n_l tokens, with

    log pi(y) = sum_t log softmax(z_base,t + a_t)[y_t],    g_y = log pi(y) - log pi_base(y),

the last of which is what the head adds to a response.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch.nn.functional as F
from torch import Tensor

from mav.pipeline.runtime.choices import ObjectiveName

Pair = tuple[Tensor, Tensor]
"""Values of the chosen and of the rejected response of each pair, both [P]."""

DEFAULT_BETA: Final = 0.1
BETAS: Final[Mapping[ObjectiveName, float]] = {"sigmoid_norm": 5.0, "simpo": 2.0, "credit": 1.0}
"""Defaults of objectives of means over tokens or of single ones, so that they need a larger one."""
DEFAULT_CREDIT_DISCOUNT: Final = 0.5
DEFAULT_LABEL_SMOOTHING: Final = 0.1
DEFAULT_SIMPO_GAMMA: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class Objective:
    r"""A preference loss plus weighted terms on single responses and on what the head adds.

    Names are those of TRL's `loss_type`, beside `mav` and `simpo`; with s the logistic function:

    - `mav`: -log s(beta (log pi(w) - log pi(l))), the published objective of Modular Alignment
      Vectors. Its gradient keeps pushing until the aligned model itself ranks w first, also where
      the base is far off, as it is when l is much the shorter.
    - `dpo`, or `sigmoid`: -log s(beta (g_w - g_l)); Rafailov et al. 2023, "Direct Preference
      Optimization", equation 7. The base's logits are at hand, so the reference costs one more sum
      over them.
    - `sigmoid_norm`: -log s(beta (g_w / n_w - g_l / n_l)); Lambert et al. 2024, "Tulu 3",
      equation 6, length-normalized DPO.
    - `simpo`: -log s(beta (log pi(w) / n_w - log pi(l) / n_l) - gamma), without the base; Meng et
      al. 2024, "SimPO", equation 6.
    - `ipo`: (g_w / n_w - g_l / n_l - 1 / (2 beta))^2; Azar et al. 2023, "A General Theoretical
      Paradigm to Understand Learning from Human Preferences", equation 17. Per token as in TRL,
      whose authors had that confirmed.
    - `hinge`: max(0, 1 - beta (g_w - g_l)); Liu et al. 2023, "Statistical Rejection Sampling
      Improves Preference Optimization", the normalized form of SLiC's loss.
    - `robust`: (-(1 - e) log s(d) + e log s(-d)) / (1 - 2 e), d = beta (g_w - g_l), which is the
      loss of `dpo` in the mean over labels of which a share e is the wrong way round; Chowdhury et
      al. 2024, "Provably Robust DPO".
    - `apo_zero`: 1 - s(beta g_w) + s(beta g_l), for chosen responses better than the base's own;
      D'Oosterlinck et al. 2024, "Anchored Preference Optimization", equation 7.
    - `apo_down`: s(beta g_w) + 1 - s(beta (g_w - g_l)), for chosen responses worse than the base's
      own; the same, equation 8.

    - `credit`: the mean over the response tokens of both responses of (g_t - c_t / beta)^2, with
      g_t what the head adds to the log-probability of a token, and its credit c_t as `TokenCredit`
      has it. It is a loss of tokens and not of pairs: which token earned the preference is read
      from the base's states.

    All add lambda_l2 times the mean, over the response tokens of both responses, of ||a_t||^2
    (summed over the vocabulary), lambda_kl times the mean over the same of KL(pi || pi_base) at the
    token, exact over the vocabulary and at alpha 1, as the head is trained, and lambda_sft times
    -log pi(w) / n_w (Pang et al. 2024, "Iterative Reasoning Preference Optimization", equation 1).

    With ld_alpha, log pi and log pi_base in a preference loss count each token of a response behind
    the first min(n_w, n_l) by this factor; Liu et al. 2024, "Length Desensitization in Direct
    Preference Optimization". Lengths and the other terms stay as they are, as in TRL.

    Attributes:
        name: Which preference loss.
        beta: Its inverse temperature; of `ipo` the weight of its regularisation, tau; of `credit`
            the temperature.
        lambda_l2: Weight of ||a_t||^2.
        lambda_kl: Weight of the divergence from the base.
        lambda_sft: Weight of the chosen response's likelihood.
        ld_alpha: Weight of the tokens that only the longer response has; None for 1.
        label_smoothing: e of `robust`.
        simpo_gamma: gamma of `simpo`.
        credit_discount: Discount of what follows a token, of `credit`.
    """

    name: ObjectiveName
    beta: float
    lambda_l2: float
    lambda_kl: float = 0.0
    lambda_sft: float = 0.0
    ld_alpha: float | None = None
    label_smoothing: float = DEFAULT_LABEL_SMOOTHING
    simpo_gamma: float = DEFAULT_SIMPO_GAMMA
    credit_discount: float = DEFAULT_CREDIT_DISCOUNT

    def pair_losses(self, logps: Pair, base_logps: Pair, lengths: Pair) -> Tensor:
        """Return the preference loss of each pair, [P]; `credit` has none.

        Args:
            logps: log pi of the responses.
            base_logps: The same under the base.
            lengths: Their tokens.
        """
        gains = (logps[0] - base_logps[0], logps[1] - base_logps[1])
        given = _Given(objective=self, logps=logps, gains=gains, lengths=lengths)
        return _LOSSES[self.name](given)


@dataclass(frozen=True, kw_only=True)
class _Given:
    objective: Objective
    logps: Pair
    gains: Pair
    lengths: Pair

    def scaled(self, values: Pair) -> Tensor:
        """Return beta times the difference of chosen and rejected."""
        return self.objective.beta * (values[0] - values[1])

    def per_token(self, values: Pair) -> Pair:
        """Return the values over their responses' tokens."""
        return values[0] / self.lengths[0], values[1] / self.lengths[1]


def _ipo(given: _Given) -> Tensor:
    chosen, rejected = given.per_token(given.gains)
    return (chosen - rejected - 1 / (2 * given.objective.beta)).square()


def _robust(given: _Given) -> Tensor:
    flipped, margin = given.objective.label_smoothing, given.scaled(given.gains)
    right, wrong = -F.logsigmoid(margin), -F.logsigmoid(-margin)
    return ((1 - flipped) * right - flipped * wrong) / (1 - 2 * flipped)


def _apo_zero(given: _Given) -> Tensor:
    chosen, rejected = (given.objective.beta * gain for gain in given.gains)
    return 1 - chosen.sigmoid() + rejected.sigmoid()


def _apo_down(given: _Given) -> Tensor:
    chosen = given.objective.beta * given.gains[0]
    return chosen.sigmoid() + 1 - given.scaled(given.gains).sigmoid()


def _simpo(given: _Given) -> Tensor:
    margin = given.scaled(given.per_token(given.logps))
    return -F.logsigmoid(margin - given.objective.simpo_gamma)


_LOSSES: Final[Mapping[ObjectiveName, Callable[[_Given], Tensor]]] = {
    "mav": lambda given: -F.logsigmoid(given.scaled(given.logps)),
    "dpo": lambda given: -F.logsigmoid(given.scaled(given.gains)),
    "sigmoid": lambda given: -F.logsigmoid(given.scaled(given.gains)),
    "sigmoid_norm": lambda given: -F.logsigmoid(given.scaled(given.per_token(given.gains))),
    "simpo": _simpo,
    "ipo": _ipo,
    "hinge": lambda given: F.relu(1 - given.scaled(given.gains)),
    "robust": _robust,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
}
