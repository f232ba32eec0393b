"""What an engine refuses to have heads in, each with its reason, before it loads anything."""

from collections.abc import Sequence
from typing import Any

from mav.cache_schema.errors import MismatchError, UsageError
from mav.pipeline.base.source import tokenizer_digest
from mav.pipeline.engine.installed import require_tested
from mav.pipeline.engine.steering_config import SteeringConfig
from mav.pipeline.head.config import HeadConfig


def check_engine(vllm_config: Any, config: SteeringConfig) -> None:
    """Refuse what an engine was asked for that heads cannot be right with.

    Args:
        vllm_config: vLLM's configuration.
        config: The heads'.

    Raises:
        UsageError: One line for the first of them.
    """
    from vllm.version import __version__

    require_tested(__version__.partition("+")[0], allow_untested=config.allow_untested_vllm)
    parallel = vllm_config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        raise UsageError(
            f"pipeline_parallel_size: got {parallel.pipeline_parallel_size}, expected 1 with "
            f"heads, as the states of earlier stages do not reach the stage that samples; use "
            f"tensor_parallel_size"
        )
    if getattr(parallel, "enable_batch_sharded_sampling", False):
        raise UsageError(
            "enable_batch_sharded_sampling: got True, expected False with heads, as each rank "
            "would sample rows whose states another one has"
        )
    speculation = vllm_config.speculative_config
    if speculation is not None:
        raise UsageError(_speculation_refused(str(speculation.method)))
    if vllm_config.lora_config is not None and _moves_state(config):
        raise UsageError(
            "enable_lora: got True, expected False with a head of kind unembedding, as the rows "
            "of its shift belong to no adapter; use a head of kind mlp or bottleneck, or merge "
            "the adapter into the base"
        )


def check_model(
    model_config: Any,
    config: SteeringConfig,
    sizes: Sequence[HeadConfig],
    *,
    in_transformers: bool,
) -> None:
    """Refuse a base that is not as the one that the heads were checked against.

    Args:
        model_config: vLLM's configuration of the base.
        config: The heads'.
        sizes: Kinds and sizes of the heads.
        in_transformers: Whether the base runs in transformers' modelling code.

    Raises:
        MismatchError: Its vocabulary, tokenizer, layers or width differ.
        UsageError: A layer is read that this modelling code does not hand out.
    """
    base, depth = model_config.model, model_config.get_total_num_hidden_layers()
    if depth != config.num_hidden_layers:
        raise MismatchError(
            f"{base}: got {depth} layers, expected {config.num_hidden_layers}, as the base has "
            f"that the engine's arguments were made for; make them again for this base"
        )
    for head in sizes:
        if head.vocab_size != model_config.get_vocab_size():
            raise MismatchError(
                f"{base}: got a vocabulary of {model_config.get_vocab_size()} tokens, expected "
                f"{head.vocab_size}, for which the head was made"
            )
        if head.acts_on_state and head.hidden_size != model_config.get_hidden_size():
            raise MismatchError(
                f"{base}: got states {model_config.get_hidden_size()} wide, expected "
                f"{head.hidden_size}, to which the head adds"
            )
    if in_transformers and getattr(model_config.hf_text_config, "attn_logit_softcapping", None):
        raise UsageError(
            f"{base}: caps the logits of its attention, which vLLM leaves out where it runs a base "
            f"in transformers' modelling code, as it must to hand out states; use `mav serve`"
        )
    if in_transformers and 0 in config.layers:
        raise UsageError(
            f"layers: got {list(config.layers)}, expected none before the first, as vLLM runs "
            f"{base} in transformers' modelling code, which does not hand out the embeddings; use "
            f"`mav serve`"
        )
    if model_config.skip_tokenizer_init:
        return
    digest = _digest_of_tokenizer(model_config)
    if digest != config.tokenizer_digest:
        raise MismatchError(
            f"{model_config.tokenizer}: got a tokenizer of digest {digest[:12]}, expected "
            f"{config.tokenizer_digest[:12]}, as the base has that the engine's arguments were "
            f"made for; the same id would mean another token. Make them again for this base"
        )


def check_output_embedding(base: str, method: Any) -> None:
    """Refuse an output embedding that a head of kind unembedding cannot act through.

    Args:
        base: The base.
        method: What vLLM computes products with the output embedding by; None if it says nothing.

    Raises:
        UsageError: Its weights are quantized.
    """
    # Some schemes give a layer that they leave alone the plain method of another kind of layer.
    name = type(method).__name__
    if method is not None and not name.startswith("Unquantized"):
        raise UsageError(
            f"{base}: got a quantized output embedding ({name}), expected a plain one with a head "
            f"of kind unembedding, which acts through it; use a checkpoint whose `lm_head` is not "
            f"quantized, or a head of kind mlp or bottleneck"
        )


def _digest_of_tokenizer(model_config: Any) -> str:
    from vllm.tokenizers import get_tokenizer

    tokenizer = get_tokenizer(
        model_config.tokenizer,
        tokenizer_mode=model_config.tokenizer_mode,
        trust_remote_code=model_config.trust_remote_code,
        revision=model_config.tokenizer_revision,
    )
    return tokenizer_digest(tokenizer.get_vocab())


def _moves_state(config: SteeringConfig) -> bool:
    from pathlib import Path

    from mav.pipeline.head.storage import read_head_config

    return any(read_head_config(Path(head.folder))[0].acts_on_state for head in config.heads)


def _speculation_refused(method: str) -> str:
    if any(word in method for word in ("eagle", "dflash", "extract_hidden_states")):
        reason = "the draft model reads states in the place where heads read theirs"
    else:
        reason = "vLLM applies no logits processors of others to drafted tokens"
    return (
        f"speculative_config: got {method}, expected none with heads, as {reason}; leave it out, "
        f"or serve the base without heads"
    )
