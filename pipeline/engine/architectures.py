"""Which architectures run in vLLM with heads in them, and in whose modelling code.

Each that is said to run was run against MAV's own decoding, from tiny random weights
(`tests/vllm/test_architectures.py`); the table in `docs/models.md` is made from what stands here.
"""

import logging
from typing import Final, Literal

from mav.cache_schema.errors import UsageError

Code = Literal["vllm", "transformers"]

_OWN: Final = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Gemma4ForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "GraniteForCausalLM",
)
_TRANSFORMERS: Final = (
    "MixtralForCausalLM",
    "GemmaForCausalLM",
    "Gemma3ForCausalLM",
    "PhiForCausalLM",
    "CohereForCausalLM",
    "Cohere2ForCausalLM",
    "Olmo2ForCausalLM",
    "SmolLM3ForCausalLM",
    "Starcoder2ForCausalLM",
)
RUNS_IN: Final[dict[str, Code]] = {
    **dict.fromkeys(_OWN, "vllm"),
    **dict.fromkeys(_TRANSFORMERS, "transformers"),
}
"""Architecture -> whose code it runs in: vLLM's own, or transformers', which is slower."""
REFUSED: Final[dict[str, str]] = {
    "Gemma2ForCausalLM": "vLLM leaves out the cap on its attention's logits in transformers' code",
    "Gemma3ForConditionalGeneration": "models with images were not tested",
    "GPT2LMHeadModel": "vLLM does not load it in transformers' code",
    "GPTJForCausalLM": "vLLM cannot replace its attention in transformers' code",
    "GPTNeoForCausalLM": "vLLM has no class for it",
    "GPTNeoXForCausalLM": "vLLM does not find its output embedding in transformers' code",
    "BloomForCausalLM": "transformers' code for it takes no positions, which vLLM asks for",
    "FalconForCausalLM": "vLLM cannot replace its attention in transformers' code",
}
"""Architecture -> why an engine cannot have heads in it."""
NOT_TRIED: Final[dict[str, str]] = {
    "Qwen3NextForCausalLM": "vLLM computes linear attention on a CPU in bfloat16 alone",
    "DeepseekV3ForCausalLM": "vLLM computes latent attention on a CPU in 16 bits",
    "Qwen3_5ForCausalLM": "vLLM's class for it needs torchvision",
    "GptOssForCausalLM": "vLLM has no kernel for its experts on a CPU",
}
"""Architecture -> why the tests, which run on a CPU, could not run it; an engine takes it."""

_log = logging.getLogger(__name__)


def check_architecture(base: str, architecture: str) -> None:
    """Refuse an architecture that cannot have heads in vLLM; say how another one runs.

    Args:
        base: The base.
        architecture: Its class, as its configuration names it.

    Raises:
        UsageError: It cannot.
    """
    reason = REFUSED.get(architecture)
    if reason is not None:
        raise UsageError(
            f"{base}: {architecture} cannot have heads in vLLM, as {reason}; use `mav serve`"
        )
    code = RUNS_IN.get(architecture)
    if code == "transformers":
        _log.info(
            f"{base}: runs in transformers' modelling code in vLLM, which is slower than vLLM's own"
        )
    elif code is None:
        _log.warning(
            f"{base}: {architecture} was not tested with heads in vLLM; compare its answers with "
            f"those of `mav generate` first"
        )
