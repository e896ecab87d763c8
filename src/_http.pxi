# What an HTTP adapter does for nearly every request: find the id that is presented, and let the response go with no more
# than Vary. Whatever is not plain is left to cysession._http, which knows the rules in full.

cdef extern from *:
    """
    #if defined(_WIN32)
    static inline const char *text_find(const char *in, Py_ssize_t in_len, const char *what, Py_ssize_t what_len) {
        const char *end = in + in_len - what_len + 1;      /* behind the last place where it can begin */
        if (what_len == 0) return in;
        while (in < end && (in = (const char *)memchr(in, what[0], (size_t)(end - in))) != NULL) {
            if (memcmp(in, what, (size_t)what_len) == 0) return in;
            in++;
        }
        return NULL;
    }
    #else      /* linear even for the worst header */
    static inline const char *text_find(const char *in, Py_ssize_t in_len, const char *what, Py_ssize_t what_len) {
        return (const char *)memmem(in, (size_t)in_len, what, (size_t)what_len);
    }
    #endif
    """
    const char *text_find(const char *text, Py_ssize_t text_len, const char *what, Py_ssize_t what_len) noexcept
    bint PyBytes_CheckExact(PyObject *o) noexcept
    PyObject *PyTuple_GET_ITEM(object pair, Py_ssize_t i) noexcept
    Py_ssize_t PyTuple_GET_SIZE(object pair) noexcept

cdef enum:
    STAMP_MAX = 12              # digits of the time of issue that a persistent cookie carries behind its id


cdef struct Presented:          # points into the header
    const char *id
    Py_ssize_t id_len
    int64_t stamp               # seconds; -1: none

cdef enum Found:
    NOTHING_THERE = 0
    PLAIN = 1
    LOOK_CLOSER = 2


def presented_id(headers, bytes carrier not None, bytes cookie):
    """The id in the only header called `carrier`, there in the only cookie called `cookie` (None: the whole value).

    None: the request presents no id. False: there is a choice to make or an odd spelling; the caller looks closer. So
    what this reads is the plain case and no more: (name, value) pairs of bytes with lower-case names, a cookie written
    as browsers write it, a value of id characters and perhaps a stamp of digits behind a dot, which is left out.
    """
    cdef Presented p
    cdef Found found
    value = carrier_value(headers, carrier)
    if type(value) is not bytes:
        return value
    found = find_in_value(<bytes>value, cookie, &p)
    return ascii_from(p.id, p.id_len) if found == PLAIN else None if found == NOTHING_THERE else False


def presented_stamp(bytes value not None, bytes cookie not None):
    """The stamp behind the id that `presented_id` finds in this value of the carrier header; -1: it has none."""
    cdef Presented p
    cdef Found found = find_in_value(value, cookie, &p)
    return p.stamp if found == PLAIN else None if found == NOTHING_THERE else False


def stamp_is_young(bytes value not None, bytes cookie not None, clock, double seconds):
    """Whether the stamp that `presented_stamp` finds is less than so many seconds old, and not from the future.

    clock: what tells the time, in seconds; None: the system.
    """
    cdef Presented p
    cdef int64_t now
    if find_in_value(value, cookie, &p) != PLAIN or p.stamp < 0:
        return False
    now = wall_now() // 1_000_000_000 if clock is None else int(clock())
    return p.stamp <= now < p.stamp + seconds


def carrier_value(headers, bytes carrier not None):
    """The value of the only header called `carrier`. None: there is none; False: look closer, as above."""
    cdef PyObject *value = NULL
    if type(headers) is list:
        for pair in <list>headers:
            if not carrier_seen(pair, carrier, &value):
                return False
    elif type(headers) is tuple:
        for pair in <tuple>headers:
            if not carrier_seen(pair, carrier, &value):
                return False
    else:
        return False
    return None if value == NULL else <object>value


cdef bint carrier_seen(object pair, bytes carrier, PyObject **value) noexcept:
    """Note the value if this is the header looked for. False: it is the second one, or no pair of bytes at all."""
    cdef PyObject *name
    if type(pair) is not tuple or PyTuple_GET_SIZE(pair) != 2:
        return False
    name = PyTuple_GET_ITEM(pair, 0)
    if not PyBytes_CheckExact(name):
        return False
    if PyBytes_GET_SIZE(<object>name) != PyBytes_GET_SIZE(carrier):
        return True
    if not bytes_equal(PyBytes_AS_STRING(<object>name), PyBytes_AS_STRING(carrier), PyBytes_GET_SIZE(carrier)):
        return True
    if value[0] != NULL or not PyBytes_CheckExact(PyTuple_GET_ITEM(pair, 1)):
        return False
    value[0] = PyTuple_GET_ITEM(pair, 1)
    return True


cdef Found find_in_value(bytes header, bytes cookie, Presented *found) noexcept:
    cdef const char *start = PyBytes_AS_STRING(header)
    cdef const char *end = start + PyBytes_GET_SIZE(header)
    cdef const char *p
    cdef Py_ssize_t n
    if cookie is None:
        return read_plain(start, end - start, c"\0", found)
    n = PyBytes_GET_SIZE(cookie)
    p = text_find(start, end - start, PyBytes_AS_STRING(cookie), n)
    if p == NULL:
        return NOTHING_THERE
    if text_find(p + 1, end - p - 1, PyBytes_AS_STRING(cookie), n) != NULL:
        return LOOK_CLOSER
    if p != start and (p - start < 2 or (p - 1)[0] != c" " or (p - 2)[0] != c";"):
        return LOOK_CLOSER
    p += n
    if p == end or p[0] != c"=":
        return LOOK_CLOSER
    return read_plain(p + 1, end - p - 1, c";", found)


cdef Found read_plain(const char *p, Py_ssize_t n, char stop, Presented *found) noexcept:
    """The id that begins here, and its stamp, up to `stop` or the end."""
    cdef Py_ssize_t id_len = 0, i
    while id_len < n and is_id_char(p[id_len]):
        id_len += 1
    if not 0 < id_len <= ID_MAX:
        return LOOK_CLOSER
    found.id = p
    found.id_len = i = id_len
    found.stamp = -1
    if i < n and p[i] == c".":
        i += 1
        found.stamp = 0
        while i < n and c"0" <= p[i] <= c"9" and i - id_len <= STAMP_MAX:
            found.stamp = found.stamp * 10 + (p[i] - c"0")
            i += 1
        if i == id_len + 1:
            return LOOK_CLOSER
    return PLAIN if i == n or p[i] == stop else LOOK_CLOSER


def close_plain(Session session not None, message, tuple vary):
    """Commit and end the session, as its close() does. Returns the http.response.start that may leave now: the message
    itself if nobody looked at the session, else a copy with the header `vary`. None: there is more to do to it.
    """
    cdef PyObject *name
    session.close()
    if not session.looked:
        return message
    if vary is None or type(message) is not dict or session.cookie_state != "keep":
        return None
    headers = (<dict>message).get("headers")
    if type(headers) is not list:
        return None
    for pair in <list>headers:
        if type(pair) is not tuple or PyTuple_GET_SIZE(pair) != 2:
            return None
        name = PyTuple_GET_ITEM(pair, 0)
        if not PyBytes_CheckExact(name):
            return None
        if PyBytes_GET_SIZE(<object>name) == 4 and PyBytes_AS_STRING(<object>name)[0] in b"vV":     # has one already
            return None
    dressed = (<dict>message).copy()
    dressed["headers"] = <list>headers + [vary]
    return dressed


cdef class Exchange:
    """What an ASGI middleware keeps of one request, and the one hop that each of its messages takes: see cysession.asgi.

    A subclass says what happens at the response's start (`begin`) and to a commit that failed (`refuse`).
    """
    cdef public object policy
    cdef public Session session
    cdef public object scope
    cdef public object forward          # to the server
    cdef public object refused          # the exception because of which the middleware answered instead of the app
    cdef public bint does_io
    cdef public bint started            # the response headers are leaving or have left

    def __cinit__(self, policy, Session session not None, bint does_io, scope, forward):
        self.policy = policy
        self.session = session
        self.does_io = does_io
        self.scope = scope
        self.forward = forward

    def send(self, message):
        """Takes what the app sends. Returns an awaitable; a plain message costs no coroutine of ours."""
        if self.started or message["type"] != "http.response.start":
            return self.forward(message)
        self.started = True
        if self.does_io or message["status"] >= 500:
            return self.begin(message)
        try:
            plain = close_plain(self.session, message, self.policy.plain_vary)
        except Exception as error:
            return self.refuse(error)
        return self.forward(self.dressed(message) if plain is None else plain)
