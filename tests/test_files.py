"""data/common.py: nothing good is lost, whatever goes wrong while something is written."""
import errno
import os
import threading

import pytest

from data.common import (Journal, clock, digest, fingerprint, hold, parse_json, read_jsonl, replacing, write_json,
                        write_text)


def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_with_its_file(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match=f"could not write {tmp_path}/file .No space left on device"):
        with replacing(tmp_path / "file"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (tmp_path / "file").read_text() == "old"


def test_a_link_stays_a_link_and_a_device_stays_a_device(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"
    for path in (os.devnull, tmp_path):
        with pytest.raises(OSError, match="not a file that can be replaced"):
            write_json(path, {})


def test_json_that_is_nested_without_end_is_no_json():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100000)


def test_a_file_that_is_not_utf8_is_refused_by_line(tmp_path):
    (tmp_path / "broad.jsonl").write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(ValueError, match="line 2: not JSON"):
        read_jsonl(tmp_path / "broad.jsonl", lambda row: None)


@pytest.mark.parametrize("text", ["", "\n", " \n\n"])
def test_an_empty_file_is_refused(tmp_path, text):
    (tmp_path / "broad.jsonl").write_text(text)
    with pytest.raises(ValueError, match="is empty"):
        read_jsonl(tmp_path / "broad.jsonl", lambda row: None)


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n \r\n"])
def test_blank_lines_at_the_end_are_no_rows(tmp_path, end):
    (tmp_path / "broad.jsonl").write_text('{"text": "a"}\n{"text": "b"}' + end, newline="")
    assert read_jsonl(tmp_path / "broad.jsonl", lambda row: None) == [{"text": "a"}, {"text": "b"}]


def test_a_journal_remembers_and_passes_over_what_is_torn_or_not_valid(tmp_path):
    path = tmp_path / "deep" / "journal"
    with Journal(path) as journal:
        journal.add("a", 1)
        journal.add("b", 2)
    path.write_bytes(b'[]\n{"key": 1}\n' + path.read_bytes()[:-3])
    with Journal(path) as journal:
        assert journal.values == {"a": 1}
        journal.add("b", 3)
    with Journal(path, valid=lambda value: value > 1) as journal:
        assert journal.values == {"b": 3}


def test_a_journal_that_was_never_written_to_leaves_no_file(tmp_path):
    with Journal(tmp_path / "journal"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_second_run_is_refused_or_waits_and_then_finds_what_the_first_did(tmp_path):
    found = []

    def second():
        with Journal(tmp_path / "journal", wait=True) as journal:
            found.append(dict(journal.values))

    with Journal(tmp_path / "journal") as journal:
        with pytest.raises(OSError, match="in use by another run"):
            Journal(tmp_path / "journal")
        thread = threading.Thread(target=second)
        thread.start()
        journal.add("a", 1)
    thread.join(10)
    assert found == [{"a": 1}]


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


def test_clock():
    assert [clock(seconds) for seconds in (0, 61.4, 119.6, 3600)] == ["0:00", "1:01", "2:00", "60:00"]
