"""Preference pairs: every form of a row gives the same pair, every other row its cause."""

import json
from pathlib import Path

import pytest

from mav.cache_schema.errors import DataError
from mav.pipeline.preferences.reader import (
    PreferencePair,
)
from tests.support.caches.preference_rows import (
    FORMS,
    PAIR,
    PROMPT,
    Row,
    assistant,
    read,
    transcripts,
    user,
    write_jsonl,
)

PAIR_ID, PROMPT_ID = 834432427572297180, 2790052315369914781


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS.keys())
def test_every_form_of_a_row_gives_the_same_pair(tmp_path: Path, row: Row) -> None:
    pairs, counts = read(write_jsonl(tmp_path, row))
    assert pairs == [PAIR]
    assert (counts.rows, counts.dropped) == (1, {})


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS.keys())
def test_ids_are_golden_and_independent_of_the_form(tmp_path: Path, row: Row) -> None:
    (pair,), _ = read(write_jsonl(tmp_path, row))
    assert (pair.pair_id, pair.prompt_id) == (PAIR_ID, PROMPT_ID)


def test_ids_tell_pairs_and_prompts_apart() -> None:
    swapped = PreferencePair(prompt=PROMPT, chosen=" Go away.", rejected=" Fine.", source_row=0)
    assert swapped.pair_id != PAIR.pair_id
    assert swapped.prompt_id == PAIR.prompt_id
    asked = PROMPT.replace("Human:", "Human: Please,")
    other = PreferencePair(prompt=asked, chosen=" Fine.", rejected=" x", source_row=0)
    assert other.prompt_id != PAIR.prompt_id


@pytest.mark.parametrize("around", ["{} ", "{}\n", " {}", "  {}\t"])
def test_white_space_of_a_turn_makes_no_other_prompt(tmp_path: Path, around: str) -> None:
    text = around.format("How are you?")
    rows: list[Row] = [
        {"prompt": text, "chosen": "Fine.", "rejected": "Go away."},
        {"prompt": [user(text)], "chosen": [assistant("Fine.")], "rejected": [assistant("No.")]},
        {"prompt": f"\n\nHuman: {text}\n\nAssistant: ", "chosen": "Fine.", "rejected": "No."},
    ]
    pairs, _ = read(write_jsonl(tmp_path, *rows))
    assert {pair.prompt_id for pair in pairs} == {PROMPT_ID}


def test_a_message_that_begins_like_a_systems_turn(tmp_path: Path) -> None:
    text = "System: error 5 on boot. What now?"
    (pair,), _ = read(write_jsonl(tmp_path, {"prompt": text, "chosen": "a", "rejected": "b"}))
    assert pair.prompt == f"\n\nHuman: {text}\n\nAssistant:"


def test_ids_do_not_depend_on_the_place_in_the_data(tmp_path: Path) -> None:
    (_, pair), _ = read(write_jsonl(tmp_path, transcripts(1), FORMS["bare prompt"]))
    assert (pair.pair_id, pair.source_row) == (PAIR_ID, 1)


def test_several_turns_are_the_same_in_every_form(tmp_path: Path) -> None:
    prompt = "\n\nSystem: Be kind.\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C?\n\nAssistant:"
    turns = [{"role": "system", "content": "Be kind."}, user("A?"), assistant("B."), user("C?")]
    rows: list[Row] = [
        {"chosen": f"{prompt} D.", "rejected": f"{prompt} E."},
        {"prompt": prompt, "chosen": " D.", "rejected": " E."},
        {"prompt": turns, "chosen": [assistant("D.")], "rejected": [assistant("E.")]},
        {"chosen": [*turns, assistant("D.")], "rejected": [*turns, assistant("E.")]},
    ]
    pairs, _ = read(write_jsonl(tmp_path, *rows))
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == [
        (prompt, " D.", " E.")
    ] * 4


def test_answers_of_several_turns_keep_their_explicit_prompt(tmp_path: Path) -> None:
    row = {
        "prompt": [user("A?")],
        "chosen": [assistant("B."), user("C?"), assistant("D.")],
        "rejected": [assistant("B."), user("C?"), assistant("E.")],
    }
    (pair,), _ = read(write_jsonl(tmp_path, row))
    assert pair.prompt == "\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C?\n\nAssistant:"


@pytest.mark.parametrize(
    ("text", "earlier", "prompt"),
    [
        (
            "A?",
            [{"role": "system", "content": "Be kind."}, user("A?")],
            "\n\nSystem: Be kind.\n\nHuman: A?",
        ),
        ("A?", [user("A?"), assistant("B."), user("C?")], None),
        ("\nA?", [user("\nA?")], "\n\nHuman: A?"),
        ("  A?", [user("A? \n")], "\n\nHuman: A?"),
    ],
)
def test_whole_conversations_beside_a_text_prompt_do_not_double_it(
    tmp_path: Path, text: str, earlier: list[dict[str, str]], prompt: str | None
) -> None:
    row = {
        "prompt": text,
        "chosen": [*earlier, assistant("D.")],
        "rejected": [*earlier, assistant("E.")],
    }
    (pair,), _ = read(write_jsonl(tmp_path, row))
    assert pair.prompt.count("A?") == 1
    assert prompt is None or pair.prompt == f"{prompt}\n\nAssistant:"


def test_a_response_keeps_its_own_white_space(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "chosen": "\nOne\n\n", "rejected": "  Two "}
    (pair,), _ = read(write_jsonl(tmp_path, row))
    assert (pair.chosen, pair.rejected) == ("\nOne\n\n", "  Two ")


def test_braces_in_a_prompt_are_no_template(tmp_path: Path) -> None:
    row = {"prompt": "Why {prompt} and {0}?", "chosen": "a", "rejected": "b"}
    (pair,), _ = read(write_jsonl(tmp_path, row))
    assert pair.prompt == "\n\nHuman: Why {prompt} and {0}?\n\nAssistant:"


def test_a_transcript_is_cut_at_its_last_assistant_turn(tmp_path: Path) -> None:
    row = {
        "chosen": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: D",
        "rejected": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: E\n\nHuman: F",
    }
    (pair,), _ = read(write_jsonl(tmp_path, row))
    assert pair.prompt.endswith("Human: C\n\nAssistant:")
    assert pair.rejected == " E\n\nHuman: F"


def test_text_outside_ascii_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = "Grüße 世界 \u2028 \x85 🌍"
    row = {"prompt": text, "chosen": text, "rejected": "x"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (pair,), _ = read(path)
    assert pair.prompt == f"\n\nHuman: {text}\n\nAssistant:"
    assert pair.chosen == f" {text}"


# Rows that are dropped

DROPPED: dict[str, list[Row]] = {
    "no_assistant_turn": [
        {"chosen": "no turns at all", "rejected": PROMPT + " Fine."},
        {"chosen": PROMPT + " Fine.", "rejected": "\n\nHuman: nobody answers"},
        {"chosen": [user("Hi")], "rejected": [user("Hi"), assistant("Hello")]},
        {"chosen": [user("Hi"), assistant("Hello")], "rejected": []},
    ],
    "prompts_differ": [
        {"chosen": PROMPT + " Fine.", "rejected": "\n\nHuman: What?\n\nAssistant: Go away."},
        {"chosen": [user("A"), assistant("C")], "rejected": [user("B"), assistant("D")]},
    ],
    "empty_response": [
        {"chosen": PROMPT, "rejected": PROMPT + " Go away."},
        {"prompt": "Hi", "chosen": "Hello", "rejected": " \n"},
        {"chosen": [user("A"), assistant("")], "rejected": [user("A"), assistant("B")]},
    ],
    # JSON can write half a surrogate pair, as texts cut inside an emoji have it.
    "invalid_unicode": [
        {"chosen": PROMPT + " Fine \ud83d", "rejected": PROMPT + " Go away."},
        {"prompt": "\udc00", "chosen": "Fine.", "rejected": "Go away."},
    ],
    "identical_responses": [
        {"chosen": PROMPT + " Same.", "rejected": PROMPT + " Same."},
        {"prompt": "Hi", "chosen": "Same.", "rejected": " Same."},
    ],
}


@pytest.mark.parametrize(
    ("cause", "row"), [(cause, row) for cause, rows in DROPPED.items() for row in rows]
)
def test_unusable_rows_are_dropped_by_cause(tmp_path: Path, cause: str, row: Row) -> None:
    pairs, counts = read(write_jsonl(tmp_path, row))
    assert pairs == []
    assert (counts.rows, counts.dropped) == (1, {cause: 1})


def test_every_row_is_kept_or_counted(tmp_path: Path) -> None:
    bad = [row for rows in DROPPED.values() for row in rows]
    pairs, counts = read(write_jsonl(tmp_path, transcripts(0), *bad, transcripts(1)))
    assert counts.dropped == {cause: len(rows) for cause, rows in DROPPED.items()}
    assert counts.rows == len(pairs) + counts.dropped.total()
    assert [pair.source_row for pair in pairs] == [0, len(bad) + 1]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answer": "a"},
        {"chosen": PROMPT + " Fine."},
        {"rejected": PROMPT + " Fine."},
        {"prompt": "p", "chosen": 1, "rejected": 2},
        {"chosen": [{"role": "assistant"}], "rejected": [assistant("b")], "prompt": "p"},
        {"chosen": ["a"], "rejected": ["b"], "prompt": "p"},
        {"chosen": [user("a"), {"role": "assistant", "content": None}], "rejected": "b"},
        {"chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"prompt": 7, "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": {}, "rejected": "b"},
        {"prompt": "p", "chosen": 0, "rejected": "b"},
        {"prompt": "p", "chosen": "a", "rejected": False},
        {"prompt": "p", "chosen": {"text": "a"}, "rejected": {"text": "b"}},
    ],
)
def test_wrong_rows_say_what_was_got_and_expected(tmp_path: Path, row: Row) -> None:
    path = write_jsonl(tmp_path, transcripts(0), row)
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: not a preference pair. Got {sorted(row)}; ")
    assert "'chosen' and 'rejected', with or without 'prompt'" in message


@pytest.mark.parametrize("row", [["chosen", "rejected"], "text", 3, None])
def test_rows_that_are_no_objects_are_refused(tmp_path: Path, row: object) -> None:
    with pytest.raises(DataError, match=f"line 1: not a preference pair. Got {type(row).__name__}"):
        read(write_jsonl(tmp_path, row))


def test_an_unknown_role_is_named(tmp_path: Path) -> None:
    turns = [{"role": "critic", "content": "42"}, assistant("a")]
    with pytest.raises(DataError, match=r"line 1: not a preference pair\..*got role 'critic'"):
        read(write_jsonl(tmp_path, {"chosen": turns, "rejected": turns}))
