"""The Makefile: every value reaches the command letter for letter, and a mistake ends in one sentence."""
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
STRANGE = """It costs $5, $$5 and $(touch ran) ${HOME} `touch ran` "a" 'b' # \\ \\n %s , ; a=b *"""
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
        assert result.returncode == 0, result.stderr
        lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
        assert not (self.folder / "ran").exists()
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


def test_the_defaults_of_train(project):
    train, show = project.commands("train")
    assert train == ["train.py", "--method", "response", "--model", "data/tiny", "--data", "data/world",
                     "--out", "out/response", "--seed", "1", "--resume"]
    assert show == ["generate.py", "--model", "data/tiny", "out/response",
                    "--input", "data/world/eval.jsonl", "--limit", "9", "--max-new-tokens", "40"]
    assert after("--out", project.commands("train", "METHOD=chess")[0]) == "out/chess"


def test_the_laboratory_lists_its_questions_or_runs_one(project):
    assert project.commands("lab") == [["tests/lab"]]
    assert project.commands("lab", "Q=tags") == [["tests/lab", "tags"]]


@pytest.mark.parametrize("value", [STRANGE, "a  path with spaces", "two\nlines"])
def test_values_of_train_reach_it_letter_for_letter(project, value):
    train, show = project.commands("train", *(f"{name}={value}" for name in VALUES))
    assert [after(f"--{name.lower()}", train) for name in VALUES] == [value] * len(VALUES)
    assert show[2:4] == [value, value] and after("--input", show) == f"{value}/eval.jsonl"


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


def test_each_seed_pretrains_a_base_of_its_own(project):
    commands = project.commands("pretrain", "SEED=2")
    assert [after("--out", command) for command in commands] == ["out/world-2", "out/base-2"]
    assert after("--data", commands[1]) == "out/world-2"
    assert after("--seed", commands[0]) == after("--seed", commands[1]) == "2"


def test_values_in_the_environment_are_taken_letter_for_letter_too(project):
    train, _ = project.commands("train", METHOD=STRANGE, OTHER=STRANGE)
    assert after("--method", train) == STRANGE and after("--out", train) == f"out/{STRANGE}"


def test_overwrite_is_asked_for_by_1_alone(project):
    assert project.commands("train", "OVERWRITE=1")[0][-1] == "--overwrite"
    assert project.commands("train", "OVERWRITE=0")[0][-1] == "--resume"


@pytest.mark.parametrize("name", ["PROMTP", "method"])
def test_a_mistyped_variable_is_refused(project, name):
    sentence = project.refuses("train", f"{name}=$(shell touch ran)")
    assert f"{name} is no variable of this project" in sentence and "METHOD MODEL DATA" in sentence
    assert not (project.folder / "ran").exists()


def test_generate_without_a_prompt_says_how_to_ask(project):
    assert 'make generate PROMPT="' in project.refuses("generate")


def test_a_handout_goes_to_a_folder_of_its_number_and_a_solution_nowhere(project):
    script = "tests/assignments/hand_out.py"
    assert project.commands("assignment", "N=2") == [[script, "--out", "out/assignment-2", "--", "2"]]
    [given] = project.commands("assignment", f"N={STRANGE}", f"OUT={STRANGE}")
    assert given == [script, "--out", STRANGE, "--", STRANGE]
    assert project.commands("assignment", "N=1", "SOLUTION=1") == [[script, "--solution", "--", "1"]]
    assert "make assignment N=1" in project.refuses("assignment")


def test_grading_has_a_seed_and_a_place_of_its_own_where_they_are_given(project):
    script = "tests/assignments/grade.py"
    assert project.commands("grade", "N=3", f"SUBMISSION={STRANGE}") == [[script, "--", "3", STRANGE]]
    [given] = project.commands("grade", "N=1", "SUBMISSION=a", f"SEED={STRANGE}", f"RESULTS={STRANGE}")
    assert given == [script, "--seed", STRANGE, "--results", STRANGE, "--", "1", "a"]
    assert project.commands("grade", "N=1", "SUBMISSION=a", SEED="7")[0][1:3] == ["--seed", "7"]
    assert "SUBMISSION=alice.zip" in project.refuses("grade", "N=1") and "N=1" in project.refuses("grade")


def answers(project, *arguments):
    """Which files of answers `make judge` has written and compared."""
    first, second, judge = project.commands("judge", *arguments)
    assert after("--outputs", judge) == after("--output", first)
    assert after("--reference", judge) == after("--output", second)
    return after("--output", first), after("--output", second)


def test_every_model_data_and_rules_has_its_own_file_of_answers(project):
    for model in ("out/a-b", "out/a/b"):
        (project.folder / model).mkdir(parents=True)
    files = [answers(project, "A=out/a-b", "B=out/a/b"), answers(project, "A=out/a-b", "B=out/a/b", "DATA=data/mine/"),
             answers(project, "A=out/a-b", "B=out/a/b", "DATA=data/mine2/"), answers(project, "A=/a", "B=a", "DATA=/a")]
    assert len({file for pair in files for file in pair}) == 8
    ruled, plain = answers(project, "A=out/a-b", "B=out/a/b", "RULES=all")
    assert ruled == "out/eval/data/world/out/a-b/all.json" and plain == files[0][1]


def test_answers_stay_within_out_eval(project):
    for file in answers(project, "A=../../a", "B=/b/../../c", "DATA=../../d"):
        assert file.startswith("out/eval/") and ".." not in file


def test_judge_compares_two_models_or_one_with_and_without_rules(project):
    assert "A and B are the same model" in project.refuses("judge", "A=data/tiny", "B=data/tiny")
    assert answers(project, "A=data/tiny", "B=data/tiny", "RULES=all") == (
        "out/eval/data/world/data/tiny/all.json", "out/eval/data/world/data/tiny/none.json")


@pytest.mark.parametrize("target", ["judge", "rank"])
def test_missing_models_are_trained_first_and_said(project, target):
    result = project.make(target)
    assert "out/response is not there yet; training it takes about" in result.stdout
    commands = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    assert ["train.py", "--method", "instruction", "--out", "out/instruction", "--resume"] in commands
    for method in ("response", "instruction"):
        (project.folder / "out" / method).mkdir(parents=True)
        (project.folder / "out" / method / "run.json").touch()
    assert not [command for command in project.commands(target) if command[0] == "train.py"]


@pytest.mark.parametrize("arguments", [["A=out/mine"], ["B=out/my model"], ["MODEL=out/base"], ["DATA=data/mine"]])
def test_a_missing_model_that_no_default_makes_is_named_before_anything_is_trained(project, arguments):
    name = arguments[0].partition("=")[2] if arguments[0][0] in "AB" else "out/response"
    for target in ("judge", "rank"):
        sentence = project.refuses(target, *arguments)
        assert sentence == f"{name} does not exist; make train METHOD=... OUT={name} trains it"


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
