"""The same conversation is the same tokens, whichever way it comes to the base."""

import copy
import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from mav.pipeline.decoding.attach import AttachedModel
from mav.pipeline.preferences.messages import Messages
from mav.pipeline.preferences.pairs import PreferencePair, to_pair
from mav.pipeline.preferences.prompt_format import (
    PromptFormat,
    text_tokens,
)
from mav.pipeline.preferences.rows import read_responses
from mav.pipeline.preferences.tokenization import tokenize_pairs
from mav.pipeline.runtime.choices import Form
from mav.pipeline.serving.api.requests import CompletionRequest, chat_request, text_request
from mav.pipeline.serving.options import ServeOptions
from mav.pipeline.serving.prompts import prompt_tokens
from tests.support.models.tiny import tiny_base, tiny_tokenizer
from tests.support.profiles import examples
from tests.support.steering.steered import steered

CHATS: Final = {
    "turns": "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    "eos behind every turn": "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
    "thoughts": "{% for m in messages %}<{{ m.role }}>"
    "{% if loop.last and m.role == 'assistant' %}[thought][end]{% endif %}"
    "{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
}
LIMITS: Final = ServeOptions(head="none", alpha=0.0, max_new_tokens=10, max_rows=4)
PIECES: Final = st.sampled_from(
    [
        "Hi", " ", "\n", "\n\n", "<eos>", "<bos>", "Human:", "\n\nHuman: a", "\n\nAssistant:",
        "\n\nSystem: s", "Assistant: b", "How are you?", "é", "🙂", "<assistant>", "\t",
    ]
)  # fmt: skip
TEXTS: Final = (
    st.lists(PIECES, min_size=1, max_size=5).map("".join).filter(lambda text: bool(text.strip()))
)


def tokenizer_that(*, begins: bool, closes: bool, template: str | None) -> Any:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = template
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<bos>", "<eos>")]
    single = f"{'<bos> ' * begins}$A{' <eos>' * closes}"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=ids
    )
    return tokenizer


FORMS: Final[dict[str, PromptFormat]] = {
    f"{name}, begins {begins}, closes {closes}": PromptFormat(
        name="hh" if template is None else "chat",
        tokenizer=tokenizer_that(begins=begins, closes=closes, template=template),
    )
    for name, template in [("hh", None), *CHATS.items()]
    for begins in (False, True)
    for closes in (False, True)
}


@st.composite
def conversations(draw: st.DrawFn) -> Messages:
    turns = draw(st.lists(TEXTS, min_size=1, max_size=5).filter(lambda t: len(t) % 2 == 1))
    messages = [
        {"role": "user" if number % 2 == 0 else "assistant", "content": text}
        for number, text in enumerate(turns)
    ]
    if draw(st.booleans()):
        messages.insert(0, {"role": "system", "content": draw(TEXTS)})
    return messages


def extracted(row: dict[str, Any], form: PromptFormat) -> list[Any] | None:
    """Return prompt and answers as extraction tokenizes them, or None where it leaves them out."""
    pair = to_pair(*read_responses(row, "row"), 0)
    if not isinstance(pair, PreferencePair):
        return None
    tokenized = tokenize_pairs([pair], form.tokenizer, 10_000, form=form.name)
    return [part.tolist() for part in tokenized.parts(0)] if len(tokenized) else None


def served(request: CompletionRequest, form: PromptFormat) -> list[int]:
    """Return the prompt of a request as the server tokenizes it."""
    joined = tiny_joined()
    base = dataclasses.replace(joined.base, tokenizer=form.tokenizer)
    attached = AttachedModel(base=base, aligned=joined.aligned, form=form)
    return prompt_tokens(attached, request.prompts[0])


@cache
def tiny_joined() -> AttachedModel:
    return steered(tiny_base()).joined


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@settings(max_examples=examples(0.4))
@given(messages=conversations(), answers=st.tuples(TEXTS, TEXTS))
def test_messages(form: PromptFormat, messages: Messages, answers: tuple[str, str]) -> None:
    expected = form.tokens(form.render(messages))
    body: dict[str, Any] = {"messages": list(messages)}
    assert served(chat_request(body, LIMITS), form) == expected
    found = None
    for row in rows_of(messages, answers):
        parts = extracted(row, form)
        if parts is None:
            continue
        found = parts
        assert parts[0] == expected
        for answer, tokens in zip(answers, parts[1:], strict=True):
            assert tokens == form.response_tokens(messages, answer, ended=True)
            assert tokens[-1] == form.end_token
    # Two answers that are the same once tokenized are left out in every form of the row.
    one, other = (form.response_tokens(messages, answer, ended=True) for answer in answers)
    assert (found is None) == (one == other)


def rows_of(messages: Messages, answers: Sequence[str]) -> list[dict[str, Any]]:
    """Return a pair in the forms in which data sets have messages."""
    chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in answers)
    whole = [*messages]
    return [
        {"prompt": whole, "chosen": chosen, "rejected": rejected},
        {"chosen": [*whole, *chosen], "rejected": [*whole, *rejected]},
        {"prompt": whole, "chosen": [*whole, *chosen], "rejected": [*whole, *rejected]},
    ]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@settings(max_examples=examples(0.4))
@given(text=TEXTS, answers=st.tuples(TEXTS, TEXTS))
def test_a_users_message(form: PromptFormat, text: str, answers: tuple[str, str]) -> None:
    row = {"prompt": text, "chosen": f"a{answers[0]}", "rejected": f"b{answers[1]}"}
    parts = extracted(row, form)
    if parts is not None:
        assert parts[0] == form.tokens(form.render(text))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@settings(max_examples=examples(0.4))
@given(text=TEXTS)
def test_a_text_to_go_on_with(form: PromptFormat, text: str) -> None:
    """What the completions of the server read is what a transcript is read as."""
    (expected,) = text_tokens(form.tokenizer, [text])
    assert served(text_request({"prompt": text}, LIMITS), form) == expected
    if form.name == "hh":
        assert form.tokens(text) == expected


@pytest.mark.parametrize("name", ["hh", "chat"])
def test_a_message_that_quotes_a_transcript_is_one_message(name: Form) -> None:
    quoted = "Go on like this:\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: How are you?"
    form = next(form for form in FORMS.values() if form.name == name)
    as_text, as_messages = (
        form.render(prompt) for prompt in (quoted, [{"role": "user", "content": quoted}])
    )
    assert as_text == as_messages
    assert quoted in as_text
    assert as_text.count("<user>") == (name == "chat")
