# Which id does a request present? The answer for nearly every request, found without an intermediate object.

cdef extern from *:
    """
    /* memmem is linear even for the worst header, and both C libraries that we build on have it. */
    static inline const char *text_find(const char *in, Py_ssize_t in_len, const char *what, Py_ssize_t what_len) {
        return (const char *)memmem(in, (size_t)in_len, what, (size_t)what_len);
    }
    """
    const char *text_find(const char *text, Py_ssize_t text_len, const char *what, Py_ssize_t what_len) noexcept
    bint PyBytes_CheckExact(PyObject *o) noexcept
    PyObject *PyTuple_GET_ITEM(object pair, Py_ssize_t i) noexcept
    Py_ssize_t PyTuple_GET_SIZE(object pair) noexcept

cdef enum:
    STAMP_MAX = 12              # digits of the time of issue that a persistent cookie carries behind its id


def presented_id(headers, bytes carrier not None, bytes cookie):
    """The id in the only header called `carrier`, there in the only cookie called `cookie` (None: the whole value).

    None: the request presents no id. False: there is a choice to make or an odd spelling; the caller looks closer. So
    what this reads is the plain case and no more: (name, value) pairs of bytes with lower-case names, a cookie written
    as browsers write it, a value of id characters and perhaps a stamp of digits behind a dot, which is left out.
    """
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
    if value == NULL:
        return None
    if cookie is None:
        return plain_id(PyBytes_AS_STRING(<bytes>value), PyBytes_GET_SIZE(<bytes>value), c"\0")
    return id_in_cookies(<bytes>value, cookie)


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


cdef object id_in_cookies(bytes header, bytes cookie):
    cdef const char *start = PyBytes_AS_STRING(header)
    cdef const char *end = start + PyBytes_GET_SIZE(header)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(cookie)
    cdef const char *p = text_find(start, end - start, PyBytes_AS_STRING(cookie), n)
    if p == NULL:
        return None
    if text_find(p + 1, end - p - 1, PyBytes_AS_STRING(cookie), n) != NULL:
        return False
    if p != start and (p - start < 2 or (p - 1)[0] != c" " or (p - 2)[0] != c";"):
        return False
    p += n
    if p == end or p[0] != c"=":
        return False
    return plain_id(p + 1, end - p - 1, c";")


cdef object plain_id(const char *p, Py_ssize_t n, char stop):
    """The id that begins here, up to `stop` or the end."""
    cdef Py_ssize_t id_len = 0, i
    while id_len < n and is_id_char(p[id_len]):
        id_len += 1
    if not 0 < id_len <= ID_MAX:
        return False
    i = id_len
    if i < n and p[i] == c".":
        i += 1
        while i < n and c"0" <= p[i] <= c"9":
            i += 1
        if not 1 < i - id_len <= STAMP_MAX + 1:
            return False
    if i < n and p[i] != stop:
        return False
    return ascii_from(p, id_len)
