"""A storage that keeps the contract in the plainest way there is, in parts, so that each can be broken."""

import threading
from dataclasses import dataclass

from cysession import Delta, Record, SessionGone, Storage


@dataclass
class Slot:
    """What an id holds: a record, or the id that took over."""

    deadline: int
    record: Record
    alias: str | None = None


class ReferenceStorage(Storage):
    """A dict of slots under one lock; the record protocol step by step."""

    does_io = False

    def __init__(self) -> None:
        self.slots: dict[str, Slot] = {}
        self.lock = threading.RLock()

    # ---- parts -----------------------------------------------------------------------------------------

    def is_over(self, deadline: int, now: int) -> bool:
        return now >= deadline

    def deadline(self, record: Record, now: int, ttl: int) -> int:
        return min(now + (record.ttl or ttl), record.cap)

    def live(self, session_id: str) -> Slot | None:
        slot = self.slots.get(session_id)
        return None if slot is None or self.is_over(slot.deadline, self.now_ns()) else slot

    def resolve(self, session_id: str) -> str | None:
        """The id that the record stands under."""
        slot = self.live(session_id)
        while slot is not None and slot.alias is not None:
            session_id, slot = slot.alias, self.live(slot.alias)
        return None if slot is None else session_id

    def found(self, session_id: str) -> tuple[str, Slot] | None:
        target = self.resolve(session_id)
        return None if target is None else (target, self.slots[target])

    def put(self, session_id: str, record: Record, ttl: int) -> None:
        self.slots[session_id] = Slot(self.deadline(record, self.now_ns(), ttl), record)

    def is_same(self, stored: Record, base: Record) -> bool:
        return stored.birth == base.birth

    def slide(self, slot: Slot, ttl: int) -> None:
        slot.deadline = self.deadline(slot.record, self.now_ns(), ttl)

    # ---- the record protocol ---------------------------------------------------------------------------

    def load_record(self, session_id: str, ttl: int) -> Record | None:
        with self.lock:
            found = self.found(session_id)
            if found is None:
                return None
            self.slide(found[1], ttl)
            record = found[1].record
            self.renew_index(record, record.ttl or ttl)
            return record

    def peek_record(self, session_id: str, ttl: int) -> Record | None:
        with self.lock:
            found = self.found(session_id)
            return None if found is None else found[1].record

    def touch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        with self.lock:
            found = self.found(session_id)
            if found is None or not self.is_same(found[1].record, record):
                return False
            self.slide(found[1], ttl)
            return True

    def create_record(self, session_id: str, record: Record, ttl: int) -> bool:
        with self.lock:
            if self.live(session_id) is not None:
                return False
            self.put(session_id, record, ttl)
            return True

    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        with self.lock:
            found = self.found(session_id)
            if found is None or not self.is_same(found[1].record, base):
                raise SessionGone
            merged = self.merge(found[1].record, base, delta)
            if merged is None:
                del self.slots[found[0]]
            else:
                self.put(found[0], merged, ttl)
            return merged

    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        return delta.apply(stored, self.now_ns(), stored.cap)

    def delete_record(self, session_id: str) -> bool:
        with self.lock:
            found = self.found(session_id)
            if found is None:
                return False
            del self.slots[found[0]]
            return True

    def rename_record(self, old_id: str, new_id: str, base: Record, ttl: int, grace: int) -> Record | None:
        with self.lock:
            found = self.found(old_id)
            if found is None or not self.is_same(found[1].record, base):
                return None
            moved = self.moved(found[1].record, base)
            self.put(new_id, moved, ttl)
            self.leave(found[0], new_id, moved, grace)
            return moved

    def is_current(self, session_id: str) -> bool:
        with self.lock:
            return self.resolve(session_id) == session_id

    def moved(self, stored: Record, base: Record) -> Record:
        return stored

    def leave(self, old_id: str, new_id: str, record: Record, grace: int) -> None:
        if grace:
            self.slots[old_id] = Slot(min(self.now_ns() + grace, record.cap), record, new_id)
        else:
            del self.slots[old_id]
