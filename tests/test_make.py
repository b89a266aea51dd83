"""The Makefile: every value reaches the command letter for letter, and a mistake ends in one sentence."""
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
STRANGE = """It costs $5,  $$5\nand $(touch ran) ${HOME} `touch ran` "a" 'b' # \\ \\n %s , ; a=b *"""
VALUES = ("METHOD", "MODEL", "DATA", "OUT", "SEED", "EPOCHS")


class Project:
    """A folder with our Makefile, where Python is a script that prints its arguments as a line of JSON."""

    def __init__(self, folder):
        (folder / "data").mkdir(parents=True)
        shutil.copy(ROOT / "Makefile", folder)
        (folder / "data" / "world.py").touch()
        self.folder, self.python = folder, folder.parent / "python"
        self.python.write_text(f"#!{sys.executable} -SE\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
        self.python.chmod(0o755)

    def make(self, *arguments, **environment):
        return subprocess.run(["make", f"PYTHON={self.python}", *arguments], cwd=self.folder, capture_output=True,
                              text=True, env={"PATH": os.environ["PATH"]} | environment)

    def commands(self, *arguments, **environment):
        """The commands that make ran, as lists of arguments, but that which writes the world."""
        result = self.make(*arguments, **environment)
        assert result.returncode == 0 and not (self.folder / "ran").exists(), result.stderr
        lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
        return [line for line in lines if line != ["data/world.py"]]

    def refuses(self, *arguments):
        """The sentence with which make refuses these arguments before it runs anything."""
        result = self.make(*arguments)
        assert result.returncode == 2 and "[" not in result.stdout
        sentence, *others = result.stderr.splitlines()
        assert all(line.startswith("make: ***") for line in others), result.stderr
        return sentence


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "my project")


def after(option, arguments):
    return arguments[arguments.index(option) + 1]


def test_make_alone_is_help(project):
    text = project.make().stdout
    assert text == project.make("help").stdout
    lines = [line for line in text.splitlines() if "PYTHON=" not in line]
    assert len(lines) <= 30 and all(len(line) <= 90 for line in lines)
    assert all(f"  {target} " in text for target in ("train", "generate", "eval", "judge", "rank", "table", "lab",
                                             "test", "assignment", "grade"))
    assert all(f"{name}=" in text for name in (*VALUES, "OVERWRITE", "RULES", "PROMPT", "A", "B", "JUDGE", "WORKERS",
                                             "PYTHON", "N", "SUBMISSION", "SOLUTION", "RESULTS", "Q"))
    assert "METHOD=response" in text and "OUT=out/response" in text and ".venv/bin/python train.py" in text


def test_the_defaults_of_train_lab_and_pretrain(project):
    train, show = project.commands("train")
    assert train == ["train.py", "--method", "response", "--model", "data/tiny", "--data", "data/world",
                     "--out", "out/response", "--seed", "1", "--resume"]
    assert show == ["generate.py", "--model", "data/tiny", "out/response",
                    "--input", "data/world/eval.jsonl", "--limit", "9", "--max-new-tokens", "40"]
    chess = project.commands("train", "METHOD=chess", "OVERWRITE=0")[0]
    assert chess[7:] == ["--out", "out/chess", "--seed", "1", "--resume"]
    assert project.commands("train", "OVERWRITE=1")[0] == train[:-1] + ["--overwrite"]
    assert project.commands("lab") == [["tests/lab"]] and project.commands("lab", "Q=tags") == [["tests/lab", "tags"]]
    world, base = project.commands("pretrain", "SEED=2")  # each seed has a world and a base of its own
    assert after("--out", world) == after("--data", base) == "out/world-2" and after("--out", base) == "out/base-2"
    assert after("--seed", world) == after("--seed", base) == "2"


def test_values_of_train_reach_it_letter_for_letter_from_the_environment_too(project):
    train, show = project.commands("train", *(f"{name}={STRANGE}" for name in VALUES))
    assert [after(f"--{name.lower()}", train) for name in VALUES] == [STRANGE] * len(VALUES)
    assert show[2:4] == [STRANGE, STRANGE] and after("--input", show) == f"{STRANGE}/eval.jsonl"
    train, _ = project.commands("train", METHOD=STRANGE, OTHER=STRANGE)
    assert after("--method", train) == STRANGE and after("--out", train) == f"out/{STRANGE}"


def test_values_of_the_other_targets_reach_them_letter_for_letter(project):
    [generate] = project.commands("generate", f"MODEL={STRANGE}", f"RULES={STRANGE}", f"PROMPT={STRANGE}")
    assert generate == ["generate.py", "--model", STRANGE, "--rules", STRANGE, f"--prompt={STRANGE}"]
    first, second, judge = project.commands(
        "judge", f"B=b {STRANGE}", *(f"{name}={STRANGE}" for name in ("A", "RULES", "JUDGE", "BASE_URL", "WORKERS")))
    assert after("--model", first) == after("--rules", first) == STRANGE and after("--model", second) == f"b {STRANGE}"
    assert after("--judge", judge) == after("--base-url", judge) == after("--workers", judge) == STRANGE
    [rank] = project.commands("rank", f"MODEL={STRANGE}", f"A=a{STRANGE}", f"B=b{STRANGE}", f"DATA={STRANGE}")
    assert rank[2:] == [STRANGE, f"b{STRANGE}", f"a{STRANGE}", "--pairs", f"{STRANGE}/eval.jsonl"]
    assert project.commands("table", f"MODEL={STRANGE}", f"DATA={STRANGE}")[0][3::2] == [STRANGE, STRANGE]


@pytest.mark.parametrize("arguments, sentence", [
    (["train", "PROMTP=$(shell touch ran)"], "PROMTP is no variable of this project; its variables are PYTHON METHOD"),
    (["generate"], 'make generate PROMPT="'), (["assignment"], "make assignment N=1"), (["grade"], "make grade N=1"),
    (["grade", "N=1"], "SUBMISSION=alice.zip"), (["judge", "A=data/tiny", "B=data/tiny"], "A and B are the same model"),
    (["judge", "A=out/mine"], "out/mine does not exist; make train METHOD=... OUT=out/mine trains it"),
    (["rank", "B=out/my model"], "out/my model does not exist; make train METHOD=... OUT=out/my model trains it"),
    *((["judge", other], "out/response does not exist; make train") for other in ("MODEL=out/base", "DATA=data/mine")),
])
def test_what_cannot_work_is_refused_before_anything_is_run_or_trained(project, arguments, sentence):
    assert sentence in project.refuses(*arguments) and not (project.folder / "ran").exists()


def test_an_instructors_commands(project):
    """A handout goes to a folder of its number, a solution nowhere; grading takes a seed only if one is given."""
    hand_out, grade = "tests/assignments/hand_out.py", "tests/assignments/grade.py"
    assert project.commands("assignment", "N=2") == [[hand_out, "--out", "out/assignment-2", "--", "2"]]
    given = project.commands("assignment", f"N={STRANGE}", f"OUT={STRANGE}")
    assert given == [[hand_out, "--out", STRANGE, "--", STRANGE]]
    assert project.commands("assignment", "N=1", "SOLUTION=1") == [[hand_out, "--solution", "--", "1"]]
    assert project.commands("grade", "N=3", f"SUBMISSION={STRANGE}") == [[grade, "--", "3", STRANGE]]
    given = project.commands("grade", "N=1", "SUBMISSION=a", f"RESULTS={STRANGE}", SEED="7")
    assert given == [[grade, "--seed", "7", "--results", STRANGE, "--", "1", "a"]]


def answers(project, *arguments):
    """Which files of answers `make judge` has written and compared."""
    first, second, judge = project.commands("judge", *arguments)
    assert after("--outputs", judge) == after("--output", first)
    assert after("--reference", judge) == after("--output", second)
    return after("--output", first), after("--output", second)


def test_every_model_data_and_rules_has_its_own_file_of_answers_in_out_eval(project):
    for model in ("out/a-b", "out/a/b"):
        (project.folder / model).mkdir(parents=True)
    files, two = set(), ("A=out/a-b", "B=out/a/b")
    for names in (two, (*two, "DATA=data/mine/"), (*two, "DATA=data/mine2/"), ("A=/a", "B=a", "DATA=/a"),
                  ("A=../../a", "B=/b/../../c", "DATA=../../d")):
        files |= {*answers(project, *names)}
    assert len([file for file in files if file.startswith("out/eval/") and ".." not in file]) == 10
    assert answers(project, "A=data/tiny", "B=data/tiny", "RULES=all") == (
        "out/eval/data/world/data/tiny/all.json", "out/eval/data/world/data/tiny/none.json")


@pytest.mark.parametrize("target", ["judge", "rank"])
def test_missing_models_are_trained_first_and_said(project, target):
    result = project.make(target)
    assert "out/response is not there yet; training it takes about" in result.stdout
    assert '["train.py", "--method", "instruction", "--out", "out/instruction", "--resume"]' in result.stdout
    for method in ("response", "instruction"):
        (project.folder / "out" / method / "run.json").mkdir(parents=True)  # it is there: that is all make asks
    assert not [command for command in project.commands(target) if command[0] == "train.py"]


@pytest.mark.parametrize("python3, reason", [
    (None, "there is no python3; install Python 3.11 or newer"),
    ('case "$*" in *ensurepip*) exit 1; esac', "python3 cannot make a virtual environment; install its venv module"),
])
def test_a_machine_that_cannot_be_set_up_is_told_why(project, tmp_path, python3, reason):
    (project.folder / "requirements.txt").touch()
    (tmp_path / "bin").mkdir()
    if python3:
        (tmp_path / "bin" / "python3").write_text(f"#!/bin/sh\n{python3}\n")
        (tmp_path / "bin" / "python3").chmod(0o755)
    result = subprocess.run([shutil.which("make"), "train"], cwd=project.folder, capture_output=True, text=True,
                            env={"PATH": str(tmp_path / "bin")})
    sentence, *others = result.stderr.splitlines()
    assert sentence.startswith(reason) and all(line.startswith("make: ***") for line in others)
