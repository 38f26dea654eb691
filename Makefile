# `make` alone lists the targets. Everything runs in .venv, which `make setup` fills from settings.ini.
PYTHON ?= python3
PRESET ?= smoke
DEVICE ?= auto
WORKERS ?= 2
BIN := .venv/bin
export PYTHONUNBUFFERED := 1
unexport PYTHONDONTWRITEBYTECODE  # nothing is compiled in advance (tools/setup_env.py)

.DEFAULT_GOAL := help
.PHONY: help setup test torture fuzz bench paper page publish lab export readme clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile
	@echo "  Variables: PRESET=smoke|cpu|gpu|paper DEVICE=auto|cpu|cuda UNIT=name ONLY='piq' BUDGET=seconds (paper), WORKERS=2 (test), KILLS=9 (torture), SECONDS=60 (fuzz), PYTHON=python3 (setup)"

setup:  ## make or reuse .venv (Python 3.11 or newer)
	@$(PYTHON) tools/setup_env.py

test: export OMP_NUM_THREADS := 1
test: setup  ## every check: house rules, every notebook, every test; ends with counts and the names of skips
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=8 --durations-min=5

torture: export OMP_NUM_THREADS := 1
torture: setup  ## kill every stage of the pipeline again and again (KILLS=9 each) and count what is lost
	TORTURE=$(or $(KILLS),9) $(BIN)/python -m pytest -q -s tests/test_torture.py tests/test_faults.py

fuzz: export OMP_NUM_THREADS := 1
fuzz: setup  ## feed the loaders of sounds, images, tables and models with spoilt files (SECONDS=60); what breaks them is left in runs/fuzz
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python tests/fuzz/fuzz_loaders.py -max_total_time=$(or $(SECONDS),60)

bench: setup  ## time explanations, metrics and training beside their peers (DEVICE), about ten minutes on two quiet cores; tables in runs/bench and paper_figures/results/bench, a GPU's in bench-cuda beside
	@folder=$$($(BIN)/python -c "from lmac_piq.bench import bench_folder; print(bench_folder('$(DEVICE)'))") && small=paper_figures/results/$${folder##*/} && mkdir -p $$small && \
	for name in bench_explain bench_evaluate bench_profile bench_verdict; do $(BIN)/python -m papermill --engine lmac-piq --no-progress-bar --log-level ERROR -p device $(DEVICE) paper_figures/$$name.ipynb $$folder/$$name.ipynb || exit 1; done && \
	cp $$folder/bench_*.csv $$folder/bench_*.json $$folder/bench_*.svg $$folder/bench_*.png $$small/ && \
	for table in $$folder/bench_*.csv; do case $$table in *_times.csv) ;; *) echo "$$table"; column -s, -t $$table || cat $$table;; esac; done

paper: setup  ## regenerate tables, figures and audio with one preset; redoes only what changed
	$(BIN)/lmac-piq paper --preset $(PRESET) --device $(DEVICE) $(if $(UNIT),--unit $(UNIT)) $(if $(BUDGET),--budget $(BUDGET)) $(ONLY)

page: setup  ## a site from a run (PRESET): every number of its tables leads to clips that can be heard
	$(BIN)/python -c "import sys; from lmac_piq.companion import site_command; sys.exit(site_command())" $(PRESET)

publish: setup  ## copy the small results of a finished run (PRESET) to paper_figures/results
	$(BIN)/lmac-piq publish --preset $(PRESET)

lab: setup  ## open JupyterLab on the index notebook
	$(BIN)/jupyter lab nbs/index.ipynb

export: setup  ## after editing notebooks: clean them, export lmac_piq/, rewrite README.md
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_clean --fname paper_figures
	$(BIN)/nbdev_export
	$(BIN)/python tools/readme.py

readme: setup  ## rewrite README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

clean:  ## remove .venv and caches; runs/ and data/ stay
	rm -rf .venv .pytest_cache .hypothesis .snakemake *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
