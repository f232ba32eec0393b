"""Throughput of heads inside vLLM beside vLLM without heads, and beside MAV's own batches.

`python -m benchmarks.engine --base DIR`, in the environment of `make test-vllm`. `__main__` makes
heads and starts each configuration in a process of its own, in turns; `configuration` is one.
"""
