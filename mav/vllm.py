"""Heads inside vLLM.

Example:
    from vllm import LLM, SamplingParams

    from mav.vllm import engine_args

    llm = LLM(**engine_args("runs/head"))
    llm.generate("Hello", SamplingParams(extra_args={"alpha": 1.5}))
"""

from mav.pipeline.engine.arguments import engine_args

__all__ = ["engine_args"]
