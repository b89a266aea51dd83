"""data/common.py: how every command line ends, seen from outside."""
import io
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from data import common

INTERRUPTED_IMPORT = """
import builtins, os, runpy, signal, sys
sys.path.insert(0, os.getcwd())
plain = builtins.__import__
def slow(name, *rest):
    if name == "torch" or name == "requests":
        os.kill(os.getpid(), signal.SIGINT)
    return plain(name, *rest)
builtins.__import__ = slow
sys.argv = [sys.argv[1]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


SCRIPTS = ["train.py", "generate.py", "judge.py", "data/hub.py", "tests/paper.py", "tests/bench.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_during_the_slow_imports_shows_no_traceback(script):
    result = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT, script], cwd=ROOT, capture_output=True)
    assert result.returncode == -signal.SIGINT and result.stderr == b""  # a shell says 130


@pytest.mark.parametrize("error, code, said", [
    (ValueError("line 3 is bad"), 2, "line 3 is bad"), (FileNotFoundError("a.json does not exist"), 2, "a.json"),
    (KeyboardInterrupt(), 130, "interrupted; go on"), (torch.OutOfMemoryError("CUDA"), 2, "memory ran out; take less"),
    (MemoryError(), 2, "memory ran out"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "memory ran out"),
    (RuntimeError("MPS backend out of memory (MPS allocated: 9 GiB)"), 2, "memory ran out"),
])
def test_every_end_is_one_sentence_and_an_exit_code(error, code, said, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        common.run(main, interrupted="go on", out_of_memory="take less")
    assert stop.value.code == code
    text = capsys.readouterr().err.strip()
    assert said in text and "\n" not in text


def test_an_error_of_ours_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="size mismatch"):
        common.run(lambda: (_ for _ in ()).throw(RuntimeError("size mismatch")))


def test_a_terminal_without_the_letter_shows_something_else(monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    common.run(lambda: print("50 ± 2 %"))
    assert stdout.buffer.getvalue() == b"50 ? 2 %\n"


def test_a_reader_that_leaves_is_no_error():
    script = "from data import common\ncommand.run(lambda: [print('x' * 9999) for _ in range(99)])"
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


@pytest.mark.parametrize("kind, argument", [
    (common.positive(int), "0"), (common.positive(float), "nan"), (common.positive(float), "inf"),
    (common.path, " "), (common.text, os.fsdecode(b"caf\xe9")),
])
def test_arguments_that_make_no_sense_are_refused(kind, argument):
    with pytest.raises(command.argparse.ArgumentTypeError):
        kind(argument)


@pytest.mark.parametrize("group, limits, processors", [
    ("0::/\n", {}, math.inf), ("0::/\n", {"": "max 100000"}, math.inf), ("0::/\n", {"": "200000 100000"}, 2),
    ("0::/a/b\n", {"a": "150000 100000", "a/b": "max 100000"}, 1.5), ("4:memory:/x\n1:cpu:/\n", {}, math.inf),
])
def test_a_quota_is_read_from_the_control_groups_around_this_process(tmp_path, group, limits, processors):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(group)
    for folder, limit in limits.items():
        (tmp_path / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/fs/cgroup" / folder / "cpu.max").write_text(limit + "\n")
    assert common.cpu_quota(tmp_path) == processors


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    assert common.cpu_quota(tmp_path) == math.inf


@pytest.mark.parametrize("quota, own, threads, spins", [
    (0.5, {}, "1", "1000"), (math.inf, {}, None, "1000"), (0.5, {"OMP_NUM_THREADS": "3"}, "3", "1000"),
    (math.inf, {"OMP_WAIT_POLICY": "active"}, None, None), (math.inf, {"GOMP_SPINCOUNT": "7"}, None, "7"),
])
def test_threads_keep_to_the_quota_and_sleep_soon_if_nobody_says_otherwise(monkeypatch, quota, own, threads, spins):
    monkeypatch.setattr(command, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "environ", dict(own))
    common.share_processors()
    assert os.environ == own, "once torch is loaded, nothing is set"
    monkeypatch.delitem(sys.modules, "torch")
    common.share_processors()
    assert (os.environ.get("OMP_NUM_THREADS"), os.environ.get("GOMP_SPINCOUNT")) == (threads, spins)
