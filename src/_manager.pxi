# ManagerCore: the compiled half of cysession.Manager. Policy: what its sessions need of it.

cdef str USER_KEY = "_bound_user"

cdef enum Event:                # what sessions count and report
    CREATED = 0
    DESTROYED = 1
    REGENERATED = 2
    UNKNOWN_ID = 3

cdef enum:
    EVENTS = 4

cdef tuple EVENT_NAMES = ("created", "destroyed", "regenerated", "unknown_id")


@cython.final
@cython.internal
cdef class Policy:
    """What sessions need of their manager. They hold this, not the manager: see ManagerCore."""
    cdef SessionTable table         # None: the storage is driven through the record protocol
    cdef Map *map                   # the table's C side, or NULL
    cdef object storage
    cdef bint wall                  # the storage takes its times from `clock`, or without one from the wall
    cdef object fresh_id            # () -> str
    cdef int64_t ttl
    cdef int64_t max_age            # 0: none
    cdef int64_t grace
    cdef Py_ssize_t max_bytes
    cdef bint strict
    cdef bint any_object
    cdef object tell                # (event, id, user), when somebody listens; else None
    cdef object limit_user          # (session) after a commit that bound it to a user; None: no limit
    cdef object alimit_user
    cdef int64_t tally[EVENTS]
    cdef char padding[64]           # no two policies share a cache line


cdef class ManagerCore:
    """The compiled base of `cysession.Manager`, which documents it.

    On free-threaded builds every thread that makes a session writes to the reference count of what the session
    holds. One count for all threads would cost more than the rest of a request, so there are STRIPES policies with
    equal contents, and a thread uses one of them. With a GIL there is one.
    """
    cdef object __weakref__
    cdef list policies                  # all there ever were: another thread may just be reading an old one
    cdef PyObject *stripes[STRIPES]     # borrowed from `policies`

    def __cinit__(self, *args, **kwargs):
        self.policies = []
        self._adopt([Policy.__new__(Policy) for _ in range(STRIPES)])

    def _adopt(self, list policies):
        cdef int i
        self.policies += policies
        for i in range(STRIPES):
            self.stripes[i] = <PyObject *>policies[i]

    def _set_policy(self, *, fresh_id, ttl, max_age, grace, max_bytes, strict):
        """Before the first session."""
        cdef Policy p
        for p in self.policies:
            p.fresh_id = fresh_id
            p.ttl = ns_of(ttl, "ttl")
            p.max_age = 0 if max_age is None else ns_of(max_age, "max_age")
            p.grace = ns_of_or_zero(grace, "grace")
            p.max_bytes = max_bytes
            p.strict = strict

    def _set_storage(self, storage, SessionTable table, any_object, wall):
        """Sessions made before go on with the storage they have."""
        cdef Policy old, p
        cdef list policies = []
        for old in self.policies[len(self.policies) - STRIPES:]:
            p = Policy.__new__(Policy)
            p.storage = storage
            p.wall = wall
            p.table = table
            p.map = NULL if table is None else &table.map
            p.any_object = any_object
            p.fresh_id = old.fresh_id
            p.ttl, p.max_age, p.grace = old.ttl, old.max_age, old.grace
            p.max_bytes, p.strict = old.max_bytes, old.strict
            p.tell, p.limit_user, p.alimit_user = old.tell, old.limit_user, old.alimit_user
            policies.append(p)
        self._adopt(policies)

    def _set_tell(self, tell):
        """Report events of sessions, also of those there are, to `tell(event, id, user or None)`."""
        cdef Policy p
        for p in self.policies:
            p.tell = tell

    def _set_user_limit(self, limit_user, alimit_user):
        """Call one of them with every session whose commit has bound it to a user."""
        cdef Policy p
        for p in self.policies:
            p.limit_user, p.alimit_user = limit_user, alimit_user

    def _tally(self):
        """How often each event of sessions happened."""
        cdef Policy p
        cdef int64_t sums[EVENTS]
        cdef int i
        memset(sums, 0, sizeof(sums))
        for p in self.policies:
            for i in range(EVENTS):
                sums[i] += counter_read(&p.tally[i])
        return {EVENT_NAMES[i]: sums[i] for i in range(EVENTS)}

    def _set_ttl(self, ttl):
        cdef Policy p
        for p in self.policies:
            p.ttl = ns_of(ttl, "ttl")

    @property
    def _ttl_seconds(self):
        return (<Policy>self.stripes[0]).ttl / 1e9

    @property
    def storage(self):
        return (<Policy>self.stripes[0]).storage

    def new(self, session_id=""):
        """A handle on the session with this id, or on a new one ("" or None). No I/O, nothing allocated but the handle.

        `session_id` is what a client presented: untrusted. Unless it names a live record it is dropped and the
        session is new (GoFrame's Manager.New, but strict).
        """
        cdef Session s = Session.__new__(Session)
        s.policy = <Policy>self.stripes[thread_stripe()]
        if session_id is not None:
            if type(session_id) is not str:
                raise TypeError(f"a session id is a str, not {type(session_id).__name__}")
            if PyUnicode_GET_LENGTH(session_id):
                s.name = s.presented = session_id
        return s
