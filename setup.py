"""Builds the one compiled module; all else about the package stands in pyproject.toml.

Switches, each on with VARIABLE=1 in the environment:
    CYSESSION_DEBUG      integrity checks in the core, no optimisation, debug symbols
    CYSESSION_SANITIZE   AddressSanitizer and UBSan (run it as ci/sanitize.sh does)
    CYSESSION_TRACE      line tracing, for coverage of the .pyx
    CYSESSION_ANNOTATE   write src/_core.html: which lines still touch Python
    CYSESSION_STRICT     every warning of Cython and of the C compiler is an error
"""

import os
import sys
from glob import glob

import Cython.Compiler.Options
from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG, SANITIZE, TRACE, ANNOTATE, STRICT = (
    os.environ.get(f"CYSESSION_{name}", "0") not in ("", "0")
    for name in ("DEBUG", "SANITIZE", "TRACE", "ANNOTATE", "STRICT")
)

directives = {
    "language_level": 3,
    "binding": False,  # methods are C method descriptors: a call costs what a call of dict.get costs
    "always_allow_keywords": False,  # so that a method of one argument is METH_O
    "embedsignature": True,
    "embedsignature.format": "clinic",  # inspect.signature() works although nothing is bound
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "auto_pickle": False,  # nothing here may be pickled
    "freethreading_compatible": True,
}
macros: list[tuple[str, str | None]] = []
flags = ["-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter", "-O0" if DEBUG else "-O3"]
# CFLAGS of the environment replace what the interpreter was built with, and then its headers would assert.
flags += ["-fwrapv", "-UNDEBUG" if DEBUG else "-DNDEBUG"]
link = []

if DEBUG:
    macros.append(("CYSESSION_DEBUG", "1"))
    flags += ["-g"]
if SANITIZE:
    flags += [
        "-g",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
    ]
    link += ["-fsanitize=address,undefined"]
if TRACE:
    directives["linetrace"] = True
    # Python 3.13 and newer: coverage sees the .pyx only through the older tracing interface.
    macros += [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
if STRICT:
    Cython.Compiler.Options.warning_errors = True
    directives |= {f"warn.{name}": True for name in ("unused", "unreachable", "maybe_uninitialized")}
    flags.append("-Werror")

core = Extension(
    "cysession._core",
    ["src/_core.pyx"],
    depends=[path for kind in ("pxd", "pxi", "h") for path in glob(f"src/*.{kind}")],
    define_macros=macros,
    extra_compile_args=[] if sys.platform == "win32" else flags,
    extra_link_args=link,
)

setup(
    ext_modules=cythonize(
        [core],
        include_path=["src"],
        compiler_directives=directives,
        annotate=ANNOTATE,
        # Staleness looks at files only, never at directives: a switched build must not reuse a plain one.
        force=DEBUG or SANITIZE or TRACE or ANNOTATE or STRICT,
    ),
)
