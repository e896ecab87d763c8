"""FakeClock, FaultyStorage and the schedules do what they say; the kit rests on them."""

import asyncio

import pytest

from cysession import Manager, MemoryStorage, StorageFull, StorageUnavailable
from cysession.testing import FakeClock, FaultyStorage
from cysession.testing.schedules import Step, World, describe, schedules


def stored(manager: Manager) -> str:
    with manager.new() as session:
        session["user"] = "anna"
    return session.id


@pytest.fixture
def storage() -> FaultyStorage:
    return FaultyStorage(MemoryStorage())


@pytest.fixture
def manager(storage: FaultyStorage) -> Manager:
    return Manager(ttl=100, storage=storage)


# ---- the clock -------------------------------------------------------------------------------------------


def test_a_clock_stands_still() -> None:
    clock = FakeClock()
    assert clock() == clock() == 1_700_000_000.0


def test_a_clock_moves_by_seconds_and_milliseconds_exactly() -> None:
    clock = FakeClock(start=0)
    for _ in range(1000):
        clock.advance(ms=1)
    assert clock() == 1.0
    clock.advance(0.25, ms=750)
    assert clock() == 2.0


def test_a_clock_can_be_turned_back() -> None:
    clock = FakeClock(start=100)
    clock.advance(-40)
    assert clock() == 60.0


# ---- the storage that fails ------------------------------------------------------------------------------


def test_a_faulty_storage_works_until_it_is_told_to_fail(manager: Manager, storage: FaultyStorage) -> None:
    session_id = stored(manager)
    assert manager.new(session_id)["user"] == "anna"
    assert [step.name for step in storage.steps] == ["create", "load"]
    assert [step.name for step in storage.writes] == ["create"]


def test_a_step_fails_once_and_stores_nothing(manager: Manager, storage: FaultyStorage) -> None:
    storage.fail("create")
    with pytest.raises(StorageUnavailable):
        stored(manager)
    assert len(storage.inner) == 0  # type: ignore[arg-type]
    stored(manager)


def test_a_step_fails_after_it_was_carried_out(manager: Manager, storage: FaultyStorage) -> None:
    storage.fail("create", after=True)
    with pytest.raises(StorageUnavailable):
        stored(manager)
    assert len(storage.inner) == 1  # type: ignore[arg-type]


def test_a_fault_lets_some_calls_pass_and_strikes_some(manager: Manager, storage: FaultyStorage) -> None:
    session_id = stored(manager)
    storage.fail("load", skip=1, times=2)
    outcomes = []
    for _ in range(4):
        try:
            manager.new(session_id).load()
            outcomes.append("passed")
        except StorageUnavailable:
            outcomes.append("failed")
    assert outcomes == ["passed", "failed", "failed", "passed"]


def test_everything_fails_until_it_is_healed(manager: Manager, storage: FaultyStorage) -> None:
    session_id = stored(manager)
    storage.fail(times=None)
    for _ in range(3):
        with pytest.raises(StorageUnavailable):
            manager.new(session_id).load()
    storage.heal()
    assert manager.new(session_id)["user"] == "anna"


def test_a_fault_is_of_the_class_that_was_asked_for(manager: Manager, storage: FaultyStorage) -> None:
    storage.fail("create", error=StorageFull)
    with pytest.raises(StorageFull):
        stored(manager)


def test_a_step_that_does_not_exist_is_refused(storage: FaultyStorage) -> None:
    with pytest.raises(ValueError, match="load, touch, create, commit, delete, rename"):
        storage.fail("save")  # type: ignore[arg-type]


def test_somebody_else_may_act_before_a_step(manager: Manager, storage: FaultyStorage) -> None:
    met = []
    storage.on_step = lambda name, session_id: met.append((name, session_id))
    session_id = stored(manager)
    assert met == [("create", session_id)]


def test_async_steps_wait_and_fail_too(manager: Manager, storage: FaultyStorage) -> None:
    session_id = stored(manager)
    storage.turns = 2
    storage.fail("load", skip=1)

    async def twice() -> None:
        first = asyncio.ensure_future(manager.new(session_id).aload())
        await asyncio.sleep(0)
        assert not first.done()
        await first
        with pytest.raises(StorageUnavailable):
            await manager.new(session_id).aload()

    asyncio.run(twice())


# ---- the schedules ---------------------------------------------------------------------------------------


def test_without_the_rule_of_states_every_schedule_is_there() -> None:
    """A begins; `set`, `save`, `touch` and `regenerate` want an open session."""
    assert {schedule for schedule in schedules(2) if len(schedule) == 1} == {
        (Step(0, "load"),),
        (Step(0, "destroy"),),
    }
    assert len([schedule for schedule in schedules(2, history=99) if len(schedule) == 2]) == 12
    assert set(schedules(4)) <= set(schedules(4, history=99))


def test_up_to_five_steps_no_outcome_is_left_out() -> None:
    """Every state that any schedule reaches is reached by one of those that are played."""
    for grace in (False, True):
        assert shapes(schedules(4, grace=grace), grace) == shapes(
            schedules(4, grace=grace, history=99), grace
        )


def shapes(played: tuple[tuple[Step, ...], ...], grace: bool) -> set[object]:
    found = set()
    for schedule in played:
        world = World(grace)
        for number, step in enumerate(schedule, 1):
            world.step(step, number)
        found.add(world.shape())
    return found


def test_a_schedule_reads_as_a_sentence() -> None:
    assert describe((Step(0, "load"), Step(1, "destroy"), Step(0, "save"))) == "A load, B destroy, A save"


def test_the_model_knows_that_destroy_is_final() -> None:
    world = World(grace=False)
    played = [Step(0, "load"), Step(0, "set"), Step(1, "load"), Step(1, "destroy"), Step(0, "save")]
    assert [world.step(step, number) for number, step in enumerate(played, 1)] == [
        True,
        True,
        True,
        True,
        False,
    ]
    assert world.stored(0) is None


def test_the_model_merges_by_key() -> None:
    world = World(grace=False)
    played = [
        Step(0, "load"),
        Step(1, "load"),
        Step(0, "set"),
        Step(1, "set"),
        Step(1, "save"),
        Step(0, "save"),
    ]
    assert all(world.step(step, number) for number, step in enumerate(played, 1))
    assert world.stored(0) == {"a": 3, "b": 4, "both": 3}
