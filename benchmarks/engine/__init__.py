"""Throughput of heads inside vLLM beside vLLM without heads, `mav generate` and `mav serve`.

`python -m benchmarks.engine --base DIR`, in the environment of `make test-vllm`. `__main__` makes
heads and starts each configuration in a process of its own, in turns; `configuration` is one, of
which `server` is `mav serve`.
"""
