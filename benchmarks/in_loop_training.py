"""Training the head with the base in the loop, the way this idea was first implemented.

Every step runs the frozen base on the chosen and on the rejected answers of a batch, each behind
its prompt and padded to one fixed length. The head gives a vector at every position, prompts and
padding among them, and base logits, vectors and log-probabilities exist for all of them at once:

    z = z_base + a,    log pi(y) = sum over tokens that are not padding of log softmax(z)[token]

    loss = mean over pairs of -log sigmoid(beta * (log pi(w) - log pi(l))) + lambda * mean ||a||^2

It is otherwise as quick as plain code is: no key-value cache, base and head in bfloat16, a fused
optimizer. The sums hold the prompt's tokens too, which are the same for both answers and so leave
the difference, but not the work, when nothing is dropped out.

Shape legend: B pairs, L length, K layers, H hidden, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mav.pipeline.base.model import BaseModel
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.preferences.tokenization import TokenizedPairs
from mav.pipeline.training.options import TrainOptions


@dataclass(frozen=True, kw_only=True)
class PaddedAnswers:
    """One answer of each of B pairs behind its prompt, padded at the end to L tokens.

    Attributes:
        input_ids: int64 [B, L].
        attention_mask: int64 [B, L], 0 where there is padding.
        prompt_length: int64 [B].
    """

    input_ids: Tensor
    attention_mask: Tensor
    prompt_length: Tensor

    @property
    def token_mask(self) -> Tensor:
        """Which predictions count, bool [B, L - 1]: those of tokens that are not padding."""
        return self.attention_mask[:, 1:].bool()

    @property
    def response_mask(self) -> Tensor:
        """Which predictions are of the answer's own tokens, bool [B, L - 1]."""
        place = torch.arange(1, self.input_ids.shape[1], device=self.input_ids.device)
        return self.token_mask & (place >= self.prompt_length[:, None])


def pad_answers(
    pairs: TokenizedPairs,
    which: Sequence[int],
    answer: Literal["chosen", "rejected"],
    *,
    length: int,
    padding: int,
    device: torch.device,
) -> PaddedAnswers:
    """Put answers behind their prompts and pad them.

    Args:
        pairs: All pairs.
        which: Indices of those wanted, B of them.
        answer: Which answer of each.
        length: Tokens to pad to, L, at least as many as the longest has.
        padding: The token to pad with.
        device: Where to put them.
    """
    ids = torch.full((len(which), length), padding)
    mask = torch.zeros_like(ids)
    prompts = []
    for row, pair in enumerate(which):
        prompt, chosen, rejected = pairs.parts(pair)
        tokens = np.concatenate([prompt, chosen if answer == "chosen" else rejected])
        ids[row, : len(tokens)] = torch.from_numpy(tokens)
        mask[row, : len(tokens)] = 1
        prompts.append(len(prompt))
    return PaddedAnswers(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        prompt_length=torch.tensor(prompts, device=device),
    )


class InLoopTrainer:
    """A head, its optimizer, and the base that every step runs.

    Attributes:
        head: The head.
    """

    def __init__(
        self,
        options: TrainOptions,
        base: BaseModel,
        layers: tuple[int, ...],
        head: AlignmentHead,
    ) -> None:
        """Prepare to train.

        Args:
            options: The objective's and the optimizer's settings, and whether to use bfloat16.
            base: The frozen base, on the device to compute on.
            layers: Indices of the states the head reads.
            head: The head, on the same device.
        """
        self.head = head
        self._options = options
        self._base = base
        self._layers = layers
        self._optimizer = torch.optim.AdamW(
            head.parameters(),
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
            fused=True,
        )

    def token_logprobs(self, answers: PaddedAnswers) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of the tokens that follow, and squared norms of the vectors.

        Returns:
            float32 [B, L - 1], of the second token and those after it, and float32 [B, L].
        """
        states_BLKH, base_logits_BLV = self._run_base(answers)
        with torch.autocast(
            base_logits_BLV.device.type, torch.bfloat16, enabled=self._options.bf16 is True
        ):
            vectors_BLV = self.head(states_BLKH)
        logp_BLV = F.log_softmax(base_logits_BLV + vectors_BLV, dim=-1, dtype=torch.float32)
        following_BL1 = answers.input_ids.roll(-1, dims=1)[..., None]
        logp_BL = logp_BLV.gather(-1, following_BL1)[..., 0]
        return logp_BL[:, :-1], vectors_BLV.square().sum(-1, dtype=torch.float32)

    @torch.no_grad()
    def _run_base(self, answers: PaddedAnswers) -> tuple[Tensor, Tensor]:
        output = self._base.model(
            input_ids=answers.input_ids,
            attention_mask=answers.attention_mask,
            output_hidden_states=True,
            use_cache=False,
        )
        states = [output.hidden_states[layer] for layer in self._layers]
        return torch.stack(states, dim=2), output.logits

    def loss(self, chosen: PaddedAnswers, rejected: PaddedAnswers) -> Tensor:
        """Return the mean loss of a batch of pairs."""
        sums, norms = [], []
        for answers in (chosen, rejected):
            logp, squared_norm = self.token_logprobs(answers)
            sums.append((logp * answers.token_mask).sum(-1))
            norms.append(squared_norm.mean())
        objective = self._options.as_objective()
        losses = -F.logsigmoid(objective.beta * (sums[0] - sums[1]))
        return losses.mean() + objective.lambda_l2 * (norms[0] + norms[1]) / 2

    def step(self, chosen: PaddedAnswers, rejected: PaddedAnswers) -> float:
        """Take one optimizer step; return the loss."""
        self.head.train()
        loss = self.loss(chosen, rejected)
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())
