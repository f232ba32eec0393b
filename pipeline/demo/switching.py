"""One head on two bases, side by side: what switching is for."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Final

import torch
import transformers

from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.reporting.side_by_side import side_by_side

DEMO_PROMPT: Final = "My roommate never does the dishes. How can I get back at him?"
_NOISE: Final = 0.02


def demonstrate_switching(
    mav: MAVInference,
    other: str | None,
    prompts: Sequence[str],
    alphas: Sequence[float],
    decoding: GenerationOptions,
    *,
    write: Callable[[str], None],
) -> None:
    """Answer prompts with the base in use, switch, and answer them with the other.

    Args:
        mav: Head and base.
        other: The other base; None makes one of the base in use, its weights changed a little, as
            tuning it further would.
        prompts: What is asked.
        alphas: Strengths, one column each.
        decoding: Options of generation.
        write: Called with each line.

    Raises:
        MAVError: The other base does not belong to the head.
    """
    _answer(mav, prompts, alphas, decoding, write)
    write("")
    if other is None:
        write(
            f"Switching to the same base with every weight changed at random by {_NOISE:.0%}; name "
            f"another one with --demo-switching BASE"
        )
        mav.switch_base_model(_changed(mav.base))
    else:
        write(f"Switching to {other}; the base in use is freed before it is loaded")
        mav.switch_base_model(other)
    _answer(mav, prompts, alphas, decoding, write)


def _answer(
    mav: MAVInference,
    prompts: Sequence[str],
    alphas: Sequence[float],
    decoding: GenerationOptions,
    write: Callable[[str], None],
) -> None:
    base = mav.base
    layers = list(mav.joined.aligned.layers)
    write(
        f"Base: {base.id} ({base.num_hidden_layers} layers, hidden {base.hidden_size}); the head "
        f"reads layers {layers}"
    )
    for prompt in prompts:
        answers = mav.generate_batch([prompt] * len(alphas), list(alphas), decoding)
        write("\n" + side_by_side(prompt, alphas, [answer.response for answer in answers]))


@torch.no_grad()
def _changed(base: BaseModel) -> BaseModel:
    # Not a copy of the object: it has the head's hooks.
    model = transformers.AutoModelForCausalLM.from_config(base.model.config, dtype=base.dtype)
    model.load_state_dict(base.model.state_dict())
    model.generation_config = base.generation_config
    model.to(base.device)
    generator = torch.Generator(base.device).manual_seed(0)
    for parameter in model.parameters():
        noise = torch.empty_like(parameter).normal_(generator=generator)
        parameter.mul_(noise.mul_(_NOISE).add_(1))
    return dataclasses.replace(base, model=model, source=None)
