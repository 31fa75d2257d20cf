# What people and CI run. Needs Python 3.11+ with venv and headers, a C compiler and make, and node for the tests.
#   make demo     see it work                  make test     everything that can be tested (ARGS='-k tls -x')
#   make build    the extensions alone         make asan     the same tests under AddressSanitizer and UBSan
#   make check    ruff, mypy, stubtest, test   make bench    the benchmarks (GROUP=func ARGS='bench/test_frame.py')
# Every step leaves a stamp in .venv or build, so only what changed is done again.

MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.PHONY: demo build test check asan bench clean

ARGS ?=
GROUP ?= group
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(VENV)/bin/pip --disable-pip-version-check -qq

CREATED := $(VENV)/.created
RUNNABLE := $(VENV)/.runnable
TESTABLE := $(VENV)/.testable
BUILT := $(VENV)/.built
PEERS := $(if $(wildcard tests/interop/package.json),tests/interop/node_modules/.installed)
ASAN := build/asan

SOURCES := $(shell find fastws tests -name '*.pyx' -o -name '*.pxd' -o -name '*.h')
PROJECT := pyproject.toml setup.py

# The first Python of these that is new enough; its line is empty if there is none.
FIND_PYTHON = for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$python"; break; }; done

$(CREATED):
	@python="$$($(FIND_PYTHON))"; \
	test -n "$$python" || { echo "fastws needs Python 3.11 or later; found: $$(python3 -V 2>&1)" >&2; exit 1; }; \
	"$$python" -c 'import venv, ensurepip' 2>/dev/null || \
	    { echo "fastws needs Python's venv module (Debian: apt install python3-venv)" >&2; exit 1; }; \
	"$$python" -c "import os, sysconfig as s; exit(not os.path.exists(s.get_path('include') + '/Python.h'))" || \
	    { echo "fastws needs the headers of Python (Debian: apt install python3-dev)" >&2; exit 1; }; \
	command -v "$${CC:-cc}" >/dev/null || \
	    { echo "fastws needs a C compiler (Debian: apt install gcc libc6-dev)" >&2; exit 1; }; \
	echo "creating $(VENV) with $$python"; \
	"$$python" -m venv $(VENV)
	@touch $@

# pip builds the extensions in an environment of its own, in place, and installs what fastws needs to run.
$(RUNNABLE): $(PROJECT) $(SOURCES) | $(CREATED)
	@echo "building fastws"
	@$(PIP) install -e .
	@touch $@

# The same with what the tests need; Cython comes along so that a changed source can be built again without pip.
$(TESTABLE): $(PROJECT) | $(CREATED)
	@echo "installing fastws and its test tools"
	@$(PIP) install 'setuptools>=77' 'cython>=3.1,<4'
	@FASTWS_PROBES=1 $(PIP) install -e '.[test]'
	@touch $@ $(RUNNABLE)

# Nothing to do if pip has built the extensions since the last change of a source.
$(BUILT): $(PROJECT) $(SOURCES) | $(TESTABLE)
	@test -z "$$(find $(PROJECT) $(SOURCES) -newer $(TESTABLE))" || { echo "building the extensions"; \
	    FASTWS_PROBES=1 $(PY) setup.py -q build_ext --inplace >/dev/null; }
	@touch $@

tests/interop/node_modules/.installed: tests/interop/package.json $(wildcard tests/interop/package-lock.json)
	@command -v npm >/dev/null || { echo "make test needs node and npm (Debian: apt install nodejs npm)" >&2; exit 1; }
	@echo "installing JsSIP and SIP.js for the tests"
	@cd tests/interop && npm $$(test -f package-lock.json && echo ci || echo install) --silent --no-audit --no-fund
	@touch $@

demo: $(if $(wildcard $(TESTABLE)),$(BUILT),$(RUNNABLE))
	@$(PY) -m fastws demo

build: $(BUILT)

test: $(BUILT) $(PEERS)
	@$(PY) -m pytest $(ARGS)

check: $(BUILT)
	@$(PY) -m ruff check .
	@$(PY) -m mypy -p fastws $(if $(wildcard tests/typing/public_api.py),&& $(PY) -m mypy tests/typing/public_api.py)
	@stubs="$$(find fastws -name '*.pyi' | sed 's/\.pyi$$//; s,/__init__$$,,; s,/,.,g' | sort)"; \
	test -z "$$stubs" || $(PY) -m mypy.stubtest --allowlist tests/typing/allowlist.txt \
	    --ignore-unused-allowlist $$stubs
	@$(MAKE) test

bench: $(BUILT)
	@$(PY) -m pytest --benchmark-enable --benchmark-only --benchmark-group-by=$(GROUP) $(or $(ARGS),bench)

# A copy of the tree with its own build, so that the normal build stays. Files keep their times: only what changed is
# compiled again. PYTHONPATH puts the copy before the installed tree for every process that a test starts. Leaks are not
# looked for, as CPython leaves memory behind on purpose; its own allocator would hide errors from the sanitizer.
asan: $(TESTABLE) $(PEERS)
	@test -e "$$(gcc -print-file-name=libasan.so)" || { echo "make asan needs gcc with libasan and libubsan" >&2; exit 1; }
	@mkdir -p $(ASAN)
	@find $(ASAN) -path $(ASAN)/build -prune -o -type f ! -name '*.so' -exec rm -f {} +
	@tar -cf - --exclude=./.git --exclude='./.venv*' --exclude=./build --exclude=./dist --exclude='*.so' \
	    --exclude='*.egg-info' --exclude=node_modules --exclude=__pycache__ --exclude='.*_cache' . | tar -xf - -C $(ASAN)
	@test ! -d tests/interop/node_modules || \
	    ln -sfn $(CURDIR)/tests/interop/node_modules $(ASAN)/tests/interop/node_modules
	@echo "building the extensions with sanitizers"
	@cd $(ASAN) && FASTWS_SANITIZE=1 FASTWS_PROBES=1 $(CURDIR)/$(PY) setup.py -q build_ext --inplace >/dev/null
	@cd $(ASAN) && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc PYTHONPATH=$(CURDIR)/$(ASAN) \
	    $(CURDIR)/$(PY) -m pytest -p no:cacheprovider $(ARGS)

clean:
	@rm -rf $(VENV) build dist *.egg-info tests/interop/node_modules .pytest_cache .mypy_cache .ruff_cache .benchmarks
	@find fastws tests bench \( -name '*.so' -o -name __pycache__ \) -prune -exec rm -rf {} +
