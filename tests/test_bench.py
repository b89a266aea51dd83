"""tests/bench.py: work that fits the context, the table's shares, memory that is a process's own, refusals. No speed is
tested."""
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, TINY, assert_refused, command

import bench
from data.common import write_jsonl
from model import Config


def arguments(**changes):
    config = Config.from_json(TINY / "config.json")
    return SimpleNamespace(**{"model": TINY, "config": config, "data": None, "examples": 5} | changes)


def dialogue(n_words, m_words):
    return {"messages": [{"role": "user", "content": "river " * n_words},
                         {"role": "assistant", "content": "river " * m_words}]}


def allocate(args, n_bytes: int) -> dict:
    return {"bytes": len(bytearray(b"1") * n_bytes)}


def test_training_counts_no_token_beyond_the_context(tmp_path):
    """Of three dialogues one is cut, and one has no room for a response."""
    write_jsonl(tmp_path / "long.jsonl", [dialogue(1, 1), dialogue(1, 5000), dialogue(5000, 1)])
    lengths = [len(ids) for ids, _ in bench.training_examples(arguments(data=tmp_path / "long.jsonl"))]
    assert len(lengths) == 2 and max(lengths) == 256
    write_jsonl(tmp_path / "long.jsonl", [dialogue(5000, 1)])
    assert_refused(command("tests/bench.py", "--data", tmp_path / "long.jsonl"), "no response begins within 256 tokens")


def test_the_table_has_medians_and_shares_of_the_machines_limits():
    """Of three rounds, worked out by hand: 30 of 60 GFLOP/s, 5 of 20 GB/s."""
    runs = {("limits", "the machine"): [{"GFLOP/s": x, "GB/s": 20.0} for x in (60.0, 61.0, 1.0)],
            ("training", "nanofollow"): [{"tokens/s": 9000.0, "GFLOP/s": x} for x in (30.0, 2.0, 99.0)],
            ("decoding", "llama.cpp"): [{"tokens/s": x, "GB/s": 5.0} for x in (7.0, 8.0, 9.0)]}
    lines = bench.table(runs).splitlines()
    assert lines[0] == "| work | by | " + " | ".join(bench.COLUMNS) + " |"
    assert lines[3] == "| training | nanofollow | 9,000.0 | 30.0 | – | 50.0 | – | – |"
    assert lines[4] == "| decoding | llama.cpp | 8.0 | – | 5.0 | 25.0 | – | – |"


def test_each_work_has_the_peak_memory_of_its_own_process():
    """The second takes 400 MB less than the first, and does not have its peak; nor that of this process."""
    code = ("import sys; sys.path[:0] = ['tests', '.']; import test_bench as t\n"
            "for n in (500, 100): print(t.bench.alone(t.allocate, None, n * 1_000_000)['peak memory, MiB'])")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    large, small = map(float, run.stdout.split())
    assert large - small == pytest.approx(400e6 / 2**20, rel=0.1)


@pytest.mark.parametrize("options, reason", [
    (["--rounds", "0"], "--rounds: must be above 0"), (["--tokens", "-1"], "--tokens: must be above 0"),
    (["--dtype", "int8"], "--dtype: invalid choice: 'int8'"), (["--device", "abacus"], "invalid device value"),
    (["--model", "nowhere"], "there is no folder nowhere"), (["--data", "nowhere"], "nowhere does not exist"),
])
def test_bad_options_are_refused(options, reason):
    assert_refused(command("tests/bench.py", *options), reason)
