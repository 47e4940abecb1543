"""Weights over HTTP: the server of `mcdi serve`, its page, and a client for Python programs (client.py)."""
