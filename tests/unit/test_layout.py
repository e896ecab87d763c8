"""The shape of the source tree: who may import whom, what must not be there, and what a release contains."""

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "cysession"
CORE_SOURCES = sorted(p for p in (ROOT / "src").iterdir() if p.suffix in {".pyx", ".pxd", ".pxi"})

# Imports go one way: a module imports from lower layers only. A new module must be given its place here.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "_core"),
    ("ids", "cookies"),
    ("codec",),
    ("events", "storage.users", "storage.driver", "storage.operate"),
    ("storage.base",),
    ("storage.memory", "storage.file", "storage.file.*", "storage.redis", "storage.redis.*"),
    ("storage.urls",),
    ("storage",),
    ("session",),
    ("manager",),
    ("",),  # cysession/__init__.py
    ("_headers",),
    ("_http", "_refusal"),
    ("asgi", "wsgi", "testing", "testing.*"),
    ("starlette", "flask", "flask.*", "django", "django.*", "grpc", "metrics"),
    ("cli", "cli.*"),
    ("__main__",),
)

# What is neither ours nor the standard library, and the only modules that may import it.
THIRD_PARTY = {
    "msgpack": ("codec", "cli.migrate"),
    "redis": ("storage.redis", "cli.migrate"),
    "hiredis": ("storage.redis",),
    "starlette": ("starlette",),
    "fastapi": ("starlette",),
    "flask": ("flask",),
    "markupsafe": ("flask",),
    "django": ("django", "cli.migrate"),
    "grpc": ("grpc",),
    "cryptography": ("storage.file",),
    "prometheus_client": ("metrics",),
    "rich": ("cli",),
    "pytest": ("testing",),
    "hypothesis": ("testing",),
}
# Each of these runs code that is hidden in its input, or is tied to one version of Python.
BANNED = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"}


def module_name(path: Path) -> str:
    """The name below cysession: "storage.base"; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for p in sorted(PACKAGE.rglob("*.py")) if "__pycache__" not in p.parts}


def imports(path: Path) -> Iterator[str]:
    """Absolute names of all that a module imports, wherever the statement stands (lazy imports too)."""
    package = ["cysession", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import errors` names a module, `from .errors import SessionGone` a name in one.
            for alias in node.names:
                yield f"{source}.{alias.name}" if is_module(f"{source}.{alias.name}") else source


def is_module(name: str) -> bool:
    package, _, below = name.partition(".")
    return package == "cysession" and (below in MODULES or below == "_core")


def layer(module: str) -> int:
    for number, names in enumerate(LAYERS):
        if module in names or any(n.endswith(".*") and module.startswith(n[:-1]) for n in names):
            return number
    pytest.fail(f"{module} has no place in LAYERS: decide what it may import, and add it")


def ours(imported: str) -> str | None:
    """The module below cysession that an imported name lies in; None if it is not ours."""
    if imported != "cysession" and not imported.startswith("cysession."):
        return None
    return imported.removeprefix("cysession").removeprefix(".")


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m or "cysession")
def test_imports_go_one_way(module: str) -> None:
    for imported in imports(MODULES[module]):
        target = ours(imported)
        if target is None or target == module:
            continue
        # Inside one sub-package its modules may share helpers.
        if any(
            module.startswith(home) and target.startswith(home)
            for home in ("storage.file", "storage.redis", "testing", "cli", "flask", "django")
        ):
            continue
        assert layer(target) < layer(module), f"{module or 'cysession'} must not import {imported}"


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m or "cysession")
def test_third_party_imports_stay_in_their_place(module: str) -> None:
    for imported in imports(MODULES[module]):
        top = imported.partition(".")[0]
        assert top not in BANNED, f"{module} imports {top}"
        if top == "cysession" or top in sys.stdlib_module_names:
            continue
        assert top in THIRD_PARTY, f"{module} imports {top}, which is no dependency of this project"
        homes = THIRD_PARTY[top]
        assert any(module == home or module.startswith(home + ".") for home in homes), (
            f"{module} imports {top}; only {', '.join(homes)} may"
        )


def test_the_core_imports_nothing_of_the_package() -> None:
    """It is handed its errors; whatever it imported, every user of the package would import first."""
    for path in CORE_SOURCES:
        for line in path.read_text(encoding="utf-8").splitlines():
            if match := re.match(r"\s*(?:from|import|cimport)\s+(\.|\w+)", line):
                assert match[1] not in {".", "cysession"} | BANNED, f"{path.name}: {line.strip()}"


def test_no_companion_pxd() -> None:
    """Cython ignores src/_core.pxd (the module is cysession._core); attributes become Python look-ups."""
    assert not (ROOT / "src" / "_core.pxd").exists()
    # And one where Cython does look would publish the C layout as an interface.
    assert not list(PACKAGE.rglob("*.pxd"))


def test_the_base_package_imports_no_framework() -> None:
    """Neither do the adapters that need none."""
    names = [f"cysession.{m}" for m in ("asgi", "wsgi") if m in MODULES]
    heavy = sorted(set(THIRD_PARTY) - {"msgpack"})
    code = (
        f"import sys, cysession, {', '.join(['os', *names])}; print([m for m in {heavy} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.strip() == "[]"


def test_there_is_one_version() -> None:
    """In the metadata, in the package, and first in the changelog."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{version}"' in source
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] == version


def test_dependencies_are_declared() -> None:
    """Every third-party module above is the base dependency or belongs to an extra of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    known = {requirement.split(">")[0].split("[")[0].strip() for requirement in declared}
    names = {
        "grpc": "grpcio",
        "prometheus_client": "prometheus-client",
    }  # where the distribution is called otherwise than the module
    assert {names.get(module, module) for module in THIRD_PARTY} <= known
    assert [r.split(">")[0] for r in project["dependencies"]] == ["msgpack"]


def test_sdist_holds_all_sources_and_no_builds(tmp_path: Path) -> None:
    """cythonize() takes _core.pyx out of the sources; without MANIFEST.in nobody could build the sdist."""
    # egg_info elsewhere: the file list of an earlier build must not decide what this one contains.
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    command += ["sdist", "--formats=tar", "--dist-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("cysession-*.tar"))) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}

    package = {str(p.relative_to(ROOT)) for p in PACKAGE.rglob("*") if p.suffix in {".py", ".pyi", ".typed"}}
    wanted = {str(p.relative_to(ROOT)) for p in CORE_SOURCES} | package
    wanted |= {"LICENSE", "README.md", "CHANGELOG.md", "MANIFEST.in", "pyproject.toml", "setup.py"}
    wanted |= {"src/_core.pyx", "src/cysession/py.typed", "tests/unit/test_layout.py", "ci/constraints.txt"}
    assert not wanted - files
    assert not [f for f in files if f.endswith((".so", ".pyc", ".html", "_core.c")) or "__pycache__" in f]
