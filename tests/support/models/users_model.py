"""A model as users hold it: training, partly frozen, with hooks and settings of their own."""

import copy
from typing import Any

from mav.pipeline.base.model import BaseModel
from tests.support.models.tiny import tiny_base


def users_model(**changes: Any) -> tuple[Any, Any]:
    """Return such a model and its tokenizer."""
    made = tiny_base(**changes)
    model = made.model
    model.train()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    model.get_decoder().norm.eval()
    model.config.return_dict = False
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    model.generation_config.update(max_new_tokens=3, do_sample=True, temperature=0.7)
    model.register_forward_hook(_hook)
    return model, made.tokenizer


def plain_base(model: Any, tokenizer: Any) -> BaseModel:
    """Return a base of the program's own with the same weights."""
    own = copy.deepcopy(model)
    own._forward_hooks.clear()
    return BaseModel(model=own, tokenizer=tokenizer)


def state_of(model: Any) -> dict[str, Any]:
    """Return everything of a model that must stay as it was."""
    return {
        "modes": [module.training for module in model.modules()],
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [parameter.grad is None for parameter in model.parameters()],
        "weights": [parameter.data_ptr() for parameter in model.parameters()],
        "sums": [parameter.detach().sum().item() for parameter in model.parameters()],
        "hooks": [
            [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
            for module in model.modules()
        ],
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "generation": model.generation_config.to_dict(),
        "attributes": [sorted(vars(module)) for module in model.modules()],
    }


def _hook(*_: object) -> None:
    """Do nothing, as a user's own hook."""
