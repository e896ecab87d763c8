# Values: which ones a session can hold, and how a value passes between a caller and a committed record.
#
#   freeze   caller -> record   checks types and depth, copies every mutable container, weighs the result
#   thaw     record -> caller   a private copy of every mutable container
#   same     has a thawed copy been changed in place? strict: 1, 1.0 and True differ, order of keys counts
#
# Frozen containers hold only supported values and are never handed out, so no cycle can run through them: they are
# taken off the collector's list, and a million sessions with lists in them cost a collection nothing.

cdef enum:
    DEPTH_MAX = 64

cdef struct Step:               # one step of the path to the value in hand, kept on the C stack for error messages
    const Step *up
    PyObject *key               # NULL: `index` counts
    Py_ssize_t index

cdef struct Freezing:
    Py_ssize_t weight
    bint mutable                # a list, dict or set was met: readers need copies
    bint any_object             # MemoryStorage(any_object=True): unknown types are shared by reference
    bint adopt                  # nobody else has these containers: no copies


cdef object path_of(const Step *step):
    parts = []
    while step != NULL:
        parts.append(f"[{<object>step.key!r}]" if step.key != NULL else f"[{step.index}]")
        step = step.up
    return "".join(reversed(parts))


cdef int refuse(const Step *path, str what) except -1:
    raise errors.NotSerializable(path_of(path), what)


cdef object freeze(object value, Freezing *f, const Step *path, int depth):
    """The immutable form of `value`: itself, or a private copy. Raises NotSerializable with the path of keys."""
    cdef type kind = type(value)
    if value is None or kind is bool:
        f.weight += 1
        return value
    if kind is str:
        f.weight += 5 + text_weight(<str>value, path)
        return value
    if kind is int:
        f.weight += 9 if -0x8000000000000000 <= value < 0x8000000000000000 else 5 + value.bit_length() // 8
        return value
    if kind is float:
        f.weight += 9
        return value
    if kind is bytes:
        f.weight += 5 + PyBytes_GET_SIZE(value)
        return value
    if kind is list or kind is dict or kind is set or kind is tuple or kind is frozenset:
        if depth >= DEPTH_MAX:
            refuse(path, f"a {kind.__name__} nested deeper than {DEPTH_MAX}, or one that contains itself")
        f.weight += 5
        if kind is list:
            return freeze_list(<list>value, f, path, depth + 1)
        if kind is dict:
            return freeze_dict(<dict>value, f, path, depth + 1)
        if kind is tuple:
            return freeze_tuple(<tuple>value, f, path, depth + 1)
        return freeze_set(value, f, path, depth + 1)
    if is_plain_scalar(value, kind, path, f.any_object):
        f.weight += 32
        return value
    if f.any_object:
        f.weight += 64
        return value
    refuse(path, f"a value of type {kind.__qualname__}")


cdef Py_ssize_t text_weight(str text, const Step *path) except -1:
    """Length in UTF-8. Refuses lone surrogates, which no storage could write."""
    if PyUnicode_IS_ASCII(text):
        return PyUnicode_GET_LENGTH(text)
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError:
        refuse(path, "a str with a lone surrogate, which is not valid text")


cdef bint is_plain_scalar(object value, type kind, const Step *path, bint any_object) except -1:
    """The immutable standard types that are not containers; a time zone must be one that can be named."""
    if PyDateTime_CheckExact(value) or PyTime_CheckExact(value):
        zone = value.tzinfo
        if zone is None or type(zone) is timezone or any_object:
            return True
        zoneinfo = modules.get("zoneinfo")
        if zoneinfo is not None and type(zone) is zoneinfo.ZoneInfo and zone.key is not None:
            return True
        refuse(path, f"a {kind.__name__} whose time zone is of type {type(zone).__qualname__}")
    if PyDate_CheckExact(value) or PyDelta_CheckExact(value):
        return True
    return is_lazy_type(kind, "decimal", "Decimal") or is_lazy_type(kind, "uuid", "UUID")


cdef bint is_lazy_type(type kind, str module, str name) except -1:
    """Whether `kind` is that class, without importing its module: if there is such a value, it is imported."""
    loaded = modules.get(module)
    return loaded is not None and kind is getattr(loaded, name, None)


def require_storable(value, /):
    """Raise NotSerializable, with the path of keys, if this is no value that comes back unchanged."""
    cdef Freezing f = Freezing(0, False, False, False)
    freeze(value, &f, NULL, 0)


cdef object freeze_list(list value, Freezing *f, const Step *path, int depth):
    cdef list frozen = value if f.adopt else value[:]   # from here on nobody else sees what we walk over
    cdef Step step = Step(path, NULL, 0)
    f.mutable = True
    for step.index in range(len(frozen)):
        frozen[step.index] = freeze(frozen[step.index], f, &step, depth)
    untrack(frozen, f)
    return frozen


cdef object freeze_dict(dict value, Freezing *f, const Step *path, int depth):
    cdef dict frozen = value if f.adopt else value.copy()
    cdef Step step = Step(path, NULL, 0)
    f.mutable = True
    for key, item in frozen.items():
        step.key = <PyObject *>key
        freeze_member(key, f, &step, depth)
        copy = freeze(item, f, &step, depth)
        if copy is not item:
            frozen[key] = copy              # an existing key: the iteration goes on undisturbed
    untrack(frozen, f)
    return frozen


cdef object freeze_tuple(tuple value, Freezing *f, const Step *path, int depth):
    cdef list items = None
    cdef Step step = Step(path, NULL, 0)
    for step.index in range(len(value)):
        item = value[step.index]
        copy = freeze(item, f, &step, depth)
        if items is not None:
            items.append(copy)
        elif copy is not item:
            items = [*value[:step.index], copy]
    if items is not None:
        value = tuple(items)
    if items is not None or f.adopt:
        untrack(value, f)
    return value


cdef object freeze_set(object value, Freezing *f, const Step *path, int depth):
    cdef Step step = Step(path, NULL, 0)
    frozen = value if f.adopt or type(value) is frozenset else value.copy()
    for item in frozen:
        step.key = <PyObject *>item
        freeze_member(item, f, &step, depth)
    if type(frozen) is set:
        f.mutable = True
    if type(frozen) is set or f.adopt:
        untrack(frozen, f)
    return frozen


cdef int freeze_member(object item, Freezing *f, const Step *path, int depth) except -1:
    """A dict key or set member: hashable, so it must freeze to itself."""
    cdef bint mutable = f.mutable
    f.mutable = False
    freeze(item, f, path, depth)
    if f.mutable:
        refuse(path, "a dict key or set member that holds something mutable")
    f.mutable = mutable
    return 0


cdef int untrack(object container, const Freezing *f) except -1:
    if not f.any_object:                    # an arbitrary object inside could close a cycle: leave those tracked
        PyObject_GC_UnTrack(<PyObject *>container)
    return 0


cdef object thaw(object frozen):
    cdef type kind = type(frozen)
    cdef Py_ssize_t i
    if kind is list:
        copy = (<list>frozen)[:]
        for i in range(len(<list>copy)):
            if is_container((<list>copy)[i]):
                (<list>copy)[i] = thaw((<list>copy)[i])
        return copy
    if kind is dict:
        copy = (<dict>frozen).copy()
        for key, item in (<dict>frozen).items():
            if is_container(item):
                (<dict>copy)[key] = thaw(item)
        return copy
    if kind is set:
        return frozen.copy()
    if kind is tuple:
        return tuple([thaw(item) if is_container(item) else item for item in <tuple>frozen])
    return frozen


cdef inline bint is_container(object value) noexcept:
    cdef type kind = type(value)
    return kind is list or kind is dict or kind is set or kind is tuple


cdef bint same(object a, object b) except -1:
    """Equal in type, value and order. Immutable values of rarer types count as changed unless identical."""
    cdef type kind = type(a)
    cdef Py_ssize_t i
    if a is b:
        return True
    if type(b) is not kind:
        return False
    if kind is str or kind is int or kind is bytes:
        return a == b
    if kind is float:
        return a == b and a != 0.0          # 0.0 and -0.0 differ; a NaN that is not the same object counts as new
    if kind is list:
        if len(<list>a) != len(<list>b):
            return False
        for i in range(len(<list>a)):
            if i >= len(<list>a) or not same((<list>a)[i], (<list>b)[i]):
                return False
        return True
    if kind is tuple:
        if len(<tuple>a) != len(<tuple>b):
            return False
        for i in range(len(<tuple>a)):
            if not same((<tuple>a)[i], (<tuple>b)[i]):
                return False
        return True
    if kind is dict:
        if len(<dict>a) != len(<dict>b):
            return False
        for (key_a, item_a), (key_b, item_b) in zip((<dict>a).items(), (<dict>b).items()):
            if not same(key_a, key_b) or not same(item_a, item_b):
                return False
        return True
    if kind is set:
        return len(a) == len(b) and a == b and same_members(a, b)
    return False


cdef bint same_members(object a, object b) except -1:
    """Sets that compare equal may still hold 1 where the other holds True."""
    cdef set kinds = {(type(item), item) for item in a}
    return all([(type(item), item) in kinds for item in b])
