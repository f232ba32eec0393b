"""Decoding with a head: exact at alpha 0, and z_base + alpha * a at every step otherwise."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import BaseModelError, DataError, MAVError, MismatchError, UsageError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.aligned_lm import AlignedLM
from mav.pipeline.decoding.alpha import AlphaSchedule
from mav.pipeline.decoding.create import create_mav
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from tests.support.models.tiny import ARCHITECTURES, HIDDEN, make_cache, save_base, tiny_base
from tests.support.steering.heads import random_head, write_head
from tests.support.steering.live import relative
from tests.support.steering.steered import LAYER_INDICES, plain_generate


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("generate")
    return write_head(folder / "head", make_cache(folder, tiny_base(), pairs=8))


def aligned_logits(base: BaseModel, ids: torch.Tensor, alpha: float) -> torch.Tensor:
    """z_base + alpha * a of a whole text, from the plain forward pass."""
    output = base.model(ids, output_hidden_states=True)
    states = torch.stack([output.hidden_states[layer] for layer in LAYER_INDICES], dim=-2)
    logits: torch.Tensor = output.logits + alpha * random_head(HIDDEN)(states)
    return logits


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_decodes_as_one_pass_over_the_whole_text_says(architecture: str) -> None:
    base = tiny_base(architecture)
    ids = base.tokenizer("\n\nHuman: How?\n\nAssistant:", return_tensors="pt").input_ids
    with AlignedLM(base, random_head(HIDDEN), LAYER_INDICES, alpha=20.0):
        whole = base.model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
    want = aligned_logits(base, whole[:, :-1], 20.0)[0, ids.shape[1] - 1 :].argmax(-1)
    assert torch.equal(whole[0, ids.shape[1] :], want)
    plain = base.model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert not torch.equal(plain, whole), "the head changed nothing, so this test shows nothing"


@torch.no_grad()
@pytest.mark.parametrize("keep", [0, 1, 5, torch.tensor([0, 3])], ids=str)
def test_logits_of_one_pass(keep: Any) -> None:
    base = tiny_base("gemma2")
    ids = torch.randint(0, 300, (2, 9))
    with AlignedLM(base, random_head(HIDDEN), LAYER_INDICES, alpha=-1.5):
        got = base.model(ids, logits_to_keep=keep).logits
    places = slice(-keep, None) if isinstance(keep, int) else keep
    assert relative(got, aligned_logits(base, ids, -1.5)[:, places]) < 1e-6


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.3, "top_p": 0.9, "seed": 5}], ids=str)
def test_alpha_zero_gives_the_tokens_of_the_untouched_base(
    head: str, sampling: dict[str, Any]
) -> None:
    base = tiny_base()
    mav = MAVInference(head, base)
    steered = mav.generate("Hi there", 3.0, GenerationOptions(max_new_tokens=20, **sampling))
    zero = mav.generate("Hi there", 0.0, GenerationOptions(max_new_tokens=20, **sampling))
    ids = base.tokenizer(zero.prompt, return_tensors="pt").input_ids
    untouched = tiny_base()
    torch.manual_seed(5)
    want = untouched.model.generate(
        ids,
        max_new_tokens=20,
        do_sample=bool(sampling),
        eos_token_id=base.tokenizer.eos_token_id,
        pad_token_id=base.tokenizer.eos_token_id,
        **({"temperature": 1.3, "top_p": 0.9, "top_k": 0} if sampling else {}),
    )
    assert zero.tokens == tuple(want[0, ids.shape[1] :].tolist())
    assert zero.tokens != steered.tokens


def test_one_forward_pass_a_token(head: str) -> None:
    mav = MAVInference(head, tiny_base())
    calls = []
    mav.base.decoder.register_forward_hook(lambda *_: calls.append(1))
    answer = mav.generate("Hi", 1.0, GenerationOptions(max_new_tokens=9))
    assert len(calls) == len(answer.tokens)


def test_outside_of_decoding_the_base_is_the_untouched_one(head: str) -> None:
    mav, untouched = MAVInference(head, tiny_base()), tiny_base()
    ids = mav.base.tokenizer("\n\nHuman: How?\n\nAssistant:")["input_ids"]

    def check() -> None:
        text = torch.tensor([ids])
        got, want = (one.model(text, output_hidden_states=True) for one in (mav.base, untouched))
        assert torch.equal(got.logits, want.logits)
        assert got.logits.dtype == want.logits.dtype
        pairs = zip(got.hidden_states, want.hidden_states, strict=True)
        assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
        for more in ({}, {"num_beams": 3}):
            answers = (
                plain_generate(one, ids, max_new_tokens=9, **more) for one in (mav.base, untouched)
            )
            assert len(set(answers)) == 1

    check()
    mav.generate_response("Hi", alpha=2.0, max_new_tokens=3)
    check()
    list(mav.stream_response("Hi", 2.0, max_new_tokens=3))
    check()
    with mav.steering(20.0) as model:
        steered_ones = plain_generate(mav.base, ids, max_new_tokens=9)
        assert model is mav.base.model
    assert steered_ones != plain_generate(untouched, ids, max_new_tokens=9)
    check()
    with pytest.raises(RuntimeError, match="amid"), mav.steering([3.0]):
        raise RuntimeError("amid")
    check()


def test_closing_takes_all_hooks_out_of_the_base(head: str) -> None:
    untouched, base = tiny_base(), tiny_base()

    def hooks(model: torch.nn.Module) -> list[int]:
        names = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs")
        return [len(getattr(module, name)) for module in model.modules() for name in names]

    mav = MAVInference(head, base)
    mav.generate_response("Hi", alpha=2.0, max_new_tokens=2)
    assert hooks(base.model) != hooks(untouched.model)
    mav.close()
    assert hooks(base.model) == hooks(untouched.model)
    assert vars(base.model).keys() == vars(untouched.model).keys()


def test_a_failure_while_streaming_reaches_the_caller(
    head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mav = MAVInference(head, tiny_base())

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr(mav.base.model, "generate", fail)
    with pytest.raises(BaseModelError, match="RuntimeError: no more memory"):
        list(mav.stream_response("Hi"))


def test_a_base_of_another_vocabulary_is_refused_naming_both_sizes(head: str) -> None:
    with pytest.raises(MismatchError, match=r"300 tokens.* has 320 "):
        MAVInference(head, tiny_base(vocab_size=320))


def test_the_same_size_with_another_tokenizer_is_refused(
    head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base()
    swapped = dict(base.tokenizer.get_vocab())
    first, second = list(swapped)[5:7]
    swapped[first], swapped[second] = swapped[second], swapped[first]
    monkeypatch.setattr(type(base.tokenizer), "get_vocab", lambda _: swapped)
    with pytest.raises(MismatchError, match="other tokenizers"):
        MAVInference(head, base)


def test_layers_chosen_by_index_do_not_go_to_another_depth(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, tiny_base(), pairs=8, layer_selection="1,2,4")
    head = write_head(tmp_path / "head", cache)
    with pytest.raises(MismatchError, match="chosen by index"):
        MAVInference(head, tiny_base(num_hidden_layers=6))


def test_the_base_a_head_was_trained_on_is_the_default(tmp_path: Path) -> None:
    base = save_base(tiny_base(), tmp_path / "base")
    cache = make_cache(tmp_path, pairs=8)
    head = write_head(tmp_path / "head", cache)
    config = tmp_path / "head" / "config.json"
    config.write_text(config.read_text().replace("memory:LlamaForCausalLM", str(base)))
    mav = MAVInference(head, dtype=torch.float32)
    assert mav.generate("Hi", 1.0, GenerationOptions(max_new_tokens=4)).tokens


def test_create_mav_without_a_head_leaves_the_base_as_it_is(tmp_path: Path) -> None:
    base = save_base(tiny_base(), tmp_path / "base")
    mav = create_mav(str(base), expansion_size=16, pooled_size=HIDDEN, dtype=torch.float32)
    decoding = GenerationOptions(max_new_tokens=8)
    assert mav.generate("Hi", 5.0, decoding).tokens == mav.generate("Hi", 0.0, decoding).tokens


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"top_p": 0.0}, "top_p: got 0.0"),
    ],
)
def test_decoding_options_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GenerationOptions(**wrong)


def test_errors_share_one_base() -> None:
    assert issubclass(MismatchError, MAVError)


def test_a_stop_string_that_begins_in_the_prompt_ends_nothing(head: str) -> None:
    mav = MAVInference(head, tiny_base())
    whole = mav.generate("Hi", 3.0, GenerationOptions(max_new_tokens=10))
    stop = ":" + whole.response[0]
    assert whole.prompt.endswith(":")
    assert stop not in whole.response
    text = mav.base.tokenizer.decode(whole.tokens, skip_special_tokens=True)
    assert text[0] == whole.response[0], "white space comes first, so this test shows nothing"
    stopped = mav.generate("Hi", 3.0, GenerationOptions(max_new_tokens=10, stop=(stop,)))
    assert (stopped.tokens, stopped.finish) == (whole.tokens, "length")


def test_a_text_is_the_only_stop(head: str) -> None:
    decoding: Any = {"stop": "sist"}
    assert GenerationOptions(**decoding).stop == ("sist",)


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_base_cannot_read_is_refused(head: str, stream: bool) -> None:
    mav = MAVInference(head, tiny_base("gpt2"))

    def answer(prompt: str, new: int) -> str:
        if stream:
            return "".join(mav.stream_response(prompt, 1.0, max_new_tokens=new))
        return mav.generate_response(prompt, 1.0, max_new_tokens=new)

    prompt = len(mav.joined.form.tokens(mav.joined.form.render("Hi")))
    assert answer("Hi", 256 - prompt)
    for text, new in (("Hi", 257 - prompt), ("word " * 200, 4)):
        with pytest.raises(DataError, match=r"expected at most 256 together"):
            answer(text, new)


@pytest.mark.parametrize(
    "alpha",
    [float("nan"), float("inf"), [1.0, float("nan")], "much", ["1", "much"], None, []],
    ids=str,
)
def test_a_strength_that_is_no_number_steers_nothing(head: str, alpha: Any) -> None:
    mav = MAVInference(head, tiny_base())
    with pytest.raises(UsageError, match=r"expected a? ?finite"), mav.steering(alpha):
        pytest.fail("it steers")


SCHEDULE = AlphaSchedule.parse("0:2,64:0.5")


@pytest.mark.parametrize("alpha", [SCHEDULE, str(SCHEDULE), [1.0, SCHEDULE]], ids=str)
def test_a_schedule_needs_tokens_to_count(head: str, alpha: Any) -> None:
    mav = MAVInference(head, tiny_base())
    with pytest.raises(UsageError, match=r"the schedule 0:2,64:0.5.*Use `generate`"):
        mav.steering(alpha).__enter__()


def test_the_text_of_a_number_steers_as_the_number_does(head: str) -> None:
    mav = MAVInference(head, tiny_base())
    ids = torch.ones(2, 3, dtype=torch.int64)
    for text, number in (("1.5", 1.5), (["1.5", "-2"], [1.5, -2.0]), ("0:1.5,9:1.5", 1.5)):
        with mav.steering(text) as model:
            got = model(ids).logits
        with mav.steering(number) as model:
            assert torch.equal(got, model(ids).logits)


@pytest.mark.parametrize("rows", [1, 3])
def test_strengths_for_other_rows_than_there_are(head: str, rows: int) -> None:
    mav = MAVInference(head, tiny_base())
    with mav.steering([1.0, 2.0]) as model:
        assert len(model(torch.ones(4, 3, dtype=torch.int64)).logits) == 4
        with pytest.raises(UsageError, match=f"got 2 strengths, but {rows} rows"):
            model(torch.ones(rows, 3, dtype=torch.int64))


def test_bytes_that_are_no_text_are_refused(head: str) -> None:
    mav = MAVInference(head, tiny_base())
    for prompt in ("bad \udcff", [{"role": "user", "content": "\ud800"}]):
        with pytest.raises(DataError, match="not Unicode text"):
            mav.generate_response(prompt)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.5, "top_k": 1},
        {"temperature": 1.5, "min_p": 1.0},
        {"temperature": 1e-40},
    ],
    ids=str,
)
def test_one_token_left_to_draw_from_is_the_most_probable(
    head: str, settings: dict[str, Any]
) -> None:
    mav = MAVInference(head, tiny_base())
    want = mav.generate("Hi", 3.0, GenerationOptions(max_new_tokens=12)).tokens
    assert mav.generate("Hi", 3.0, GenerationOptions(max_new_tokens=12, **settings)).tokens == want


def test_repetition_can_be_punished(head: str) -> None:
    mav = MAVInference(head, tiny_base())
    tokens = mav.generate(
        "Hi", 0.0, GenerationOptions(max_new_tokens=20, repetition_penalty=1e6)
    ).tokens
    assert len(set(tokens)) == len(tokens)
    assert len(set(mav.generate("Hi", 0.0, GenerationOptions(max_new_tokens=20)).tokens)) < 20


def test_what_changes_nothing_is_told() -> None:
    assert GenerationOptions(top_p=0.5, seed=3).unused == ("top_p", "seed")
    assert GenerationOptions(top_p=0.5, seed=3, temperature=1.0).unused == ()
    assert GenerationOptions().unused == ()


@pytest.mark.parametrize("prompts", ["Hi", {"role": "user", "content": "x"}, None, 3], ids=str)
def test_one_prompt_is_no_batch(head: str, prompts: Any) -> None:
    mav = MAVInference(head, tiny_base())
    with pytest.raises(UsageError, match=r"prompts: got .*expected a list.*`generate` takes"):
        mav.generate_batch(prompts)


def test_a_message_alone_is_no_prompt(head: str) -> None:
    mav = MAVInference(head, tiny_base())
    message: Any = {"role": "user", "content": "x"}
    for ask in (mav.generate, lambda prompt: list(mav.stream(prompt))):
        with pytest.raises(UsageError, match="prompt: got dict, expected a text, or a list of"):
            ask(message)
