"""generate.py and judge.py: files of answers, which an interruption does not lose and other settings do not reuse."""
import json
import math

import pytest

from data.common import write_json
from generate import is_finished, settings_file, write_answers
from judge import pair, read_outputs

SETTINGS = {"generator": "m", "batch_size": 3}
INSTRUCTIONS = [f"question ± {i}" for i in range(10)]


class Decoder:
    """Answers in capitals, remembers where each batch began, and is interrupted at row `stop`."""

    def __init__(self, stop=math.inf):
        self.stop, self.asked = stop, []

    def __call__(self, batch, start):
        assert batch == INSTRUCTIONS[start : start + 3]
        if start >= self.stop:
            raise KeyboardInterrupt
        self.asked.append(start)
        return [text.upper() for text in batch]


@pytest.fixture
def interrupted(tmp_path):
    path = tmp_path / "deep" / "answers.json"
    with pytest.raises(KeyboardInterrupt):
        write_answers(path, INSTRUCTIONS, SETTINGS, Decoder(stop=6))
    return path


def test_an_interrupted_file_goes_on_where_it_stopped(interrupted):
    assert not interrupted.exists() and not is_finished(interrupted, SETTINGS)
    decode = Decoder()
    write_answers(interrupted, INSTRUCTIONS, SETTINGS, decode)
    assert decode.asked == [6, 9]
    rows = [{"instruction": text, "output": text.upper(), "generator": "m"} for text in INSTRUCTIONS]
    assert json.loads(interrupted.read_text()) == rows  # as AlpacaEval reads them
    assert is_finished(interrupted, SETTINGS)
    assert sorted(path.name for path in interrupted.parent.iterdir()) == ["answers.json", "answers.json.settings.json"]


def test_a_batch_that_was_torn_is_answered_again_whole(interrupted):
    partial = interrupted.with_name("answers.json.partial")
    lines = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join(lines[:4]) + lines[4][:-9])
    decode = Decoder()
    write_answers(interrupted, INSTRUCTIONS, SETTINGS, decode)
    assert decode.asked == [3, 6, 9] and len(read_outputs(interrupted)) == 10


def test_answers_of_other_settings_are_neither_continued_nor_taken_for_finished(interrupted):
    other, decode = SETTINGS | {"temperature": 1.0}, Decoder()
    write_answers(interrupted, INSTRUCTIONS, other, decode)
    assert decode.asked == [0, 3, 6, 9]
    assert is_finished(interrupted, other) and not is_finished(interrupted, SETTINGS)


@pytest.mark.parametrize("text", ["<html>", "[]"])
def test_settings_that_are_damaged_vouch_for_nothing(interrupted, text):
    write_answers(interrupted, INSTRUCTIONS, SETTINGS, Decoder())
    settings_file(interrupted).write_text(text)
    assert not is_finished(interrupted, SETTINGS)


@pytest.mark.parametrize("text, fragment", [
    ("[]", "at least one"), ("<html>", "not JSON"), ('[{"instruction": "a"}]', "answer 1 is not"),
    ('{"instruction": "a"}', "expected a list"),
])
def test_a_file_that_holds_no_answers_is_refused(tmp_path, text, fragment):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=fragment) as error:
        read_outputs(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(error.value)
    with pytest.raises(FileNotFoundError, match="generate.py --input"):
        read_outputs(tmp_path / "none.json")


def test_answers_are_paired_by_instruction_and_those_to_the_same_one_by_their_order(tmp_path):
    def file(name, *rows):
        write_json(tmp_path / name, [{"instruction": instruction, "output": output} for instruction, output in rows])
        return tmp_path / name

    ours = file("a.json", ("Go", "1"), ("Sing", "2"), ("Go", "3"))
    assert pair(ours, file("b.json", ("Go", "x"), ("Go", "y"), ("Sing", "z"))) == [
        ("Go", "1", "x"), ("Sing", "2", "z"), ("Go", "3", "y")]
    for other in ((("Go", "x"), ("Sing", "z")), (("Go", "x"), ("Sing", "z"), ("Walk", "y"))):
        with pytest.raises(ValueError, match="lacks"):
            pair(ours, file("b.json", *other))
    with pytest.raises(ValueError, match="lacks"):
        pair(ours, file("b.json", ("Go", "x"), ("Go", "y"), ("Walk", "y"), ("Sing", "z")))
