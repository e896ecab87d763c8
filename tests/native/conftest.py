"""Builds _probe.pyx with Cython and compiler of the running environment, once a state of the sources."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SANITIZED = "libasan" in os.environ.get(
    "LD_PRELOAD", ""
)  # as ci/sanitize.sh runs us: instrument the probe too

BUILD = """
import sys
from Cython.Build import cythonize
from setuptools import Distribution, Extension

source, headers, out, *flags = sys.argv[1:]
link = [flag for flag in flags if flag.startswith("-fsanitize")]
probe = Extension("_probe", [source], extra_compile_args=["-O1", "-g", *flags], extra_link_args=link)
directives = {"freethreading_compatible": True}
modules = cythonize([probe], include_path=[headers], build_dir=out, compiler_directives=directives)
command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
command.build_lib, command.build_temp = out, out
command.ensure_finalized()
command.run()
"""


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    sources = [HERE / "_probe.pyx", *sorted((ROOT / "src").glob("*.pxd"))]
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if SANITIZED else []
    state = hashlib.sha256(
        repr((BUILD, flags, [path.read_bytes() for path in sources])).encode()
    ).hexdigest()[:16]
    built = ROOT / "build" / f"probe-{state}" / f"_probe{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not built.exists():
        fresh = compile_probe(tmp_path_factory.mktemp("probe"), flags)
        built.parent.mkdir(parents=True, exist_ok=True)
        arriving = built.with_name(f"{os.getpid()}.part")
        arriving.write_bytes(fresh.read_bytes())
        arriving.replace(built)  # whole or not at all, whoever else builds it at the same time
    spec = importlib.util.spec_from_file_location("_probe", built)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_probe(out: Path, flags: list[str]) -> Path:
    plain = {
        name: value for name, value in os.environ.items() if name != "LD_PRELOAD"
    }  # the compiler is not under test
    done = subprocess.run(
        [sys.executable, "-c", BUILD, HERE / "_probe.pyx", ROOT / "src", out, *flags],
        env=plain,
        cwd=out,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"the probe does not compile:\n{done.stdout}\n{done.stderr}"
    return next(out.glob("_probe*.so"))
