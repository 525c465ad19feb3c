# Everything sets itself up: a user needs Python 3.11, 3.12 or 3.13, git and make. docs/contributing.md tells more.
#
#   make demo     see it survive: a CSV pipeline over 336,776 rows whose worker is killed again and again
#   make test     the tests, on every Python in range that this machine has
#   make check    the static checks
#   make mutants  brings each defect of the original back, and expects the tests to notice
#   make faults   a run disturbed at every operation of its store, and its rescuer as well
#   make soak     workers killed 200 times (SEED=... repeats one)
#   make programs  200 programs of goroutines, kept at every turn or never: the same, byte for byte (COUNT=..., SEED=...)
#   make leaks    10,000 guests restored, grown, kept and evicted: nothing is left behind
#   make fuzz     100,000 hostile guests (COUNT=..., SEED=...)
#   make bench    the figures
#   make bench-peers  DBOS and Restate beside wasman (fetches them; about 5 minutes)
#   make format   what the formatter and the linter can mend by themselves
#   make docs     make docs/reference.md anew from the docstrings
#   make guests   build the guest modules anew (needs TinyGo)
#   make fuzz-corpus  generate the modules of tests/fuzz anew (needs cargo)
#   make lock     resolve the locked requirements anew (UPGRADE=--upgrade takes newer versions)
#   make clean    delete what these have made

# The first Python that runs, is in range and can make virtual environments (Debian packs that apart); a pyenv shim may be
# there and yet not run. PYTHON=... names another.
PYTHON_PROBE = import ensurepip, sys, venv; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit(1); print("%d.%d" % v, sys.executable)
PYTHON_FOUND := $(shell for python in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3 \
	"$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/*/bin/python3); \
	do "$$python" -I -c '$(PYTHON_PROBE)' 2>/dev/null && break; done)
VERSION := $(firstword $(PYTHON_FOUND))
INTERPRETER := $(wordlist 2,$(words $(PYTHON_FOUND)),$(PYTHON_FOUND))
VENV := .venv/$(VERSION)

SETUP = "$(INTERPRETER)" tools/setup_env.py

# Where TinyGo is, if it is: WASMAN_TINYGO, or what tools/tinygo.sh installed.
ifeq ($(WASMAN_TINYGO),)
ifneq ($(wildcard .tools/tinygo/bin/tinygo),)
export WASMAN_TINYGO := $(CURDIR)/.tools/tinygo/bin/tinygo
endif
endif

UV_VERSION = 0.13.9
UV = .cache/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock" $(UPGRADE)

.PHONY: help demo test check mutants faults soak bench bench-peers format docs guests lock clean env programs leaks fuzz fuzz-corpus

help:
	@sed -n 's/^#   //p' Makefile

env:
ifeq ($(VERSION),)
	@echo "make: $(if $(PYTHON),$(PYTHON) is not,there is no) Python 3.11, 3.12 or 3.13 that runs and has venv and ensurepip." >&2
	@echo "Install one (Debian and Ubuntu: python3 and python3-venv), or name it: make PYTHON=/path/to/python3.12" >&2
	@exit 1
endif
	@$(SETUP) >/dev/null

demo: env
	$(VENV)/bin/python tools/fetch_flights.py
	$(VENV)/bin/python -m samples.process_csv.demo

test: env
	$(VENV)/bin/python tools/build_guests.py --digests
	$(VENV)/bin/python -m tools.build_asyncified --digests
ifeq ($(WASMAN_TINYGO),)
	@echo "TinyGo is not on this machine: the committed guest modules are used, not built anew and compared."
else
	$(VENV)/bin/python tools/build_guests.py --check
endif
	$(VENV)/bin/python -m tools.build_asyncified --check || [ $$? -eq 3 ] # without their compilers they are used as committed
	$(VENV)/bin/python tools/run_tests.py $$($(SETUP) --each)

check: env
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m tools.check_types
	$(VENV)/bin/python tools/check_text.py
	@if command -v go >/dev/null; then \
		echo "go vet and go test of guest_sdk and of the samples' guests"; \
		for folder in guest_sdk samples/*/guest; do \
			(cd $$folder && go vet ./... && go test ./...) || exit 1; \
		done; \
	else \
		echo "Go is not on this machine: guest_sdk was not checked."; \
	fi

mutants: env
	$(VENV)/bin/python tools/run_mutants.py

faults: env
	WASMAN_FAULTS=1 $(VENV)/bin/python -m pytest -q -s tests/faults -k "whatever_fails or rescuer"

soak: env
	$(VENV)/bin/python -m tests.faults.soak --kills 200 $(if $(SEED),--seed $(SEED))

programs: env
	WASMAN_PROGRAMS=$(or $(COUNT),200) WASMAN_SEED=$(SEED) $(VENV)/bin/python -m pytest -q -s tests/engine/test_zero_replay.py -k asyncio

leaks: env
	WASMAN_LEAKS=1 $(VENV)/bin/python -m pytest -q tests/engine/test_eviction.py -k "leak_nothing and asyncio"
	WASMAN_LEAK_CYCLES=10000 $(VENV)/bin/python -m pytest -q tests/engine/test_memory.py -k leaks

fuzz: env
	$(VENV)/bin/python -m tests.fuzz $(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED))

bench: env
	$(VENV)/bin/python tools/fetch_flights.py
	$(VENV)/bin/python -m benchmarks

bench-peers: env
	$(VENV)/bin/python -m benchmarks.peers

format: env
	$(VENV)/bin/ruff check --fix-only
	$(VENV)/bin/ruff format

docs: env
	$(VENV)/bin/python tools/reference.py

guests: env
	$(VENV)/bin/python tools/build_guests.py
	$(VENV)/bin/python -m tools.build_asyncified || [ $$? -eq 3 ]

fuzz-corpus:
	cd tools/wasm_smith && cargo build --quiet --release --locked --target-dir ../../.cache/wasm_smith
	rm -rf .cache/corpus && mkdir .cache/corpus
	.cache/wasm_smith/release/wasman-smith .cache/corpus 0 1000
	cd .cache/corpus && ls | sort -n | tar --create --format=ustar --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=644 \
		--files-from=- | xz -9e >../../tests/fuzz/corpus.tar.xz

lock: env
	test -x .cache/uv/bin/uv || "$(INTERPRETER)" -m venv .cache/uv
	.cache/uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) --group dev --extra http --extra trio pyproject.toml --output-file requirements/dev.txt
	$(UV) --resolution lowest-direct --group dev --extra http --extra trio pyproject.toml --output-file requirements/oldest.txt
	$(UV) --no-deps requirements/demo.in --output-file requirements/demo.txt
	$(UV) requirements/peers.in --output-file requirements/peers.txt
	$(UV) requirements/types.in --output-file requirements/types.txt
	@if command -v npm >/dev/null; then \
		(cd benchmarks/peers && npm install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved --no-audit --no-fund); \
	else \
		echo "npm is not on this machine: benchmarks/peers/package-lock.json was left as it is."; \
	fi

clean:
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
