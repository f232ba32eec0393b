"""Options are stated once: flags, defaults, choices and bounds follow from dataclass fields."""

import dataclasses
from typing import Any

import click
import pytest

from mav.cache_schema.errors import UsageError
from mav.cli_commands.extract import extract_command
from mav.cli_commands.generate import generate_command
from mav.cli_commands.harness import harness_command
from mav.cli_commands.serve import serve_command
from mav.cli_commands.train import train_command
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.harness.options import HarnessOptions
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.runtime.options import Option, option_of
from mav.pipeline.serving.options import ServeOptions
from mav.pipeline.training.options import TrainOptions

KINDS: dict[type, tuple[click.Command, dict[str, Any]]] = {
    TrainOptions: (train_command, {"cache": "c", "output_dir": "o"}),
    ExtractOptions: (
        extract_command,
        {"base_model": "b", "data": DataSource(id="d"), "output": "o"},
    ),
    GenerationOptions: (generate_command, {}),
    ServeOptions: (serve_command, {"head": "h"}),
    HarnessOptions: (harness_command, {"head": "h", "tasks": ("t",), "loading": {}}),
}
EVERY = [
    pytest.param(kind, field, rule, id=f"{kind.__name__}.{field.name}")
    for kind in KINDS
    for field in dataclasses.fields(kind)
    if (rule := option_of(field)) is not None
]


@pytest.mark.parametrize(("kind", "field", "rule"), EVERY)
def test_a_field_is_an_option_of_its_command(kind: type, field: Any, rule: Option) -> None:
    command, _ = KINDS[kind]
    (param,) = (param for param in command.params if param.name == field.name)
    assert isinstance(param, click.Option)
    assert param.opts == [f"--{field.name.replace('_', '-')}"]
    assert (param.help or "").startswith(rule.help)
    if field.default is dataclasses.MISSING:
        assert param.required
    elif isinstance(field.default, bool):
        assert param.is_flag
    elif field.default not in (None, ()):
        assert param.default == field.default
    if rule.choices:
        assert isinstance(param.type, click.Choice)
        assert tuple(param.type.choices) == rule.choices


def beyond(rule: Option) -> list[Any]:
    """Values that a rule refuses."""
    step = 1 if rule.whole else 0.5
    bounds = ((rule.at_least, -step), (rule.above, 0), (rule.at_most, step), (rule.below, 0))
    kind = int if rule.whole else float
    values: list[Any] = [kind(bound + by) for bound, by in bounds if bound is not None]
    return [*values, *(["nonsense"] if rule.choices or rule.whole or rule.number else [])]


@pytest.mark.parametrize(("kind", "field", "rule"), EVERY)
def test_what_is_beyond_its_bounds_is_refused_by_name(kind: type, field: Any, rule: Option) -> None:
    _, required = KINDS[kind]
    for value in beyond(rule):
        with pytest.raises(UsageError, match=rf"^{field.name}: got .*, expected "):
            kind(**{**required, field.name: value})
