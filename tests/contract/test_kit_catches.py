"""The kit fails on a storage with any single rule broken: here is one for each, and the rules that find it.

Every storage below is the reference storage with one part broken. `caught_by` names the rules of the contract
that have to fail on it; the reference storage itself keeps them all.
"""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import hypothesis
import pytest

from cysession import Delta, Record, SessionGone, SessionTooLarge, Storage, StorageUnavailable, codec
from cysession.ids import locator, storage_key
from cysession.storage import users
from cysession.testing import AsyncStorageContract, StorageContract
from cysession.testing.kit import Kit
from cysession.testing.rules.concurrency import InterleavingRules
from cysession.testing.rules.expiry import ExpiryRules
from cysession.testing.rules.hygiene import HygieneRules
from cysession.testing.rules.rotation import GraceRules, RotationRules
from tests.contract.reference import ReferenceStorage, Slot

MILLISECOND = 1_000_000
SECOND = 1000 * MILLISECOND
EVERY = ("every_interleaving_of_two_clients_ends_as_it_must", "every_interleaving_with_grace_ends_as_it_must")

BROKEN: list[tuple[type[Storage], str]] = []
S = TypeVar("S", bound=type[Storage])


def caught_by(*rules: str) -> Callable[[S], S]:
    """Each of these rules must fail on the storage, all by themselves."""

    def note(storage: S) -> S:
        BROKEN.extend((storage, rule) for rule in rules)
        return storage

    return note


def changed(record: Record, **how: Any) -> Record:
    """The same record, except for this."""
    same = {"created": record.created, "cap": record.cap, "ttl": record.ttl, "birth": record.birth}
    return Record.build(how.pop("data", record.to_dict()), **{**same, **how})


# ---- expiry --------------------------------------------------------------------------------------------


@caught_by(
    "a_session_is_gone_at_its_ttl",
    "a_session_is_gone_at_its_own_ttl",
    "the_old_id_is_unknown_after_grace",
    "a_session_is_gone_one_tick_after_its_ttl",
)
class LivesAMillisecondTooLong(ReferenceStorage):
    def is_over(self, deadline: int, now: int) -> bool:
        return now >= deadline + MILLISECOND


@caught_by(
    "a_session_lives_until_one_tick_before_its_ttl", "the_old_id_lives_until_one_tick_before_the_end_of_grace"
)
class DiesAMillisecondEarly(ReferenceStorage):
    def is_over(self, deadline: int, now: int) -> bool:
        return now >= deadline - MILLISECOND


@caught_by(
    "a_session_is_gone_at_its_ttl",
    "no_use_passes_the_absolute_age",
    "use_does_not_prolong_grace",
    "a_session_is_gone_long_after_its_ttl",
    "an_expired_id_is_not_adopted",
    "the_absolute_age_stays_with_the_session",
    "no_ttl_of_its_own_passes_the_absolute_age",
)
class NeverExpires(ReferenceStorage):
    def is_over(self, deadline: int, now: int) -> bool:
        return False


@caught_by("a_session_lives_until_one_tick_before_its_ttl")
class CountsWholeSeconds(ReferenceStorage):
    def is_over(self, deadline: int, now: int) -> bool:
        return now // SECOND >= deadline // SECOND


@caught_by("a_session_is_gone_at_its_ttl")
class RoundsUpToWholeSeconds(ReferenceStorage):
    def is_over(self, deadline: int, now: int) -> bool:
        return now // SECOND >= -(-deadline // SECOND)


@caught_by(
    "a_read_begins_the_idle_time_anew",
    "use_slides_as_long_as_it_goes_on",
    "a_sessions_own_ttl_slides",
    "update_ttl_begins_the_idle_time_anew",
)
class ReadsDoNotSlide(ReferenceStorage):
    def load_record(self, session_id: str, ttl: int) -> Record | None:
        found = self.found(session_id)
        return None if found is None else found[1].record


@caught_by(
    "idle_time_counts_from_the_last_read",
    "a_session_is_gone_at_its_ttl",
    "idle_time_counts_from_the_last_commit",
)
class SlidesTwiceAsFar(ReferenceStorage):
    def deadline(self, record: Record, now: int, ttl: int) -> int:
        return super().deadline(record, now, 2 * ttl)


@caught_by("a_commit_begins_the_idle_time_anew")
class CommitsDoNotSlide(ReferenceStorage):
    def put(self, session_id: str, record: Record, ttl: int) -> None:
        before = self.slots.get(session_id)
        super().put(session_id, record, ttl)
        if before is not None:
            self.slots[session_id].deadline = before.deadline


@caught_by("saving_an_unchanged_session_begins_the_idle_time_anew", "touch_begins_the_idle_time_anew")
class TouchesDoNotSlide(ReferenceStorage):
    def touch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        found = self.found(session_id)
        return found is not None and self.is_same(found[1].record, record)


@caught_by("one_use_does_not_keep_another_session_alive")
class AnyUseKeepsAllAlive(ReferenceStorage):
    def slide(self, slot: Slot, ttl: int) -> None:
        for other in self.slots.values():
            super().slide(other, ttl)


@caught_by("a_clock_that_is_turned_back_ends_no_session")
class RefusesRecordsFromTheFuture(ReferenceStorage):
    def live(self, session_id: str) -> Slot | None:
        slot = super().live(session_id)
        return None if slot is None or slot.record.created > self.now_ns() else slot


@caught_by("no_use_passes_the_absolute_age", "no_commit_passes_the_absolute_age")
class ForgetsTheAbsoluteAge(ReferenceStorage):
    def deadline(self, record: Record, now: int, ttl: int) -> int:
        return now + (record.ttl or ttl)


@caught_by("no_touch_of_an_open_session_passes_the_absolute_age")
class TouchesPassTheAbsoluteAge(ReferenceStorage):
    def touch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        touched = super().touch_record(session_id, record, ttl)
        if touched:
            self.slots[session_id].deadline = self.now_ns() + ttl
        return touched


@caught_by(
    "no_commit_passes_the_absolute_age",
    "commit_keeps_birth_and_times",
    "emptying_and_filling_in_one_commit_keeps_the_absolute_age",
)
class CommitsRenewTheAbsoluteAge(ReferenceStorage):
    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        merged = super().merge(stored, base, delta)
        if merged is None or merged.cap == Record.NEVER:
            return merged
        return changed(merged, cap=self.now_ns() + merged.cap - merged.created)


@caught_by("created_at_is_the_moment_of_the_first_commit", "commit_keeps_birth_and_times")
class CommitsRenewTheBeginning(ReferenceStorage):
    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        merged = super().merge(stored, base, delta)
        return None if merged is None else changed(merged, created=self.now_ns())


@caught_by("a_sessions_own_ttl_overrides_the_managers", "a_ttl_can_be_changed_alone")
class IgnoresASessionsOwnTtl(ReferenceStorage):
    def deadline(self, record: Record, now: int, ttl: int) -> int:
        return min(now + 1_000_000 * MILLISECOND, record.cap)


@caught_by("a_commit_of_another_request_keeps_a_sessions_own_ttl")
class CommitsLoseASessionsOwnTtl(ReferenceStorage):
    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        merged = super().merge(stored, base, delta)
        return None if merged is None else changed(merged, ttl=delta.ttl or 0)


@caught_by("a_commit_to_an_expired_session_raises_session_gone")
class CommitsReviveTheExpired(ReferenceStorage):
    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        if session_id in self.slots:
            self.slots[session_id].deadline = Record.NEVER
        return super().commit_record(session_id, base, delta, ttl)


@caught_by("a_touch_does_not_revive_an_expired_session")
class TouchesReviveTheExpired(ReferenceStorage):
    def touch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        if session_id in self.slots:
            self.slots[session_id].deadline = Record.NEVER
        return super().touch_record(session_id, record, ttl)


@caught_by("rotation_does_not_revive_an_expired_session")
class RotationRevivesTheExpired(ReferenceStorage):
    def rename_record(self, old_id: str, new_id: str, base: Record, ttl: int, grace: int) -> Record | None:
        if old_id in self.slots:
            self.slots[old_id].deadline = Record.NEVER
        return super().rename_record(old_id, new_id, base, ttl, grace)


@caught_by("an_expired_session_is_invisible_to_direct_calls")
class DirectReadsSeeTheExpired(ReferenceStorage):
    def get_session(self, session_id: str, ttl: float) -> Record | None:
        slot = self.slots.get(session_id)
        return None if slot is None else slot.record


@caught_by("an_id_used_again_after_expiry_begins_empty", "create_takes_an_id_that_has_expired")
class CreateMeetsTheExpired(ReferenceStorage):
    def create_record(self, session_id: str, record: Record, ttl: int) -> bool:
        slot = self.slots.get(session_id)
        if slot is None:
            return super().create_record(session_id, record, ttl)
        slot.deadline = Record.NEVER
        return False


# ---- ids and what is stored for nobody -----------------------------------------------------------------


@caught_by(
    "an_unknown_id_is_not_adopted",
    "anonymous_noise_stores_nothing",
    "load_of_an_unknown_id_answers_none",
    "a_failed_create_surfaces_and_stores_nothing",
    "a_new_session_with_a_refused_value_is_not_stored",
    "a_new_session_without_data_is_not_stored",
    "a_rotated_session_without_data_is_not_stored",
    "an_unknown_id_opens_a_new_session",
    "nobody_sees_a_new_session_before_the_commit",
    "a_session_beyond_max_bytes_is_refused",
)
class ReadsMakeSessions(ReferenceStorage):
    def load_record(self, session_id: str, ttl: int) -> Record | None:
        if self.live(session_id) is None:
            self.put(session_id, Record.build({}, self.now_ns()), ttl)
        return super().load_record(session_id, ttl)


@caught_by(
    "a_logout_of_nobody_stores_nothing",
    "a_destroyed_session_is_gone",
    "a_destroyed_id_is_not_adopted",
    "a_destroyed_session_stays_destroyed_after_close",
    "destroy_drops_uncommitted_changes",
    "an_exception_does_not_undo_a_destroy",
    "a_session_is_destroyed_without_being_loaded",
    "a_write_after_destroy_begins_a_new_session",
    "remove_all_destroys_the_session",
    "a_destroy_is_tried_again_after_a_failure",
)
class DestroyLeavesAnEmptyRecord(ReferenceStorage):
    def delete_record(self, session_id: str) -> bool:
        found = super().delete_record(session_id)
        self.put(session_id, Record.build({}, self.now_ns()), 1000_000 * MILLISECOND)
        return found


@caught_by(
    "update_ttl_of_an_unknown_id_answers_false_and_stores_nothing",
    "a_direct_touch_of_a_destroyed_session_creates_nothing",
)
class DirectTouchesMakeSessions(ReferenceStorage):
    def update_ttl(self, session_id: str, ttl: float) -> bool:
        if self.live(session_id) is None:
            self.put(session_id, Record.build({"a": 1}, self.now_ns()), 1000_000 * MILLISECOND)
        return True


@caught_by(
    "a_fresh_id_in_use_is_drawn_again",
    "create_answers_false_for_an_id_in_use",
    "two_that_begin_the_same_chosen_session_both_keep_their_data",
)
class CreateOverwrites(ReferenceStorage):
    def create_record(self, session_id: str, record: Record, ttl: int) -> bool:
        self.put(session_id, record, ttl)
        return True


@caught_by("a_stored_session_is_read_back", "everybody_sees_changes_after_the_commit")
class CreateStoresNothing(ReferenceStorage):
    def create_record(self, session_id: str, record: Record, ttl: int) -> bool:
        return True


@caught_by("a_storage_draws_fresh_ids_and_stores_nothing")
class DrawsShortIds(ReferenceStorage):
    def new(self, ttl: float) -> str:
        return f"{time.monotonic_ns():x}"


@caught_by("a_malformed_id_finds_nothing_in_direct_reads")
class ChokesOnMalformedIds(ReferenceStorage):
    def load_record(self, session_id: str, ttl: int) -> Record | None:
        session_id.encode("ascii")
        return super().load_record(session_id, ttl)


@caught_by("a_malformed_id_finds_nothing_in_direct_reads")
class AnyPathIsASession(ReferenceStorage):
    def get_map(self, session_id: str) -> dict[str, Any]:
        return {"file": session_id} if "/" in session_id else super().get_map(session_id)


# ---- commits -------------------------------------------------------------------------------------------


@caught_by(
    "changes_of_different_keys_both_survive",
    "commit_applies_the_changes_to_what_is_stored_by_then",
    *EVERY,
    "a_key_removed_by_another_request_does_not_come_back",
    "a_key_that_was_only_read_keeps_what_others_wrote",
    "a_retried_commit_does_not_undo_what_others_wrote",
    "changes_in_place_of_different_keys_both_survive",
)
class LastWriterTakesAll(ReferenceStorage):
    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        return super().merge(base, base, delta)


@caught_by(
    "of_changes_of_one_key_the_later_commit_wins",
    *EVERY,
    "of_a_change_and_a_removal_of_one_key_the_later_wins",
)
class FirstWriterWins(ReferenceStorage):
    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        late = {key for key in delta.values if stored.get(key) != base.get(key)}
        kept = {key: value for key, value in delta.values.items() if key not in late}
        return delta_like(delta, values=kept).apply(stored, self.now_ns(), stored.cap)


@caught_by("changes_of_different_keys_both_survive", "a_commit_whose_answer_was_lost_is_tried_again", *EVERY)
class RefusesInsteadOfMerging(ReferenceStorage):
    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        found = self.found(session_id)
        if found is not None and found[1].record is not base:
            raise SessionGone
        return super().commit_record(session_id, base, delta, ttl)


@caught_by(
    "after_a_save_a_session_stands_on_what_was_stored_by_it",
    "commit_applies_the_changes_to_what_is_stored_by_then",
    *EVERY,
)
class CommitAnswersWithTheOldRecord(ReferenceStorage):
    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        return super().commit_record(session_id, base, delta, ttl) and delta.apply(
            base, self.now_ns(), base.cap
        )


@caught_by(
    "a_removed_key_is_gone",
    "a_change_and_a_removal_of_different_keys_both_survive",
    "direct_calls_and_sessions_see_the_same_data",
)
class KeepsRemovedKeys(ReferenceStorage):
    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        return delta_like(delta, removed=()).apply(stored, self.now_ns(), stored.cap)


@caught_by(
    "a_cleared_session_is_deleted",
    "a_session_cleared_and_filled_again_holds_only_the_new",
    "set_session_replaces_the_data",
)
class IgnoresClear(ReferenceStorage):
    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        return delta_like(delta, cleared=False).apply(stored, self.now_ns(), stored.cap)


@caught_by(
    "clearing_also_removes_what_others_wrote_meanwhile",
    "commit_that_clears_answers_none_and_deletes",
)
class ClearsOnlyWhatWasSeen(ReferenceStorage):
    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        if delta.cleared:
            delta = delta_like(delta, cleared=False, removed=set(base) - set(delta.values))
        return delta.apply(stored, self.now_ns(), stored.cap)


@caught_by(
    "a_session_whose_last_key_is_removed_is_deleted",
    "an_emptied_id_is_not_adopted",
    "commit_that_leaves_no_data_answers_none_and_deletes",
    "a_session_emptied_and_filled_again_begins_anew",
    "a_session_emptied_under_the_old_id_is_deleted",
    "commit_through_an_old_id_that_leaves_no_data_deletes",
)
class KeepsEmptiedSessions(ReferenceStorage):
    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        return super().merge(stored, base, delta) or changed(stored, data={})


@caught_by("a_session_that_two_requests_emptied_together_is_deleted")
class DeletesOnlyWhatOneRequestEmptied(ReferenceStorage):
    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        merged = super().merge(stored, base, delta)
        return changed(stored, data={}) if merged is None and len(base) > len(stored) else merged


@caught_by("a_touch_leaves_another_requests_commit_alone", "touch_leaves_the_data_alone", *EVERY)
class TouchesWriteTheDataBack(ReferenceStorage):
    def touch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        touched = super().touch_record(session_id, record, ttl)
        if touched:
            self.put(self.resolve(session_id) or session_id, record, ttl)
        return touched


@caught_by("keys_keep_their_order")
class SortsTheKeys(ReferenceStorage):
    def put(self, session_id: str, record: Record, ttl: int) -> None:
        super().put(session_id, changed(record, data=dict(sorted(record.items()))), ttl)


@caught_by("any_text_is_a_key", "many_keys_are_held")
class CutsKeysShort(ReferenceStorage):
    def put(self, session_id: str, record: Record, ttl: int) -> None:
        super().put(session_id, changed(record, data={key[:5]: value for key, value in record.items()}), ttl)


@caught_by(
    "reading_keeps_the_record",
    "commit_keeps_birth_and_times",
    "a_record_comes_back_as_it_was_created",
    "a_rotated_session_is_not_new",
)
class EveryReadIsANewBirth(ReferenceStorage):
    def load_record(self, session_id: str, ttl: int) -> Record | None:
        record = super().load_record(session_id, ttl)
        return None if record is None else changed(record, birth=0)


# ---- destroy is final ----------------------------------------------------------------------------------


@caught_by(
    "a_commit_to_a_destroyed_session_raises_session_gone",
    "a_second_try_raises_session_gone_too",
    *EVERY,
    "a_change_in_place_does_not_bring_a_destroyed_session_back",
    "a_new_ttl_for_a_destroyed_session_raises_session_gone",
    "closing_a_changed_session_that_was_destroyed_raises_session_gone",
    "removing_a_key_of_a_destroyed_session_raises_session_gone",
    "commit_to_a_missing_record_raises_session_gone",
)
class CommitsBringBackTheDestroyed(ReferenceStorage):
    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        if self.live(session_id) is None:
            self.put(session_id, base, ttl)
        return super().commit_record(session_id, base, delta, ttl)


@caught_by("a_second_try_raises_session_gone_too")
class LateRetriesBringBackTheDestroyed(ReferenceStorage):
    refused: bool = False

    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        if self.refused and self.live(session_id) is None:
            self.put(session_id, base, ttl)
        try:
            return super().commit_record(session_id, base, delta, ttl)
        except SessionGone:
            self.refused = True
            raise


@caught_by(
    "a_touch_of_a_destroyed_session_creates_nothing",
    "touch_answers_false_for_a_missing_record_and_makes_none",
    *EVERY,
    "a_touch_under_a_dead_id_creates_nothing",
)
class TouchesBringBackTheDestroyed(ReferenceStorage):
    def touch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        if self.live(session_id) is None:
            self.put(session_id, record, ttl)
        return super().touch_record(session_id, record, ttl)


@caught_by(
    "rotation_does_not_bring_a_destroyed_session_back", "rename_of_a_missing_record_answers_none", *EVERY
)
class RotationBringsBackTheDestroyed(ReferenceStorage):
    def rename_record(self, old_id: str, new_id: str, base: Record, ttl: int, grace: int) -> Record | None:
        if self.live(old_id) is None:
            self.put(old_id, base, ttl)
        return super().rename_record(old_id, new_id, base, ttl, grace)


@caught_by("emptying_a_destroyed_session_raises_session_gone")
class EmptyingTheDestroyedIsQuiet(ReferenceStorage):
    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        if delta.cleared and self.live(session_id) is None:
            return None
        return super().commit_record(session_id, base, delta, ttl)


@caught_by("a_commit_to_a_destroyed_session_raises_session_gone", *EVERY)
class CommitsToTheDestroyedAreLostQuietly(ReferenceStorage):
    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        with suppress(SessionGone):
            return super().commit_record(session_id, base, delta, ttl)
        return delta.apply(base, self.now_ns(), base.cap)


@caught_by("a_destroyed_session_is_gone", "delete_answers_whether_there_was_a_record", *EVERY)
class DestroyDoesNothing(ReferenceStorage):
    def delete_record(self, session_id: str) -> bool:
        return self.live(session_id) is not None


@caught_by("destroy_leaves_other_sessions_alone")
class DestroyTakesTheNeighbourAlong(ReferenceStorage):
    def delete_record(self, session_id: str) -> bool:
        found = super().delete_record(session_id)
        if self.slots:
            self.slots.popitem()
        return found


@caught_by(
    "destroying_twice_is_quiet",
    "a_logout_of_nobody_stores_nothing",
    "a_destroy_under_a_dead_id_is_quiet",
    "a_destroy_whose_answer_was_lost_is_tried_again",
    "destroying_an_expired_session_is_quiet",
)
class DestroyingNobodyIsAnError(ReferenceStorage):
    def delete_record(self, session_id: str) -> bool:
        if not super().delete_record(session_id):
            raise SessionGone
        return True


@caught_by("create_takes_an_id_that_was_deleted", "a_reborn_session_begins_empty")
class TombstonesBlockAnId(ReferenceStorage):
    def delete_record(self, session_id: str) -> bool:
        found = super().delete_record(session_id)
        self.tombs = {*getattr(self, "tombs", ()), session_id}
        return found

    def create_record(self, session_id: str, record: Record, ttl: int) -> bool:
        if session_id in getattr(self, "tombs", ()):
            return True
        return super().create_record(session_id, record, ttl)


@caught_by(
    "an_old_handle_does_not_write_into_a_reborn_session",
    "an_old_handle_does_not_write_into_a_session_reborn_after_expiry",
    "commit_to_a_reborn_record_raises_session_gone",
    "an_old_handle_does_not_empty_a_reborn_session",
)
class CommitsDoNotAskForTheBirth(ReferenceStorage):
    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        found = self.found(session_id)
        return super().commit_record(session_id, base if found is None else found[1].record, delta, ttl)


@caught_by("an_old_handle_does_not_rotate_a_reborn_session", "rename_of_a_reborn_record_answers_none")
class RotationDoesNotAskForTheBirth(ReferenceStorage):
    def rename_record(self, old_id: str, new_id: str, base: Record, ttl: int, grace: int) -> Record | None:
        found = self.found(old_id)
        return super().rename_record(old_id, new_id, base if found is None else found[1].record, ttl, grace)


@caught_by("touch_answers_false_for_a_reborn_record")
class TouchesDoNotAskForTheBirth(ReferenceStorage):
    def touch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        return self.load_record(session_id, ttl) is not None


@caught_by(
    "touch_answers_true_for_a_live_record",
    "touch_through_an_old_id_reaches_the_new_record",
)
class TouchesAnswerAlwaysFalse(ReferenceStorage):
    def touch_record(self, session_id: str, record: Record, ttl: int) -> bool:
        super().touch_record(session_id, record, ttl)
        return False


@caught_by("an_emptied_session_takes_no_late_commit")
class EmptiedSessionsComeBack(ReferenceStorage):
    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        merged = super().commit_record(session_id, base, delta, ttl)
        if merged is None:
            self.put(session_id, changed(base, data={}), ttl)
        return merged

    def load_record(self, session_id: str, ttl: int) -> Record | None:
        return super().load_record(session_id, ttl) or None


# ---- rotation ------------------------------------------------------------------------------------------


@caught_by(
    "the_old_id_is_dead_at_once",
    "a_commit_under_a_dead_id_raises_session_gone",
    "rename_moves_the_record",
    *EVERY,
    "a_rotated_session_is_destroyed_for_good",
    "of_two_rotations_the_second_raises_session_gone",
)
class RotationCopies(ReferenceStorage):
    def leave(self, old_id: str, new_id: str, record: Record, grace: int) -> None:
        pass


@caught_by(
    "rotation_moves_all_data_to_a_fresh_id",
    "rename_moves_the_record",
    *EVERY,
    "a_handle_that_was_not_loaded_rotates",
    "a_rotation_is_tried_again_after_a_failure",
    "a_session_rotates_again_and_again",
    "no_grace_configured_means_none",
    "uncommitted_changes_stay_uncommitted",
)
class RotationLosesTheData(ReferenceStorage):
    """G4: GoFrame's hash table renews the TTL of a record that it did not copy."""

    def put(self, session_id: str, record: Record, ttl: int) -> None:
        if record.birth not in {slot.record.birth for key, slot in self.slots.items() if key != session_id}:
            super().put(session_id, record, ttl)


@caught_by(
    "rotation_takes_along_what_others_committed_meanwhile", "rename_moves_what_was_committed_since", *EVERY
)
class RotationMovesTheSnapshot(ReferenceStorage):
    def moved(self, stored: Record, base: Record) -> Record:
        return base


@caught_by("rotation_keeps_created_at", "rename_keeps_birth_and_times")
class RotationRenewsTheBeginning(ReferenceStorage):
    def moved(self, stored: Record, base: Record) -> Record:
        return changed(stored, created=self.now_ns())


@caught_by(
    "rotation_keeps_the_absolute_age",
    "rename_keeps_birth_and_times",
    "the_old_id_does_not_outlive_the_absolute_age",
)
class RotationRenewsTheAbsoluteAge(ReferenceStorage):
    def moved(self, stored: Record, base: Record) -> Record:
        return changed(stored, cap=Record.NEVER)


@caught_by("rotation_keeps_a_sessions_own_ttl", "rename_keeps_birth_and_times")
class RotationLosesASessionsOwnTtl(ReferenceStorage):
    def moved(self, stored: Record, base: Record) -> Record:
        return changed(stored, ttl=0)


@caught_by(
    "rotation_keeps_the_birth_of_the_record", "uncommitted_changes_are_saved_under_the_fresh_id", *EVERY
)
class RotationIsANewBirth(ReferenceStorage):
    def moved(self, stored: Record, base: Record) -> Record:
        return changed(stored, birth=0)


@caught_by("rename_begins_an_idle_time_of_the_callers_ttl", "a_rotated_session_is_gone_at_its_ttl")
class RotationTakesATtlOfItsOwn(ReferenceStorage):
    def rename_record(self, old_id: str, new_id: str, base: Record, ttl: int, grace: int) -> Record | None:
        return super().rename_record(old_id, new_id, base, 86_400_000 * MILLISECOND, grace)


@caught_by("rotation_leaves_other_sessions_alone")
class RotationEndsOtherSessions(ReferenceStorage):
    def leave(self, old_id: str, new_id: str, record: Record, grace: int) -> None:
        super().leave(old_id, new_id, record, grace)
        self.slots = {key: slot for key, slot in self.slots.items() if slot.record.birth == record.birth}


@caught_by("the_old_id_is_not_current")
class TakesTheOldIdForCurrent(ReferenceStorage):
    def is_current(self, session_id: str) -> bool:
        return Storage.is_current(self, session_id)


@caught_by("only_the_id_of_a_live_session_is_current")
class TakesAnyIdForCurrent(ReferenceStorage):
    def is_current(self, session_id: str) -> bool:
        slot = self.slots.get(session_id)
        return slot is None or slot.alias is None


@caught_by("the_old_id_reads_the_session", "load_through_an_old_id_answers_the_new_record", EVERY[1])
class KnowsNoGrace(ReferenceStorage):
    def leave(self, old_id: str, new_id: str, record: Record, grace: int) -> None:
        super().leave(old_id, new_id, record, 0)


@caught_by(
    "the_old_id_is_unknown_after_grace",
    "a_commit_under_the_old_id_after_grace_raises_session_gone",
    "the_old_id_is_not_adopted_after_grace",
)
class GraceNeverEnds(ReferenceStorage):
    def leave(self, old_id: str, new_id: str, record: Record, grace: int) -> None:
        super().leave(old_id, new_id, record, grace and 1000 * grace)


@caught_by("use_does_not_prolong_grace")
class UseProlongsGrace(ReferenceStorage):
    def resolve(self, session_id: str) -> str | None:
        slot = self.live(session_id)
        if slot is not None and slot.alias is not None:
            slot.deadline = self.now_ns() + 30_000 * MILLISECOND
        return super().resolve(session_id)


@caught_by(
    "the_old_id_reads_what_was_written_under_the_new_one", "load_through_an_old_id_answers_the_new_record"
)
class TheOldIdReadsACopy(ReferenceStorage):
    def load_record(self, session_id: str, ttl: int) -> Record | None:
        slot = self.live(session_id)
        return slot.record if slot is not None and slot.alias else super().load_record(session_id, ttl)


@caught_by(
    "a_write_under_the_old_id_lands_in_the_session",
    "commit_through_an_old_id_lands_in_the_new_record",
    "a_commit_under_the_old_id_of_a_destroyed_session_raises_session_gone",
    "a_key_removed_under_the_old_id_is_gone",
    "a_session_opened_before_the_rotation_is_saved_after_it",
)
class WritesUnderTheOldIdStayThere(ReferenceStorage):
    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        slot = self.live(session_id)
        if slot is not None and slot.alias is not None:
            self.slots[session_id] = Slot(slot.deadline, slot.record)
        return super().commit_record(session_id, base, delta, ttl)


@caught_by(
    "destroy_under_the_old_id_ends_the_session", "delete_through_an_old_id_deletes_the_new_record", EVERY[1]
)
class DestroyUnderTheOldIdEndsOnlyThat(ReferenceStorage):
    def delete_record(self, session_id: str) -> bool:
        return self.slots.pop(session_id, None) is not None


@caught_by("destroy_under_the_new_id_ends_the_old_one", EVERY[1])
class TheOldIdOutlivesTheSession(ReferenceStorage):
    def load_record(self, session_id: str, ttl: int) -> Record | None:
        slot = self.live(session_id)
        found = super().load_record(session_id, ttl)
        return slot.record if found is None and slot is not None else found


@caught_by("the_first_id_follows_two_rotations", EVERY[1])
class FollowsOneRotationOnly(ReferenceStorage):
    def resolve(self, session_id: str) -> str | None:
        slot = self.live(session_id)
        target = super().resolve(session_id)
        return target if slot is None or slot.alias is None or slot.alias == target else None


@caught_by(
    "a_rotation_under_the_old_id_moves_the_session", "rename_through_an_old_id_moves_the_new_record", EVERY[1]
)
class RotationUnderTheOldIdIsRefused(ReferenceStorage):
    def rename_record(self, old_id: str, new_id: str, base: Record, ttl: int, grace: int) -> Record | None:
        if self.resolve(old_id) != old_id:
            return None
        return super().rename_record(old_id, new_id, base, ttl, grace)


@caught_by("create_answers_false_for_an_old_id_in_its_grace_time")
class CreateTakesAnOldId(ReferenceStorage):
    def create_record(self, session_id: str, record: Record, ttl: int) -> bool:
        slot = self.live(session_id)
        if slot is not None and slot.alias is not None:
            del self.slots[session_id]
        return super().create_record(session_id, record, ttl)


@caught_by("a_rotation_without_grace_also_ends_earlier_old_ids")
class EarlierOldIdsFollowForEver(ReferenceStorage):
    def leave(self, old_id: str, new_id: str, record: Record, grace: int) -> None:
        super().leave(old_id, new_id, record, grace)
        for slot in self.slots.values():
            if slot.alias == old_id:
                slot.alias = new_id


@caught_by("direct_reads_show_the_sessions_data_and_nothing_else")
class ShowsWhatItKeepsBesideTheData(ReferenceStorage):
    def get_map(self, session_id: str) -> dict[str, Any]:
        return {**super().get_map(session_id), "ends": 0}


@caught_by("an_old_id_shows_nothing_but_the_sessions_data")
class ShowsWhereTheSessionWent(ReferenceStorage):
    def get_map(self, session_id: str) -> dict[str, Any]:
        slot = self.live(session_id)
        return {"moved to": slot.alias} if slot is not None and slot.alias else super().get_map(session_id)


# ---- types and limits ----------------------------------------------------------------------------------


class Converts(ReferenceStorage):
    """What is stored passes through a codec."""

    def put(self, session_id: str, record: Record, ttl: int) -> None:
        super().put(session_id, changed(record, data=self.convert(record.to_dict())), ttl)

    def convert(self, value: Any) -> Any:
        if type(value) is dict:
            return {self.key(key): self.convert(item) for key, item in value.items()}
        if type(value) in (list, tuple, set, frozenset):
            return type(value)(self.convert(item) for item in value)
        return value

    def key(self, key: Any) -> Any:
        return key


@caught_by(
    "a_value_comes_back_as_it_went_in",
    "any_data_come_back_as_they_went_in",
    "values_survive_the_commit_of_another_key",
    "set_session_stores_a_record_that_get_session_gives_back",
)
class TuplesBecomeLists(Converts):
    def convert(self, value: Any) -> Any:
        return list(map(self.convert, value)) if type(value) is tuple else super().convert(value)


@caught_by("a_value_comes_back_as_it_went_in")
class FrozensetsBecomeSets(Converts):
    def convert(self, value: Any) -> Any:
        return set(value) if type(value) is frozenset else super().convert(value)


@caught_by(
    "a_value_comes_back_as_it_went_in", "equal_keys_of_different_types_are_told_apart_where_python_does"
)
class KeysBecomeStrings(Converts):
    def key(self, key: Any) -> Any:
        return str(key)


@caught_by("a_value_comes_back_as_it_went_in")
class DictsAreSorted(Converts):
    def convert(self, value: Any) -> Any:
        value = super().convert(value)
        return dict(sorted(value.items(), key=repr)) if type(value) is dict else value


@caught_by("a_value_comes_back_as_it_went_in")
class WholeFloatsBecomeInts(Converts):
    def convert(self, value: Any) -> Any:
        if type(value) is float and value.is_integer():
            return int(value)
        return super().convert(value)


@caught_by("a_value_comes_back_as_it_went_in")
class MinusZeroLosesItsSign(Converts):
    def convert(self, value: Any) -> Any:
        return value + 0.0 if type(value) is float else super().convert(value)


@caught_by("a_value_comes_back_as_it_went_in")
class NanBecomesNone(Converts):
    def convert(self, value: Any) -> Any:
        return None if type(value) is float and value != value else super().convert(value)


@caught_by(
    "a_value_comes_back_as_it_went_in",
    "a_change_in_place_is_committed",
)
class BoolsBecomeInts(Converts):
    def convert(self, value: Any) -> Any:
        return int(value) if type(value) is bool else super().convert(value)


@caught_by("a_value_comes_back_as_it_went_in")
class BigIntsWrapAround(Converts):
    def convert(self, value: Any) -> Any:
        return value % 2**64 if type(value) is int and abs(value) >= 2**64 else super().convert(value)


@caught_by("a_value_comes_back_as_it_went_in")
class TimesLoseTheirFold(Converts):
    def convert(self, value: Any) -> Any:
        return value.replace(fold=0) if isinstance(value, datetime) else super().convert(value)


@caught_by("a_value_comes_back_as_it_went_in")
class ZonesBecomeOffsets(Converts):
    def convert(self, value: Any) -> Any:
        if isinstance(value, datetime) and value.tzinfo is not None:
            return datetime.fromisoformat(value.isoformat()).replace(fold=value.fold)
        return super().convert(value)


@caught_by("containers_up_to_the_depth_limit_are_stored")
class IsShallow(Converts):
    depth = 0

    def convert(self, value: Any) -> Any:
        self.depth += 1
        try:
            return None if self.depth > 60 else super().convert(value)
        finally:
            self.depth -= 1


@caught_by("what_was_stored_at_the_top_of_a_stack_is_read_at_its_bottom")
class NeedsADeepStackToRead(Converts):
    def load_record(self, session_id: str, ttl: int) -> Record | None:
        record = super().load_record(session_id, ttl)
        return None if record is None else changed(record, data=self.convert(record.to_dict()))


@caught_by(
    "a_commit_beyond_max_bytes_leaves_the_stored_session_intact",
    "two_requests_together_do_not_pass_max_bytes",
    "commit_beyond_the_limit_stores_nothing",
    "a_session_that_was_too_large_can_be_saved_when_it_is_smaller",
)
class CommitsKnowNoLimit(ReferenceStorage):
    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        return delta_like(delta).apply(stored, self.now_ns(), stored.cap)


@caught_by(
    "a_commit_beyond_max_bytes_leaves_the_stored_session_intact", "commit_beyond_the_limit_stores_nothing"
)
class DropsTheSessionThatIsTooLarge(ReferenceStorage):
    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        try:
            return super().commit_record(session_id, base, delta, ttl)
        except SessionTooLarge:
            self.delete_record(session_id)
            raise


@caught_by("no_limit_means_none")
class HasASecretLimit(ReferenceStorage):
    def put(self, session_id: str, record: Record, ttl: int) -> None:
        if record.size > 65536:
            raise SessionTooLarge(record.size, 65536)
        super().put(session_id, record, ttl)


@caught_by(
    "a_nested_value_of_another_type_is_refused_with_its_path",
    "a_lone_surrogate_is_refused_with_its_path",
    "containers_beyond_the_depth_limit_are_refused",
)
class StoresHalfOfWhatItRefuses(ReferenceStorage):
    """Key by key, and what was written before the error stays."""

    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        for key, value in delta.values.items():
            with suppress(Exception):
                merged = Delta({key: value}).apply(stored, self.now_ns(), stored.cap)
                assert merged is not None
                self.put(self.key_of(stored), merged, 1_000_000 * MILLISECOND)
        return super().merge(stored, base, delta)

    def key_of(self, stored: Record) -> str:
        return next(key for key, slot in self.slots.items() if slot.record is stored)


# ---- hygiene -------------------------------------------------------------------------------------------


@caught_by("reprs_hold_no_id")
class ShowsItsIds(ReferenceStorage):
    def __repr__(self) -> str:
        return f"<Storage of {', '.join(self.slots)}>"


@caught_by("logs_and_warnings_hold_no_id")
class LogsIds(ReferenceStorage):
    def load_record(self, session_id: str, ttl: int) -> Record | None:
        logging.getLogger(__name__).debug("load %s", session_id)
        return super().load_record(session_id, ttl)


@caught_by("errors_hold_no_id")
class ErrorsNameTheId(ReferenceStorage):
    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        try:
            return super().commit_record(session_id, base, delta, ttl)
        except SessionGone:
            raise SessionGone(f"no session {session_id}") from None


@caught_by("what_is_stored_holds_no_id")
class StoresIds(ReferenceStorage):
    def raw_dump(self) -> bytes:
        return repr(self.slots).encode()


class Bytes(ReferenceStorage):
    """Keeps records as bytes, which can be damaged."""

    broken: ClassVar[type[Exception] | None] = None

    def damage(self, session_id: str) -> None:
        raw = bytearray(codec.encode(self.slots[session_id].record))
        raw[len(raw) // 2] ^= 0xFF
        self.damaged = {*getattr(self, "damaged", ()), session_id}

    def live(self, session_id: str) -> Slot | None:
        if session_id in getattr(self, "damaged", ()):
            return self.on_damage()
        return super().live(session_id)

    def on_damage(self) -> Slot | None:
        self._corrupt += 1
        return None


@caught_by("a_damaged_record_is_a_missing_session", "a_commit_to_a_damaged_record_raises_session_gone")
class DamageIsAnError(Bytes):
    def on_damage(self) -> Slot | None:
        raise StorageUnavailable


@caught_by("a_damaged_record_is_counted")
class DamageIsNotCounted(Bytes):
    def on_damage(self) -> Slot | None:
        return None


@caught_by("a_damaged_record_leaves_other_sessions_alone")
class DamageSpreads(Bytes):
    def live(self, session_id: str) -> Slot | None:
        return None if getattr(self, "damaged", ()) else super().live(session_id)


# ---- failure -------------------------------------------------------------------------------------------


class FourMethods(Storage):
    """The base class's record protocol, over a dict; nothing expires."""

    does_io = False

    def __init__(self) -> None:
        self.sessions: dict[str, Record] = {}

    def get_session(self, session_id: str, ttl: float) -> Record | None:
        return self.sessions.get(session_id)

    def set_session(self, session_id: str, record: Record, ttl: float) -> None:
        self.sessions[session_id] = record

    def update_ttl(self, session_id: str, ttl: float) -> bool:
        return session_id in self.sessions

    def remove_all(self, session_id: str) -> bool:
        return self.sessions.pop(session_id, None) is not None


@caught_by(
    "a_read_from_a_storage_out_of_order_is_no_empty_session",
    "an_unknown_id_of_a_storage_out_of_order_is_not_new",
)
class AFailedReadLooksEmpty(FourMethods):
    def _fetch(self, session_id: str, now: int, ttl: int) -> Record | None:
        with suppress(StorageUnavailable):
            return super()._fetch(session_id, now, ttl)
        return None


@caught_by("a_read_from_a_storage_out_of_order_is_no_empty_session")
class FailsWithAnErrorOfItsOwn(FourMethods):
    def load_record(self, session_id: str, ttl: int) -> Record | None:
        try:
            return super().load_record(session_id, ttl)
        except StorageUnavailable as error:
            raise OSError from error


class QuietWrites(FourMethods):
    """Read from a cache, and what cannot be written is not spoken of."""

    def _fetch(self, session_id: str, now: int, ttl: int) -> Record | None:
        return self.sessions.get(session_id)

    def _begin_anew(self, *_: Any) -> bool:
        return True


@caught_by(
    "a_commit_to_a_storage_out_of_order_surfaces_and_changes_nothing",
    "a_create_in_a_storage_out_of_order_surfaces",
)
class FailedWritesAreQuiet(QuietWrites):
    def _store(self, *arguments: Any) -> None:
        with suppress(StorageUnavailable):
            super()._store(*arguments)


@caught_by(
    "a_destroy_in_a_storage_out_of_order_surfaces",
    "a_rotation_in_a_storage_out_of_order_surfaces_and_keeps_the_old_id",
)
class FailedDestroysAreQuiet(FailedWritesAreQuiet):
    def _drop(self, *arguments: Any) -> None:
        with suppress(StorageUnavailable):
            super()._drop(*arguments)


# ---- concurrency ---------------------------------------------------------------------------------------


@caught_by("threads_that_write_different_keys_lose_none", "no_thread_brings_back_what_another_destroyed")
class CommitsWithoutALock(ReferenceStorage):
    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        stored = self.load_record(session_id, ttl)
        if stored is None:
            raise SessionGone
        merged = delta.apply(stored, self.now_ns(), stored.cap)
        assert merged is not None
        time.sleep(0.001)  # long enough for another thread, with or without a GIL
        self.put(session_id, merged, ttl)
        return merged


@caught_by("of_threads_that_begin_one_session_none_is_lost")
class CreatesWithoutALock(ReferenceStorage):
    def create_record(self, session_id: str, record: Record, ttl: int) -> bool:
        taken = self.live(session_id) is not None
        time.sleep(0.001)
        if not taken:
            self.put(session_id, record, ttl)
        return not taken


@caught_by("one_of_many_rotations_wins")
class RotatesWithoutALock(ReferenceStorage):
    def rename_record(self, old_id: str, new_id: str, base: Record, ttl: int, grace: int) -> Record | None:
        stored = self.load_record(old_id, ttl)
        time.sleep(0.001)
        if stored is not None:
            self.put(new_id, stored, ttl)
            self.slots.pop(old_id, None)
        return stored


@caught_by("a_commit_beside_a_rotation_is_kept_or_refused")
class CommitsBesideARotationAreLost(CommitsWithoutALock):
    def rename_record(self, old_id: str, new_id: str, base: Record, ttl: int, grace: int) -> Record | None:
        stored = self.load_record(old_id, ttl)
        time.sleep(0.001)
        if stored is not None:
            self.put(new_id, stored, ttl)
            self.slots.pop(old_id, None)
        return stored


@caught_by("threads_with_sessions_of_their_own_see_only_those")
class OneBufferForAll(ReferenceStorage):
    def load_record(self, session_id: str, ttl: int) -> Record | None:
        self.buffer = super().load_record(session_id, ttl)
        time.sleep(0.001)
        return self.buffer


@caught_by("a_destroy_beside_a_rotation_with_grace_ends_the_session")
class DestroyMissesTheRotatedSession(ReferenceStorage):
    def delete_record(self, session_id: str) -> bool:
        target = self.resolve(session_id)
        time.sleep(0.001)
        return target is not None and self.slots.pop(target, None) is not None


@caught_by(
    "processes_that_write_different_keys_lose_none",
    "a_process_does_not_bring_back_what_another_destroyed",
    "a_process_does_not_revive_a_rotated_id_of_another",
    "a_process_sees_what_another_committed",
    "a_touch_of_one_process_keeps_the_session_alive_for_all",
    "of_logins_in_processes_none_is_lost",
    "no_count_of_processes_is_lost",
)
class IsOneProcesssOwn(ReferenceStorage):
    pass


@caught_by("a_forked_child_can_use_the_storage")
class ForkedChildrenMeetAHeldLock(ReferenceStorage):
    def create_record(self, session_id: str, record: Record, ttl: int) -> bool:
        if threading.main_thread().name == threading.current_thread().name and self.is_forked():
            raise StorageUnavailable("the connection belongs to the parent process")
        return super().create_record(session_id, record, ttl)

    def is_forked(self) -> bool:
        import os

        self.pid = getattr(self, "pid", os.getpid())
        return self.pid != os.getpid()


# ---- event loops ---------------------------------------------------------------------------------------


@caught_by("tasks_that_write_different_keys_lose_none")
class TasksOverwriteEachOther(ReferenceStorage):
    async def acommit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        stored = self.load_record(session_id, ttl)
        await asyncio.sleep(0)
        if stored is None:
            raise SessionGone
        merged = delta.apply(stored, self.now_ns(), stored.cap)
        assert merged is not None
        self.put(session_id, merged, ttl)
        return merged


@caught_by("no_task_brings_back_what_another_destroyed")
class TasksBringBackTheDestroyed(TasksOverwriteEachOther):
    pass


@caught_by("tasks_with_sessions_of_their_own_see_only_those")
class OneBufferForAllTasks(ReferenceStorage):
    async def aload_record(self, session_id: str, ttl: int) -> Record | None:
        self.buffer = self.load_record(session_id, ttl)
        await asyncio.sleep(0)
        return self.buffer


@caught_by("a_cancelled_commit_is_stored_or_not_and_nothing_in_between")
class CancelledCommitsAreHalfDone(ReferenceStorage):
    async def acommit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        merged: Record | None = base
        for key, value in delta.values.items():
            merged = self.commit_record(session_id, base, Delta({key: value}), ttl)
            await asyncio.sleep(0)
        return merged


@caught_by("sessions_of_several_event_loops_share_one_storage")
class BelongsToItsFirstLoop(ReferenceStorage):
    async def acommit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        self.loop = getattr(self, "loop", asyncio.get_running_loop())
        if self.loop is not asyncio.get_running_loop():
            raise RuntimeError("attached to a different loop")
        return self.commit_record(session_id, base, delta, ttl)


@caught_by(*EVERY)
class TheAsyncTwinForgetsTheBirth(ReferenceStorage):
    async def acommit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        if self.live(session_id) is None:
            self.put(session_id, base, ttl)
        return self.commit_record(session_id, base, delta, ttl)


# ---- computed changes ----------------------------------------------------------------------------------


def is_computed(delta: Delta) -> bool:
    return not (delta.values or delta.removed or delta.cleared) and delta.ttl is None


@caught_by(
    "modify_works_on_what_is_stored_by_then",
    "a_computed_change_is_computed_on_the_stored_record",
)
class ComputesOnTheSnapshot(ReferenceStorage):
    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        return super().merge(stored, base, delta.against(base))


@caught_by(
    "modify_stores_and_answers_what_was_computed",
    "modify_saves_other_changes_first",
    "no_count_of_threads_is_lost",
    "a_failed_modify_surfaces_and_can_be_tried_again",
)
class ComputesTwice(ReferenceStorage):
    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        merged = super().merge(stored, base, delta)
        return super().merge(merged, base, delta) if merged is not None and is_computed(delta) else merged


@caught_by(
    "modify_of_a_key_that_is_not_set_begins_with_the_default",
)
class ComputesFromNone(ReferenceStorage):
    """The default is lost on the way."""

    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        found: list[Any] = []
        with suppress(Exception):
            found.append(delta.against(Record.build({}, 0)).values)
        if is_computed(delta) and found and not found[0].keys() <= set(stored):
            raise TypeError("unsupported operand type")
        return super().merge(stored, base, delta)


@caught_by("modify_keeps_what_others_wrote_to_other_keys")
class ComputedChangesLoseTheRest(ReferenceStorage):
    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        if not is_computed(delta):
            return super().merge(stored, base, delta)
        return changed(stored, data={**base.to_dict(), **delta.against(stored).values})


@caught_by("modify_keeps_a_sessions_own_ttl_and_end")
class ComputedChangesMakeANewRecord(ReferenceStorage):
    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        merged = super().merge(stored, base, delta)
        return changed(merged, ttl=0) if merged is not None and is_computed(delta) else merged


@caught_by(
    "what_a_modify_function_raises_leaves_the_session_as_it_was",
    "modify_to_a_refused_value_leaves_the_session_as_it_was",
)
class ComputesWithoutASafetyNet(ReferenceStorage):
    def merge(self, stored: Record, base: Record, delta: Delta) -> Record | None:
        try:
            return super().merge(stored, base, delta)
        except Exception:
            self.slots.clear()
            raise


@caught_by(
    "modify_of_a_destroyed_session_raises_session_gone", "modify_of_an_expired_session_raises_session_gone"
)
class ComputedChangesBeginAnew(ReferenceStorage):
    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        if self.live(session_id) is None and is_computed(delta):
            self.put(session_id, changed(base, data=delta.against(None).values), ttl)
        return super().commit_record(session_id, base, delta, ttl)


@caught_by("modify_through_an_old_id_lands_in_the_new_record")
class ComputesUnderTheNewestIdOnly(ReferenceStorage):
    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        if is_computed(delta) and self.resolve(session_id) != session_id:
            raise SessionGone
        return super().commit_record(session_id, base, delta, ttl)


@caught_by("no_count_of_threads_is_lost")
class ComputesWithoutALock(ReferenceStorage):
    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        stored = self.load_record(session_id, ttl)
        ready = delta if stored is None else delta.against(stored)
        time.sleep(0.001)
        return super().commit_record(session_id, base, ready, ttl)


@caught_by("modify_of_a_new_session_creates_it")
class NewCountsBeginAtNothing(ReferenceStorage):
    def create_record(self, session_id: str, record: Record, ttl: int) -> bool:
        return super().create_record(session_id, changed(record, data={"hits": 0}), ttl)


# ---- whose sessions they are ---------------------------------------------------------------------------


@caught_by(
    "the_sessions_of_a_user_are_listed_oldest_first",
    "an_existing_session_that_is_bound_is_listed",
    "revoke_ends_all_sessions_of_a_user_but_the_one_to_keep",
    "one_session_is_revoked_by_its_handle",
    "a_revoked_session_is_not_written_back",
    "a_limit_of_sessions_a_user_revokes_the_oldest",
    "of_logins_in_threads_none_is_lost",
)
class KnowsNoUsers(ReferenceStorage):
    def note_user(self, user: str, session_id: str, ttl: int) -> None:
        pass


@caught_by(
    "a_session_whose_create_was_not_answered_is_listed",
    "a_session_whose_rotation_was_not_answered_is_listed",
    "a_rotated_session_is_listed_once_and_revoked",
    "a_session_that_is_rotated_while_it_is_revoked_ends_too",
    "a_list_names_sessions_by_handles_that_stay",
)
class NotesWhatIsThere(ReferenceStorage):
    """The index is told of a session only when its record can be seen."""

    def note_user(self, user: str, session_id: str, ttl: int) -> None:
        if self.live(session_id) is not None:
            super().note_user(user, session_id, ttl)


@caught_by("a_binding_whose_commit_was_not_answered_is_listed")
class NotesNoSessionThatHadBegunBefore(ReferenceStorage):
    def note_user(self, user: str, session_id: str, ttl: int) -> None:
        if self.live(session_id) is None:
            super().note_user(user, session_id, ttl)


@caught_by("a_session_bound_to_another_user_leaves_the_first_ones_list")
class BelievesTheIndex(ReferenceStorage):
    def user_sessions(self, user: str) -> list[tuple[str, Record]]:
        index = self.slots.get(users.index_name(user))
        names = [] if index is None else list(index.record)
        return [(name, slot.record) for name in names if (slot := self.live(name)) is not None]


@caught_by("destroyed_and_emptied_sessions_are_not_listed", "expired_sessions_are_not_listed")
class ListsTheDead(ReferenceStorage):
    def user_sessions(self, user: str) -> list[tuple[str, Record]]:
        self.ever = {**getattr(self, "ever", {}), **dict(super().user_sessions(user))}
        return list(self.ever.items())

    def note_user(self, user: str, session_id: str, ttl: int) -> None:
        super().note_user(user, session_id, ttl)
        self.user_sessions(user)

    def put(self, session_id: str, record: Record, ttl: int) -> None:
        super().put(session_id, record, ttl)
        if (user := record.get(users.USER_KEY)) is not None:
            self.user_sessions(user)


@caught_by("a_bound_session_in_use_stays_listed")
class UseDoesNotKeepTheIndexAlive(ReferenceStorage):
    def renew_index(self, record: Record, ttl: int) -> None:
        pass


@caught_by("a_session_with_a_long_ttl_of_its_own_stays_listed")
class IndexesLiveAsLongAsTheManagerSays(ReferenceStorage):
    def note_user(self, user: str, session_id: str, ttl: int) -> None:
        super().note_user(user, session_id, min(ttl, 1000 * SECOND))


@caught_by("of_logins_in_threads_none_is_lost")
class NotesWithoutALock(ReferenceStorage):
    def note_user(self, user: str, session_id: str, ttl: int) -> None:
        name = users.index_name(user)
        index = self.load_record(name, ttl)
        entries = {} if index is None else index.to_dict()
        time.sleep(0.001)
        self.put(name, Record.build({**entries, session_id: 0}, self.now_ns()), ttl)


@caught_by("a_revoked_session_is_not_written_back")
class SessionsOfUsersComeBack(ReferenceStorage):
    def commit_record(self, session_id: str, base: Record, delta: Delta, ttl: int) -> Record | None:
        if self.live(session_id) is None and users.USER_KEY in base:
            self.put(session_id, base, ttl)
        return super().commit_record(session_id, base, delta, ttl)


@caught_by("a_list_of_sessions_keeps_none_of_them_alive")
class PeeksAreUses(ReferenceStorage):
    def peek_record(self, session_id: str, ttl: int) -> Record | None:
        return self.load_record(session_id, ttl)


@caught_by("a_peek_shows_what_a_load_would")
class PeeksShowACopyOfAnotherBirth(ReferenceStorage):
    def peek_record(self, session_id: str, ttl: int) -> Record | None:
        record = super().peek_record(session_id, ttl)
        return None if record is None else changed(record, birth=0)


@caught_by("a_peek_follows_an_old_id_for_its_grace_time")
class PeeksUnderTheNewestIdOnly(ReferenceStorage):
    def peek_record(self, session_id: str, ttl: int) -> Record | None:
        return super().peek_record(session_id, ttl) if self.resolve(session_id) == session_id else None


@caught_by("a_peek_does_not_see_the_expired", "expired_sessions_are_not_listed")
class PeeksSeeTheExpired(ReferenceStorage):
    def peek_record(self, session_id: str, ttl: int) -> Record | None:
        slot = self.slots.get(session_id)
        return None if slot is None else slot.record


@caught_by(
    "a_locator_names_the_session_in_every_step", "revoke_ends_all_sessions_of_a_user_but_the_one_to_keep"
)
class DoesNotKnowItsOwnLocators(ReferenceStorage):
    def locator(self, session_id: str) -> str:
        return locator(session_id)


@caught_by("no_client_can_present_what_names_a_session_or_a_user_at_rest")
class TakesHashesForIds(ReferenceStorage):
    """A locator that looks like an id: whoever reads the index is logged in."""

    def locator(self, session_id: str) -> str:
        name = storage_key(session_id) if len(session_id) != 64 else session_id
        if session_id in self.slots:
            self.slots[name] = self.slots[session_id]
        return name


@caught_by("the_index_of_a_user_holds_no_id")
class IndexesHoldIds(ReferenceStorage):
    def raw_dump(self) -> bytes:
        indexes = [slot.record.to_dict() for name, slot in self.slots.items() if users.is_index(name)]
        return repr(indexes).encode()


@caught_by("the_index_of_a_user_is_no_session")
class CountsIndexes(ReferenceStorage):
    def __len__(self) -> int:
        return len(self.slots)


# ---- rules that no storage can break by itself ---------------------------------------------------------

# The session does all the work of these; on a storage they fail only if it does not store at all. They belong
# to the contract because a storage may bring the session down with it.
ABOUT_SESSIONS = frozenset(
    """
    a_change_during_a_save_is_saved_by_the_next
    a_change_in_place_after_a_save_is_committed_by_the_next
    a_change_in_place_during_a_save_is_saved_by_the_next
    a_change_in_place_that_is_undone_is_no_change
    a_change_while_a_save_is_awaited_is_saved_by_the_next
    a_commit_is_tried_again_after_a_failure
    a_create_is_tried_again_after_a_failure
    a_create_whose_answer_was_lost_is_tried_again
    a_cycle_is_refused
    a_default_is_not_stored
    a_failed_close_surfaces_and_leaves_the_stored_session_intact
    a_failed_commit_surfaces_and_leaves_the_stored_session_intact
    a_failed_destroy_surfaces
    a_failed_load_is_not_an_empty_session
    a_failed_load_keeps_the_clients_cookie
    a_failed_load_leaves_the_session_as_it_was
    a_failed_rotation_surfaces_and_leaves_the_old_id_alive
    a_failed_touch_surfaces_and_leaves_the_stored_session_intact
    a_first_commit_is_one_write
    a_fresh_id_has_43_url_safe_characters
    a_handle_costs_no_storage_step
    a_key_that_is_no_str_is_a_type_error
    a_later_value_during_a_save_is_saved_by_the_next
    a_load_is_tried_again_after_a_failure
    a_lone_surrogate_in_a_key_is_refused
    a_malformed_id_cannot_be_chosen
    a_malformed_id_opens_a_new_session
    a_manager_that_is_not_strict_adopts_an_unknown_id
    a_missing_key_says_nothing_but_the_key
    a_new_session_has_no_times
    a_new_session_is_no_longer_new_after_its_first_save
    a_new_session_rotates_to_an_id_that_its_first_commit_uses
    a_removal_during_a_save_is_saved_by_the_next
    a_rotation_whose_answer_was_lost_makes_no_second_session
    a_second_save_writes_nothing
    a_session_sees_its_own_changes_before_the_commit
    a_session_up_to_max_bytes_is_stored
    a_session_without_its_own_ttl_has_the_managers
    a_sessions_own_ttl_is_read_back
    a_started_session_keeps_its_data_when_another_destroys_it
    a_started_session_keeps_what_it_started_with
    a_storage_failure_holds_no_id
    a_value_of_another_type_is_refused_by_set
    a_value_of_another_type_put_in_place_is_refused_by_the_commit
    a_value_that_was_read_is_a_private_copy
    a_value_that_was_set_is_copied_by_the_commit
    a_write_after_close_raises_session_closed
    an_async_with_block_commits
    an_exception_discards_the_changes
    an_exception_in_an_async_with_block_discards
    an_id_chosen_by_the_server_finds_its_session
    an_id_chosen_by_the_server_is_kept
    close_commits
    closing_after_a_failed_load_writes_nothing
    commit_answers_with_what_is_stored_now
    discarded_changes_are_not_committed
    every_first_access_surfaces_a_failed_load
    expires_at_is_never_later_than_the_absolute_age
    expires_at_is_the_last_use_plus_the_ttl
    fresh_ids_differ
    load_answers_with_copies
    no_id_can_be_chosen_after_the_start
    no_storage_ever_sees_a_malformed_id
    nobody_else_sees_changes_before_the_commit
    one_list_under_two_keys_becomes_two
    reading_writes_nothing
    save_goes_on_where_it_stands
    the_first_access_is_one_read
    the_managers_id_function_draws_fresh_ids
    the_sessions_id_function_draws_its_fresh_ids
    threads_that_share_one_session_object_lose_no_write
    two_saves_of_one_session_at_once_store_it_once
    """.split()  # noqa: SIM905 - one a line is what a diff shows best
)

# ---- the proof -----------------------------------------------------------------------------------------


def delta_like(delta: Delta, **other: Any) -> Delta:
    """The same changes, except for this, and without a limit."""
    same = {"values": delta.values, "removed": delta.removed, "cleared": delta.cleared, "ttl": delta.ttl}
    return Delta(**{**same, **other})


class InReference(Kit):
    max_steps = 6
    storage_class: ClassVar[type[Storage]] = ReferenceStorage

    def make_storage(self) -> Storage:
        return self.storage_class()

    def corrupt_record(self, storage: Storage, session_id: str) -> bool:
        if isinstance(storage, Bytes):
            storage.damage(session_id)
        return isinstance(storage, Bytes)


class Reference(InReference, StorageContract):
    pass


class AsyncReference(InReference, AsyncStorageContract):
    pass


class TestReferenceStorage(Reference):
    """Without this, a kit that fails on everything would pass."""


class TestReferenceStorageAsync(AsyncReference):
    pass


class TestReferenceStorageOfBytes(InReference, HygieneRules):
    storage_class = Bytes


class WholeSeconds(Kit):
    """What milliseconds would find broken is right for a storage that says it counts seconds."""

    millisecond_expiry = False


class TestStorageThatCountsWholeSeconds(WholeSeconds, InReference, ExpiryRules, GraceRules):
    storage_class = CountsWholeSeconds


class TestStorageThatRoundsUpToWholeSeconds(WholeSeconds, InReference, ExpiryRules, GraceRules):
    storage_class = RoundsUpToWholeSeconds


class TestStorageThatKnowsNoGrace(InReference, RotationRules, GraceRules, InterleavingRules):
    max_steps = 4
    supports_grace = False
    storage_class = KnowsNoGrace


def cases(rule: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """The arguments of every case of a rule, as pytest would give them."""
    axes: list[list[dict[str, Any]]] = []
    for mark in getattr(rule, "pytestmark", ()):
        names, values = mark.args
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        rows = [row if len(names) > 1 else (row,) for row in values]
        axes.append([dict(zip(names, row, strict=True)) for row in rows])
    for chosen in itertools.product(*axes):
        yield {name: value for row in chosen for name, value in row.items()}


def fails(contract: type[StorageContract], rule: str, directory: Path) -> bool:
    """Whether some case of this rule fails: an assertion, or an error that is none of the contract's."""
    skipped = 0
    for arguments in cases(getattr(contract, f"test_{rule}")):
        kit = contract()
        try:
            with kit.running(lambda: directory):
                getattr(kit, f"test_{rule}")(**arguments)
        except pytest.skip.Exception:
            skipped += 1
        except (Exception, pytest.fail.Exception):
            return True
    assert not skipped, "the rule was skipped, so it proves nothing"
    return False


@pytest.fixture(scope="module")
def first_find() -> Iterator[None]:
    """That hypothesis finds something is enough; a small example of it is not wanted."""
    hypothesis.settings.register_profile("first find", phases=[hypothesis.Phase.generate])
    hypothesis.settings.load_profile("first find")
    yield
    hypothesis.settings.load_profile("default")


@pytest.mark.parametrize(
    ("storage", "rule"), BROKEN, ids=[f"{storage.__name__}-{rule}" for storage, rule in BROKEN]
)
@pytest.mark.usefixtures("first_find")
def test_the_kit_catches(storage: type[Storage], rule: str, tmp_path: Path) -> None:
    base = (
        Reference if hasattr(Reference, f"test_{rule}") and not overrides_a_twin(storage) else AsyncReference
    )
    flags = {
        "storage_class": storage,
        "shared_between_processes": storage is IsOneProcesssOwn,
    }
    contract = type(f"Test{storage.__name__}", (base,), flags)
    assert fails(contract, rule, tmp_path)


def overrides_a_twin(storage: type[Storage]) -> bool:
    return any(
        name in vars(part) for part in storage.__mro__[:-2] for name in ("acommit_record", "aload_record")
    )


def test_every_rule_is_broken_by_a_storage_or_known_to_be_about_sessions() -> None:
    rules = {name.removeprefix("test_") for name in dir(AsyncStorageContract) if name.startswith("test_")}
    broken = {rule for _, rule in BROKEN}
    assert broken | ABOUT_SESSIONS == rules
    assert not broken & ABOUT_SESSIONS


def test_no_two_groups_of_rules_use_one_name() -> None:
    """They are mixed into one class, where one would quietly replace the other."""
    seen: dict[str, type] = {}
    for group in StorageContract.__bases__[:-1]:
        for name in vars(group):
            if not name.startswith("__"):
                assert name not in seen, f"{name} of {group.__name__} is also in {seen[name].__name__}"
                assert not hasattr(StorageContract.__bases__[-1], name), (
                    f"{group.__name__} replaces {name} of the kit"
                )
                seen[name] = group
