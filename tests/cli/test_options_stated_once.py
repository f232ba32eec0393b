"""Options are stated once: flags, defaults, choices and bounds follow from dataclass fields."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import click
import pytest

from mav.cache_schema.errors import UsageError
from mav.cli_commands.compare import compare_command
from mav.cli_commands.evaluate import evaluate_command
from mav.cli_commands.extract import extract_command
from mav.cli_commands.generate import generate_command
from mav.cli_commands.harness import harness_command
from mav.cli_commands.serve import serve_command
from mav.cli_commands.train import train_command
from mav.cli_commands.verify import verify_command
from mav.pipeline.base.loading import load_base
from mav.pipeline.comparison.options import CompareOptions, JudgeOptions
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions, InferenceOptions
from mav.pipeline.evaluation.options import EvaluateOptions
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.harness.options import HarnessOptions
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.runtime.load_options import BaseOptions
from mav.pipeline.runtime.options import Option, option_of
from mav.pipeline.serving.options import ServeOptions
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.verification.options import VerifyOptions

KINDS: dict[type, tuple[click.Command, dict[str, Any]]] = {
    TrainOptions: (train_command, {"cache": "c", "output_dir": "o"}),
    ExtractOptions: (
        extract_command,
        {"base_model": "b", "data": DataSource(id="d"), "output": "o"},
    ),
    DataSource: (extract_command, {"id": "d"}),
    EvaluateOptions: (evaluate_command, {"head": "h", "cache": "c"}),
    VerifyOptions: (verify_command, {"cache": "c"}),
    InferenceOptions: (generate_command, {}),
    GenerationOptions: (generate_command, {}),
    ServeOptions: (serve_command, {"head": "h"}),
    CompareOptions: (compare_command, {"prompts": "p", "output": Path("o"), "head": ("h",)}),
    JudgeOptions: (compare_command, {"judge_url": "u", "judge_model": "m"}),
    HarnessOptions: (harness_command, {"head": "h", "tasks": ("t",), "loading": {}}),
}
FLAGS = {"datasets": "--dataset", "bases": "--base-model"}
"""Of options that are given once for each of several."""
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
    if isinstance(param, click.Argument):
        assert field.default is dataclasses.MISSING
        return
    assert isinstance(param, click.Option)
    assert param.opts == [FLAGS.get(field.name, f"--{field.name.replace('_', '-')}")]
    assert (param.help or "").startswith(rule.help)
    if field.default is dataclasses.MISSING:
        # A comparison needs no judge, and a judge needs both.
        assert param.required or kind is JudgeOptions
    elif isinstance(field.default, bool):
        assert param.is_flag
        assert (param.default is True) is field.default
        assert bool(param.secondary_opts) is field.default
    elif rule.numbers:
        assert param.type.convert(param.default, param, None) == field.default
    elif field.default not in (None, ()):
        assert param.default == field.default
    if rule.choices:
        assert isinstance(param.type, click.Choice)
        assert tuple(param.type.choices) == rule.choices


def beyond(field: Any, rule: Option) -> list[Any]:
    """Values that a field refuses."""
    step = 1 if rule.whole else 0.5
    bounds = ((rule.at_least, -step), (rule.above, 0), (rule.at_most, step), (rule.below, 0))
    kind = int if rule.whole else float
    values: list[Any] = [kind(bound + by) for bound, by in bounds if bound is not None]
    if rule.numbers:
        values += [(), (1.0, float("nan")), (1.0, "2"), 1.0]
    checked = rule.choices or rule.whole or rule.number or rule.numbers
    return [*values, *(["nonsense"] if checked or isinstance(field.default, bool) else [])]


@pytest.mark.parametrize(("kind", "field", "rule"), EVERY)
def test_what_is_beyond_its_bounds_is_refused_by_name(kind: type, field: Any, rule: Option) -> None:
    _, required = KINDS[kind]
    for value in beyond(field, rule):
        with pytest.raises(UsageError, match=rf"^{field.name}: got .*, expected "):
            kind(**{**required, field.name: value})


@pytest.mark.parametrize(
    ("function", "kind"), [(MAVInference.__init__, InferenceOptions), (load_base, BaseOptions)]
)
def test_functions_that_take_options_one_by_one_have_the_same_defaults(
    function: Any, kind: type
) -> None:
    options = {field.name: field.default for field in dataclasses.fields(kind)}
    taken = inspect.signature(function).parameters.values()
    assert {
        parameter.name: parameter.default
        for parameter in taken
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    } == options
