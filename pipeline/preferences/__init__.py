"""From rows of any form to tokens: what people preferred, as a base reads it.

`reader` and `rows` read data sets, `messages`, `transcripts`, `chat_template` and `prompt_format`
make text and tokens of them, `tokenization`, `mixture` and `load` make what extraction runs.
"""
