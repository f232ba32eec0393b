"""One preference pair in every form a row can have, and how a test reads rows."""

import json
from pathlib import Path
from typing import Any

from mav.pipeline.preferences.reader import (
    PreferencePair,
    ReadCounts,
    read_pairs,
)
from mav.pipeline.preferences.sources import DataSource

Row = dict[str, Any]

PROMPT = "\n\nHuman: How are you?\n\nAssistant:"

PAIR = PreferencePair(prompt=PROMPT, chosen=" Fine.", rejected=" Go away.", source_row=0)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def transcripts(number: int) -> Row:
    """An HH-RLHF row that is good, its prompt told by its number."""
    prompt = f"\n\nHuman: What is {number}?\n\nAssistant:"
    return {"chosen": f"{prompt} A number.", "rejected": f"{prompt} A letter."}


FORMS: dict[str, Row] = {
    "transcripts": {"chosen": PROMPT + " Fine.", "rejected": PROMPT + " Go away."},
    "no prompt is none": {
        "prompt": None,
        "chosen": PROMPT + " Fine.",
        "rejected": PROMPT + " Go away.",
    },
    "prompt in the template": {"prompt": PROMPT, "chosen": " Fine.", "rejected": " Go away."},
    "bare prompt": {"prompt": "How are you?", "chosen": "Fine.", "rejected": "Go away."},
    "white space around the prompt": {
        "prompt": " How are you?\n",
        "chosen": " Fine.",
        "rejected": "Go away.",
    },
    "prompt and whole transcripts": {
        "prompt": "How are you?",
        "chosen": PROMPT + " Fine.",
        "rejected": PROMPT + " Go away.",
    },
    "messages, explicit prompt": {
        "prompt": [user("How are you?")],
        "chosen": [assistant("Fine.")],
        "rejected": [assistant("Go away.")],
    },
    "messages, implicit prompt": {
        "chosen": [user("How are you?"), assistant("Fine.")],
        "rejected": [user("How are you?"), assistant("Go away.")],
    },
    "messages, prompt and whole conversations": {
        "prompt": [user("How are you?")],
        "chosen": [user("How are you?"), assistant("Fine.")],
        "rejected": [user("How are you?"), assistant("Go away.")],
    },
    "text prompt and whole conversations": {
        "prompt": "How are you?",
        "chosen": [user("How are you?"), assistant("Fine.")],
        "rejected": [user("How are you?"), assistant("Go away.")],
    },
    "text prompt and answers as messages": {
        "prompt": "How are you?",
        "chosen": [assistant("Fine.")],
        "rejected": [assistant("Go away.")],
    },
    "messages prompt and answers as texts": {
        "prompt": [user("How are you?")],
        "chosen": "Fine.",
        "rejected": "Go away.",
    },
    "other fields beside": {
        "prompt": "How are you?",
        "chosen": "Fine.",
        "rejected": "Go away.",
        "score": 3.5,
        "messages": None,
    },
}


def read(path: Path | str, **options: Any) -> tuple[list[PreferencePair], ReadCounts]:
    counts = ReadCounts()
    return list(read_pairs(DataSource(id=str(path), **options), counts)), counts


def write_jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
