# Everything a newcomer types. `make` alone lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# The checkouts that `make pairs` compares.
BASE ?=
HEAD ?= .
# Three on two cores: one of them mostly waits for Prometheus. A file stays with one process, for the sake of its fixtures,
# and files go in their order: by the number of tests, which is the default, the longest of them would come last.
SIDE_BY_SIDE := -n 3 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Each stamp stands for one finished installation and is renewed when the pins or the requirements change.
VENV_STAMP := $(VENV)/.made
SERVER_STAMP := $(VENV)/.installed-server
DEV_STAMP := $(VENV)/.installed-dev
FUZZ_STAMP := $(VENV)/.installed-fuzz
PINS := pyproject.toml constraints.txt

# pip-compile asks the index that pip is set up for, and its files name none.
COMPILE := $(BIN)/pip-compile --quiet --no-header --no-annotate --strip-extras --no-emit-options --no-emit-index-url \
  --no-emit-find-links --no-emit-trusted-host
HASHES = $(COMPILE) --generate-hashes --no-reuse-hashes
HASHES_HEADER := \# sha256 of every file that the package index lists for each pin. Written by make hashes.
SBOM := dist/mcpmeter.cdx.json

.DEFAULT_GOAL := help
.PHONY: help install run test test-fast check bench pairs trace size trials fuzz docs pictures constraints hashes sbom audit-dependencies clean
.DELETE_ON_ERROR:

help: ## list these commands
	@echo "mcpmeter: make COMMAND [ARGS=\"…\"]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name text; do printf '  %-12s %s\n' "$$name" "$$text"; done

install: $(SERVER_STAMP) ## make .venv and put the product into it, as .venv/bin/mcpmeter
	@echo "mcpmeter: $(BIN)/mcpmeter is ready"

run: $(SERVER_STAMP) ## watch it work: mcpmeter demo; needs no key and no network (ARGS="--port 9000")
	@$(BIN)/mcpmeter demo $(ARGS)

test: $(DEV_STAMP) ## all tests; installs what they need from Debian too (ARGS="-k ledger")
	@scripts/need.sh prometheus=prometheus prometheus-alertmanager=prometheus-alertmanager pg_ctlcluster=postgresql \
	  mkfs.ext4=e2fsprogs mount=mount nginx=nginx-light haproxy=haproxy
	@echo "mcpmeter: running all tests"
	@PATH="$$PATH:/usr/sbin" $(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

test-fast: $(DEV_STAMP) ## the tests without e2e and trials, up to the first failure
	@scripts/need.sh pg_ctlcluster=postgresql mkfs.ext4=e2fsprogs mount=mount
	@echo "mcpmeter: running the quick tests"
	@$(BIN)/python -m pytest -q -x -m "not trial" --ignore=tests/e2e $(ARGS)

check: $(DEV_STAMP) ## style, format, strict types, plain words, import layers
	@echo "mcpmeter: ruff check"
	@$(BIN)/ruff check --quiet .
	@echo "mcpmeter: ruff format --check"
	@$(BIN)/ruff format --quiet --check . || { echo "Not formatted. Run: $(BIN)/ruff format ." >&2; exit 1; }
	@echo "mcpmeter: mypy, strict"
	@$(BIN)/mypy --no-error-summary
	@echo "mcpmeter: plain words"
	@$(BIN)/python scripts/prose.py
	@echo "mcpmeter: import layers"
	@$(BIN)/lint-imports --no-logo >$(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }
	@echo "mcpmeter: all checks passed"

bench: $(DEV_STAMP) ## the relay against nginx, LiteLLM, Portkey and the guide's way; writes docs/performance.md
	@scripts/need.sh nginx=nginx-light cc=gcc
	@echo "mcpmeter: measuring, one server at a time on one core (about 10 minutes; ARGS=\"--peers nginx,relay\" for a part)"
	@PATH="$$PATH:/usr/sbin" $(BIN)/python -m benchmarks.run $(ARGS)
	@$(BIN)/python -m benchmarks.ledger --write

pairs: $(DEV_STAMP) ## CPU per call and per chunk beside another checkout: BASE=../before (about 5 minutes)
	@scripts/need.sh cc=gcc
	@$(BIN)/python -m benchmarks.pairs $(ARGS) "$(BASE)" "$(HEAD)"

trace: $(DEV_STAMP) ## the files and functions that run for a warm call, stream, tool call and scrape (ARGS="--markdown")
	@$(BIN)/python -m benchmarks.trace $(ARGS)

size: $(VENV_STAMP) ## what an installation costs in seconds and megabytes, the product and the library alone
	@$(BIN)/python scripts/install_size.py $(ARGS)

trials: $(DEV_STAMP) ## the long trials in full; writes docs/reliability.md
	@scripts/need.sh prometheus=prometheus pg_ctlcluster=postgresql mkfs.ext4=e2fsprogs mount=mount \
	  nginx=nginx-light haproxy=haproxy
	@echo "mcpmeter: running the trials in full (this takes a while)"
	@PATH="$$PATH:/usr/sbin" MCPMETER_TRIALS=full MCPMETER_TRIALS_REPORT=docs/reliability.md \
	  $(BIN)/python -m pytest -m trial -o timeout=3600 $(ARGS)

fuzz: $(FUZZ_STAMP) ## fuzz under coverage guidance, an hour on all cores (ARGS="openai yaml --seconds 600")
	@$(BIN)/python -m tests.fuzz $(ARGS)

docs: $(DEV_STAMP) ## write deploy/ and the generated pages of docs/ anew: settings, metrics, errors, commands
	@$(BIN)/python -m mcpmeter.config.reference >docs/configuration.md
	@$(BIN)/python -m mcpmeter.catalog.reference >docs/metrics.md
	@$(BIN)/python -m mcpmeter.cli._reference errors >docs/errors.md
	@$(BIN)/python -m mcpmeter.cli._reference cli >docs/cli.md
	@$(BIN)/python -m mcpmeter.monitoring.dashboards._build
	@$(BIN)/python -m mcpmeter.monitoring.runbooks docs/runbooks
	@rm -rf deploy && $(BIN)/mcpmeter monitoring write deploy --config examples/monitoring.yaml

pictures: $(DEV_STAMP) ## draw the dashboards from a seeded run of 4 minutes, into docs/images
	@scripts/need.sh prometheus=prometheus
	@echo "mcpmeter: running the service under Prometheus and drawing what the panels ask (about 5 minutes)"
	@$(BIN)/python -m pictures $(ARGS)

constraints: $(DEV_STAMP) ## write the pins anew: the newest versions that fit pyproject.toml, and their hashes
	@echo "mcpmeter: resolving every extra (a few minutes)"
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT \
	  && $(COMPILE) --extra server --extra postgres --extra parquet --extra monitoring -o "$$scratch/product" pyproject.toml \
	  && $(COMPILE) --extra dev --extra bench --extra supply --extra fuzz --all-build-deps -c "$$scratch/product" -o "$$scratch/all" pyproject.toml \
	  && grep == "$$scratch/product" >constraints.txt && grep == "$$scratch/all" | grep -vxFf constraints.txt >constraints-dev.txt
	@$(MAKE) --no-print-directory hashes
	@echo "mcpmeter: constraints.txt and constraints-dev.txt written; run make test before you commit them"

hashes: $(DEV_STAMP) ## write requirements-image.txt and requirements-build.txt: the pins of the image, with hashes
	@echo "mcpmeter: asking the package index for the hashes of the image's pins"
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT \
	  && $(HASHES) --extra server --extra postgres -c constraints.txt -o "$$scratch/image" pyproject.toml \
	  && $(HASHES) --build-deps-for wheel --only-build-deps -c constraints.txt -c constraints-dev.txt -o "$$scratch/build" pyproject.toml \
	  && for part in image build; do { echo "$(HASHES_HEADER)"; cat "$$scratch/$$part"; } >requirements-$$part.txt; done

sbom: $(DEV_STAMP) ## write the SBOM of the product, dist/mcpmeter.cdx.json: CycloneDX, every pin of constraints.txt
	@$(BIN)/python scripts/sbom.py $(SBOM)
	@echo "mcpmeter: $(SBOM) written"

audit-dependencies: $(DEV_STAMP) ## known vulnerabilities of all pins, from a public service or ADVISORIES=folder of OSV files
	@$(BIN)/python scripts/audit_dependencies.py $(ARGS) $(if $(ADVISORIES),--advisories "$(ADVISORIES)")

clean: ## remove .venv, caches and everything built
	@echo "mcpmeter: removing .venv, caches and build products"
	@rm -rf $(VENV) .bench .cache dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV_STAMP):
	@scripts/make_venv.sh "$(PYTHON)" "$(VENV)"
	@touch $@

$(SERVER_STAMP): $(VENV_STAMP) $(PINS)
	@echo "mcpmeter: installing the product into $(VENV) (about 20 s)"
	@$(PIP) -e '.[server]' -c constraints.txt
	@touch $@

# After the product and never beside it: two pips in one environment, as under make -j, break each other.
$(DEV_STAMP): $(SERVER_STAMP) constraints-dev.txt
	@echo "mcpmeter: installing the tools of tests, checks and benchmarks into $(VENV) (about 20 s)"
	@$(PIP) -e '.[dev,bench,supply]' -c constraints.txt -c constraints-dev.txt
	@touch $@

$(FUZZ_STAMP): $(DEV_STAMP)
	@echo "mcpmeter: installing the fuzzer into $(VENV)"
	@$(PIP) -e '.[fuzz]' -c constraints.txt -c constraints-dev.txt
	@touch $@
