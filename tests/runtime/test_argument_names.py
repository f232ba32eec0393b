"""Wrong arguments are told with the right one, whatever library the habit comes from."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import mav
from mav.cache_schema.errors import MAVError, UsageError
from mav.pipeline.decoding.options import GenerationOptions
from tests.support.models.tiny import tiny_base
from tests.support.steering.steered import steered

LIST = ["Hi", "there"]
API: Any = mav


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda m: m.generate("Hi", do_sample=True), "do_sample: .* use `temperature` .0 takes"),
        (lambda m: m.generate_response("Hi", 1.0, max_tokens=3), "use `max_new_tokens`"),
        (lambda m: m.generate_batch(LIST, num_return_sequences=2), "several times to `generate_b"),
        (lambda m: m.decoding(tempreature=1), "use `temperature`"),
        (lambda m: m.decoding(zzz=1), "zzz: not an argument of GenerationOptions; expected one of"),
        (lambda m: m.generate(LIST), "prompt: got a list of 2, expected one; `generate_batch`"),
        (lambda m: m.stream(LIST), "a batch cannot be streamed; `generate_batch` takes several"),
        (lambda m: m.score(LIST, "x"), "`score_batch` takes several"),
        (lambda m: m.generate_batch("Hi"), "prompts: got str, .* `generate` takes a single one"),
        (lambda m: m.generate("Hi", 1.0, {"seed": 1}), "decoding: got dict, expected Generation"),
        (lambda m: API.GenerationOptions(5), "GenerationOptions: got 5 without a name"),
        (
            lambda m: API.MAVInference("h", "b", torch_dtype="float32"),
            "use `dtype`",
        ),
        (
            lambda m: API.MAVInference("h", "b", load_in_8bit=True),
            "use `quantize` .as in quant",
        ),
        (
            lambda m: API.MAVInference("h", "b", trust_remote_code=True),
            "no code of a check",
        ),
        (lambda m: API.MAVInference(), "MAVInference: missing a required argument: 'head'"),
        (
            lambda m: API.create_mav(tiny_base(), hidden=3),
            "hidden: not an argument of create_mav",
        ),
        (
            lambda m: API.create_mav("b", "h", hidden=3),
            "hidden: not an argument of MAVInference",
        ),
        (
            lambda m: API.ExtractOptions(model="m", data="d", output="o"),
            "use `base_model`",
        ),
        (lambda m: API.DataSource(name="x"), "name: not an argument of DataSource"),
        (
            lambda m: API.TrainOptions(cache="c", output_dir="o", lr=1),
            "use `learning_rate`",
        ),
        (
            lambda m: API.AlignmentHead.from_pretrained("x", dtype="half"),
            "dtype: got .half",
        ),
        (lambda m: API.load_base("x", dtype="int8"), "dtype: got 'int8', expected one of auto"),
    ],
)
def test_the_right_one_is_named(wrong: Callable[[Any], object], told: str) -> None:
    with steered() as one, pytest.raises(UsageError, match=told) as caught:
        wrong(one)
    assert isinstance(caught.value, MAVError)


def test_one_conversation_is_one_prompt() -> None:
    with steered() as one:
        answer = one.generate([{"role": "user", "content": "Hi"}], max_new_tokens=2)
        assert len(answer.tokens) <= 2
        given = GenerationOptions(max_new_tokens=2)
        assert one.generate("Hi", 1.0, given, max_new_tokens=3).tokens == (
            one.generate("Hi", 1.0, max_new_tokens=3).tokens
        )


def test_options_are_copied_and_kept_like_others() -> None:
    options = GenerationOptions(max_new_tokens=2, stop=("x",))
    assert pickle.loads(pickle.dumps(options)) == copy.deepcopy(options) == options
    assert dataclasses.replace(options, seed=3).seed == 3


def test_it_says_what_it_is_and_closes_itself() -> None:
    with steered() as one:
        assert one.tokenizer is one.base.tokenizer
        said = repr(one)
        for part in (
            "MAVInference(base='memory:LlamaForCausalLM'",
            "dtype='float32'",
            "prompt_form='hh'",
            "layers=[1, 2, 4]",
            f"head=<mlp of {one.head.config.total_parameters:,} parameters>",
        ):
            assert part in said
        model = one.base.model
        assert model._forward_hooks
    assert not model._forward_hooks
    assert repr(one) == "MAVInference(closed)"


def test_the_package_knows_its_version() -> None:
    from importlib.metadata import version

    assert mav.__version__ == version("mav-align")
    with pytest.raises(AttributeError, match="no attribute '__verzion__'"):
        _ = API.__verzion__
