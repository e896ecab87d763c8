"""What `ci/wheels.sh` and `ci/sdist.sh` ask of an archive before anybody uploads it.

packages.py repack <sdist> <directory>                 the same files, the same bytes on every run; prints the path
packages.py check <wheel> [<architecture> <glibc>]     its contents, and what its compiled module needs of a system
"""

import gzip
import io
import os
import re
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

LOADERS = {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
SHIPPED = {"__init__.py", "py.typed", "_core.pyi"}
SOURCES = (".pyx", ".pxd", ".pxi", ".c", ".h", ".html")


def repack(sdist: Path, directory: Path) -> Path:
    """Sorted, owned by nobody in particular, at SOURCE_DATE_EPOCH: what is left depends on the sources alone."""
    time = int(os.environ["SOURCE_DATE_EPOCH"])
    packed = io.BytesIO()
    with (
        tarfile.open(sdist) as old,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda m: m.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = time, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    path = directory / sdist.name
    path.write_bytes(gzip.compress(packed.getvalue(), 9, mtime=time))
    return path


def check_contents(wheel: zipfile.ZipFile) -> str:
    """The name of the compiled module in it."""
    names = wheel.namelist()
    ours = {name.removeprefix("cysession/") for name in names if name.startswith("cysession/")}
    assert ours >= SHIPPED, f"the wheel lacks {SHIPPED - ours}"
    stray = [n for n in names if n.endswith(SOURCES) or not re.match(r"cysession(-[^/]*\.dist-info)?/", n)]
    assert not stray, f"the wheel ships what nobody can use: {stray}"
    compiled = [n for n in names if n.endswith((".so", ".pyd"))]
    assert len(compiled) == 1 and compiled[0].startswith("cysession/_core."), f"compiled modules: {compiled}"
    return compiled[0]


def check_interpreter(elf: Any, abi: str) -> None:
    """It was compiled for the interpreter that its name promises, and as interpreters are."""
    needed = {symbol.name for symbol in elf.get_section_by_name(".dynsym").iter_symbols()}
    # Without the GIL references of other threads are counted apart, by a function that only such interpreters have.
    free = "_Py_MergeZeroLocalRefcount" in needed
    assert free == abi.endswith("t"), (
        f"a module for {abi} was compiled {'without' if free else 'with'} the GIL"
    )
    assert "__assert_fail" not in needed, (
        "compiled with the assertions of Python's headers: slow, and they abort"
    )


def check_needs(elf: Any, architecture: str, glibc: tuple[int, ...]) -> str:
    """It links the C library and nothing else, and no symbol of it that came after this release."""
    assert elf["e_machine"] == f"EM_{architecture.upper()}", f"compiled for {elf['e_machine']}"
    dynamic = elf.get_section_by_name(".dynamic")
    libraries = [tag.needed for tag in dynamic.iter_tags("DT_NEEDED")]
    # The loader is part of the same C library; a thread's own variables (free-threaded builds) are found through it.
    assert set(libraries) <= {"libc.so.6", *LOADERS}, f"it links {libraries}"
    assert not [*dynamic.iter_tags("DT_RPATH"), *dynamic.iter_tags("DT_RUNPATH")], "it carries a search path"
    assert not elf.get_section_by_name(".debug_info"), "it carries debug symbols"

    versions = {}  # number -> name, from the list of what it needs of each library
    for _library, needed in elf.get_section_by_name(".gnu.version_r").iter_versions():
        versions |= {aux["vna_other"]: aux.name for aux in needed}
    newest = max(tuple(map(int, name.removeprefix("GLIBC_").split("."))) for name in versions.values())
    assert newest <= glibc, f"it needs glibc {newest}, newer than {glibc}"

    # A symbol that the old library lacks is left without a version, and would be missed only where it is missing.
    number = elf.get_section_by_name(".gnu.version")
    for index, symbol in enumerate(elf.get_section_by_name(".dynsym").iter_symbols()):
        undefined = symbol["st_shndx"] == "SHN_UNDEF" and symbol["st_info"]["bind"] == "STB_GLOBAL"
        if undefined and not symbol.name.startswith(("Py", "_Py")):
            assert number.get_symbol(index)["ndx"] in versions, f"no known glibc has {symbol.name}"
    return ".".join(map(str, newest))


def main() -> None:
    match sys.argv[1:]:
        case ["repack", sdist, directory]:
            print(repack(Path(sdist), Path(directory)))
        case ["check", path, *target]:
            with zipfile.ZipFile(path) as wheel:
                name = check_contents(wheel)
                needs = ""
                if target:
                    from elftools.elf.elffile import ELFFile

                    elf, glibc = ELFFile(io.BytesIO(wheel.read(name))), tuple(map(int, target[1].split(".")))
                    abi = Path(path).name.split("-")[3]
                    assert f".cpython-{abi.removeprefix('cp')}-{target[0]}-" in name, (
                        f"{path} contains {name}"
                    )
                    check_interpreter(elf, abi)
                    needs = f", glibc {check_needs(elf, target[0], glibc)}"
                size, unpacked = os.path.getsize(path), sum(i.file_size for i in wheel.infolist())
                core = wheel.getinfo(name).file_size
            print(f"{size} bytes, unpacked {unpacked}, of these {core} compiled{needs}")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
