"""Heads inside vLLM, which batches, pages and shards for many users.

`arguments` makes what an engine needs to have heads in it. In the engine, `plugin` registers the
model classes of `models`, which hand out the states that heads read and hold the heads
(`vocabulary_heads`), and `processor` adds what the heads give, alpha per request: `admission` reads
it from a request, `slots` keeps it for the rows of a batch. `launch` starts vLLM's own server with
`middleware` around it. Only `models`, `processor` and `vocabulary_heads` import vLLM.
"""
