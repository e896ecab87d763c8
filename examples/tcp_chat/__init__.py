"""A chat over plain TCP whose guests come back as who they were: `python -m examples.tcp_chat`."""
