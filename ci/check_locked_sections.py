"""Fail when code that runs under a shard's lock could touch a Python object: the leaf rule of src/_lock.pxd.

Between `shard_lock` and `shard_unlock` stands plain C on raw memory. A dropped reference there may run a
finalizer that comes back to the same lock, and an allocation may start the collector, which stops every other
thread while one of them waits for us. Most of that the compiler refuses by itself, because each locking
function is `noexcept nogil`; this script closes the doors that remain. It starts at each function that calls
`shard_lock` and follows the calls through src/*.pyx, *.pxd, *.pxi, including the C written verbatim in
`cdef extern from *` blocks:

  1. a Cython function reached says `noexcept nogil` and contains neither `with gil` nor `raise`;
  2. no C-API name is called or used as a macro, except the few in ALLOWED, which run no code;
  3. no second `shard_lock` is taken inside a locked section;
  4. each path out of a locking function has released the lock (followed by indentation).

A callee counts as locked wherever the call stands in the function: helpers belong outside locking functions,
not after their unlock. Usage: check_locked_sections.py [directory, default src]
"""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

# Take a reference, raw memory, and the lock itself: none can run user code, block on the GIL or collect.
ALLOWED = {
    "Py_INCREF", "Py_XINCREF", "Py_NewRef", "Py_XNewRef", "Py_SIZE", "Py_TYPE", "Py_GIL_DISABLED",
    "PyMutex_Lock", "PyMutex_Unlock",
    "PyMem_RawMalloc", "PyMem_RawCalloc", "PyMem_RawRealloc", "PyMem_RawFree",
}  # fmt: skip

CALL = re.compile(r"(?<![\w.])([A-Za-z_]\w*)\s*\(")
API = re.compile(r"\b(_?Py[A-Z_]\w*)\b(?!\s*\*)")  # `PyObject *` is a type, not a use
HEADER = re.compile(r"^(\s*)(?:cdef|cpdef|def|async\s+def)\b[^=#]*?\b([A-Za-z_]\w*)\s*\(")
C_FUNCTION = re.compile(r"^\s*static\b[^;={]*?\b([A-Za-z_]\w*)\s*\([^;{]*\)\s*\{")
C_MACRO = re.compile(r"^\s*#\s*define\s+([A-Za-z_]\w*)\(")


@dataclass
class Function:
    name: str
    where: str  # file:line
    header: str
    verbatim_c: bool = False
    body: list[tuple[int, str]] = field(default_factory=list)  # (line number, text)


def without_comments(text: str) -> str:
    """Blank comments and one-line strings, keep line numbers."""
    text = re.sub(r"'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"", lambda m: " " * len(m[0]), text)
    return re.sub(r"#(?!\s*(?:define|if|el|endif|include)).*", "", text)


def split_verbatim(text: str) -> tuple[str, str]:
    """The Cython text and the C text of one file, each with the other's lines blanked."""
    cython, c = [], []
    in_extern = False
    for part in re.split(r'(""".*?""")', text, flags=re.DOTALL):
        blank = "\n" * part.count("\n")
        if not part.startswith('"""'):
            cython.append(part)
            c.append(blank)
            lines = [line for line in part.rstrip().splitlines() if line.strip()]
            in_extern = bool(lines) and lines[-1].lstrip().startswith("cdef extern from")
        else:
            cython.append(blank)
            c.append(part.strip('"') if in_extern else blank)
    return "".join(cython), "".join(c)


def cython_functions(path: Path, text: str) -> list[Function]:
    lines = without_comments(text).split("\n")
    found: list[Function] = []
    open_functions: list[tuple[int, Function]] = []  # by indentation
    i = 0
    while i < len(lines):
        line = lines[i]
        indent = len(line) - len(line.lstrip())
        if line.strip():
            while open_functions and indent <= open_functions[-1][0]:
                open_functions.pop()
            if match := HEADER.match(line):
                start, header = i, line
                while header.count("(") > header.count(")") and i + 1 < len(lines):
                    i += 1
                    header += " " + lines[i].strip()
                if header.rstrip().endswith(":"):
                    function = Function(match[2], f"{path}:{start + 1}", header.strip())
                    found.append(function)
                    open_functions.append((indent, function))
                elif ":" in header:  # body on the line of the header
                    function = Function(match[2], f"{path}:{start + 1}", header.strip())
                    function.body.append((i + 1, header.rsplit(":", 1)[1]))
                    found.append(function)
            elif open_functions:
                open_functions[-1][1].body.append((i + 1, line))
        i += 1
    return found


def c_functions(path: Path, text: str) -> list[Function]:
    found: list[Function] = []
    depth, current = 0, None
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL)
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if current is None and (match := C_FUNCTION.match(line)):
            current = Function(match[1], f"{path}:{number}", line.strip(), verbatim_c=True)
            found.append(current)
            current.body.append((number, line.split("{", 1)[1]))
            depth = line.count("{") - line.count("}")
        elif current is None and (match := C_MACRO.match(line)):
            macro = Function(match[1], f"{path}:{number}", line.strip(), verbatim_c=True)
            macro.body.append((number, line.split(")", 1)[1]))
            while line.endswith("\\") and number < len(lines):
                number, line = number + 1, lines[number]
                macro.body.append((number, line))
            found.append(macro)
        elif current is not None:
            current.body.append((number, line))
            depth += line.count("{") - line.count("}")
        if current is not None and depth <= 0:
            current = None
    return found


def calls(function: Function) -> set[str]:
    return {name for _, line in function.body for name in CALL.findall(line)}


def is_leaf(function: Function) -> bool:
    return function.verbatim_c or re.search(r"\bnoexcept\s+nogil\s*:", function.header) is not None


def check_content(function: Function) -> list[str]:
    """Rules 1 and 2 for one function that runs under the lock."""
    if not is_leaf(function):
        return [f"{function.where}: {function.name} runs under the lock but is not `noexcept nogil`"]
    faults = []
    for number, line in function.body:
        place = f"{function.where.rsplit(':', 1)[0]}:{number}"
        if re.search(r"\bwith\s+gil\b", line):
            faults.append(f"{place}: {function.name} takes the GIL under the lock")
        if not function.verbatim_c and re.search(r"\braise\b", line):
            faults.append(f"{place}: {function.name} raises under the lock")
        for name in API.findall(line):
            # A C-API type is used in casts and declarations only; functions and macros carry an underscore.
            if "_" in name.lstrip("_") and name not in ALLOWED and not name.endswith(("_HEAD", "_t")):
                faults.append(f"{place}: {function.name} uses {name} under the lock")
    return faults


def check_release(function: Function) -> list[str]:
    """Rules 3 and 4: a walk down the lines, one lock state per level of indentation."""
    faults = []
    place = function.where.rsplit(":", 1)[0]
    levels = [[-1, False]]  # [indentation, locked]
    ended = False  # the block just left ends in return, break or continue
    for number, line in function.body:
        indent = len(line) - len(line.lstrip())
        if levels[0][0] < 0:
            levels[0][0] = indent
        while indent < levels[-1][0] and len(levels) > 1:
            _, locked = levels.pop()
            if not ended:
                levels[-1][1] = locked
        if indent > levels[-1][0]:
            levels.append([indent, levels[-1][1]])
        ended = bool(re.match(r"\s*(return|break|continue)\b", line))
        for event in re.findall(r"\b(shard_lock|shard_unlock)\s*\(|\b(return)\b", line):
            name = event[0] or event[1]
            if name == "shard_lock" and levels[-1][1]:
                faults.append(f"{place}:{number}: {function.name} locks a second time")
            if name == "return" and levels[-1][1]:
                faults.append(f"{place}:{number}: {function.name} returns with the lock held")
            if name != "return":
                levels[-1][1] = name == "shard_lock"
    while len(levels) > 1:
        _, locked = levels.pop()
        if not ended:
            levels[-1][1] = locked
        ended = False
    if levels[0][1]:
        faults.append(f"{function.where}: {function.name} ends with the lock held")
    return faults


def check(directory: Path) -> tuple[list[str], int, int]:
    """(faults, how many functions lock, how many functions run under a lock)"""
    by_name: dict[str, list[Function]] = {}
    for path in sorted(p for p in directory.iterdir() if p.suffix in (".pyx", ".pxd", ".pxi")):
        cython, c = split_verbatim(path.read_text(encoding="utf-8"))
        for function in cython_functions(path, cython) + c_functions(path, c):
            by_name.setdefault(function.name, []).append(function)
    lock_names = {"shard_lock", "shard_unlock", "shard_lock_init"}
    locking = [
        f for fs in by_name.values() for f in fs if f.name not in lock_names and "shard_lock" in calls(f)
    ]

    faults = [fault for function in locking for fault in check_release(function)]
    reached: dict[int, Function] = {}
    queue = list(locking)
    while queue:
        function = queue.pop()
        if id(function) in reached:
            continue
        reached[id(function)] = function
        faults += check_content(function)
        if not is_leaf(function):
            continue  # one fault is enough; what it calls outside the section is no business of ours
        for name in calls(function) - lock_names:
            for callee in by_name.get(name, ()):
                if callee in locking:
                    faults.append(
                        f"{function.where}: {function.name} calls {name}, which locks, under the lock"
                    )
                queue.append(callee)
    return sorted(set(faults)), len(locking), len(reached)


def main() -> int:
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "src")
    faults, locking, reached = check(directory)
    if not locking:
        faults.append(
            f"{directory}: no function calls shard_lock; has it been renamed? Then rename it here too"
        )
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        print(f"{len(faults)} breaks of the leaf rule (see src/_lock.pxd)", file=sys.stderr)
        return 1
    print(f"leaf rule: {locking} locking functions, {reached} functions under a lock, no Python-object work")
    return 0


if __name__ == "__main__":
    sys.exit(main())
