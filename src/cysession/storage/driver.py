"""A background thread for housekeeping, started when there is first something to keep.

It is a daemon, so it never keeps a process alive; it is asked to stop at exit and does so within one step; after a
fork the child starts its own with `start()`. It holds its owner weakly: a storage nobody uses any more is freed, and
the thread ends.
"""

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["Driver"]

_drivers: "weakref.WeakSet[Driver]" = weakref.WeakSet()
_exiting = threading.Event()


class Driver:
    """Calls `step()`, a bound method, again and again in a thread of its own.

    `step` returns the seconds to wait before the next call. It must not raise: an exception ends the thread, through
    `threading.excepthook`, until the next `start()`.
    """

    def __init__(self, name: str, step: Callable[[], float]) -> None:
        self._name = name
        self._step: weakref.WeakMethod[Callable[[], float]] = weakref.WeakMethod(step)
        self._forget_thread()
        _drivers.add(self)

    def _forget_thread(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Make sure the thread runs. Cheap when it does."""
        if self._thread is not None or _exiting.is_set():
            return
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(
                    target=_run, args=(self._step, self._stopping, weakref.ref(self)), daemon=True
                )
                thread.name = self._name
                self._thread = thread
                thread.start()

    def stop(self, timeout: float = 0.5) -> None:
        """Ask the thread to end and wait for it, `timeout` seconds at most."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stopping.set()
            self._stopping = threading.Event()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()


def _run(step: Any, stopping: threading.Event, driver: "weakref.ref[Driver]") -> None:
    wait = 0.0
    try:
        while not stopping.wait(wait) and not _exiting.is_set():
            bound = step()
            if bound is None:
                return
            wait = bound()
            del bound  # while waiting, nothing here keeps the storage alive
    finally:
        owner = driver()
        if owner is not None and owner._stopping is stopping:
            owner._thread = None


def _stop_all() -> None:
    _exiting.set()
    for driver in list(_drivers):
        driver.stop()


def _forget_threads() -> None:
    """In a forked child no thread but this one exists, and its locks may be held by those that do not."""
    for driver in list(_drivers):
        driver._forget_thread()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
