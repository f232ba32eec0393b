"""A tiny base with a random head in it, and what a plain reading of `generate()` says of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.steering.strengths import Alpha, as_strength
from mav.pipeline.runtime.choices import HeadKind
from tests.support.models.tiny import HIDDEN, tiny_base
from tests.support.steering.heads import size_option

LAYER_INDICES = (1, 2, 4)
"""What `auto` takes of a tiny base."""


def steered(base: BaseModel | None = None, kind: HeadKind = "mlp") -> MAVInference:
    """A base under a head that says something else at every position."""
    made = base or tiny_base()
    torch.manual_seed(1)
    mav = MAVInference.with_new_head(made, pooled_size=HIDDEN, **size_option(kind, 24))
    torch.nn.init.normal_(mav.head.project.weight, std=0.2)
    return mav


def varied_base(architecture: str) -> BaseModel:
    """A base whose answers are no repetition of one token, as random tied embeddings give them."""
    return tiny_base(architecture, tie_word_embeddings=False)


@torch.no_grad()
def whole_text_logits(
    mav: MAVInference, untouched: BaseModel, text: Tensor, alpha: Tensor
) -> Tensor:
    """The aligned logits of a whole text [1, S], from a plain pass of a base without hooks.

    They are z_base + alpha * a; of a head that acts on the state U(h + alpha * f), where U is the
    base's output embedding with all that follows it.

    Args:
        mav: Whose head to use.
        untouched: The base, loaded once more.
        text: Token ids.
        alpha: Strength, one number or one per position, [S].
    """
    output = untouched.model(text, output_hidden_states=True, use_cache=False)
    states = torch.stack([output.hidden_states[layer] for layer in LAYER_INDICES], dim=-2)
    added = alpha.reshape(-1, 1) * mav.head(states)[0]
    if mav.head.config.acts_on_state:
        return untouched.unembedding()(output.hidden_states[-1][0] + added)
    logits: Tensor = output.logits[0] + added
    return logits


def whole_text_choices(
    mav: MAVInference, untouched: BaseModel, prompt: list[int], new: list[int], alpha: Alpha
) -> list[int]:
    """The most probable token after the prompt and after each new token but the last."""
    text = torch.tensor([prompt + new[:-1]])
    schedule = as_strength(alpha)
    strengths = [0.0] * (len(prompt) - 1) + [schedule.at(token) for token in range(len(new))]
    logits = whole_text_logits(mav, untouched, text, torch.tensor(strengths))
    choices: list[int] = logits[len(prompt) - 1 :].argmax(-1).tolist()
    return choices


def products_with_the_vocabulary(mav: MAVInference, run: Callable[[], object]) -> list[int]:
    """Rows of each product with the vocabulary."""
    rows: list[int] = []
    embedding = mav.base.model.get_output_embeddings()
    handle = embedding.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    run()
    handle.remove()
    return rows


def plain_generate(untouched: BaseModel, prompt: list[int], **settings: Any) -> tuple[int, ...]:
    """The new tokens of a base's own `generate()`."""
    ids = torch.tensor([prompt])
    # Stays out of the settings' way: what is not named here is transformers' default.
    given = {"do_sample": False, "eos_token_id": 0, "pad_token_id": 0, **settings}
    found = untouched.model.generate(ids, attention_mask=torch.ones_like(ids), **given)
    tokens: list[int] = found[0, len(prompt) :].tolist()
    return tuple(tokens)
