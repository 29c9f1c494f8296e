# Two commands on a fresh machine with Python 3.11 or newer:  make demo   and   make test
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where a CPU-only (or other) build of torch is preferred: make demo TORCH_INDEX=<index url>
TORCH_INDEX ?=
PIP_FLAGS := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
DEMO := var/demo

.PHONY: demo model notebook test test-slow test-failures test-compose lint types imports lock clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"smu0 needs Python 3.11 or newer, found {sys.version.split()[0]}. Try: make PYTHON=python3.11")'
	@echo "setting up $(VENV) (some minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -q -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -r requirements-dev.lock
	@touch $@

demo: $(VENV)/.installed ## train on S&P 500 daily bars, backtest, write var/demo/report.html
	$(BIN)/python -m data sample sp500
	$(BIN)/python -m agent train configs/sp500_1d.yaml --run demo --fresh
	$(BIN)/python -m backtest run --checkpoint var/runs/demo/checkpoints/best --out $(DEMO)
	@echo
	@echo "Report: $(DEMO)/report.html (open it in a browser) and $(DEMO)/report.json"
	@echo "Next:"
	@echo "  train longer      $(BIN)/python -m agent train configs/sp500_1d.yaml --run longer --set agent.training.env_steps=600000"
	@echo "  backtest again    $(BIN)/python -m backtest run --fill-seeds 200"
	@echo "  serve decisions   $(BIN)/python -m service serve"
	@echo "  ask for one       $(BIN)/python -m service example | curl -s -H \"X-API-Key: KEY\" -H 'content-type: application/json' -d @- http://127.0.0.1:8000/v1/act"

model: $(VENV)/.installed ## train the bundled BTCUSDT model anew; needs BTCUSDT 1h bars in the store (python -m data fetch or import)
	$(BIN)/python -m agent train configs/btc_1h.yaml --run btc_1h_model --fresh
	$(BIN)/python -m backtest run --checkpoint var/runs/btc_1h_model/checkpoints/best --out var/btc_1h_model
	@echo
	@echo "Bundle it: cp -L var/runs/btc_1h_model/checkpoints/best/{checkpoint.json,weights.safetensors} models/btc_1h/"

test: $(VENV)/.installed-dev lint types imports ## everything CI runs: lint, types, import contracts, tests
	$(BIN)/python -m pytest -m "not slow and not failures and not compose"

test-slow: $(VENV)/.installed-dev ## learning runs
	$(BIN)/python -m pytest -m "slow and not failures"

test-failures: $(VENV)/.installed-dev ## kill tests, outages, soaks: what paper trading must survive
	$(BIN)/python -m pytest -m failures

test-compose: $(VENV)/.installed-dev ## build the image, run the compose file and kill its containers; needs a Docker engine
	$(BIN)/python -m pytest -m compose

notebook: $(VENV)/.installed-dev ## run notebooks/tutorial.ipynb top to bottom
	$(BIN)/python -m pytest -m slow tests/notebooks

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

imports: $(VENV)/.installed-dev
	$(BIN)/lint-imports

lock: ## pin again what pyproject.toml allows: writes requirements.lock, requirements-dev.lock and requirements-ray.lock
	$(PYTHON) -m venv var/lock-venv --clear
	var/lock-venv/bin/python -m pip install -q setuptools==84.2.1 $(PIP_FLAGS) .
	var/lock-venv/bin/python -m pip freeze --all --exclude pip --exclude smu0 | grep -v '^nvidia-\|^triton\|^cuda-' | sed 's/+cpu$$//' > requirements.lock
	var/lock-venv/bin/python -m pip install -q --dry-run --report var/lock-venv/ray.json $(PIP_FLAGS) '.[cluster]'
	var/lock-venv/bin/python -c "import json; found = json.load(open('var/lock-venv/ray.json'))['install']; print(*sorted((p['metadata']['name'] + '==' + p['metadata']['version'] for p in found if p['metadata']['name'] != 'smu0'), key=str.lower), sep='\n')" > requirements-ray.lock
	var/lock-venv/bin/python -m pip install -q $(PIP_FLAGS) '.[dev]'
	var/lock-venv/bin/python -m pip freeze --all --exclude pip --exclude smu0 | grep -v '^nvidia-\|^triton\|^cuda-' | sed 's/+cpu$$//' | grep -vxFf requirements.lock > requirements-dev.lock
	rm -rf var/lock-venv build smu0.egg-info

clean: ## remove the environment and everything runs have produced
	rm -rf $(VENV) var
