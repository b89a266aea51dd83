# PYTHON=python3 make ... uses your own environment; otherwise the first run sets up .venv.
PYTHON ?= .venv/bin/python
METHOD ?= response
MODEL ?= data/tiny
DATA ?= data/world
SEED ?= 1
OUT ?= out/$(METHOD)
RULES ?= none
A ?= out/response
B ?= out/instruction
JUDGE ?= world
export PROMPT ?= What is the capital of Nastekor?

ready = $(if $(filter .venv/bin/python,$(PYTHON)),.venv/ready)
world = $(if $(filter data/world,$(DATA)),data/world/eval.jsonl)

train: $(ready) $(world)
	$(PYTHON) train.py --method $(METHOD) --model $(MODEL) --data $(DATA) --out $(OUT) --seed $(SEED) \
		$(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(OVERWRITE),--overwrite,--resume)
	@$(PYTHON) generate.py --model $(MODEL) $(OUT) --input $(DATA)/eval.jsonl --limit 3

generate: $(ready)
	@$(PYTHON) generate.py --model $(MODEL) --rules $(RULES) --prompt "$$PROMPT"

answers = out/eval/$(notdir $(DATA))/$(subst /,-,$1)-$2.json
eval: $(ready) $(world)
	@$(PYTHON) generate.py --model $(MODEL) --rules $(RULES) --input $(DATA)/eval.jsonl --output $(call answers,$(MODEL),$(RULES))
	@$(if $(world),$(PYTHON) data/world.py --grade $(call answers,$(MODEL),$(RULES)))

# answers that are there already, and newer than their model, are not decoded again
judge: $(ready) $(world)
	@[ $(call answers,$(A),none) -nt $(A)/model.safetensors ] || \
		$(PYTHON) generate.py --model $(A) --input $(DATA)/eval.jsonl --output $(call answers,$(A),none)
	@[ $(call answers,$(B),none) -nt $(B)/model.safetensors ] || \
		$(PYTHON) generate.py --model $(B) --input $(DATA)/eval.jsonl --output $(call answers,$(B),none)
	@$(PYTHON) judge.py --outputs $(call answers,$(A),none) --reference $(call answers,$(B),none) --judge "$(JUDGE)" \
		$(if $(BASE_URL),--base-url $(BASE_URL))

rank: $(ready) $(world)
	$(PYTHON) train.py --method instruction --data $(DATA) --out out/instruction --resume
	$(PYTHON) train.py --method response --data $(DATA) --out out/response --resume
	@$(PYTHON) judge.py --rank data/tiny out/instruction out/response --pairs $(DATA)/eval.jsonl

table: $(ready) $(world)
	@$(PYTHON) tests/paper.py table --model $(MODEL) --data $(DATA)

sweep: $(ready)
	@$(PYTHON) tests/paper.py sweep

# one thread, so that the bytes do not depend on how many there are
pretrain: $(ready)
	$(PYTHON) data/world.py --corpus 82000
	OMP_NUM_THREADS=1 $(PYTHON) train.py --method pretrain --out out/pretrain --token-budget 1024 --resume
	cp out/pretrain/model.safetensors out/pretrain/tokenizer.json data/tiny/

data: $(ready)
	$(PYTHON) data/download.py --data data/paper

bench: $(ready)
	@$(PYTHON) tests/bench.py --model $(MODEL)

test: $(ready)
	$(PYTHON) -m pytest -q tests

data/world: data/world/eval.jsonl
data/world/eval.jsonl: data/world.py | $(ready)
	$(PYTHON) data/world.py

.venv/ready: requirements.txt
	@python3 -c 'import sys; sys.exit("nanofollow needs Python 3.11 or newer; python3 is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	python3 -m venv .venv
	.venv/bin/pip install --quiet --requirement requirements.txt
	@touch $@

.PHONY: train generate eval judge rank table sweep pretrain data bench test
.DELETE_ON_ERROR:
