"""A storage of your own: sessions in an SQLite table, in four methods.

Everything else (strict ids, merging by key, rotation, max_age) comes from cysession.Storage.
Try it: python examples/custom_storage.py
"""

import sqlite3
import threading
import time

from cysession import Manager, Record, Storage, codec
from cysession.ids import locator, storage_key


class SqliteStorage(Storage):
    """One row a session, under a hash of its id: the record as bytes, and when its idle time is over."""

    def __init__(self, path: str) -> None:
        self.lock = threading.Lock()  # one connection for all threads: one statement at a time
        self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.db.execute("CREATE TABLE IF NOT EXISTS sessions (name TEXT PRIMARY KEY, ends REAL, record BLOB)")

    def locator(self, session_id: str) -> str:
        return locator(session_id)  # the index of a user's sessions must not hold ids either

    def get_session(self, session_id: str, ttl: float) -> Record | None:
        query = "SELECT record FROM sessions WHERE name = ? AND ends > ?"
        with self.lock:
            row = self.db.execute(query, (storage_key(session_id), self.now())).fetchone()
        return codec.decode(row[0]) if row else None

    def set_session(self, session_id: str, record: Record, ttl: float) -> None:
        row = (storage_key(session_id), self.now() + ttl, codec.encode(record))
        with self.lock:
            self.db.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)", row)

    def update_ttl(self, session_id: str, ttl: float) -> bool:
        query = "UPDATE sessions SET ends = ? WHERE name = ? AND ends > ?"
        row = (self.now() + ttl, storage_key(session_id), self.now())
        with self.lock:
            return self.db.execute(query, row).rowcount == 1

    def remove_all(self, session_id: str) -> bool:
        query = "DELETE FROM sessions WHERE name = ?"
        with self.lock:
            return self.db.execute(query, (storage_key(session_id),)).rowcount == 1

    def now(self) -> float:
        return self.clock() if self.clock else time.time()


if __name__ == "__main__":
    manager = Manager(ttl=3600, storage=SqliteStorage("sessions.db"))
    with manager.new() as session:
        session["cart"] = ["tea"]
        session_id = session.id
    with manager.new(session_id) as session:
        session["cart"].append("milk")
        print(session.get_map())
