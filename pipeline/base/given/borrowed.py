"""Leaves a user's model as it was: what decoding and extraction need of it holds while they run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import nn


def set_as_a_base(model: Any) -> None:
    """Put a model's mode and configuration as a base needs them."""
    model.eval()
    for config in _configs_of(model):
        # Outputs are read by name, and some architectures return what their parts return.
        if config.return_dict is not True:
            config.return_dict = True
        # Some compute attention differently when asked to return the weights.
        if config.output_attentions:
            config.output_attentions = False


@contextmanager
def lent(model: Any) -> Iterator[None]:
    """Put a model as a base needs it while the context is open, and back afterwards.

    Whether its parameters require gradients is not touched: nothing here needs them frozen.

    Args:
        model: The user's model.
    """
    training = [(module, module.training) for module in model.modules()]
    settings = [
        (config, config.return_dict, config.output_attentions) for config in _configs_of(model)
    ]
    try:
        set_as_a_base(model)
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for config, by_name, attentions in settings:
            if config.return_dict is not by_name:
                config.return_dict = by_name
            if config.output_attentions is not attentions:
                config.output_attentions = attentions


@contextmanager
def without_traces(model: Any) -> Iterator[None]:
    """Take off again the hooks and attributes that a library puts on a model in the context.

    transformers leaves both behind where it is asked for all hidden states.

    Args:
        model: The model.
    """
    before = {module: {*vars(module)} for module in model.modules()}
    handles = []
    register = nn.Module.register_forward_hook

    def noted(module: nn.Module, *args: Any, **options: Any) -> Any:
        handles.append(register(module, *args, **options))
        return handles[-1]

    try:
        with patch.object(nn.Module, "register_forward_hook", noted):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module, names in before.items():
            for name in {*vars(module)} - names:
                delattr(module, name)


def _configs_of(model: Any) -> list[Any]:
    """Return the configuration of a model, and that of its text decoder where it is another."""
    whole, text = model.config, model.config.get_text_config()
    return [whole] if text is whole else [whole, text]
