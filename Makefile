# Targets with a description after ## are listed by `make help`.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
DEMO = 12ep-b64-fp32-4b53a774
# METRIC=last as --metric last; nothing where it is not set. Options' names are those of the variables.
given = $(if $($(1)),--$(shell echo $(1) | tr A-Z a-z) '$($(1))')
of_table = METRIC SEEDS PAIRS METHODS FORMAT ARGS
of_report = METRIC SEEDS PAIRS METHODS ARGS
of_bench = DATA ARGS
of_chaos = MINUTES SEED SWEEP
of_ui = ARGS
known = PYTHON VENV $(foreach goal,$(MAKECMDGOALS),$(of_$(goal)))
unknown = $(filter-out $(known),$(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name))))
$(if $(unknown),$(error $(unknown): no such variable here; there are $(known)))
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slurm chaos lint table report bench ui clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.installed  ## make .venv with everything that the project and its tests need

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "edkd needs Python 3.10 to 3.13; make PYTHON=/path/to/python3 names another one" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## 3 teachers, 12 students, table and report on real handwritten digits: minutes, no download, no GPU
	$(RUN) launch.py -m experiment=demo distiller=vanilla,kd,dkd,edkd hydra/launcher=local \
		pair=vgg13-vgg8,resnet32x4-resnet8x4,wrn_40_2-wrn_16_2
	$(RUN) -m analysis --report --dataset digits-8-100perclass --recipe $(DEMO)
	@echo "It works. So few images and epochs rank no methods. Curves of every run: make ui"

test: setup lint  ## lint, types and all tests but those on a real SLURM
	$(RUN) -m pytest -n 2 --dist loadfile --max-worker-restart=0 -q

test-slurm: setup  ## tests on a real SLURM that is booted here, minutes; as root it installs the packages by apt
	$(RUN) tests/integration/packages.py
	$(RUN) -m pytest tests/integration -q --timeout=900 --durations=0

chaos: MINUTES = 10
chaos: SEED = $(shell date +%m%d%H%M)
chaos: SWEEP = 1
chaos: setup  ## sweeps on that SLURM under faults drawn from a seed; MINUTES=60 SEED=7; SWEEP=13 begins there
	$(RUN) tests/integration/packages.py
	EDKD_CHAOS="$(MINUTES) $(SEED) $(SWEEP)" $(RUN) -m pytest tests/integration/test_chaos.py -q -s --timeout=0

lint: setup  ## ruff and mypy alone
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

table: OPTIONS = $(foreach option,METRIC SEEDS PAIRS METHODS FORMAT,$(call given,$(option))) $(ARGS)
table: setup  ## outputs/table.md, .csv and report.html; METRIC=last SEEDS=0,1 PAIRS= METHODS= FORMAT=latex
	$(RUN) -m analysis --report $(OPTIONS)

report: OPTIONS = $(foreach option,METRIC SEEDS PAIRS METHODS,$(call given,$(option))) $(ARGS)
report: setup  ## outputs/report.html alone, the table as one page with figures; options as of make table
	$(RUN) -m analysis.html_report $(OPTIONS)

bench: setup  ## time per step against the plain loop; DATA=dir holds cifar-100-python/; ARGS=--quick
	$(VENV)/bin/edkd bench $(if $(DATA),'dataset.root=$(DATA)') $(ARGS)

ui: setup  ## the MLflow UI on http://127.0.0.1:5000; prints the link to the runs; ARGS='--port 5001'
	@$(VENV)/bin/edkd ui $(ARGS)

clean:  ## remove caches and the virtual environment; outputs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
