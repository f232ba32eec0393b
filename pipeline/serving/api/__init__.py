"""OpenAI's API as this server has it: fields of requests, bodies of responses, and errors.

Begin with `request_schema`. Nothing here decodes or listens.
"""
