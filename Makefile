# Every target does its own set-up: .venv in the tree, dependencies, the compiled extension, missing Debian packages.
#
#   PYTHON=python3.12   build .venv with another interpreter        PORT=8080   where "make demo" listens
#   ARGS="-k expiry"    more arguments for pytest

PYTHON ?=
ARGS ?=
export PYTHON

.PHONY: help venv build demo test lint docs bench bench-guard bench-servers sdist wheels test-all django freethreaded sanitize fuzz clean

help:
	@echo "make demo          start the demo shop on http://127.0.0.1:8000 (PORT= overrides)"
	@echo "make test          the test-suite"
	@echo "make lint          ruff, mypy, pyright, and the checks of the Cython core"
	@echo "make docs          the documentation as a site, in build/site"
	@echo "make bench         the benchmarks with their peers, and docs/benchmarks.md from them (ARGS=bench/test_maps.py: a part)"
	@echo "make bench-servers requests a second behind uvicorn and granian, with sessions and without (wrk)"
	@echo "make bench-guard   has the code become slower? ratios and instruction counts against their bounds"
	@echo "make sdist         build the sdist, a wheel from it, and use that wheel in an empty environment"
	@echo "make django        the Django tests on the newest Django, which wants Python 3.12"
	@echo "make wheels        wheels for Linux in dist/, from the sdist: built twice, checked, installed and tested"
	@echo "make test-all      the suites on every interpreter of this machine, free-threaded 3.13 included"
	@echo "make freethreaded  the core suites on CPython 3.13 without the GIL (built once, about 3 minutes)"
	@echo "make sanitize      the core suites under AddressSanitizer and UBSan"
	@echo "make fuzz          a minute of fuzzing of the decoder (ARGS=600: ten)"
	@echo "make build         only .venv and the compiled extension;  make clean  removes all that was built"

venv build:
	@ci/setup.sh build

demo:
	@ci/setup.sh demo
	@exec .venv/bin/python -m examples.demo

test:
	@ci/test.sh $(ARGS)

lint:
	@ci/lint.sh

docs:
	@ci/docs.sh

bench:
	@ci/bench.sh $(ARGS)

bench-servers:
	@ci/setup.sh bench
	@.venv/bin/python bench/wrk_asgi.py $(ARGS)

bench-guard:
	@ci/bench-guard.sh $(ARGS)

sdist:
	@ci/sdist.sh

django:
	@ci/django.sh $(ARGS)

wheels:
	@ci/wheels.sh

test-all:
	@ci/test-all.sh $(ARGS)

freethreaded:
	@ci/freethreaded.sh $(ARGS)

sanitize:
	@ci/sanitize.sh $(ARGS)

fuzz:
	@ci/fuzz.sh $(ARGS)

clean:
	rm -rf .venv .venv.lock build dist .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache .benchmarks
	rm -rf src/*.egg-info src/_core.c src/*.html src/cysession/_core.*.so tests/native/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
