"""mypy --strict and pyright on the programs of tests/typing: right ones pass, wrong ones fail where they are wrong.

A checker that is told too little passes everything, so `wrong.py` marks each line that has to be rejected with the
error that each checker gives it: `# wrong: <code of mypy>, <rule of pyright>`. An error without a mark, a mark without
an error and another error than the marked one all fail the check. Several rules for one line stand side by side.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = sorted((ROOT / "tests" / "typing").glob("*.py"))
MARK = re.compile(r"# wrong: ([\w -]+), ([\w ]+)$")

Found = set[tuple[str, int, str]]  # file, line, code


def marked(column: int) -> Found:
    found: Found = set()
    for path in PROGRAMS:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if mark := MARK.search(line):
                found |= {(path.name, number, code) for code in mark[column].split()}
    return found


def run(*command: str) -> str:
    """What a checker prints. That it finds errors is no failure; that it cannot work is one."""
    environment = {**os.environ, "MYPYPATH": "src", "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def mypy() -> Found:
    names = [str(path.relative_to(ROOT)) for path in PROGRAMS]
    out = run(sys.executable, "-m", "mypy", "--strict", "--output", "json", *names)
    errors = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {(Path(e["file"]).name, e["line"], e["code"]) for e in errors if e["severity"] == "error"}


def pyright() -> Found:
    names = [str(path.relative_to(ROOT)) for path in PROGRAMS]
    out = run(sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", *names)
    said = json.loads(out[out.index("{") :])
    return {
        (Path(e["file"]).name, e["range"]["start"]["line"] + 1, e.get("rule", "syntax"))
        for e in said["generalDiagnostics"]
        if e["severity"] == "error"
    }


def main() -> None:
    wrong = False
    for name, found, expected in (("mypy", mypy(), marked(1)), ("pyright", pyright(), marked(2))):
        for file, line, code in sorted(found - expected):
            print(f"tests/typing/{file}:{line}: {name} rejects it: {code}")
        for file, line, code in sorted(expected - found):
            print(f"tests/typing/{file}:{line}: {name} does not say {code}")
        wrong |= found != expected
        print(f"{name}: {len(PROGRAMS)} programs, {len(expected)} errors expected, {len(found)} found")
    sys.exit(wrong)


if __name__ == "__main__":
    main()
