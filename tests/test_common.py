"""data/common.py: every command line ends as a user expects, and nothing good is lost when something goes wrong."""
import ast
import errno
import io
import math
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from conftest import ROOT

from data import common
from data.common import Journal, clock, digest, fingerprint, hold, read_jsonl, replacing, write_json, write_text

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


@pytest.mark.parametrize("script", ["train.py", "generate.py", "judge.py", "data/hub.py", "tests/paper.py",
                                    "tests/bench.py"])
def test_ctrl_c_during_the_slow_imports_shows_no_traceback(script):
    result = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT, script], cwd=ROOT, capture_output=True)
    assert result.returncode == -signal.SIGINT and result.stderr == b""  # a shell says 130


@pytest.mark.parametrize("error, code, sentence", [
    (ValueError("line 3 is bad"), 2, "line 3 is bad"),
    (FileNotFoundError("a.json does not exist"), 2, "a.json"),
    (KeyboardInterrupt(), 130, "interrupted; go on"),
    (torch.OutOfMemoryError("CUDA"), 2, "memory ran out; take less"),
    (MemoryError(), 2, "memory ran out"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "memory ran out"),
    (RuntimeError("MPS backend out of memory (MPS allocated: 9 GiB)"), 2, "memory ran out"),
])
def test_every_end_is_one_sentence_and_an_exit_code(error, code, sentence, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        common.run(main, interrupted="go on", out_of_memory="take less")
    assert stop.value.code == code
    text = capsys.readouterr().err.strip()
    assert sentence in text and "\n" not in text


def test_an_error_of_ours_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="size mismatch"):
        common.run(lambda: (_ for _ in ()).throw(RuntimeError("size mismatch")))


def test_a_terminal_without_the_letter_shows_something_else(monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    common.run(lambda: print("50 ± 2 %"))
    assert stdout.buffer.getvalue() == b"50 ? 2 %\n"


def test_a_reader_that_leaves_is_no_error():
    script = "from data import common\ncommon.run(lambda: [print('x' * 9999) for _ in range(99)])"
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141  # 128 + SIGPIPE, as a shell says it of `yes | head`


@pytest.mark.parametrize("kind, argument", [
    (common.positive(int), "0"), (common.positive(float), "nan"), (common.positive(float), "inf"),
    (common.seed, "-1"), (common.seed, str(2**32)), (common.path, " "), (common.text, os.fsdecode(b"caf\xe9")),
])
def test_arguments_that_make_no_sense_are_refused(kind, argument):
    with pytest.raises(common.argparse.ArgumentTypeError):
        kind(argument)


@pytest.mark.parametrize("limit, processors", [("200000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", 9),
                                               (None, 9)])
def test_a_containers_quota_is_read_as_linux_writes_it(tmp_path, monkeypatch, limit, processors):
    """"$MAX $PERIOD" in microseconds, or "max" (Linux, Documentation/admin-guide/cgroup-v2.rst)."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(9), raising=False)
    if limit:
        (tmp_path / "cpu.max").write_text(limit)
    assert common.n_processors(tmp_path / "cpu.max") == processors


@pytest.mark.parametrize("processors, own, threads, spins", [
    (1, {}, "1", "1000"), (9, {}, None, "1000"), (1, {"OMP_NUM_THREADS": "3"}, "3", "1000"),
    (9, {"OMP_WAIT_POLICY": "active"}, None, None), (9, {"GOMP_SPINCOUNT": "7"}, None, "7"),
])
def test_threads_keep_to_the_quota_and_sleep_soon(monkeypatch, processors, own, threads, spins):
    monkeypatch.setattr(common, "n_processors", lambda: processors)
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    monkeypatch.setattr(os, "environ", dict(own))
    common.share_processors()
    assert os.environ == own, "once torch is loaded, nothing is set"
    monkeypatch.delitem(sys.modules, "torch")
    common.share_processors()
    assert (os.environ.get("OMP_NUM_THREADS"), os.environ.get("GOMP_SPINCOUNT")) == (threads, spins)


@pytest.mark.parametrize("error, sentence", [
    (RuntimeError("half"), "half"),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "could not write .*file .No space left on device.*untouched"),
])
def test_a_file_stays_as_it_was_if_writing_fails(tmp_path, error, sentence):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error), match=sentence), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link_and_a_device_stays_a_device(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"
    for path in (os.devnull, tmp_path):
        with pytest.raises(OSError, match="not a file that can be replaced"):
            write_json(path, {})


@pytest.mark.parametrize("content, sentence", [
    (b'{"text": "a"}\n{"text": "caf\xe9"}\n', "line 2: not JSON"), (b"1\n\n1", "line 2: empty line"),
    (b'"\\ud800"', "line 1: not JSON"), (b"[" * 100000, "line 1: not JSON"),
    (b"1\n2\n3", "line 2: not 1"), (b" \n\n", "line 1: empty line"),
    (None, "does not exist"),
])
def test_the_first_bad_line_of_a_file_is_named(tmp_path, content, sentence):
    path = tmp_path / "broad.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=f"{path} {sentence}"):
        read_jsonl(path, lambda row: "not 1" if row == 2 else None)


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n \r\n"])
def test_blank_lines_at_the_end_are_no_rows(tmp_path, end):
    (tmp_path / "broad.jsonl").write_text('{"text": "a"}\n{"text": "b"}' + end, newline="")
    assert read_jsonl(tmp_path / "broad.jsonl", common.check_fields("text")) == [{"text": "a"}, {"text": "b"}]


def test_a_journal_remembers_and_passes_over_what_is_torn(tmp_path):
    path = tmp_path / "deep" / "journal"
    with Journal(path) as journal:
        journal.add("a", 1)
        journal.add("b", 2)
    path.write_bytes(b'[]\n{"key": 1}\n' + path.read_bytes()[:-3])
    with Journal(path) as journal:
        assert journal.values == {"a": 1}
        journal.add("b", 3)
    with Journal(path) as journal:
        assert journal.values == {"a": 1, "b": 3}


@pytest.mark.parametrize("first", [{}, {"a": 1}])
def test_a_second_run_is_refused_or_waits_and_then_goes_on_from_what_the_first_did(tmp_path, first):
    path, found = tmp_path / "journal", []

    def second():
        with Journal(path, wait=True) as journal:
            found.append(dict(journal.values))
            journal.add("b", 2)

    with Journal(path) as journal:
        with pytest.raises(OSError, match="in use by another run"):
            Journal(path)
        thread = threading.Thread(target=second)
        thread.start()
        for key, value in first.items():
            journal.add(key, value)
    thread.join(10)
    with Journal(path) as journal:
        assert found == [first] and journal.values == first | {"b": 2}


def test_a_folder_is_held_until_its_holder_lets_go(tmp_path):
    held = hold(tmp_path)
    with pytest.raises(OSError, match="in use by another run"):
        hold(tmp_path)
    os.close(held)
    os.close(hold(tmp_path))


def test_fingerprints_are_of_the_content(tmp_path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") == "2d711642b726b044"  # sha256sum of x
    assert fingerprint(tmp_path / "none") is None
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1})


def test_times_are_short():
    assert [clock(seconds) for seconds in (0, 61.4, 119.6, 3600)] == ["0:00", "1:01", "2:00", "60:00"]


def test_every_file_imports_only_from_the_lines_above_its_own():
    """README.md's list of the structure: no circle, and nothing imports upward."""
    listing = (ROOT / "README.md").read_text().split("lines above its own:\n\n```\n")[1].split("\n```")[0]
    lines = [line.split("    ")[0].split() for line in listing.splitlines()]
    paths = {path.stem: path for path in [*ROOT.glob("*.py"), *(ROOT / "data").glob("[a-z]*.py")]}
    assert sorted(sum(lines, [])) == sorted(paths)
    for i, names in enumerate(lines):
        above = set(sum(lines[:i], []))
        for name in names:
            imported = set()
            for node in ast.walk(ast.parse(paths[name].read_text())):
                if isinstance(node, ast.ImportFrom):
                    modules = [alias.name for alias in node.names] if node.module == "data" else [node.module]
                    imported |= {module.removeprefix("data.") for module in modules}
            assert imported & paths.keys() <= above, name
