"""tests/assignments: the reference has full marks and the starter none; a planted mistake costs its own question alone.

The grader outlives submissions that do not answer but loop, forge, steal or crash.
"""
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, assert_refused, command

HERE = ROOT / "tests" / "assignments"
sys.path.append(str(HERE))
import cases
import check
import compare
import experiment
import grade
import hand_out
import plain
import planted
import source
from run_cases import Runner
from table import ASSIGNMENTS

CODED = [ASSIGNMENTS[n] for n in (1, 2, 3, 4)]


@pytest.fixture(scope="module")
def runner():
    with Runner() as runner:
        runner.start()
        yield runner


@pytest.fixture(scope="module")
def graders(runner):
    return {a.number: grade.Grader(a, 5, runner) for a in CODED}


@pytest.fixture(scope="module")
def handouts(runner):
    return {a.number: hand_out.handout(a, runner) for a in ASSIGNMENTS.values()}


def total(results):
    return sum(row["score"] for row in results["tests"]), sum(row["max_score"] for row in results["tests"])


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_reference_gets_everything_and_the_starter_nothing(graders, tmp_path, number):
    path = tmp_path / "results.json"
    assert total(graders[number].grade(hand_out.clean_files(ASSIGNMENTS[number]), path)) == pytest.approx((100, 100))
    results = graders[number].grade(hand_out.starter(ASSIGNMENTS[number]), path)
    assert total(results) == pytest.approx((0, 100)) and results["output"] == ""
    assert all("is not written yet" in row["output"] for row in results["tests"])


@pytest.mark.parametrize("row", planted.WRONG + planted.RIGHT, ids=lambda row: f"{row[0]}: {row[1]}")
def test_a_mistake_costs_its_own_question_alone(graders, tmp_path, row):
    question, _, *edits = row
    assignment, q = planted.question_of(question)
    scores = planted.scores(graders[assignment.number].grade(planted.plant(question, *edits), tmp_path / "r.json"))
    score, points = scores.pop(f"{assignment.number}.{assignment.questions.index(q) + 1}")
    assert (score == points) == (row in planted.RIGHT)
    assert all(other == full for other, full in scores.values())


def test_every_question_has_points_cases_and_three_planted_mistakes_that_the_table_shows():
    table = (HERE / "README.md").read_text()
    for assignment in CODED:
        assert sum(q.points for q in assignment.questions) == 100
        for q in assignment.questions:
            names = [row[1] for row in planted.WRONG if row[0] == q.name]
            assert len(names) >= 3 and all(f" {q.name} | {name} | " in table for name in names)
            file, function = q.functions[0].split(":")
            text = source.strip((ROOT / file).read_text(), [function])
            assert text.count("raise NotImplementedError\n") == 1 and cases.cases_of(q.name, 3)


@pytest.fixture
def strict(graders, runner, tmp_path):
    """A grader of assignment 1 that gives less memory, once it has graded the reference."""
    graders[1].grade(hand_out.clean_files(ASSIGNMENTS[1]), tmp_path / "reference.json")
    before, (runner.seconds, runner.memory) = (runner.seconds, runner.memory), (runner.seconds, 1 << 30)
    yield graders[1]
    runner.seconds, runner.memory = before


@pytest.mark.parametrize("what", planted.BAD)
def test_what_is_no_answer_gets_nothing_and_a_clear_line(strict, runner, tmp_path, what):
    body, said = planted.BAD[what]
    if said == "took longer than":  # the others must not fail for a busy machine's slowness
        runner.seconds = 1.5
    secret = Path(HERE, "cases.py").read_bytes()
    results = strict.grade(planted.only_body("learning_rate", body), tmp_path / "r.json")
    assert planted.scores(results)["1.4"] == (0, 15) and total(results) == pytest.approx((85, 100))
    assert all(said in row["output"] for row in results["tests"] if row["number"] == "1.4"), results["tests"][-1]
    assert Path(HERE, "cases.py").read_bytes() == secret


@pytest.mark.parametrize("content, said", [
    (b"def learning_rate(:\n", "train.py is no Python: "), (b"\0" * 9, "train.py is no Python"),
    (b"\xff\xfe", "train.py is no Python"), (b"((" * 9000, "train.py is no Python"), (b"#" * 600_000, "longer than"),
    (b"", "there is no function summed_loss"), (None, "train.py is not in the submission"),
    (b"def learning_rate():\n    pass\n", "there is no function summed_loss"),
])
def test_what_is_no_python_gets_nothing_for_its_questions(strict, tmp_path, content, said):
    files = {"data/format.py": hand_out.clean_files(ASSIGNMENTS[1])["data/format.py"], "train.py": content}
    files = {name: data for name, data in files.items() if data is not None}
    results = strict.grade(files, tmp_path / "r.json")
    assert planted.scores(results)["1.1"] == (35, 35) and total(results)[0] == pytest.approx(35)
    assert said in results["tests"][2]["output"]


def test_helpers_come_along_and_other_changes_are_named_and_ignored(strict, tmp_path):
    files = planted.plant("learning_rate", ("math.ceil(warmup * n_steps)", "up(warmup * n_steps)"))
    text = files["train.py"].replace(b"def collate(batch: list, device):", b"def collate(batch: list, device, more=1):")
    text = text.replace(b"import tempfile\n", b"import tempfile, operator\n")
    files["train.py"] = b"from math import ceil\nSIZE = 7\n" + text + b"\ndef up(x): return operator.index(ceil(x))\n"
    files |= {"conftest.py": b"", "tests/check/check.py": b"print('passed')"}
    results = strict.grade(files, tmp_path / "r.json")
    assert total(results) == pytest.approx((100, 100))
    assert results["output"] == "Changed, and ignored: conftest.py, tests/check/check.py, train.py: collate."


def test_results_are_gradescopes_and_written_after_every_question(strict, tmp_path, monkeypatch):
    path, written = tmp_path / "results.json", []
    real = grade.write_json
    monkeypatch.setattr(grade, "write_json", lambda path, value: real(path, value) or written.append(path.read_text()))
    strict.grade(hand_out.clean_files(ASSIGNMENTS[1]), path)
    assert [len(json.loads(text)["tests"]) for text in written] == [2, 4, 6, 8]
    results = json.loads(path.read_text())
    assert isinstance(results["execution_time"], float) and {row["visibility"] for row in results["tests"]} == {
        "visible", "after_published"}
    assert all(row.keys() == {"score", "max_score", "output", "name", "number", "visibility", "status"}
               for row in results["tests"])


def archives(folder, files):
    """The same submission as people hand it in."""
    with zipfile.ZipFile(folder / "plain.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with zipfile.ZipFile(folder / "mac.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(f"my work/{name}", data)
            archive.writestr(f"__MACOSX/my work/._{name}", b"\0")
    for name, mode in (("a.tar.gz", "w:gz"), ("b.tar", "w"), ("no-ending", "w:xz")):
        with tarfile.open(folder / name, mode) as archive:
            for file, data in files.items():
                info = tarfile.TarInfo(f"./x/{file}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    for name, rename in (("folder", lambda file: file), ("nested", lambda file: f"deep/{file}"),
                         ("flat", os.path.basename)):
        for file, data in files.items():
            path = folder / name / rename(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return sorted(folder.iterdir())


def test_every_form_of_a_submission_is_read(tmp_path):
    files = {name: b"x = 1\n" for name in ("data/format.py", "train.py")}
    for path in archives(tmp_path, files):
        found = grade.locate(grade.read_submission(path), ASSIGNMENTS[1].files)
        assert {name: found.get(name) for name in files} == files, path


def test_one_submission_is_known_from_many(tmp_path):
    for name in ("alice/train.py", "bob/notes.txt", "one/in/data/format.py", "flat/format.py", "zips/a.zip"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    found = {path.name for path in tmp_path.iterdir() if grade.is_one(path, ASSIGNMENTS[1].files)}
    assert found == {"alice", "one", "flat"} and not grade.is_one(tmp_path, ASSIGNMENTS[1].files)


def test_line_ends_and_a_byte_order_mark_are_no_change(graders, tmp_path):
    files = {name: b"\xef\xbb\xbf" + hand_out.clean_files(ASSIGNMENTS[1])[name].replace(b"\n", b"\r\n")
             for name in ASSIGNMENTS[1].files}
    results = graders[1].grade(files, tmp_path / "r.json")
    assert total(results)[0] == pytest.approx(100) and results["output"] == ""


def test_links_and_large_files_are_not_read(tmp_path):
    (tmp_path / "model.py").symlink_to(ROOT / "model.py")
    (tmp_path / "large.py").write_bytes(b"#" * (2 << 20))
    assert grade.read_submission(tmp_path) == {}


@pytest.mark.parametrize("data", [b"", b"PK\3\4 torn", b"Dear grader, ...", os.urandom(999)])
def test_what_is_no_archive_is_refused(tmp_path, data):
    path = tmp_path / "work.zip"
    path.write_bytes(data)
    results = tmp_path / "results.json"
    result = command("tests/assignments/grade.py", 1, path, "--results", results, "--seed", 3)
    assert_refused(result, path, "no archive")
    assert not results.exists()


def test_mistakes_of_the_command_line_are_one_sentence(tmp_path, monkeypatch):
    grading, writing = "tests/assignments/grade.py", "tests/assignments/hand_out.py"
    assert_refused(command(grading, 1, tmp_path / "none.zip"), "none.zip", "does not exist")
    assert_refused(command(grading, 7, tmp_path), "'7' is no assignment; they are 1, 2, 3, 4, 5")
    assert_refused(command(grading, 1, tmp_path, "--seed", 0), "--seed", "from 1")
    assert_refused(command(grading, 1, tmp_path, "--seed", 3, "--results", tmp_path / "r.json"), tmp_path, "is empty")
    (tmp_path / "seed").write_text("x")
    assert_refused(command(grading, 1, tmp_path, "--results", tmp_path / "r.json"), tmp_path / "seed", "no number")
    assert_refused(command(writing, "one", "--out", tmp_path), "'one' is no assignment")
    assert_refused(command(writing, 1, "--out", tmp_path), tmp_path, "not an empty folder")
    assert_refused(command(writing, 5, "--solution"), "no solution")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(hand_out, "clean_files", interrupt)
    assert command(writing, 1, "--solution").returncode in (0, 130)  # the script has its own copy of the name
    monkeypatch.setattr(source, "strip", interrupt)
    result = command(writing, 1, "--solution")
    assert result.returncode == 130 and "interrupted" in result.stderr


def test_many_submissions_make_one_table_and_a_broken_one_stops_nobody(strict, tmp_path, capsys):
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    right = {file: hand_out.clean_files(ASSIGNMENTS[1])[file] for file in ASSIGNMENTS[1].files}
    for name, files in (("alice", right), ("bob", hand_out.starter(ASSIGNMENTS[1])), ("dora", {"notes.txt": b""})):
        for file, data in files.items():
            path = work / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    (work / "carl.zip").write_bytes(b"PK\3\4 torn")
    grade.grade_many(strict, work, out)
    header, *rows = (line.split(",", 6) for line in (out / "grades.csv").read_text().splitlines())
    assert header == ["submission", "total", "1.1", "1.2", "1.3", "1.4", "problem"]
    assert [(row[0], float(row[1])) for row in rows] == [("alice", 100), ("bob", 0), ("carl.zip", 0), ("dora", 0)]
    assert rows[0][6] == "" and "no archive" in rows[2][6] and "has none of" in rows[3][6]
    assert json.loads((out / "alice.json").read_text())["tests"]


def test_the_private_seed_is_drawn_once(tmp_path):
    seed = grade.private_seed(tmp_path / "deep" / "seed")
    assert seed >= 1 and grade.private_seed(tmp_path / "deep" / "seed") == seed


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_handout_stands_alone_and_gives_nothing_away(handouts, number):
    files, assignment = handouts[number], ASSIGNMENTS[number]
    assert not [name for name in files if name.startswith((".git", "tests/assignments", "tests/test_", "tests/lab"))]
    text = files["README.md"].decode()
    assert "{questions}" not in text and all(f"| {q.points} |" in text for q in assignment.questions)
    for name, data in files.items():
        if name in assignment.files and number != 5:
            body = source.strip((ROOT / name).read_text(), assignment.functions(name))
            n_stripped = body.count("raise NotImplementedError\n")
            assert data.decode() == body and n_stripped == len(assignment.functions(name))
        elif (ROOT / name).exists() and name not in ("README.md", "Makefile"):
            assert data == (ROOT / name).read_bytes()
    handed = "\n".join(data.decode() for name, data in files.items() if name.endswith((".py", ".md", "Makefile")))
    for line in hand_out.solution(assignment).splitlines() if number != 5 else ():
        if line.startswith("+ ") and len(line.strip("+ ")) > 45:
            assert line[1:].strip() not in handed


def test_a_solution_is_what_the_starter_lacks(handouts):
    lines = command("tests/assignments/hand_out.py", 2, "--solution").stdout.splitlines()
    assert sum(line.startswith("-") and line.endswith("raise NotImplementedError") for line in lines) == 5
    assert any(line.startswith("+    frequencies = ") for line in lines)


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_check_of_a_handout_knows_the_starter_from_the_solution(handouts, runner, tmp_path, capsys, number):
    write(tmp_path, handouts[number])
    assignment = plain.loads((tmp_path / "tests" / "check" / "visible.json").read_bytes())
    if number == 3:
        assert not check.check(assignment, tmp_path, runner)
        assert capsys.readouterr().out.count(": 0 of ") == 3
    write(tmp_path, {file: (ROOT / file).read_bytes() for file in ASSIGNMENTS[number].files})
    assert check.check(assignment, tmp_path, runner)
    assert check.check_files(assignment, tmp_path) == ASSIGNMENTS[number].files
    if number == 1:
        write(tmp_path, planted.plant("summed_loss", ("labels[:, 1:]", "labels[:, :-1]")))
        assert not check.check(assignment, tmp_path, runner)
        assert ("accumulate_gradient: 0 of 7 cases right; it calls summed_loss, not right yet" in
                capsys.readouterr().out)


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_make_submission_writes_the_archive_that_the_grader_takes(strict, handouts, tmp_path):
    write(tmp_path, handouts[4])
    write(tmp_path, {"judge.py": planted.plant("win_rate", ("ddof=1", "ddof=0"))["judge.py"]})
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    made = subprocess.run(["make", "submission", f"PYTHON={sys.executable}"], cwd=tmp_path, text=True,
                          capture_output=True, env=environment)
    assert made.returncode == 0, made.stderr
    assert "4.1 win_rate: 2 of 5 cases right" in made.stdout and "4.3 preference_for_second: 7 of 7" in made.stdout
    assert "wrote assignment-4.zip with judge.py" in made.stdout and "not right yet" in made.stdout
    assert grade.read_submission(tmp_path / "assignment-4.zip").keys() == {"judge.py"}
    for old, new, said in (("def win_rate(preferences)", "def win_rate(p)", "take (preferences), found (p)"),
                           ("def win_rate(preferences)", "def winrate(preferences)", "no such function"),
                           ("import json", "import json(", "judge.py is no Python")):
        write(tmp_path, {"judge.py": (ROOT / "judge.py").read_bytes().replace(old.encode(), new.encode())})
        with pytest.raises(ValueError) as error:
            check.check_files(plain.loads(handouts[4]["tests/check/visible.json"]), tmp_path)
        assert said in str(error.value)


PREDICTION = (experiment.TEMPLATE.replace("Student:", "Student: Ada  Lovelace").replace("epoch:", "epoch: 1.5")
              .replace("%:", "%: 40").replace("(80 words or more)", "because " * 90)
              .replace("(30 words or more)", "if " * 40))


@pytest.fixture(scope="module")
def run():
    """A small version of the experiment, and what a student hands in."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("EXAMPLES", 24), ("EPOCHS", 1), ("MAX_NEW_TOKENS", 8)):
            patch.setattr(experiment, name, value)
        experiment.run.cache_clear()
        seed = experiment.seed_of("Ada Lovelace")
        result = {"seed": seed, "prediction_sha256": experiment.hash_of(PREDICTION.encode())} | experiment.run(seed)
        yield {"prediction.md": PREDICTION.encode(), "result.json": json.dumps(result).encode()}
        experiment.run.cache_clear()


@pytest.mark.parametrize("edit, lost", [
    (lambda files, result: None, 0),
    (lambda files, result: files.update({"prediction.md": experiment.TEMPLATE.encode()}), 50),
    (lambda files, result: result.update(loss=result["loss"] * 1.1), 7.5),
    (lambda files, result: result.update(seed=7), 30),
    (lambda files, result: result.update(after={"stop": "all"}), 7.5),
    (lambda files, result: result.update(data_sha256=""), 7.5), (lambda files, result: result.clear(), 35),
    (lambda files, result: files.update({"prediction.md": PREDICTION.replace("1.5", "1.4").encode()}), 5),
    (lambda files, result: files.update({"prediction.md": PREDICTION.replace("if ", "").encode()}), 10),
    (lambda files, result: result.update(before=None), 7.5),
])
def test_an_experiment_is_compared_with_one_done_again(runner, run, tmp_path, edit, lost):
    files, result = dict(run), json.loads(run["result.json"])
    edit(files, result)
    files["result.json"] = json.dumps(result).encode()
    results = grade.Grader(ASSIGNMENTS[5], 5, runner).grade(files, tmp_path / "r.json")
    assert total(results) == (50 - lost, 50)


def test_an_experiment_that_is_not_begun_gets_nothing(runner, handouts, tmp_path):
    results = grade.Grader(ASSIGNMENTS[5], 5, runner).grade(handouts[5], tmp_path / "r.json")
    assert total(results) == (0, 50)
    for junk in (b"[1]", b"{", b"\xff", b"[" * 99999):
        assert experiment.read_result({"result.json": junk}) == {}


def test_values_are_compared_by_shape_type_and_size():
    right = {"x": np.array([1.0, 200.0]), "n": [1, None], "type": "torch.float32"}
    assert compare.difference(right, plain.loads(plain.dumps(right)), 1e-4) is None
    for noise, said in ((1e-6, None), (1e-2, "x[1]: expected 200, found 202")):
        assert compare.difference(right, right | {"x": right["x"] * (1 + noise)}, 1e-4) == said
    for other in ({"x": right["x"][None]}, {"x": np.array([1, np.nan])}, {"x": "passed"}, {"x": [1, None]},
                  {"n": [1, 2]}, {"n": [True, None]}, {"n": [1.0, None]}, {"type": "torch.bfloat16"}, {"more": 1}):
        assert compare.difference(right, right | other, 1e-4)
    assert compare.difference([0.5, 1.0], [10**400, 1], 1e-4) and compare.difference(0.0, 1e-30, 1e-4)


@pytest.mark.parametrize("text", [
    "", "{", "[" * 99999, '{"array": "AA", "dtype": "object", "shape": [1]}',
    '{"array": 3, "dtype": "bool", "shape": []}',
    '{"array": "", "dtype": "bool", "shape": [99]}', '{"array": "AA==", "dtype": "bool", "shape": ["x"]}',
    '{"array": "AA==", "dtype": "bool", "shape": [1e999]}', "9" * 5000])
def test_text_that_is_no_value_is_refused(text):
    with pytest.raises(ValueError):
        plain.loads(text)


def test_strip_and_splice_keep_all_else():
    clean = 'class A:\n    """Doc."""\n\n    def f(self, x):  # note\n        # why\n        return x\n\n\nB = 1\n'
    assert source.strip(clean, ["A.f"]) == clean.replace("        # why\n        return x\n",
                                                         "        raise NotImplementedError\n")
    theirs = source.parse("a.py", b"import math\nK = math.pi\nL = 5\nclass A:\n\tdef g(self): return 2\n"
                                  b"\tdef f(self, x):\n\t\treturn self.g() * K\n")
    text, space = source.splice(clean, theirs, ["A.f"]), {}
    exec(text, space)  # the test's own text
    assert space["A"]().f(1) == pytest.approx(6.2831853) and space["B"] == 1 and "L" not in space
    with pytest.raises(LookupError, match="no function A.f"):
        source.splice(clean, source.parse("a.py", b"def f(): pass"), ["A.f"])
