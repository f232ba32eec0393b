"""From a token that was decoded to what its client is told of it."""

from mav.pipeline.decoding.attach import AttachedModel
from mav.pipeline.decoding.request import TokenOutput
from mav.pipeline.serving.api.logprobs import TokenLogprob, prompt_logprobs, token_logprob
from mav.pipeline.serving.prompts import Choice
from mav.pipeline.serving.queue import TokenEvent


def token_event(choice: Choice, output: TokenOutput, attached: AttachedModel) -> TokenEvent:
    """Describe a new token.

    Args:
        choice: The choice it belongs to.
        output: What the decoder says of it.
        attached: The base and head that gave it.
    """
    logprob: TokenLogprob | None = None
    prompt: tuple[TokenLogprob, ...] = ()
    tokenizer, sequence = attached.base.tokenizer, output.sequence
    is_text = output.token not in attached.end_tokens
    if output.logprobs is not None and (is_text or choice.job.request.echo):
        logprob = token_logprob(tokenizer, output.token, output.logprobs)
    if choice.prompt_logprobs and len(sequence.tokens) == 1:
        prompt = prompt_logprobs(tokenizer, choice.prompt, sequence.prompt_logprobs)
    return TokenEvent(
        choice=choice.index,
        text=output.text,
        offset=output.offset,
        finish_reason=output.finish,
        steered=output.steered,
        logprob=logprob,
        prompt=prompt,
    )
