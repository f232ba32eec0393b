"""Minimal pairs in English: a sentence that is right, and the same one with one thing wrong.

After the idea of BLiMP (Warstadt et al. 2020, "BLiMP: The Benchmark of Linguistic Minimal Pairs"):
a model that knows a phenomenon finds the right one more probable. All words and sentences are our
own, put together from the lists below. A local copy of BLiMP's own files can be read instead.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mav.cache_schema.errors import DataError, UsageError


@dataclass(frozen=True, kw_only=True)
class MinimalPair:
    """Two sentences that differ in one thing.

    Attributes:
        phenomenon: What they differ in.
        good: The right one.
        bad: The wrong one.
    """

    phenomenon: str
    good: str
    bad: str


_PEOPLE: Final = ("teacher", "farmer", "nurse", "sailor", "baker", "neighbour", "singer", "lawyer")
_THINGS: Final = ("lamp", "bottle", "jacket", "letter", "basket", "ladder", "mirror", "ticket")
_PLACES: Final = ("kitchen", "garden", "harbour", "library", "village", "office", "barn", "market")
_ACTS: Final = (
    *(("sleeps", "sleep"), ("laughs", "laugh"), ("works", "work"), ("waits", "wait")),
    *(("sings", "sing"), ("cooks", "cook"), ("reads", "read"), ("swims", "swim")),
)
_NAMES: Final = (
    *(("Emma", "herself"), ("Robert", "himself"), ("Susan", "herself"), ("Peter", "himself")),
    *(("Alice", "herself"), ("Thomas", "himself"), ("Laura", "herself"), ("George", "himself")),
)
_TAUGHT: Final = ("taught", "hurt", "blamed")
_PARTICIPLES: Final = (
    *(("eaten", "ate", "the soup"), ("written", "wrote", "a long letter")),
    *(("broken", "broke", "the plate"), ("stolen", "stole", "a bicycle")),
    *(("drunk", "drank", "the milk"), ("chosen", "chose", "a colour")),
    *(("driven", "drove", "the truck"), ("forgotten", "forgot", "my name")),
    *(("hidden", "hid", "the key"), ("taken", "took", "the last seat")),
)
_TRANSITIVE: Final = (
    *(("opened", "arrived", "the gate"), ("painted", "appeared", "the fence")),
    *(("repaired", "vanished", "the roof"), ("carried", "fell", "the boxes")),
    *(("bought", "slept", "a horse"), ("washed", "coughed", "the dishes")),
    *(("found", "smiled", "the wallet"), ("sold", "sneezed", "an old boat")),
    *(("burned", "existed", "the papers"), ("pushed", "yawned", "the cart")),
)


def our_pairs() -> list[MinimalPair]:
    """Return all our pairs, by phenomenon; none is there twice."""
    return [
        MinimalPair(phenomenon=phenomenon, good=good, bad=bad)
        for phenomenon, pairs in (
            ("subject-verb agreement", _subject_verb()),
            ("agreement across a noun", _across_a_noun()),
            ("determiner-noun agreement", _determiners()),
            ("reflexive: gender", _reflexive_gender()),
            ("reflexive: number", _reflexive_number()),
            ("negative polarity", _polarity()),
            ("irregular participles", _participles()),
            ("argument structure", _arguments()),
            ("filler and gap", _gaps()),
            ("existential there", _existential()),
            ("case of pronouns", _case()),
            ("passive", _passive()),
        )
        for good, bad in pairs
    ]


_Pairs = Iterator[tuple[str, str]]


def _around(words: Sequence[Any], at: int, step: int = 1) -> Any:
    return words[at * step % len(words)]


def _subject_verb() -> _Pairs:
    for at, (one, many) in enumerate(_ACTS):
        person, place = _PEOPLE[at], _around(_PLACES, at, 3)
        yield f"The {person} {one} in the {place}.", f"The {person} {many} in the {place}."
        yield f"Two {person}s {many} near the {place}.", f"Two {person}s {one} near the {place}."
        yield f"Every {person} {one} at night.", f"Every {person} {many} at night."


def _across_a_noun() -> _Pairs:
    for at, thing in enumerate(_THINGS):
        person, place = _around(_PEOPLE, at, 3), _around(_PLACES, at, 5)
        for singular, right, wrong in ((False, "were", "was"), (True, "was", "were")):
            own, other = (thing, f"{person}s") if singular else (f"{thing}s", person)
            begin = f"The {own} of the {other}"
            yield f"{begin} {right} in the {place}.", f"{begin} {wrong} in the {place}."
        begin = f"The {person}s who visited the {place}"
        yield f"{begin} have left.", f"{begin} has left."


def _determiners() -> _Pairs:
    for at, thing in enumerate(_THINGS):
        person = _around(_PEOPLE, at, 5)
        yield f"The {person} sold these {thing}s.", f"The {person} sold this {thing}s."
        yield f"The {person} liked that {thing}.", f"The {person} liked those {thing}."
        yield f"We counted many {thing}s.", f"We counted many {thing}."


def _reflexive_gender() -> _Pairs:
    for name, right in _NAMES:
        wrong = "himself" if right == "herself" else "herself"
        for verb in _TAUGHT:
            yield f"{name} {verb} {right}.", f"{name} {verb} {wrong}."


def _reflexive_number() -> _Pairs:
    for at, person in enumerate(_PEOPLE):
        for verb in _TAUGHT[:2]:
            yield f"The {person}s {verb} themselves.", f"The {person}s {verb} itself."
        place = _around(_PLACES, at)
        yield (
            f"Those {person}s saw themselves in the {place}.",
            f"Those {person}s saw himself in the {place}.",
        )


def _polarity() -> _Pairs:
    for at, place in enumerate(_PLACES):
        person = _around(_PEOPLE, at, 3)
        yield f"Nobody has ever seen the {place}.", f"Somebody has ever seen the {place}."
        yield f"No {person} has ever been there.", f"Some {person} has ever been there."
        yield f"The {person} did not buy any bread.", f"The {person} did buy any bread."


def _participles() -> _Pairs:
    for at, (right, wrong, rest) in enumerate(_PARTICIPLES):
        person = _around(_PEOPLE, at, 3)
        yield f"The {person} has {right} {rest}.", f"The {person} has {wrong} {rest}."
        yield f"They had already {right} {rest}.", f"They had already {wrong} {rest}."


def _arguments() -> _Pairs:
    for at, (right, wrong, rest) in enumerate(_TRANSITIVE):
        person, (name, _) = _around(_PEOPLE, at, 5), _around(_NAMES, at)
        yield f"The {person} {right} {rest}.", f"The {person} {wrong} {rest}."
        yield f"{name} {right} {rest} today.", f"{name} {wrong} {rest} today."


def _gaps() -> _Pairs:
    for at, (verb, _, thing) in enumerate(_TRANSITIVE):
        person = _around(_PEOPLE, at, 3)
        yield f"I know what the {person} {verb}.", f"I know that the {person} {verb}."
        yield (
            f"We heard that the {person} {verb} {thing}.",
            f"We heard what the {person} {verb} {thing}.",
        )


def _existential() -> _Pairs:
    for at, place in enumerate(_PLACES):
        person, thing = _around(_PEOPLE, at, 3), _around(_THINGS, at, 5)
        yield f"There was a {person} in the {place}.", f"There was every {person} in the {place}."
        yield (
            f"There were many {thing}s in the {place}.",
            f"There were all {thing}s in the {place}.",
        )
        yield f"There are few {person}s here.", f"There are most {person}s here."


def _case() -> _Pairs:
    pronouns = (("me", "I"), ("him", "he"), ("her", "she"), ("them", "they"), ("us", "we"))
    for at, (right, wrong) in enumerate(pronouns):
        for step in (1, 3):
            person, thing = _around(_PEOPLE, at + step, 3), _around(_THINGS, at, step)
            yield (
                f"The {person} gave {right} the {thing}.",
                f"The {person} gave {wrong} the {thing}.",
            )
            yield f"The {person} talked about {right}.", f"The {person} talked about {wrong}."


def _passive() -> _Pairs:
    for at, (right, wrong, thing) in enumerate(_TRANSITIVE):
        person = _around(_PEOPLE, at, 3)
        be = "were" if thing.endswith("s") else "was"
        begin = f"{thing[0].upper()}{thing[1:]} {be}"
        yield f"{begin} {right} by the {person}.", f"{begin} {wrong} by the {person}."
        yield f"{begin} {right} yesterday.", f"{begin} {wrong} yesterday."


def read_blimp(folder: Path) -> list[MinimalPair]:
    """Read the pairs of a local copy of BLiMP.

    Args:
        folder: Folder of its files, JSON lines with `sentence_good`, `sentence_bad` and
            `linguistics_term`.

    Raises:
        UsageError: The folder has no such files.
        DataError: A line is not as it should be.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UsageError(f"--blimp: got {folder}, expected a folder with BLiMP's .jsonl files")
    return [pair for file in files for pair in _read(file)]


def _read(file: Path) -> Iterator[MinimalPair]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            good, bad = row["sentence_good"], row["sentence_bad"]
            phenomenon = row.get("linguistics_term", file.stem)
            if not (isinstance(good, str) and isinstance(bad, str) and good and bad):
                raise ValueError("a sentence is no text")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{file}, line {number}: expected JSON with the texts sentence_good and "
                f"sentence_bad ({error})"
            ) from error
        yield MinimalPair(phenomenon=str(phenomenon), good=good, bad=bad)
