"""How a prompt becomes text: HH-RLHF's transcript, or the base's own chat template."""

import copy
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from mav.cache_schema.errors import BaseModelError, DataError, UsageError
from mav.pipeline.preferences.prompt_format import PromptFormat, choose_prompt_format
from mav.pipeline.preferences.transcripts import CHAT_TEMPLATE, HUMAN, TEMPLATE
from tests.support.models.tiny import tiny_tokenizer

JINJA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('system only at first') }}{% endif %}"
    "[{{ message.role }}]{{ message.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
SYSTEM = {"role": "system", "content": "Be kind."}
HELLO = {"role": "user", "content": "Hello"}
HI = {"role": "assistant", "content": "Hi!"}


@pytest.fixture
def chatty() -> Any:
    """A tokenizer with a chat template; a copy, as the tiny one is shared."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = JINJA
    return tokenizer


@pytest.fixture
def hh() -> PromptFormat:
    return choose_prompt_format("hh", TEMPLATE, tiny_tokenizer())


@pytest.fixture
def chat(chatty: Any) -> PromptFormat:
    return choose_prompt_format("chat", TEMPLATE, chatty)


@pytest.mark.parametrize(
    ("asked", "template", "got"),
    [
        ("auto", TEMPLATE, "hh"),
        ("auto", CHAT_TEMPLATE, "chat"),
        ("hh", CHAT_TEMPLATE, "hh"),
        ("chat", TEMPLATE, "chat"),
    ],
)
def test_what_is_asked_else_what_the_head_was_trained_in(
    chatty: Any, asked: Any, template: str, got: str
) -> None:
    assert choose_prompt_format(asked, template, chatty).name == got


@pytest.mark.parametrize(("asked", "template"), [("chat", TEMPLATE), ("auto", CHAT_TEMPLATE)])
def test_a_base_without_a_chat_template_is_refused(asked: Any, template: str) -> None:
    with pytest.raises(UsageError, match=r"prompt_form: got 'chat', but the base has no chat"):
        choose_prompt_format(asked, template, tiny_tokenizer())


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("Hello", "\n\nHuman: Hello\n\nAssistant:"),
        ("  Hello \n", "\n\nHuman: Hello\n\nAssistant:"),
        ("\n\nHuman: Hello\n\nAssistant:", "\n\nHuman: Hello\n\nAssistant:"),
        ("\n\nHuman: Hello\n\nAssistant: ", "\n\nHuman: Hello\n\nAssistant:"),
        ("Human: Hello", "\n\nHuman: Hello\n\nAssistant:"),
        ([HELLO], "\n\nHuman: Hello\n\nAssistant:"),
        ((HELLO, HI, HELLO), "\n\nHuman: Hello\n\nAssistant: Hi!\n\nHuman: Hello\n\nAssistant:"),
    ],
)
def test_as_a_transcript(hh: PromptFormat, prompt: Any, text: str) -> None:
    assert hh.render(prompt) == text


def test_a_system_message_is_in_the_transcript(hh: PromptFormat) -> None:
    assert hh.render([SYSTEM, HELLO]).split() == (
        ["System:", "Be", "kind.", "Human:", "Hello", "Assistant:"]
    )


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("Hello", "<bos>[user]Hello<eos>\n[assistant]"),
        ([SYSTEM, HELLO], "<bos>[system]Be kind.<eos>\n[user]Hello<eos>\n[assistant]"),
        (
            [HELLO, HI, HELLO],
            "<bos>[user]Hello<eos>\n[assistant]Hi!<eos>\n[user]Hello<eos>\n[assistant]",
        ),
    ],
)
def test_as_the_base_chats(chat: PromptFormat, prompt: Any, text: str) -> None:
    assert chat.render(prompt) == text


@pytest.mark.parametrize("name", ["hh", "chat"])
@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages: got none"),
        ([HELLO, {"role": "tool", "content": ""}], r"messages\[1\]: got role 'tool'"),
        ([{"content": "Hello"}], r"messages\[0\]: got role None"),
        ([{"role": "user"}], r"messages\[0\]: got None as its content"),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            r"messages\[0\]: got \{.* expected a text",
        ),
        ([HELLO, "Hello"], r"messages\[1\]: got 'Hello', expected an object"),
        ([HELLO, HI], "the last is the assistant's, expected the user's"),
        ([SYSTEM], "the last is the system's"),
    ],
)
def test_messages_that_are_none(
    request: pytest.FixtureRequest, name: str, messages: Any, message: str
) -> None:
    form: PromptFormat = request.getfixturevalue(name)
    with pytest.raises(DataError, match=message):
        form.render(messages)


@pytest.mark.parametrize("name", ["hh", "chat"])
@pytest.mark.parametrize("prompt", [HELLO, None, 3, {}], ids=str)
def test_what_is_neither_text_nor_messages(
    request: pytest.FixtureRequest, name: str, prompt: Any
) -> None:
    form: PromptFormat = request.getfixturevalue(name)
    with pytest.raises(UsageError, match=r"prompt: got .* expected a text, or a list of messages"):
        form.render(prompt)


def test_messages_that_the_template_refuses(chat: PromptFormat) -> None:
    with pytest.raises(DataError, match=r"chat template refuses these messages: .*only at first"):
        chat.render([HELLO, SYSTEM, HELLO])


def test_a_template_cannot_run_code(chatty: Any) -> None:
    chatty.chat_template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(BaseModelError, match=r"refuses.*is unsafe"):
        choose_prompt_format("chat", TEMPLATE, chatty)


def test_a_human_turn_ends_an_answer_in_a_transcript_alone(
    hh: PromptFormat, chat: PromptFormat
) -> None:
    assert hh.stops == (HUMAN,)
    assert chat.stops == ()


@pytest.mark.parametrize("closes", [False, True])
def test_special_tokens_come_once(hh: PromptFormat, chat: PromptFormat, closes: bool) -> None:
    """A chat template writes its own; a transcript takes what the tokenizer puts before texts."""
    bos, eos = (hh.tokenizer.convert_tokens_to_ids(token) for token in ("<bos>", "<eos>"))
    for form in (hh, chat):
        tokenizer = putting_around(form.tokenizer, closes=closes)
        own = PromptFormat(name=form.name, tokenizer=tokenizer)
        for prompt in ("Hello", "It ends in <eos>", [HELLO, HI, HELLO]):
            text = own.render(prompt)
            plain = tokenizer(text, add_special_tokens=False)["input_ids"]
            expected = [bos, *plain] if form.name == "hh" else plain
            assert own.tokens(text) == expected
            assert expected.count(bos) == 1
            # What the text itself spells stays, also at its end.
            assert expected.count(eos) == text.count("<eos>")


def putting_around(tokenizer: Any, *, closes: bool) -> Any:
    """A copy of a tokenizer that puts <bos> before texts and, if it closes them, <eos> behind."""
    changed = copy.deepcopy(tokenizer)
    ids = [(name, changed.convert_tokens_to_ids(name)) for name in ("<bos>", "<eos>")]
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>" if closes else "<bos> $A", special_tokens=ids
    )
    return changed
