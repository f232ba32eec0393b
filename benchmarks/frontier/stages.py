"""What all methods start from: sampled answers, the pairs drawn from them, and their caches."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.baselines.lora import in_float32
from benchmarks.baselines.scoring import final_states, score_pairs, tuned_alone
from benchmarks.baselines.split import Split
from benchmarks.frontier.policies import plain
from benchmarks.frontier.prompts import Part, prompts_of
from benchmarks.frontier.rewards import Reward, draw_pairs, vader, write_rows
from benchmarks.frontier.sampling import answer_logprobs, sample
from benchmarks.frontier.settings import Place, Sizes
from benchmarks.synthetic import say
from mav.cache_schema.reader import CacheReader
from mav.pipeline.base.loading import load_base
from mav.pipeline.base.model import BaseModel
from mav.pipeline.extraction.extract import extract
from mav.pipeline.extraction.options import ExtractOptions
from mav.pipeline.preferences.prompt_format import TEMPLATES, PromptFormat, choose_prompt_format
from mav.pipeline.preferences.reader import ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.preferences.tokenization import tokenize_pairs

PAIR_SEEDS: dict[Part, int] = {"training": 1, "tuning": 2, "held-out": 3}
"""Seeds of the answers that pairs are made of; those of measured answers are others."""
MAX_LENGTH = 256
"""Most tokens of a prompt with an answer; none here comes near it."""


@dataclass(frozen=True)
class World:
    """The base, the reward and the pairs, each made once and when it is first asked for.

    Attributes:
        sizes: Sizes of the experiment.
        place: Where its files are.
        base_model: The base's file.
    """

    sizes: Sizes
    place: Place
    base_model: str

    @cached_property
    def base(self) -> BaseModel:
        """The base as it is used, in the type that the machine multiplies natively."""
        return load_base(self.base_model, device="cpu")

    @cached_property
    def wide(self) -> BaseModel:
        """The same weights in float32, which KL is measured with."""
        return in_float32(self.base)

    @cached_property
    def form(self) -> PromptFormat:
        """The base's own chat template."""
        return choose_prompt_format("chat", TEMPLATES["chat"], self.base.tokenizer)

    @cached_property
    def reward(self) -> Reward:
        """The gold reward."""
        return vader()

    def prompts(self, part: Part) -> Sequence[str]:
        """Return the prompts of a part."""
        return prompts_of(part, self.sizes.prompts(part))

    def texts(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """Return answers as text, without special tokens and white space around them."""
        decoded = self.base.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [text.strip() for text in decoded]

    def pairs(self, part: Part) -> Path:
        """Return the file of pairs on a part's prompts, made now unless it is there."""
        path = self.place.pairs(part)
        if path.is_file():
            return path
        prompts, count = self.prompts(part), self.sizes.answers
        if part == "held-out":
            prompts = prompts[: self.sizes.ranking_prompts]
        asked = [prompt for prompt in prompts for _ in range(count)]
        seed = PAIR_SEEDS[part]
        policy = plain(self.base, self.form)
        texts = self.texts(sample(policy, asked, self.sizes.new_tokens, seed))
        grouped = [texts[at : at + count] for at in range(0, len(texts), count)]
        drawn = draw_pairs(prompts, grouped, self.reward, self.sizes.scale, seed)
        told = "".join(f"; {number} left out: {why}" for why, number in drawn.dropped.items())
        say(
            f"{part}: {len(drawn.rows)} pairs{told}; of those with different rewards "
            f"{drawn.agreeing:.1%} have the higher one chosen"
        )
        part_file = path.with_suffix(".part")
        write_rows(part_file, drawn.rows)
        part_file.replace(path)
        return path

    def split(self, part: Part) -> Split:
        """Return a part's pairs as the baselines take them: all to train on, and all held out."""
        source = DataSource(id=str(self.pairs(part)))
        pairs = tokenize_pairs(
            read_pairs(source, ReadCounts()), self.base.tokenizer, MAX_LENGTH, form="chat"
        )
        every = list(range(len(pairs.pair_id)))
        return Split(pairs=pairs, training=every, held_out=every)

    def cache(self, part: Part) -> Path:
        """Return the cache of a part's pairs, extracted now unless it is there.

        States are those of the first, the middle and the last layer, at their full width.
        """
        path, done = self.place.cache(part), self.place.cache(part).with_suffix(".done")
        if not done.is_file():
            shutil.rmtree(path, ignore_errors=True)
            extract(
                ExtractOptions(
                    base_model=self.base_model,
                    data=DataSource(id=str(self.pairs(part))),
                    output=path,
                    prompt_form="chat",
                    pooled_size=self.base.hidden_size,
                    max_length=MAX_LENGTH,
                ),
                base=self.base,
            )
            done.touch()
        return path

    def reference(self) -> tuple[Tensor, Tensor]:
        """Return log pi_base of chosen and rejected answers of the training pairs, float64 [P]."""
        path = self.place.work / "reference.safetensors"
        if not path.is_file():
            split = self.split("training")
            states = final_states(self.base, split.pairs, split.training)
            scores = score_pairs(
                self.base.unembedding(), split.pairs, split.training, states, states, tuned_alone
            )
            found = {"chosen": scores.base_chosen, "rejected": scores.base_rejected}
            save_file(found, str(path.with_suffix(".part")))
            path.with_suffix(".part").replace(path)
        stored = load_file(str(path))
        return stored["chosen"], stored["rejected"]

    def ranking_pairs(self) -> tuple[list[str], list[list[int]], list[list[int]]]:
        """Return prompts, chosen and rejected tokens of held-out pairs that are ranked."""
        text = self.pairs("held-out").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        chosen, rejected = (
            [self.form.response_tokens(row["prompt"], row[name], ended=True) for row in rows]
            for name in ("chosen", "rejected")
        )
        return [row["prompt"] for row in rows], chosen, rejected

    @cached_property
    def ranking_base(self) -> tuple[Tensor, Tensor]:
        """The base's log-probabilities of these, float64 [pairs] each."""
        prompts, *answers = self.ranking_pairs()
        policy = plain(self.base, self.form)
        chosen, rejected = (answer_logprobs(policy, prompts, some) for some in answers)
        return chosen, rejected

    def middle_layer(self, part: Part) -> tuple[int, int]:
        """Return the middle layer that a cache holds, and its place among the layers."""
        layers = CacheReader(self.cache(part)).manifest.states.layers
        return layers[len(layers) // 2], len(layers) // 2
