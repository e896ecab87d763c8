"""Sessions in Redis or Valkey: a client layer that knows nothing of sessions, and storages on top of it.

client.py     Client: a command, a batch or a script to the right node, within one deadline; our own errors
wire.py       packed commands, scripts, what an error reply means

storage.py    RedisStorage: the record protocol, one string a session
hash.py       RedisHashStorage: one hash a session, a field for every key
records.py    names, bytes and versions of what is stored
scripts.py    what has to happen in one step on the server
touches.py    noted uses, written together
"""

from .hash import RedisHashStorage as RedisHashStorage
from .storage import RedisStorage as RedisStorage

__all__ = ["RedisHashStorage", "RedisStorage"]
