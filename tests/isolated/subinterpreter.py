"""Import in a sub-interpreter works or raises ImportError, and leaves the first interpreter as it was (R37)."""

import sys

from cysession import Manager, MemoryStorage

try:
    import _interpreters as interpreters  # type: ignore[import-not-found]
except ImportError:
    import _xxsubinterpreters as interpreters

manager = Manager(600, MemoryStorage())
with manager.new() as session:
    session["n"] = 1

SCRIPT = f"""
import sys
sys.path[:] = {sys.path!r}
try:
    import cysession
except ImportError:
    pass
else:
    with cysession.Manager(600, cysession.MemoryStorage()) as manager:
        with manager.new() as session:
            session["n"] = 2
        assert manager.new(session.id)["n"] == 2
"""
other = interpreters.create()
failure = interpreters.run_string(other, SCRIPT)
assert failure is None, failure
interpreters.destroy(other)
assert manager.new(session.id)["n"] == 1
sys.stdout.write("ok\n")
