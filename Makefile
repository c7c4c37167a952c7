# All targets use .venv in this folder, and make it when it is not there.
PYTHON ?= python3
BIN := .venv/bin
DEMO := .demo

.PHONY: demo quick test test-long test-release avx2 chaos lint benchmark clean

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,lint]'
	touch $@

# A sample of tags -> shards -> an index, built under Ray -> three queries.
demo: $(BIN)/.installed
	@rm -rf $(DEMO)
	$(BIN)/danbooru-index prepare danbooru_index/sample_tags.jsonl --shard-rows 128 --out $(DEMO)/shards
	$(BIN)/danbooru-index build $(DEMO)/shards --index $(DEMO)/index --model m3-mini --device cpu
	@echo
	@printf '%s\n' '穿水手服的女孩' 'hair over one eye' 'ツインテール' \
		| $(BIN)/danbooru-index search $(DEMO)/index - --limit 5 --device cpu

quick: $(BIN)/.installed
	$(BIN)/python -m pytest -q -m 'not ray and not slow and not long'

# Every capability once, for real: see tests/README.md.
test: $(BIN)/.installed
	$(BIN)/python -m pytest -q -m 'not long' --durations=15

# The others: the campaigns in their reduced form, whole rebuilds, hanging Rays, bare machines.
test-long: $(BIN)/.installed
	$(BIN)/python -m pytest -q -m 'long and not release' --durations=15

# What takes longer still, by hand before a release, as `make chaos`: see tests/README.md.
test-release: $(BIN)/.installed
	$(BIN)/python -m pytest -q -m release --durations=15

# The tests of what computes once more, as on a processor with AVX2 only: no AVX-512, no bf16.
COMPUTING := forward encoder device codec embedded weights gpu evaluation
avx2: $(BIN)/.installed
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
		$(BIN)/python -m pytest -q -m 'not ray' $(foreach name,$(COMPUTING),$(wildcard tests/*/test_$(name).py tests/*/*/test_$(name).py))

# Faults by the hundred (by estimate an hour and a half): make chaos [SEED=n] [ONLY=campaign]
chaos: $(BIN)/.installed
	$(BIN)/python tests/chaos/chaos.py --seed $(or $(SEED),0) $(if $(ONLY),--only $(ONLY))

# Against what you would use instead, as ratios, and the job at its full size (an hour on two cores; parts: make benchmark
# PARTS="encoder job").
SHARED := ../shared
INPUT := $(or $(wildcard $(SHARED)/data/danbooru_tags.jsonl.gz),danbooru_index/sample_tags.jsonl)
TOKENIZER := $(addprefix --tokenizer ,$(wildcard $(SHARED)/xlmr_tokenizer/tokenizer.json))
PARTS ?= encoder packing colbert job overhead device overlap scaling shards full-size
MODEL_encoder := wide
MODEL_packing := six
MODEL_colbert := wide
MODEL_job := six
MODEL_overhead := six
ROWS_job := 20000
ROWS_overhead := 20000
ROWS_colbert := 8192
ROWS_shards := 10000

benchmark: $(addprefix benchmark-,$(PARTS))

$(BIN)/.benchmark: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[benchmark]'
	touch $@

.benchmark/%: $(BIN)/.benchmark
	$(BIN)/python tests/support/checkpoints.py $@ --size $* $(if $(filter tiny,$*),,$(TOKENIZER))

# 1,386,373 records by the README's own words.
benchmark-full-size: $(BIN)/.installed
	$(BIN)/python tests/scale/full_size.py

.PRECIOUS: .benchmark/%
.SECONDEXPANSION:
benchmark-%: $(BIN)/.benchmark .benchmark/$$(or $$(MODEL_$$*),tiny)
	$(BIN)/danbooru-index benchmark $* --model .benchmark/$(or $(MODEL_$*),tiny) --input $(INPUT) \
		--rows $(or $(ROWS_$*),2048) $(if $(REPEATS),--repeats $(REPEATS))

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .demo .benchmark .pytest_cache .mypy_cache .ruff_cache build *.egg-info
