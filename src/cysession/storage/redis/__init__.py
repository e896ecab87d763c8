"""Sessions in Redis or Valkey: a client layer that knows nothing of sessions, and storages on top of it.

client.py     Client: a command, a batch or a script to the right node, within one deadline; our own errors
wire.py       packed commands, scripts, what an error reply means
"""
