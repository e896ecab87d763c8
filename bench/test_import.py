"""How long does `import cysession` take? The bar: 30 ms for the base package, in a process that has nothing else.

Every round is a new interpreter that finds the modules' bytecode, as after an installation. The benchmark's own figure
is the whole process; `import_ms` beside it is the import alone, as the child measured it, the best of all rounds: a
busy machine makes it longer and nothing makes it shorter.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

BAR_MS = 30.0
CHILD = "import time; t = time.perf_counter(); import {}; print((time.perf_counter() - t) * 1000)"


@pytest.mark.benchmark(group="import")
@pytest.mark.parametrize(
    "module", ["cysession", "cysession.asgi", "cysession.wsgi", "cysession.storage.file"]
)
def test_import(benchmark: BenchmarkFixture, module: str, tmp_path: Path) -> None:
    times: list[float] = []
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}  # the warm-up rounds write it
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def start() -> None:
        out = subprocess.run(
            [sys.executable, "-c", CHILD.format(module)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        times.append(float(out.stdout))

    benchmark.pedantic(start, rounds=15, warmup_rounds=2)
    benchmark.extra_info["import_ms"] = round(min(times), 1)
    benchmark.extra_info["bar_ms"] = BAR_MS
    print(f"\n{module}: {min(times):.1f} ms (bar for the base package: {BAR_MS:.0f} ms)")
