"""A small shop on cysession, in plain ASGI: `python -m examples.demo`."""
