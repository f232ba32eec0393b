"""Preference pairs: from rows of any form to tokens.

`reader`, `rows` and `pairs` read data sets, `messages`, `transcripts`, `chat_template` and
`prompt_format` make text and tokens of them, `tokenization`, `mixture` and `load` make what
extraction runs.
"""
