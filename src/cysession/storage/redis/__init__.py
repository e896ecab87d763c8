"""Sessions in Redis or Valkey: a client layer that knows nothing of sessions, and storages on top of it.

client.py     Client: a command, a batch or a script to the right node, within one deadline; our own errors
node.py       one server: its connections of both sides and its breaker
pool.py       the sync side: a few raw connections that threads share under load
multiplex.py  the async side: one connection for all tasks of an event loop
near.py       what such a connection has read lately, as long as the server announces changes
link.py       one connection of the sync side, and how sockets are opened
breaker.py    after repeated failure, fail at once
source.py     where the servers are and how one gets in
wire.py       packed commands, scripts, what an error reply means

storage.py    RedisStorage: the record protocol, one string a session
index.py      the sessions of a user
uses.py       noted uses are written, in time
overview.py   what operators ask
keeper.py     names, what was seen of sessions, what is believed of a reply
asking.py     steps of all of these, carried out on either side
hash.py       RedisHashStorage: one hash a session, a field for every key
records.py    names, bytes and versions of what is stored
scripts.py    what has to happen in one step on the server
touches.py    noted uses, written together
survey.py     what operators want to know of the server
"""

from .hash import RedisHashStorage as RedisHashStorage
from .storage import RedisStorage as RedisStorage

__all__ = ["RedisHashStorage", "RedisStorage"]
