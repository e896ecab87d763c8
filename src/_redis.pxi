# What RedisStorage asks of the core: one exchange with a server, in one call. cysession/storage/redis says what for.

def limit_socket(int fd, double seconds):
    """Let the kernel end every wait of a blocking socket after some seconds. False: it cannot."""
    return socket_limit(fd, <int64_t>(seconds * 1e9)) == 0


def trade(int fd, bytes data not None, bytearray buffer not None):
    """Write all of `data`, wait for an answer and read what there is of it: how many bytes, 0 at the end of the stream.

    Below 0 if a signal came in between, and its handler did not raise: -1 - n means that n bytes were written and nothing
    is read yet. Raises OSError, a TimeoutError after the time that `limit_socket` has set.
    """
    cdef const char *p = PyBytes_AS_STRING(data)
    cdef char *to = PyByteArray_AS_STRING(buffer)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data), room = PyByteArray_GET_SIZE(buffer), sent = 0, received = 0
    cdef int failed
    with nogil:
        failed = socket_trade(fd, p, size, to, room, &sent, &received)
    if failed == 0:
        return received
    if failed == EINTR:
        PyErr_CheckSignals()
        return -1 - sent
    if failed == EAGAIN:
        raise TimeoutError()
    raise OSError(failed, os.strerror(failed))
