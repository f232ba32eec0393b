"""Prompts of the experiment: the beginnings of reviews, opinions and diary lines, in plain words.

They are made of openings and topics, so that there are hundreds; training, tuning and held-out
prompts share openings but no topic. Nothing in them is praise or blame: what a text comes to say is
the model's own choice.
"""

from collections.abc import Sequence
from typing import Final, Literal

from mav.cache_schema.errors import UsageError

Part = Literal["training", "tuning", "held-out"]

_KINDS: Final[tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]] = (
    (
        "review",
        (
            "We ordered {} on Tuesday, and",
            "I have had {} for about a month now, and",
            "My neighbour lent me {} for the weekend. After two days,",
            "{} arrived in a brown box this morning. When I opened it,",
            "I was looking for something for the kitchen table and took {}. So far",
            "Before you decide about {}, you should know that",
            "The second time I used {},",
            "I compared {} with the one I had before, and",
            "At the counter they handed me {}. At home",
            "My sister asked what I think of {}. I told her that",
            "Three of us tried {} on the same evening, and",
            "It took me an hour to set up {}, and then",
        ),
        (
            "a desk lamp",
            "a kettle",
            "a folding chair",
            "a radio",
            "a pair of walking shoes",
            "a bread knife",
            "a wall clock",
            "a raincoat",
            "a suitcase",
            "a box of pencils",
            "a keyboard",
            "a cookbook",
            "a bicycle pump",
            "a door mat",
            "a coffee grinder",
            "a small tent",
            "a set of bowls",
            "a map of the county",
            "a thermometer",
            "a wool blanket",
            "a hand mirror",
            "a garden hose",
            "a tin of paint",
            "a backpack",
        ),
    ),
    (
        "opinion",
        (
            "People in our street talk about {} a good deal. In my view,",
            "When someone mentions {}, I usually say that",
            "For the last few years {} has been a topic at work. I think",
            "My uncle and I see {} differently. He says",
            "The town council will vote on {} in spring. To me",
            "If you had asked me about {} ten years ago,",
            "What most people overlook about {} is that",
            "I read an article about {} on the train. It said that",
            "There are two sides to {}. On the one hand,",
            "After the meeting on {}, I went home and thought that",
            "The way I see {} today,",
            "A student wrote to the paper about {}. She said",
        ),
        (
            "the new bus timetable",
            "working from home",
            "school uniforms",
            "the second bridge",
            "self-checkout tills",
            "the market on Saturdays",
            "electric scooters",
            "shops that open on Sundays",
            "the car park by the station",
            "four-day weeks",
            "the plan for the old mill",
            "phones in classrooms",
            "the one-way streets",
            "library hours",
            "the wind turbines on the hill",
            "paper tickets",
            "the outdoor pool",
            "street lights at night",
            "open-plan offices",
            "the cycle lane",
            "tourists in August",
            "television in waiting rooms",
            "the tram extension",
            "lunch breaks of an hour",
        ),
    ),
    (
        "diary entry",
        (
            "Monday. In the morning there was {}. Later",
            "Today I thought about {} again. It seems",
            "We talked about {} over supper, and",
            "On the way home I passed by and saw {}.",
            "It rained until noon. Because of {},",
            "Anna phoned about {}. She said",
            "This was the week of {}. Looking back,",
            "I wrote a long letter about {} tonight. In it",
            "Nothing much happened before ten. Then, with {},",
            "Father remembered {} as well. He",
            "Tomorrow there will be {}. I expect",
            "I could not sleep and thought of {}.",
        ),
        (
            "the move to the third floor",
            "the dentist's appointment",
            "the train to the coast",
            "the choir rehearsal",
            "the letter from the bank",
            "the new colleague",
            "the walk along the canal",
            "the parents' evening",
            "the repair of the roof",
            "the cat from next door",
            "the exam in chemistry",
            "the visit to the museum",
            "the game on the school field",
            "the long queue at the post office",
            "the plumber",
            "the first day at the office",
            "the photograph on the shelf",
            "the drive to the airport",
            "the meeting with the landlord",
            "the piano lesson",
            "the shopping list",
            "the power cut",
            "the ferry at six",
            "the haircut",
        ),
    ),
)
_ASKED: Final = "Continue this {kind} with one sentence: {opening}"
_TOPICS: Final[dict[Part, slice]] = {
    "training": slice(0, 15),
    "tuning": slice(15, 18),
    "held-out": slice(18, 24),
}


def prompts_of(part: Part, count: int | None = None) -> Sequence[str]:
    """Return prompts of a part, always in the same order; kinds and openings take turns.

    Args:
        part: Which: 540 for training, 108 for tuning, 216 held out.
        count: The first so many of them; all if None.

    Raises:
        UsageError: There are not so many.
    """
    columns = [
        [
            _ASKED.format(kind=kind, opening=_capital(opening.format(topic)))
            for topic in topics[_TOPICS[part]]
            for opening in openings
        ]
        for kind, openings, topics in _KINDS
    ]
    # A stride that shares no factor with the number takes topics and openings in turn.
    total = len(columns[0])
    ordered = [column[(number * 17) % total] for number in range(total) for column in columns]
    if count is not None and not 0 < count <= len(ordered):
        raise UsageError(f"{part} prompts: got {count}, expected 1 to {len(ordered)}")
    return ordered[:count]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
