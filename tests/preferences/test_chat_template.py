"""Where an answer begins and ends in a chat template, and what the template is told of the date."""

import copy
import dataclasses
import datetime
from pathlib import Path
from typing import Any, Final

import pytest

from mav.cache_schema.errors import BaseModelError, DataError, MAVError, MismatchError, UsageError
from mav.cache_schema.reader import CacheReader
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.preferences.chat_template import ChatTemplate, parse_date, uses_date
from mav.pipeline.preferences.prompt_format import PromptFormat
from mav.pipeline.preferences.transcripts import CHAT_TEMPLATE
from mav.pipeline.verification.against_base import verify_against_base
from mav.pipeline.verification.options import VerifyOptions
from tests.support.models.tiny import make_cache, tiny_base, tiny_tokenizer
from tests.support.steering.heads import write_head

DAY: Final = datetime.date(2024, 2, 29)
HI: Final = [{"role": "user", "content": "Hi"}]
TURNS: Final = (
    "{{ bos_token }}{% for m in messages %}"
    "<start>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<start>model\n{% endif %}"
)
"""Ends turns with a token of its own, as Gemma's does."""
THOUGHT: Final = (
    "{% for m in messages %}<start>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)
"""Gives an answer without a thought an empty one, as Qwen3's does."""


def chatty(template: str) -> Any:
    tokenizer = copy.deepcopy(tiny_tokenizer("<start>", "<end>"))
    tokenizer.chat_template = template
    return tokenizer


def answer_of(template: str, answer: str) -> str:
    tokenizer = chatty(template)
    ids = PromptFormat(name="chat", tokenizer=tokenizer).response_tokens(HI, answer, ended=True)
    text: str = tokenizer.decode(ids)
    return text


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (TURNS, "Hello.<end>"),
        (THOUGHT, "<think>\n\n</think>\n\nHello.<end>"),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", "Hello.<eos>"),
        ("{% for m in messages %}{{ m.content }}\n<end>\n\n{% endfor %}", "Hello.\n<end>"),
        ("{% for m in messages %}{{ m.content }}<end>{{ eos_token }}{% endfor %}", "Hello.<end>"),
    ],
)
def test_an_answer_ends_as_the_template_ends_a_turn(template: str, text: str) -> None:
    assert answer_of(template, " Hello. \n") == text


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "no special token ends a turn"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "no special token ends a turn"),
        (
            "{% for m in messages %}{{ m.content }}<end>{% endfor %}"
            "{% if add_generation_prompt %}<think>\n{% endif %}",
            "does not write an answer after its own generation prompt",
        ),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}<end>"
            "{% endfor %}",
            "does not write an answer's text",
        ),
        ("{{ raise_exception('no') }}", "refuses a question and its answer"),
    ],
)
def test_a_template_without_a_place_for_answers_is_refused(template: str, reason: str) -> None:
    with pytest.raises(BaseModelError, match=rf"chat template of .* cannot be used, as .*{reason}"):
        ChatTemplate(tokenizer=chatty(template)).require_defined()


def test_an_answer_that_changes_what_was_before_is_refused() -> None:
    moves = (
        "{% for m in messages %}{% if 'Odd' in messages[-1].content and loop.first %}!{% endif %}"
        "{{ m.content }}<end>{% endfor %}"
    )
    with pytest.raises(DataError, match="does not put this answer after the prompt"):
        answer_of(moves, "Odd")
    assert answer_of(moves, "Even") == "Even<end>"


def chat_base(template: str) -> BaseModel:
    return dataclasses.replace(tiny_base(), tokenizer=chatty(template))


def test_decoding_ends_where_the_template_ends_a_turn(tmp_path: Path) -> None:
    base = chat_base(TURNS)
    cache = make_cache(tmp_path, base, pairs=8, prompt_form="chat")
    end = base.tokenizer.convert_tokens_to_ids("<end>")
    text = CacheReader(cache).manifest.text
    assert (text.prompt_template, text.end_token_id) == (CHAT_TEMPLATE, end)
    mav = MAVInference(write_head(tmp_path / "head", cache), base)
    decoding = GenerationOptions(max_new_tokens=4)
    first = mav.generate("Hi", 0.0, decoding).tokens[0]
    assert first != end
    # Now the base says <end> where it said that token.
    weight = base.model.get_output_embeddings().weight
    weight[[first, end]] = weight[[end, first]].clone()
    ended = mav.generate("Hi", 0.0, decoding)
    assert (ended.tokens, ended.response, ended.finish) == ((end,), "", "stop")
    assert "".join(mav.stream("Hi", 0.0, decoding)) == ""


# Dates

DATED: Final = (
    "{{ bos_token }}{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}"
    "{% else %}no clock{% endif %}\n" + TURNS.removeprefix("{{ bos_token }}")
)


@pytest.mark.parametrize(
    "written",
    ["%d %b %Y", "%-d.%-m.%y", "100%% %A, %B", "%Y", "no directive", "%%Y", "%j|%U"],
)
@pytest.mark.parametrize("before", ["", "  ", "\n", "\n\n  "])
def test_a_pinned_date_is_what_strftime_says_and_nothing_else_changes(
    written: str, before: str
) -> None:
    template = f"{before}{{% if true %}}[{{{{ strftime_now('{written}') }}}}]{{% endif %}}\n{TURNS}"
    plain = f"{before}{{% if true %}}[{DAY.strftime(written)}]{{% endif %}}\n{TURNS}"
    pinned = ChatTemplate(tokenizer=chatty(template), date=DAY)
    assert pinned.prompt(HI) == ChatTemplate(tokenizer=chatty(plain)).prompt(HI)


def test_a_date_inside_of_a_templates_own_macro() -> None:
    template = "{% macro day() %}{{ strftime_now('%Y') }}{% endmacro %}{{ day() }}" + TURNS
    pinned = ChatTemplate(tokenizer=chatty(template), date=DAY)
    assert pinned.prompt(HI).startswith("2024<bos>")


def test_without_a_date_a_template_is_told_the_present_day() -> None:
    tokenizer = chatty(DATED)
    assert uses_date(tokenizer)
    assert not uses_date(chatty(TURNS))
    days = {f"{datetime.datetime.now():%d %b %Y}"}
    text = ChatTemplate(tokenizer=tokenizer).prompt(HI)
    days.add(f"{datetime.datetime.now():%d %b %Y}")
    assert any(day in text for day in days)


def test_a_cache_keeps_the_date_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = chat_base(DATED)
    cache = make_cache(tmp_path, base, pairs=8, prompt_form="chat", template_date="2024-02-29")
    assert CacheReader(cache).manifest.text.template_date == "2024-02-29"
    # On any later day: going on, verifying and decoding all tell the template that date.
    make_cache(tmp_path, base, pairs=8, prompt_form="chat")
    assert not verify_against_base(VerifyOptions(cache=cache, against_base=3), base=base).differing
    head = write_head(tmp_path / "head", cache)
    assert "29 Feb 2024" in MAVInference(head, base).joined.form.render("Hi")
    other = MAVInference(head, base, template_date="2025-01-02")
    assert "02 Jan 2025" in other.joined.form.render("Hi")
    with pytest.raises(
        MismatchError, match=r"template_date: stored '2024-02-29', asked .*2025-01-02"
    ):
        make_cache(tmp_path, base, pairs=8, prompt_form="chat", template_date="2025-01-02")


def test_a_cache_is_begun_with_today(tmp_path: Path) -> None:
    days = {datetime.date.today().isoformat()}
    cache = make_cache(tmp_path, chat_base(DATED), pairs=8, prompt_form="chat")
    days.add(datetime.date.today().isoformat())
    assert CacheReader(cache).manifest.text.template_date in days


def test_a_template_that_asks_for_no_date_has_none(tmp_path: Path) -> None:
    base = chat_base(TURNS)
    cache = make_cache(tmp_path / "a", base, pairs=8, prompt_form="chat")
    assert CacheReader(cache).manifest.text.template_date is None
    for form in ("chat", "hh"):
        with pytest.raises(UsageError, match="template_date: got 2024-02-29, but the prompts do"):
            make_cache(tmp_path / form, base, prompt_form=form, template_date="2024-02-29")


@pytest.mark.parametrize("text", ["", "29.2.2024", "2023-02-29", "tomorrow"])
def test_what_is_not_a_date(text: str) -> None:
    with pytest.raises(MAVError, match=f"template_date: got '{text}', expected a date such as"):
        parse_date(text)
