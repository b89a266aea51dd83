"""tests/lab: every experiment runs at toy size, and its rows can be kept, printed and drawn; what they measure by."""
import json
import math
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from test_figures import assert_legible

from data.files import write_text
from data.format import PROMPT
from data.world import FAMILIES, World
from generate import generate
from judge import log_likelihoods
from lab import lab
from lab.__main__ import answers, markdown
from lab.beam import beam_search
from lab.figures import QUESTIONS
from model import Config, Llama


SMALLER = {  # what an experiment loops over
    "greedy": {"LONGEST": 6, "SAMPLES": 3}, "size": {"SIZES": (3, 10), "N_FAMILIES": (1, 13)},
    "cross": {"FAMILIES": FAMILIES[:3]}, "tags": {"FORMATS": {"user/assistant": PROMPT, "none": "{instruction}\n"}},
    "bias": {"RATES": {"LoRA, rank 1": (1e-3, 3e-3), "all weights": (1e-4,)}, "DECAYS": (1e-3,)},
    "rules": {"TOKEN_SHIFTS": {"<": -4, "What": -5, "!": 1}}, "ranking": {"STAGES": (0.5,), "pretrain": lambda config, *_: config.parent},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Two random models of one small layer with a context of 112 tokens, and as many dialogues as there are families."""
    made, config = [], replace(Config.from_json(TINY / "config.json"), hidden_size=16, intermediate_size=16, head_dim=8,
                               num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=112)
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("base")
        for each in (folder, folder / "1-2"):  # the second as it was after half of its documents
            each.mkdir(exist_ok=True)
            Llama(config).init_weights(torch.Generator().manual_seed(seed)).save_pretrained(each)
            write_text(each / "tokenizer.json", (TINY / "tokenizer.json").read_text(encoding="utf-8"))
        made.append(lab.Base(folder, World(seed=seed), seed, most=len(FAMILIES)))
    return made


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Jobs run in this process, and what they make is forgotten."""
    monkeypatch.setattr(lab, "KEPT", tmp_path / "kept")
    one_by_one = lambda jobs, workers: {name: call(*rest) for name, (_, call, *rest) in jobs.items()}  # noqa: E731
    monkeypatch.setattr(lab, "side_by_side", one_by_one)
    for question in QUESTIONS:
        experiment = import_module(f"lab.{question}")
        if hasattr(experiment, "side_by_side"):
            monkeypatch.setattr(experiment, "side_by_side", one_by_one)


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_experiment_runs_at_toy_size(question, bases, here, monkeypatch):
    experiment = import_module(f"lab.{question}")
    for name, value in SMALLER.get(question, {}).items():
        monkeypatch.setattr(experiment, name, value)
    assert "Expected:" in experiment.__doc__ and "Held against:" in experiment.__doc__
    rows = experiment.run(bases, 1)
    rows = json.loads(json.dumps(rows, allow_nan=False))
    assert_legible(experiment.draw(rows))
    lines = markdown(rows).splitlines()
    assert len(lines) == len(rows) + 2 and len({line.replace(r"\|", "").count("|") for line in lines}) == 1
