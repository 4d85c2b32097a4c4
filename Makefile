# Two commands: `make demo` and `make test`. Nothing here needs more than git, make and python3 >= 3.11.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
T ?= tests
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Otherwise each process of a test run compiles all tests and libraries again, which takes ten seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-rest test-all test-prefect test-stores coverage faults quick-bench check format machines monitoring backups postgresql programs proxies signers webservers stores bench screenshots lock advisories clean

help:
	@echo "make install       Ferry into .venv, as production has it"
	@echo "make demo          the whole tour on real servers, about half a minute after the installation"
	@echo "make test          linters, types, architecture and the tests that decide most   (T=tests/ferry: all tests of a part)"
	@echo "make test-all      make test, and all other tests: whole runs, faults, deployments, the newest Prefect, a quick bench"
	@echo "make test-stores   the contract of stores, against all servers (make stores installs these)"
	@echo "make coverage      branch coverage of all tests, child processes included"
	@echo "make faults        all fault experiments: kills, power cuts, damage, outages, fuzzing; up to 45 minutes"
	@echo "make check         linters, types and architecture alone"
	@echo "make format        format the code"
	@echo "make bench         Ferry beside rclone, s5cmd, juicefs, img2dataset and a script, over an hour   (N=2000: quick)"
	@echo "make screenshots   take the pictures of docs/images/ from real runs (needs Debian's chromium; root installs it)"
	@echo "make advisories    ask the package index for known vulnerabilities of what the locks name"
	@echo "make lock          resolve the dependencies again (needs uv)"

install: .venv/.installed
	@echo "Ferry $$($(BIN)/ferry --version) is in $(BIN). So that your shell finds it:"
	@echo "  export PATH=$(CURDIR)/$(BIN):\$$PATH"

demo: .venv/.installed-demo
	@$(BIN)/ferry demo

# $(call beside,TARGETS,TESTS): pytest, and these targets beside it, since most tests wait. What the targets print is shown
# if they fail, so that pytest has the last word. (`set -m`: a job of the background would ignore SIGINT.)
define beside
@mkdir -p .bench; set -m; $(MAKE) --no-print-directory $(1) >.bench/beside.log 2>&1 & beside=$$!; set +m; \
trap 'kill -- -$$beside 2>/dev/null' EXIT; \
$(BIN)/python -m pytest $(2); tests=$$?; \
if ! wait $$beside; then cat .bench/beside.log; echo "make $(1) failed"; exit 1; fi; \
exit $$tests
endef

test: .venv/.installed-dev signers
	$(call beside,check,-n 3 $(if $(filter tests,$(T)),-m "not slow") $(T))

# The second tier: whole runs of the command, matrices, faults, containers, PostgreSQL. Beside it, installations included:
# what meets Prefect, with the newest version that is allowed; the contract of stores against all servers; and a quick
# bench, which shows that it works: a run of Ferry's that lost an object fails it, timings do not.
test-rest: .venv/.installed-dev postgresql programs
	$(call beside,test-prefect test-stores quick-bench,-n 3 -m slow tests --ignore=tests/stores)

test-all: test test-rest

# The tests that meet Prefect, in an environment with the newest one. The others have the oldest.
MEET_PREFECT := tests/flows/test_prefect_patches.py tests/flows/test_results.py \
	tests/flows/test_start.py::test_a_home_whose_database_was_deleted_is_prepared_anew \
	tests/flows/test_cli.py::test_plan_run_and_run_again tests/flows/test_retries.py::test_pending_rows_are_not_cached \
	tests/flows/test_deploy.py::test_it_makes_what_is_missing_and_then_nothing \
	tests/flows/test_control.py::test_a_worker_s_run_is_paused_in_the_ui_and_cancelled
test-prefect: .venv-prefect/.installed
	@PATH="$(CURDIR)/.venv-prefect/bin:$(CURDIR)/$(BIN):$$PATH" .venv-prefect/bin/python -m pytest -n 2 $(MEET_PREFECT)

# What needs the servers of `make stores` is in tests/stores/, so that nothing else waits for their installation.
test-stores: .venv/.installed-dev stores
	@$(BIN)/python -m pytest -n 2 tests/stores

# Branch coverage of both tiers, and the files with the most lines that no test reaches. Child processes get clean
# environments, so a .pth file in .venv has each process of it measured. What is killed, and the decoding child, which may
# write no file, stays unmeasured. A test that bounds processor time may fail.
coverage: export COVERAGE_FILE = $(CURDIR)/.bench/coverage
coverage: .venv/.installed-dev postgresql programs stores
	@mkdir -p .bench; $(BIN)/coverage erase
	@pth=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/a0_ferry_coverage.pth; \
	trap "rm -f $$pth" EXIT; \
	echo "import os; os.environ.setdefault('COVERAGE_FILE', '$$COVERAGE_FILE')," \
		"os.environ.setdefault('COVERAGE_PROCESS_START', '$(CURDIR)/pyproject.toml')" >$$pth; \
	$(BIN)/coverage run -m pytest -n 4 tests; \
	$(BIN)/coverage combine --quiet; $(BIN)/coverage report --sort=miss

# What the tiers try a few cases of, tried in full; prints a table.
faults: .venv/.installed-dev postgresql machines
	@$(BIN)/python -m tests.faults $(if $(filter-out tests,$(T)),$(T))

quick-bench: .venv/.installed-dev .bench/venv/.installed .venv-stores/.installed
	@$(BIN)/python -m benchmarks --n 200 --scenes a,d
	@$(BIN)/python -m benchmarks.providers --quick

# The hooks of .pre-commit-config.yaml, which all run from .venv. `.venv/bin/pre-commit install` has git run them.
check: .venv/.installed-dev
	@PRE_COMMIT_HOME=$(CURDIR)/.venv/pre-commit $(BIN)/pre-commit run --all-files --color never

format: .venv/.installed-dev
	@$(BIN)/ruff format --quiet . && $(BIN)/ruff check --quiet --fix .

.venv/.installed: requirements.txt pyproject.toml
	@./deployments/venv.sh $(PYTHON) requirements.txt
	@touch $@

.venv/.installed-demo: requirements-demo.txt pyproject.toml
	@./deployments/venv.sh $(PYTHON) requirements-demo.txt
	@touch $@

.venv-prefect/.installed: requirements-prefect-newest.txt .venv/.installed-dev
	@./deployments/venv.sh $(PYTHON) requirements-prefect-newest.txt .venv-prefect .venv
	@touch $@

.venv/.installed-dev: requirements-dev.txt pyproject.toml
	@./deployments/venv.sh $(PYTHON) requirements-dev.txt
	@touch $@

# For the end-to-end test. As root it is installed where it is missing.
postgresql:
	@./deployments/postgresql.sh

# Programs that tests start, and their packages. As root those that are missing are installed.
PROXIES := tinyproxy:tinyproxy-bin squid:squid-openssl nginx:nginx-light
WEBSERVERS := nginx:nginx-light apache2:apache2 haproxy:haproxy caddy:caddy
MACHINES := ip:iproute2 faketime:faketime
MONITORING := promtool:prometheus prometheus-node-exporter:prometheus-node-exporter \
	prometheus-pushgateway:prometheus-pushgateway
BACKUPS := rclone:rclone

proxies:
	@./deployments/programs.sh "tests of networks" $(PROXIES)

webservers:
	@./deployments/programs.sh "tests of redirects" $(WEBSERVERS)

machines:
	@./deployments/programs.sh "tests of several machines" $(MACHINES)

monitoring:
	@./deployments/programs.sh "tests of metrics" $(MONITORING)

backups:
	@./deployments/programs.sh "tests of backups" $(BACKUPS)

# All of them: apt reads its lists once instead of five times.
programs:
	@./deployments/programs.sh "tests of the second tier" $(PROXIES) $(WEBSERVERS) $(MACHINES) $(MONITORING) $(BACKUPS)

# ssh-keygen and minisign, for the tests of signatures. As root they are installed where they are missing.
signers:
	@./deployments/programs.sh "tests of signatures" ssh-keygen:openssh-client minisign:minisign

# The servers of tests/stores/: wheels in an environment of their own, Azurite from npm, Ceph of the distribution.
stores: .venv-stores/.installed
	@./deployments/stores.sh

.venv-stores/.installed: requirements-stores.txt
	@./deployments/venv.sh $(PYTHON) requirements-stores.txt .venv-stores
	@touch $@

# N=20000 objects, ROUNDS=3, SCENES=a,b,c,d,e,f,g,h,i,sink. Only a whole one writes docs/explanation/performance.md; WRITE=1: any.
# Without SCENES also the clients of the providers, which that page quotes.
bench: .venv/.installed-dev .bench/venv/.installed .venv-stores/.installed
	@$(BIN)/python -m benchmarks $(if $(N),--n $(N)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(SCENES),--scenes $(SCENES)) $(if $(WRITE),--write) $(if $(KEEP),--keep)
	@$(if $(SCENES),,$(BIN)/python -m benchmarks.providers)

.bench/venv/.installed: requirements-bench.txt
	@mkdir -p .bench
	@./deployments/venv.sh $(PYTHON) requirements-bench.txt .bench/venv
	@touch $@

screenshots: .venv/.installed-dev
	@$(BIN)/python docs/make_screenshots.py

lock:
	@./deployments/lock.sh

# Needs an index that has PyPI's JSON API, and says so where it has not.
advisories: .venv/.installed-dev
	@$(BIN)/python deployments/advisories.py

clean:
	@rm -rf .venv .venv-prefect .venv-stores .demo .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
