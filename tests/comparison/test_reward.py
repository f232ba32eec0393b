"""Rewards: together as one by one, in the right texts, and from models that are reward models."""

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import safetensors.torch
import torch
import transformers

from mav.cache_schema.errors import BaseModelError, DataError
from mav.pipeline.comparison.reward import RewardModel, answer_text, shortened, text_ids
from mav.pipeline.preferences.messages import Messages
from tests.support.models.tiny import save_base, tiny_base, tiny_tokenizer
from tests.support.steering.comparisons import classifier

HUMAN: Final = "\n\nHuman: How do I mend a kite?\n\nAssistant:"
MESSAGES: Final = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho."},
    {"role": "user", "content": "Who would sell two chairs?"},
]
PROMPTS: Final[list[str | Messages]] = [HUMAN, "Hi", MESSAGES, "Say nothing.", HUMAN]
ANSWERS: Final = ["First look at a kite.", "No. Who?", "You.", "", " Then mend it slowly. " * 4]
TEMPLATE: Final = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}<bos>{{ m['role'] }}: {{ m['content'] }}<eos>{% endfor %}"
)


def encoder() -> Any:
    """A classifier that reads both ways, and its reward at the first token."""
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=300,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=256,
            num_labels=1,
            pad_token_id=3,
            initializer_range=0.5,
        )
    )


def chat_tokenizer() -> Any:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def ids_of(tokenizer: Any, prompts: Sequence[str | Messages] = PROMPTS) -> list[list[int]]:
    texts = [answer_text(tokenizer, *one) for one in zip(prompts, ANSWERS, strict=False)]
    return text_ids(tokenizer, texts)


def saved(model: Any, folder: Path, tokenizer: Any | None = None) -> Path:
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def loaded(folder: Path, **changes: Any) -> RewardModel:
    return RewardModel.load(str(folder), device="cpu", dtype="float32", **changes)


@torch.no_grad()
def alone(model: Any, ids: list[int]) -> float:
    """The reward of one text, as transformers computes it without any padding."""
    return float(model(input_ids=torch.tensor([ids])).logits[0, 0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: classifier(pad_token_id=None),
        lambda: classifier(pad_token_id=0),
        lambda: classifier(pad_token_id=3),
        lambda: classifier("gpt2", pad_token_id=None),
        lambda: classifier("qwen3", pad_token_id=None),
        encoder,
    ],
    ids=["no padding", "padded with its end", "a padding", "gpt2", "qwen3", "bert"],
)
@pytest.mark.parametrize("tokenizer", [tiny_tokenizer, chat_tokenizer])
def test_together_as_one_by_one(
    make: Callable[[], Any], tokenizer: Callable[[], Any], tmp_path: Path
) -> None:
    model, words = make().eval(), tokenizer()
    padding = model.config.pad_token_id
    texts = ids_of(words)
    expected = [alone(model, ids) for ids in texts]
    assert len({round(one, 3) for one in expected}) == len(expected)
    scorer = loaded(saved(model, tmp_path / "reward", words), batch_size=3)
    assert scorer.score(PROMPTS, ANSWERS) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert scorer.model.config.pad_token_id == padding
    assert scorer.cut == 0


def test_plain_texts_are_transcripts() -> None:
    tokenizer = tiny_tokenizer()
    found = [tokenizer.decode(ids) for ids in ids_of(tokenizer)]
    assert found == [
        f"{HUMAN} First look at a kite.",
        "\n\nHuman: Hi\n\nAssistant: No. Who?",
        "\n\nHuman: Hi\n\nAssistant: Ho.\n\nHuman: Who would sell two chairs?\n\nAssistant: You.",
        "\n\nHuman: Say nothing.\n\nAssistant:",
        f"{HUMAN}{ANSWERS[4]}",
    ]


def test_a_chat_template_is_used_where_there_is_one() -> None:
    tokenizer = chat_tokenizer()
    found = [tokenizer.decode(ids) for ids in ids_of(tokenizer)]
    assert found[0] == (
        "<bos>user: How do I mend a kite?<eos><bos>assistant: First look at a kite.<eos>"
    )
    assert found[2] == (
        "<bos>user: Hi<eos><bos>assistant: Ho.<eos><bos>user: Who would sell two chairs?<eos>"
        "<bos>assistant: You.<eos>"
    )
    # As transformers renders and tokenizes at once.
    whole = [*MESSAGES, {"role": "assistant", "content": "You."}]
    ids = tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]
    assert text_ids(tokenizer, [answer_text(tokenizer, MESSAGES, "You.")]) == [ids]


def test_a_prompt_that_the_template_does_not_take_has_no_score(
    tmp_path: Path, messages: list[str]
) -> None:
    system = [{"role": "system", "content": "Be kind."}, *MESSAGES]
    scorer = loaded(saved(classifier(), tmp_path / "reward", chat_tokenizer()))
    found = scorer.score([HUMAN, system, "Hi"], ANSWERS[:3])
    (alone,) = scorer.score(["Hi"], ANSWERS[2:3])
    assert math.isnan(found[1])
    assert found[2] == pytest.approx(alone, rel=1e-4)
    assert scorer.refused == 1
    assert any("1 of 3 answers have no score; the first: the reward" in one for one in messages)
    with pytest.raises(DataError, match=r"chat template rejects a prompt .*no system"):
        scorer.score([system], ["Yes."])


def test_long_texts_lose_the_beginning_and_are_counted(tmp_path: Path, messages: list[str]) -> None:
    model = classifier(pad_token_id=None).eval()
    texts = ids_of(tiny_tokenizer())
    limit = sorted(map(len, texts))[2]
    scorer = loaded(saved(model, tmp_path / "reward"), max_length=limit, batch_size=2)
    expected = [alone(model, ids[-limit:]) for ids in texts]
    assert scorer.score(PROMPTS, ANSWERS) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert scorer.cut == 2
    assert any("2 of 5 texts exceed" in line for line in messages)
    scorer.score(PROMPTS, ANSWERS)
    assert scorer.cut == 4


def test_what_begins_a_text_stays() -> None:
    tokenizer = tiny_tokenizer()
    bos = tokenizer.bos_token_id
    assert shortened([bos, 5, 6, 7], 3, tokenizer) == [bos, 6, 7]
    assert shortened([4, 5, 6, 7], 3, tokenizer) == [5, 6, 7]
    assert shortened([bos, 5, 6], 3, tokenizer) == [bos, 5, 6]
    assert shortened([bos, 5, 6], 1, tokenizer) == [6]
    assert shortened([bos, 5, 6], None, tokenizer) == [bos, 5, 6]


def test_the_limit_is_what_model_and_tokenizer_can_read(tmp_path: Path) -> None:
    folder = saved(classifier(max_position_embeddings=96), tmp_path / "reward")
    assert loaded(folder).max_length == 96
    assert loaded(folder, max_length=40).max_length == 40
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.model_max_length = 64
    assert loaded(saved(classifier(), tmp_path / "other", tokenizer)).max_length == 64


def test_a_reward_that_is_no_number_is_nan(tmp_path: Path) -> None:
    scorer = loaded(saved(classifier(pad_token_id=3), tmp_path / "reward"))
    embedding = scorer.model.get_input_embeddings().weight
    first, second = ids_of(tiny_tokenizer(), PROMPTS[:2])
    only = next(token for token in first if token not in second)
    embedding[only] = math.inf
    found = scorer.score(PROMPTS[:2], ANSWERS[:2])
    assert [math.isnan(one) for one in found] == [True, False]


def test_closing_gives_the_model_up(tmp_path: Path) -> None:
    scorer = loaded(saved(classifier(), tmp_path / "reward"))
    assert scorer.score([], []) == []
    scorer.close()
    assert scorer.model is None


def test_two_logits_are_refused(tmp_path: Path) -> None:
    folder = saved(classifier(num_labels=2), tmp_path / "reward")
    with pytest.raises(BaseModelError, match=r"with 2 logits \(LABEL_0, LABEL_1\), expected one"):
        loaded(folder)


def test_a_base_is_no_reward_model(tmp_path: Path) -> None:
    folder = save_base(tiny_base(), tmp_path / "base")
    with pytest.raises(BaseModelError, match="got a LlamaForCausalLM, which computes no reward"):
        loaded(folder)


@pytest.mark.parametrize("drop", ["score.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_tensor_that_is_missing_is_never_random(tmp_path: Path, drop: str) -> None:
    folder = saved(classifier(), tmp_path / "reward")
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors[drop]
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=f"1 tensor missing: {drop}"):
        loaded(folder)


def test_a_base_that_calls_itself_a_classifier_is_refused(tmp_path: Path) -> None:
    folder = save_base(tiny_base(), tmp_path / "base")
    config = transformers.AutoConfig.from_pretrained(folder)
    config.num_labels, config.architectures = 1, None
    config.save_pretrained(folder)
    with pytest.raises(BaseModelError, match=r"1 tensor missing: score\.weight"):
        loaded(folder)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="no such file or folder"):
        loaded(tmp_path / "nowhere")
    folder = saved(classifier(), tmp_path / "reward")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(BaseModelError, match="its tokenizer is missing"):
        loaded(folder)
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(BaseModelError, match="its configuration cannot be read"):
        loaded(folder)
