"""Every interleaving of two clients of one session, and the reference model that says what has to come out.

Both clients hold the id of one stored session. A step is one call by one client:

    load        a new request: a fresh handle on the id this client holds; what it had not saved is forgotten
    set         the session gets a value under a key of the client's own, and under one that both write
    touch       save() with nothing to write
    save        save() with something to write
    destroy     destroy(), also on a handle that was never loaded
    regenerate  regenerate_id()

`schedules(8)` gives sequences of such steps such that every sequence of up to 8 steps is equivalent to one of
them. Equivalent are sequences of which one follows from the other by these rules, each of which is about the
*model*, so that a storage which keeps the contract cannot tell them apart:

    names     the clients change places
    local     `set` talks to no storage, so it changes places with the other client's steps: it is only tried
              directly after another step of the same client; two in a row are one
    idle      the same client loads, touches or destroys twice in a row: once is enough
    state     the model is in the same state, up to the names of ids and values, *and* the last `history`
              steps are the same. The state counts how an id died: destroyed and rotated are two states.

With `history` >= the number of steps the last rule drops out. `history=2` means: whatever two steps do to
each other is tried in every state that can be reached at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal, NamedTuple, get_args

__all__ = ["OWN_KEYS", "SHARED_KEY", "Step", "World", "describe", "schedules"]

Op = Literal["load", "set", "touch", "save", "destroy", "regenerate"]
Data = dict[str, int]  # values are the number of the step that wrote them; 0 was there at the start

OWN_KEYS: Final = ("a", "b")
SHARED_KEY: Final = "both"


class Step(NamedTuple):
    client: int  # 0 or 1
    op: Op


Schedule = tuple[Step, ...]


def describe(schedule: Schedule) -> str:
    """ "A load, B destroy, A set, A save" """
    return ", ".join(f"{'AB'[client]} {op}" for client, op in schedule)


# ---- the reference model ---------------------------------------------------------------------------------


@dataclass
class Client:
    """What one client holds and has in hand. Ids are small numbers here; None: none."""

    cookie: int | None = 0  # the id it presents with its next request
    open: bool = False
    name: int | None = None  # the id its open session answers to
    base: Data | None = None  # what that session knows to be stored; None: nothing, it is new
    pending: Data = field(default_factory=dict)

    def view(self) -> Data:
        """What the open session has to show."""
        return {**(self.base or {}), **self.pending}

    def forget(self) -> None:
        self.name, self.base, self.pending = None, None, {}

    def copy(self) -> "Client":
        return Client(self.cookie, self.open, self.name, self.base, self.pending)


class World:
    """What is stored and what each client holds: design rules 3 to 6 in a few lines of Python."""

    def __init__(self, grace: bool) -> None:
        self.grace = grace  # a rotated id leads to the new one
        self.records: dict[int, Data] = {0: {"a": 0, "b": 0, "both": 0}}
        self.aliases: dict[int, int] = {}
        self.ends: dict[int, str] = {}  # how an id that is no more came to its end
        self.ids = 1  # ids given out so far
        self.clients = (Client(), Client())

    def copy(self) -> "World":
        other = World.__new__(World)
        other.grace, other.ids = self.grace, self.ids
        other.records, other.aliases, other.ends = dict(self.records), dict(self.aliases), dict(self.ends)
        other.clients = (self.clients[0].copy(), self.clients[1].copy())
        return other

    def fresh_id(self) -> int:
        self.ids += 1
        return self.ids - 1

    def resolve(self, name: int | None) -> int | None:
        """The id under which this id's record is stored; None: it has none."""
        while name is not None and name in self.aliases:
            name = self.aliases[name]
        return name if name in self.records else None

    def stored(self, name: int | None) -> Data | None:
        """What a request that presents this id has to find."""
        target = self.resolve(name)
        return None if target is None else self.records[target]

    def step(self, step: Step, number: int) -> bool:
        """Carry out a step. False: it has to raise SessionGone, and changes nothing."""
        client = self.clients[step.client]
        match step.op:
            case "load":
                client.forget()
                client.open = True
                client.base = self.stored(client.cookie)
                client.name = None if client.base is None else client.cookie
            case "set":
                client.pending = {OWN_KEYS[step.client]: number, SHARED_KEY: number}
            case "save":
                return self._save(client)
            case "destroy":
                self._destroy(client)
            case "regenerate":
                return self._regenerate(client)
            case "touch":
                pass
        return True

    def _save(self, client: Client) -> bool:
        if client.base is None:
            if client.name is None:
                client.name = self.fresh_id()
            target: int | None = client.name
            before: Data = {}
        else:
            target = self.resolve(client.name)
            if target is None:
                return False
            before = self.records[target]
        assert target is not None
        self.records[target] = client.base = {**before, **client.pending}
        client.pending = {}
        client.cookie = client.name
        return True

    def _destroy(self, client: Client) -> None:
        target = self.resolve(client.name if client.open else client.cookie)
        if target is not None:
            del self.records[target]
            self.ends[target] = "destroyed"
        client.forget()
        client.open = True

    def _regenerate(self, client: Client) -> bool:
        if client.base is not None:
            target = self.resolve(client.name)
            if target is None:
                return False
            fresh = self.fresh_id()
            self.records[fresh] = self.records.pop(target)
            if self.grace:
                self.aliases[target] = fresh
            else:
                self.ends[target] = "rotated"
            client.name = fresh
        else:
            client.name = self.fresh_id()
        client.cookie = client.name
        return True

    def shape(self) -> object:
        """This state up to the names of ids and values: equal shapes have equal futures."""
        ids: dict[int, int] = {}
        values: dict[int, int] = {}

        def data(of: Data | None) -> object:
            return (
                None if of is None else tuple((k, values.setdefault(v, len(values))) for k, v in of.items())
            )

        def name(of: int | None) -> object:
            if of is None or of in ids:
                return None if of is None else ids[of]
            ids[of] = len(ids)
            if of in self.aliases:
                return ids[of], name(self.aliases[of])
            return ids[of], data(self.records.get(of)), self.ends.get(of)

        return tuple(
            (c.open, name(c.cookie), name(c.name), data(c.base), data(c.pending)) for c in self.clients
        )


# ---- the schedules ---------------------------------------------------------------------------------------


def _next_ops(client: Client, number: int, last: Step | None) -> Iterator[Op]:
    """What a client may do, by the rules `local` and `idle` above."""
    mine = last.op if last is not None and last.client == number else None
    if mine != "load":
        yield "load"
    if client.open:
        if mine is not None and mine != "set":
            yield "set"
        if client.pending:
            yield "save"
        elif mine != "touch":
            yield "touch"
        yield "regenerate"
    if mine != "destroy":
        yield "destroy"


_STEPS: Final = {(client, op): Step(client, op) for client in (0, 1) for op in get_args(Op)}  # shared by all


@lru_cache(maxsize=8)
def schedules(max_steps: int = 8, *, grace: bool = False, history: int = 2) -> tuple[Schedule, ...]:
    """Sequences of 1 to `max_steps` steps, short ones first; see above for what is left out and why."""
    found: list[Schedule] = []
    seen: set[object] = set()
    front: list[tuple[Schedule, World]] = [((), World(grace))]
    for number in range(1, max_steps + 1):
        reached: list[tuple[Schedule, World]] = []
        for path, world in front:
            last = path[-1] if path else None
            for client in (0, 1) if path else (0,):
                for op in _next_ops(world.clients[client], client, last):
                    step = _STEPS[client, op]
                    after = world.copy()
                    after.step(step, number)
                    schedule = (*path, step)
                    found.append(schedule)
                    state = (after.shape(), schedule[max(0, len(schedule) - history) :])
                    if state not in seen:
                        seen.add(state)
                        reached.append((schedule, after))
        front = reached
    return tuple(found)
