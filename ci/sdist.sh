#!/usr/bin/env bash
# Release rehearsal: sdist -> wheel from that sdist -> empty environment -> use it, nowhere near the source tree.
#
# The trap: cythonize() replaces _core.pyx by _core.c in the list of sources, so an sdist without MANIFEST.in looks fine
# here and cannot be built by anyone else.
source "$(dirname "$0")/common.sh"
ci/setup.sh lint

OUT=$ROOT/build/sdist
rm -rf "$OUT"
mkdir -p "$OUT"

say "sdist"
copy_tree "$OUT/tree"
(cd "$OUT/tree" && "$VENV/bin/python" -m build --sdist --outdir "$OUT" . >"$OUT/sdist.log" 2>&1) || { cat "$OUT/sdist.log" >&2; die "the sdist cannot be built"; }
sdist=$(ls "$OUT"/cysession-*.tar.gz)

say "wheel from ${sdist##*/}, in isolation"
"$VENV/bin/python" -m pip wheel --quiet --no-deps --no-cache-dir --wheel-dir "$OUT" "$sdist" </dev/null
wheel=$(ls "$OUT"/cysession-*.whl)
"$VENV/bin/python" - "$wheel" <<'PYTHON'
import sys
import zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
have = {name.removeprefix("cysession/") for name in names if name.startswith("cysession/")}
assert any(name.startswith("_core.") and name.endswith((".so", ".pyd")) for name in have), "the wheel lacks the compiled core"
assert {"__init__.py", "py.typed", "_core.pyi"} <= have, f"the wheel lacks {({'__init__.py', 'py.typed', '_core.pyi'}) - have}"
stray = [n for n in names if n.endswith((".pyx", ".pxd", ".pxi", ".c", ".html")) or n.split("/")[0] not in {"cysession"} and ".dist-info/" not in n]
assert not stray, f"the wheel ships what nobody can use: {stray}"
PYTHON

say "using ${wheel##*/} in an empty environment"
"$VENV/bin/python" -m venv "$OUT/venv"
"$OUT/venv/bin/python" -m pip install --quiet --no-input --constraint ci/constraints.txt "$wheel" </dev/null
cd "$OUT/venv" # not the source tree: import what was installed
"$OUT/venv/bin/python" -I -W error - <<'PYTHON'
import sys

import cysession

assert "/build/sdist/venv/" in cysession.__file__, cysession.__file__
for storage in (cysession.MemoryStorage(), cysession.FileStorage("sessions")):
    manager = cysession.Manager(ttl=60, storage=storage)
    with manager.new() as session:
        session["cart"] = ["apple"]
        token = session.id
    with manager.new(token) as session:
        assert session["cart"] == ["apple"], session["cart"]
        session.destroy()
    with manager.new(token) as session:
        assert "cart" not in session
    manager.close()
optional = {"redis", "hiredis", "starlette", "flask", "django", "grpc", "cryptography", "pytest"}
assert not optional & set(sys.modules), f"plain use imports {optional & set(sys.modules)}"
print(f"cysession works from the wheel, on {sys.version.split()[0]}")
PYTHON
"$OUT/venv/bin/cysession" inspect "file://$OUT/venv/sessions"

say "the storage contract from ${wheel##*/}[testing], as somebody runs it for a storage of their own"
"$VENV/bin/python" -m venv "$OUT/venv-testing"
"$OUT/venv-testing/bin/python" -m pip install --quiet --no-input --constraint "$ROOT/ci/constraints.txt" "$wheel[testing]" </dev/null
# An empty directory outside the tree: nothing of it may be found, not even pyproject.toml with pytest's options.
elsewhere=$(mktemp -d "${TMPDIR:-/tmp}/cysession-contract.XXXXXX")
trap 'rm -rf "$elsewhere"' EXIT
cp "$ROOT/examples/custom_storage.py" "$elsewhere/my_storage.py"
cat >"$elsewhere/test_my_storage.py" <<'PYTHON'
import cysession
from cysession import MemoryStorage
from cysession.testing import AsyncStorageContract, StorageContract
from my_storage import SqliteStorage


def test_it_is_the_installed_package():
    assert "/venv-testing/" in cysession.__file__, cysession.__file__


class TestSqliteStorage(StorageContract):
    max_steps = 4

    def make_storage(self):
        return SqliteStorage(str(self.directory / "sessions.db"))


class TestSqliteStorageAsync(AsyncStorageContract):
    max_steps = 3

    def make_storage(self):
        return SqliteStorage(":memory:")


class TestMemoryStorage(StorageContract):
    max_steps = 5

    def make_storage(self):
        return MemoryStorage()
PYTHON
# -W error: whatever warns here would warn in everybody's tests.
(cd "$elsewhere" && "$OUT/venv-testing/bin/python" -I -W error -m pytest -q -p no:cacheprovider --import-mode=importlib \
    -o pythonpath=. -rs . </dev/null) || die "the storage contract does not run from an installed wheel"
