"""What is between a client and the routes: the protocol's deadlines, and middleware.

Each middleware is a plain ASGI application around another.
"""
