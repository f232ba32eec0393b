"""What a base's generation_config holds: set aside, unless it is asked for."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner

from mav import cli
from mav.cache_schema.errors import BaseModelError
from mav.pipeline.base.loading import load_base
from mav.pipeline.decoding.base_settings import not_carried_out
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from tests.support.models.tiny import make_cache, save_base, tiny_base
from tests.support.running.server import chat_body, http, running
from tests.support.steering.heads import write_head
from tests.support.steering.steered import plain_generate

MOST: Final = 8
SETTINGS: Final[dict[str, Any]] = {
    "assistant_early_exit": 2,
    "bad_words_ids": [[5], [6, 7]],
    "begin_suppress_tokens": [],
    "cache_implementation": "static",
    "exponential_decay_length_penalty": [1, 9.0],
    "force_words_ids": [[5]],
    "forced_bos_token_id": 3,
    "forced_eos_token_id": 0,
    "guidance_scale": 3.0,
    "max_length": 3,
    "max_new_tokens": 2,
    "max_time": 1e-9,
    "min_new_tokens": 30,
    "min_p": 0.95,
    "no_repeat_ngram_size": 1,
    "num_beams": 3,
    "num_return_sequences": 2,
    "output_scores": True,
    "penalty_alpha": 0.6,
    "prompt_lookup_num_tokens": 3,
    "remove_invalid_values": True,
    "renormalize_logits": True,
    "repetition_penalty": 1e6,
    "return_dict_in_generate": True,
    "sequence_bias": [[[5], 50.0]],
    "stop_strings": ["a", "e", "i", "o", " "],
    "suppress_tokens": [],
    "temperature": 0.01,
    "token_healing": True,
    "top_h": 0.1,
    "top_k": 1,
    "top_p": 0.01,
    "typical_p": 0.01,
    "use_cache": False,
    "use_mtp": True,
    "watermarking_config": {"bias": 50.0, "greenlist_ratio": 0.5},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generation")


@pytest.fixture(scope="module")
def head(folder: Path) -> str:
    return write_head(folder / "head", make_cache(folder, tiny_base(), pairs=8))


def with_config(folder: Path, content: dict[str, Any] | str) -> str:
    base = save_base(tiny_base(), folder)
    path = base / "generation_config.json"
    named = json.loads(path.read_text(encoding="utf-8"))
    text = content if isinstance(content, str) else json.dumps({**named, **content})
    path.write_text(text, encoding="utf-8")
    return str(base)


def answers(mav: MAVInference) -> list[tuple[int, ...]]:
    sampled = GenerationOptions(max_new_tokens=MOST, temperature=1.0, seed=3)
    return [
        mav.generate("Hi", 3.0, it).tokens
        for it in (GenerationOptions(max_new_tokens=MOST), sampled)
    ]


@pytest.fixture(scope="module")
def plain_answers(head: str) -> list[tuple[int, ...]]:
    return answers(MAVInference(head, tiny_base()))


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_acts_unasked(
    name: str, head: str, plain_answers: list[tuple[int, ...]], tmp_path: Path
) -> None:
    value = SETTINGS[name]
    if name.endswith("suppress_tokens"):
        value = [tokens[0] for tokens in plain_answers]
    base = with_config(tmp_path, {name: value})
    mav = MAVInference(head, base, dtype=tiny_base().dtype, device="cpu")
    assert answers(mav) == plain_answers
    assert "".join(mav.stream_response("Hi", 3.0, max_new_tokens=MOST)).rstrip() == (
        mav.generate("Hi", 3.0, GenerationOptions(max_new_tokens=MOST)).response
    )


def test_all_at_once_and_what_ends_answers(
    head: str, plain_answers: list[tuple[int, ...]], tmp_path: Path
) -> None:
    end = plain_answers[0][2]
    assert end not in plain_answers[0][:2]
    own = {**SETTINGS, "eos_token_id": [0, end, -1], "do_sample": True}
    del own["watermarking_config"]
    mav = MAVInference(head, with_config(tmp_path, own), dtype=tiny_base().dtype, device="cpu")
    answer = mav.generate("Hi", 3.0, GenerationOptions(max_new_tokens=MOST))
    assert (answer.tokens, answer.finish) == (plain_answers[0][:3], "stop")
    config = mav.base.model.generation_config
    assert config is mav.base.generation_config
    assert config.top_k == 1, "the model's own is not as it was"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"max_new_tokens": 0}',
        '{"max_new_tokens": "many"}',
        '{"cache_implementation": "none of them", "eos_token_id": [0, 299]}',
        '{"early_stopping": 7}',
        '{"watermarking_config": {"greenlist_ratio": 7}}',
        '{"eos_token_id": "0"}',
        '{"pad_token_id": "0"}',
    ],
)
def test_a_file_that_cannot_be_read_is_told_and_changes_nothing(
    content: str,
    head: str,
    plain_answers: list[tuple[int, ...]],
    tmp_path: Path,
    messages: list[str],
) -> None:
    base = with_config(tmp_path, content)
    mav = MAVInference(head, base, dtype=tiny_base().dtype, device="cpu")
    assert answers(mav) == plain_answers
    assert mav.base.end_tokens == ({0, 299} if "[0, 299]" in content else {0})
    told = [line for line in messages if "generation_config.json" in line]
    assert len(told) == ('eos_token_id": "0' not in content)
    assert all("\n" not in line for line in told)


OWN: Final[dict[str, Any]] = {
    "do_sample": True,
    "temperature": 1.5,
    "top_k": 7,
    "top_p": 0.9,
    "min_p": 0.05,
    "repetition_penalty": 1.3,
    "max_new_tokens": 6,
    "stop_strings": ["~"],
}
AS_DECODING: Final = GenerationOptions(
    temperature=1.5,
    top_k=7,
    top_p=0.9,
    min_p=0.05,
    repetition_penalty=1.3,
    max_new_tokens=6,
    stop=("~",),
)


def asked(head: str, base: str, **options: Any) -> MAVInference:
    return MAVInference(
        head,
        base,
        dtype=tiny_base().dtype,
        device="cpu",
        base_generation_config=True,
        **options,
    )


def test_where_asked_the_base_fills_what_is_left_open(head: str, tmp_path: Path) -> None:
    mav = asked(head, with_config(tmp_path, OWN))
    assert mav.decoding() == AS_DECODING
    assert mav.decoding(top_k=0, temperature=0.0) != AS_DECODING
    assert mav.decoding(top_k=0).top_k == 0
    assert len(mav.generate("Hi", 3.0).tokens) <= 6
    assert mav.decoding(min_p=0.0, stop=()).stop == ()
    whole = GenerationOptions(max_new_tokens=9)
    assert len(mav.generate("Hi", 3.0, whole).tokens) == 9


@pytest.mark.parametrize("own", [{"do_sample": False, "temperature": 0.7}, {"temperature": 0.7}])
def test_without_do_sample_nothing_is_sampled(
    own: dict[str, Any], head: str, tmp_path: Path
) -> None:
    assert asked(head, with_config(tmp_path, own)).decoding() == GenerationOptions()


def test_what_is_not_carried_out_is_named_in_one_line(
    head: str, tmp_path: Path, messages: list[str]
) -> None:
    own = {"no_repeat_ngram_size": 3, "typical_p": 0.5, "num_beams": 1, "max_length": 20, **OWN}
    asked(head, with_config(tmp_path, own))
    (line,) = [line for line in messages if "generation_config" in line]
    assert "max_length, no_repeat_ngram_size, typical_p cannot be carried out" in line


def test_what_changes_no_answer_is_not_named(tmp_path: Path) -> None:
    base = load_base(with_config(tmp_path, {**OWN, "use_cache": True, "forced_eos_token_id": 0}))
    assert not_carried_out(base.generation_config) == ["forced_eos_token_id"]


@pytest.mark.parametrize(
    "wrong", [{"top_p": 2.0}, {"top_k": 1.5}, {"do_sample": "yes"}, {"stop_strings": [3]}]
)
def test_a_setting_out_of_range_is_refused_where_asked_for(
    wrong: dict[str, Any], head: str, tmp_path: Path
) -> None:
    base = with_config(tmp_path, wrong)
    with pytest.raises(BaseModelError, match=r"generation_config.*leave out `base_generation_con"):
        asked(head, base)
    MAVInference(head, base, dtype=tiny_base().dtype, device="cpu").close()


def test_inside_steering_the_models_own_is_in_force(head: str, tmp_path: Path) -> None:
    base = with_config(tmp_path, {"max_new_tokens": 3, "suppress_tokens": [5]})
    mav = MAVInference(head, base, dtype=tiny_base().dtype, device="cpu")
    ids = mav.base.tokenizer("Hi", return_tensors="pt")["input_ids"]
    with mav.steering(1.0) as model:
        assert model.generation_config.suppress_tokens == [5]
        assert model.generate(ids, eos_token_id=None).shape[1] == ids.shape[1] + 3


def command(head: str, base: str, *more: object) -> dict[str, Any]:
    arguments = ["generate", "--head", head, "--base-model", base, "--prompt", "Hi", "--json"]
    arguments += ["--dtype", "float32", "--device", "cpu", *map(str, more)]
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_command_puts_options_over_the_bases_settings(head: str, tmp_path: Path) -> None:
    base = with_config(tmp_path, {**OWN, "do_sample": False, "repetition_penalty": 1e6})
    mav = MAVInference(head, base, dtype=tiny_base().dtype, device="cpu")

    def want(**settings: Any) -> list[int]:
        return list(mav.generate("Hi", 1.0, GenerationOptions(stop=("~",), **settings)).tokens)

    own = command(head, base, "--base-generation-config")["tokens"]
    assert own == want(max_new_tokens=6, repetition_penalty=1e6)
    given = ("--repetition-penalty", 1, "--max-new-tokens", 9)
    assert command(head, base, "--base-generation-config", *given)["tokens"] == (
        want(max_new_tokens=9)
    )
    assert command(head, base, "--max-new-tokens", 9)["tokens"] == want(max_new_tokens=9)


@contextmanager
def served(head: str, base: str, **options: Any) -> Iterator[Any]:
    with running(head=head, bases=(base,), **options) as server, http(server) as web:

        def post(**changes: Any) -> tuple[str, int]:
            body = {**chat_body(), "max_tokens": None, "temperature": None, "alpha": 3, **changes}
            body = {name: value for name, value in body.items() if value is not None}
            answer = web.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            found = answer.json()
            return found["choices"][0]["message"]["content"], found["usage"]["completion_tokens"]

        yield post


def test_the_server_does_as_the_command(head: str, tmp_path: Path) -> None:
    own = {"repetition_penalty": 1e6, "max_new_tokens": 6}
    base = with_config(tmp_path, own)
    mav = asked(head, base)

    def want(messages: Sequence[Any], decoding: GenerationOptions) -> tuple[str, int]:
        answer = mav.generate(messages, 3.0, decoding)
        return answer.response, len(answer.tokens)

    messages = chat_body()["messages"]
    with served(head, base, base_generation_config=True) as post:
        text, tokens = post()
        assert (text.rstrip(), tokens) == want(messages, mav.decoding())
        text, tokens = post(repetition_penalty=1, max_tokens=9)
        assert (text.rstrip(), tokens) == want(messages, GenerationOptions(max_new_tokens=9))
        # The most probable of one token.
        text, tokens = post(temperature=1.5, top_k=1, repetition_penalty=1)
        assert (text.rstrip(), tokens) == want(messages, GenerationOptions(max_new_tokens=6))
    with served(head, base) as post:
        text, tokens = post(temperature=0, max_tokens=8)
        assert (text.rstrip(), tokens) == want(messages, GenerationOptions(max_new_tokens=8))
        text, tokens = post(temperature=0, max_tokens=8, repetition_penalty=1e6)
        assert (text.rstrip(), tokens) == (
            want(messages, GenerationOptions(max_new_tokens=8, repetition_penalty=1e6))
        )


def test_in_chat_another_base_brings_its_own_settings(head: str, tmp_path: Path) -> None:
    from mav.pipeline.decoding.alpha import as_schedule
    from mav.pipeline.decoding.chat import Chat

    mav = asked(head, with_config(tmp_path / "first", OWN))
    other = with_config(tmp_path / "second", {"max_new_tokens": 3, "top_k": 5})
    given: dict[str, Any] = {"top_k": 2}
    chat = Chat(
        mav=mav,
        alpha=as_schedule(1.0),
        decoding=mav.decoding(**given),
        write=lambda _: None,
        given=given,
    )
    assert chat.decoding == mav.decoding(top_k=2)
    list(chat.take("/temperature 0.5"))
    list(chat.take(f"/base {other}"))
    assert chat.decoding == GenerationOptions(max_new_tokens=3, top_k=2, temperature=0.5)


def test_the_plain_generate_of_transformers_would_go_by_it(tmp_path: Path) -> None:
    base = load_base(with_config(tmp_path, {"max_new_tokens": 2}), dtype=tiny_base().dtype)
    assert len(plain_generate(base, [5, 6, 7])) == 2
