"""tests/lab/lab.py: it makes what the command lines make, keeps it under all that made it, and runs jobs in order."""
import os
import time

import pytest
from conftest import TINY, command

from data.common import fingerprint, read_json, write_jsonl
from data.world import World
from lab import lab

WORLD = World()
ROWS = WORLD.training_set("broad", 20)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "KEPT", tmp_path / "kept")
    return tmp_path / "kept"


def test_a_tuned_model_and_its_answers_are_those_of_the_command_lines(kept, tmp_path):
    write_jsonl(tmp_path / "data" / "broad.jsonl", ROWS)
    write_jsonl(tmp_path / "ask.jsonl", [{"instruction": row["messages"][0]["content"]} for row in ROWS[:5]])
    command("train.py", "--method", "response", "--data", tmp_path / "data", "--out", tmp_path / "run", "--epochs", 1,
            "--lr", lab.LR, "--seed", 3)
    command("generate.py", "--model", tmp_path / "run", "--input", tmp_path / "ask.jsonl", "--rules", "eos,repeats",
            "--output", tmp_path / "answers.json")
    model = lab.tune(TINY, [row["messages"] for row in ROWS], 1, seed=3, blank=True)
    assert fingerprint(model / "model.safetensors") == fingerprint(tmp_path / "run" / "model.safetensors")
    answers = lab.ask(model, [row["messages"][0]["content"] for row in ROWS[:5]], ("eos", "repeats"))
    assert answers == [row["output"] for row in read_json(tmp_path / "answers.json", "")]


def test_what_was_made_is_found_again_and_other_settings_make_another(kept, monkeypatch):
    asked = ["What does the otter eat?", "Describe rain."]
    first = lab.ask(TINY, asked)
    assert len(os.listdir(kept / "answers")) == 1
    with monkeypatch.context() as broken:
        broken.setattr(lab, "load", None)
        assert lab.ask(TINY, asked) == first
        for other in ({"instructions": asked[:1]}, {"rules": ("eos",)}, {"penalise_prompt": True}, {"prompt": "A"}):
            with pytest.raises(TypeError):
                lab.ask(TINY, **{"instructions": asked} | other)
    assert len(os.listdir(kept / "answers")) == 1  # and what failed leaves nothing


def test_pretraining_reads_each_document_of_the_world_once(kept, tmp_path):
    data = tmp_path / "data"
    command("data/world.py", "--out", data, "--corpus", 70, "--seed", 2)
    command("train.py", "--method", "pretrain", "--model", TINY, "--data", data, "--out", tmp_path / "base",
            "--batch-size", 32)
    base = lab.pretrain(TINY / "config.json", World(seed=2), 70)
    for name in ("tokenizer.json", "model.safetensors"):
        assert fingerprint(base / name) == fingerprint(tmp_path / "base" / name)


def slowly(seconds):
    time.sleep(seconds)
    if not seconds:
        raise ValueError("the reason")
    return seconds


def test_jobs_give_their_results_in_order_and_a_failed_one_its_error(capsys):
    assert lab.side_by_side({"a": (3, slowly, 0.2), "b": (1, slowly, 0.1)}, 2) == {"a": 0.2, "b": 0.1}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "100 %" in lines[-1] and "0:00 left" in lines[-1]
    with pytest.raises(ValueError, match="the reason"):
        lab.side_by_side({"a": (1, slowly, 0), "b": (1, slowly, 0.1)}, 1)


@pytest.mark.parametrize("free, processors, workers", [(16_000_000, 16, 8), (16_000_000, 2, 2), (2_100_000, 4, 3),
                                                       (300_000, 4, 1)])
def test_there_are_as_many_workers_as_the_free_memory_has_room_for(free, processors, workers, tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "n_processors", lambda: processors)
    (tmp_path / "meminfo").write_text(f"MemTotal:  99000000 kB\nMemFree:  1000 kB\nMemAvailable:  {free} kB\n")
    assert lab.default_workers(tmp_path / "meminfo") == workers
    assert lab.default_workers(tmp_path / "absent") == min(processors, 8)
