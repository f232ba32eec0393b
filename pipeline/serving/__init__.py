"""An OpenAI-compatible server for a head and its bases, with a web page to try them.

Begin with `server`, which `mav serve` calls, then `app` for the routes. A request goes through
`requests`, `queue`, `worker` and `prompts` to the decoder; its tokens come back through `queue`,
`responses` and `streaming`. `options` and `server` can be imported without the packages of the
`serve` extra; the other modules cannot.
"""
