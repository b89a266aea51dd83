"""tests/assignments: the reference has full marks and the starter none; a planted mistake costs its own points only.

The grader outlives submissions that do not answer but loop, forge, steal or crash.
"""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import ROOT, assert_refused, command

HERE = ROOT / "tests" / "assignments"
sys.path.append(str(HERE))
import cases
import check
import experiment
import fence
import grade
import hand_out
import planted
import source
import tolerance
from runner import Runner
from table import ASSIGNMENTS
from unpack import read_submission

CODED = [ASSIGNMENTS[n] for n in (1, 2, 3, 4)]
SEED = 2**64 - 1


@pytest.fixture(scope="module")
def runner():
    with Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def graders(runner):
    """Graders that trust the submission, so that all share one process."""
    return {a.number: grade.Grader(a, SEED, runner, lambda: nullcontext(runner)) for a in ASSIGNMENTS.values()}


@pytest.fixture(scope="module")
def handouts(runner):
    return {a.number: hand_out.handout(a, runner) for a in ASSIGNMENTS.values()}


def reference(number):
    return {file: hand_out.clean_files(ASSIGNMENTS[number])[file] for file in ASSIGNMENTS[number].files}


def scores(results):
    """{question's number: points}"""
    found = {}
    for row in results["tests"]:
        found[row["number"]] = round(found.get(row["number"], 0) + row["score"], 2)
    return found


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_reference_gets_everything_and_the_starter_nothing(graders, tmp_path, number):
    results = graders[number].grade(reference(number), [], tmp_path / "results.json")
    assert sum(scores(results).values()) == pytest.approx(100)
    results = graders[number].grade(hand_out.starter(ASSIGNMENTS[number]), [], tmp_path / "results.json")
    assert sum(scores(results).values()) == 0
    assert all("is not written yet" in row["output"] for row in results["tests"] if row["visibility"] == "visible")


@pytest.mark.parametrize("question", ["accumulate_gradient", "attend", "generate"])
def test_a_question_is_graded_alone(graders, tmp_path, question):
    assignment, q = planted.QUESTIONS[question]
    others = [name for name in assignment.functions(q.file) if name not in q.names]
    files = {q.file: source.strip(reference(assignment.number)[q.file].decode(), others).encode()}
    found = scores(graders[assignment.number].grade(files, [], tmp_path / "results.json"))
    assert found.pop(f"{assignment.number}.{assignment.questions.index(q) + 1}") == q.points
    assert set(found.values()) == {0}


@pytest.mark.parametrize("row", planted.read(), ids=lambda row: f"{row.question}: {row.name}")
def test_a_mistake_costs_points_and_another_right_way_none(graders, runner, row):
    assignment, q = planted.QUESTIONS[row.question]
    hidden = hand_out.cases_with_values(assignment, q, SEED, runner)
    results = graders[assignment.number].run(
        q, planted.plant(row.question, *row.edits), hidden, SEED, runner)
    wrong = [said for said in tolerance.marks(hidden, results, q.tolerance) if said]
    assert (not wrong) == (row.kind == "right"), wrong


def test_every_question_has_points_cases_and_three_planted_mistakes():
    wrong = [row.question for row in planted.read() if row.kind == "wrong"]
    for assignment in CODED:
        assert sum(q.points for q in assignment.questions) == 100
        for q in assignment.questions:
            assert wrong.count(q.name) >= 3 and cases.cases_of(q.name, 3)


def said_of(grader, runner, files, question="learning_rate"):
    """What stands beside the first case of a submission."""
    assignment, q = planted.QUESTIONS[question]
    visible = hand_out.cases_with_values(assignment, q, 0, grader.reference)[:1]
    return tolerance.marks(visible, grader.run(q, files, visible, 0, runner), q.tolerance)[0]


def learning_rate(body):
    """A submission of assignment 1 with this in learning_rate's place."""
    stripped = source.strip(reference(1)["train.py"].decode(), ["learning_rate"])
    return {"train.py": stripped.replace("raise NotImplementedError", body).encode()}


@pytest.mark.parametrize("submission, said", [
    ("while True: pass", "took longer than"), ("x = bytearray(1 << 40)", "MemoryError"),
    ("import torch; x = torch.ones(1 << 36)", "RuntimeError"), ("import sys; sys.exit(0)", "it called sys.exit"),
    ("import os; os._exit(0)", "the process ended early"), ("return 'five'", "could not convert"),
    ("import os; return float(os.environ['SEED'])", "KeyError"), ("print(1.0); return -1", "expected"),
    ("file = open('x', 'w'); file.write('1' * 99999); file.flush()", "File too large"),
    ("raise ValueError('\\033[2J' + 'x' * 999)", "ValueError: ?[2Jxxx"),
    ("import os\n    for n in range(9**9):\n        try: os.write(n % 20 + 3, b'x' * 65536)\n"
     "        except OSError: pass", "its values are too long"),  # into whichever stream its values go
    # with all arguments: Python 3.13 does not count a call that leaves a default to itself, and runs out of memory
    ("return learning_rate(step, n_steps, peak, schedule, warmup)", "RecursionError"),
    (b"def learning_rate(:\n", "SyntaxError"), (b"\0" * 9, "null bytes"), (b"\xff\xfe", "SyntaxError"),
    (b"((" * 9000, "too many nested"), (b"import sys; sys.exit()", "sys.exit"), (None, "train.py is not in"),
    (b"def learning_rate():\n    pass\n", "TypeError"), (b"", "there is no function learning_rate"),
], ids=lambda value: str(value)[:25])
def test_what_is_no_answer_gets_a_clear_line(graders, runner, monkeypatch, submission, said):
    monkeypatch.setattr(runner, "memory", 1 << 30)
    if said == "took longer than":  # the others must not fail for a busy machine's slowness
        monkeypatch.setattr(runner, "seconds", 1)
    files = learning_rate(submission) if isinstance(submission, str) else {"train.py": submission}
    found = said_of(graders[1], runner, files if submission is not None else {})
    assert said in found and len(found) <= 300


def test_helpers_come_along(graders, runner):
    files = planted.plant("learning_rate", ("math.ceil(warmup * n_steps)", "up(warmup * n_steps)"))
    files["train.py"] = b"from math import ceil\n" + files["train.py"] + b"\ndef up(x): return ceil(x)\n"
    assert said_of(graders[1], runner, files) is None
    files = planted.plant("RMSNorm", ("self.eps)", "self.small())"))
    files["model.py"] = files["model.py"].replace(b"class RMSNorm(nn.Module):",
                                                  b"class RMSNorm(nn.Module):\n    def small(self): return self.eps\n")
    assert said_of(graders[2], runner, files, "RMSNorm") is None


def test_results_are_gradescopes_written_after_every_question_and_without_hidden_inputs(
        graders, tmp_path, monkeypatch):
    path, written, real = tmp_path / "results.json", [], grade.write_json
    monkeypatch.setattr(grade, "write_json", lambda path, value: real(path, value) or written.append(path.read_text()))
    graders[1].grade(learning_rate("raise ValueError((n_steps, peak))"), ["notes\033.txt"], path)
    assert [len(json.loads(text)["tests"]) for text in written] == [2, 4, 6, 8]
    results = json.loads(path.read_text())
    assert results["output"] == "Not read: notes?.txt."
    assert all(row.keys() == {"score", "max_score", "output", "name", "number", "visibility", "status"}
               for row in results["tests"])
    visible, hidden = results["tests"][-2:]
    assert visible["visibility"] == "visible" and "ValueError: (" in visible["output"]
    assert hidden["visibility"] == "after_published" and re.fullmatch(
        r"0 of 7 cases right(\n[\w ',-]+: wrong){5}\nand 2 more", hidden["output"])


ATTACKS = '''
    import gc, os, pathlib, resource, socket, sys, torch
    def found_beside_main():
        here = pathlib.Path(sys.modules["__main__"].__file__).parent
        assert [path for path in here.rglob("*.py") if "math." + "ceil(warmup" in path.read_text(errors="replace")]
    def read(path):
        assert open(path).read()
    def write(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    def through_a_folder():
        assert os.open("train.py", os.O_RDONLY, dir_fd=os.open("ROOT", os.O_RDONLY))
    def right_values():
        assert [each for each in gc.get_objects() if isinstance(each, dict) and "right" in each and "inputs" in each]
    attacks = [found_beside_main, through_a_folder, right_values, lambda: read("ROOT/train.py"),
               lambda: read("SECRET"), lambda: torch.UntypedStorage.from_file("ROOT/train.py", False, 100),
               lambda: write("train.py"), lambda: write("/tmp/x"), lambda: write("/dev/shm/x"), lambda: write("/x"),
               lambda: write("ROOT/x"), lambda: socket.create_connection(("127.0.0.1", PORT), 1),
               lambda: os.kill(GRADER, 0), lambda: resource.prlimit(GRADER, resource.RLIMIT_CPU, (1, 1))]
    worked = []
    for i, attack in enumerate(attacks):
        try: attack()
        except (OSError, RuntimeError, AssertionError): continue
        worked.append(i)
    raise ValueError(f"of {len(attacks)} attacks these worked: {worked}")'''

OUTLIVE = '''
    import os, signal, time
    try:
        if not os.fork():
            os.setsid()
            while True: time.sleep(1)
    except OSError: pass
    os.kill(os.getppid(), signal.SIGSTOP)
    time.sleep(99)'''


@pytest.fixture(scope="module")
def fenced(request):
    """Makes a Runner within bubblewrap; without that the test is skipped, and says so."""
    try:
        new_runner, said = fence.for_submissions(False, 30)
        assert "within bubblewrap" in said
    except (ValueError, AssertionError) as error:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\nhostile submissions are not tested here: {error or said}")
        pytest.skip("no bubblewrap")
    return new_runner


def test_a_hostile_submission_finds_nothing_and_changes_nothing(graders, fenced, tmp_path):
    (tmp_path / "secret").write_text("another's submission")
    with socket.create_server(("127.0.0.1", 0)) as server, fenced() as runner:
        body = ATTACKS
        for name, value in (("ROOT", ROOT), ("SECRET", tmp_path / "secret"), ("PORT", server.getsockname()[1]),
                            ("GRADER", os.getpid())):
            body = body.replace(name, str(value))
        assert "of 14 attacks these worked: []" in said_of(graders[1], runner, learning_rate(body))
        assert said_of(graders[1], runner, reference(1)) is None


def test_nothing_of_a_submission_outlives_its_question(graders, fenced):
    with fenced(seconds=1) as runner:
        found = said_of(graders[1], runner, learning_rate(OUTLIVE))
        assert "took longer than 1 seconds" in found
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if os.access(path, os.R_OK)]
    assert not [line for line in running if os.fsencode(runner.path) in line]


def test_without_a_fence_the_grader_refuses_or_warns(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="bwrap.* is not installed, so a submission can read .*UNSAFE=1"):
        fence.for_submissions(False, 30)
    assert "can read the solutions" in fence.for_submissions(True, 30)[1]
    monkeypatch.setattr(fence, "ROOT", tmp_path)
    tmp_path.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 0)
    new_runner, said = fence.for_submissions(False, 30)
    assert "as the user nobody" in said and new_runner.keywords["extra_groups"] == []


def test_the_fence_hides_the_repository_and_binds_an_environment_in_it_back(monkeypatch):
    monkeypatch.setattr(sys, "prefix", f"{ROOT}/.venv")
    words = fence.bubblewrap(Path("/work"))
    hidden = words.index("--tmpfs")
    assert words[hidden + 1] == str(ROOT) and "/usr" in words[:hidden] and f"{ROOT}/.venv" not in words[:hidden]
    assert words[hidden + 2 : hidden + 5] == ["--ro-bind-try", f"{ROOT}/.venv", f"{ROOT}/.venv"]
    assert not {"--bind", "--dev-bind", "--share-net"} & set(words) and "--unshare-all" in words
    assert words[-6:] == ["--remount-ro", str(ROOT), "--remount-ro", "/dev", "--remount-ro", "/"]


def test_every_form_of_a_submission_is_read(tmp_path):
    files, mac = {"data/format.py": b"x = 1\n", "train.py": b"y = 2\n"}, tmp_path / "mac"
    write(mac, {"__MACOSX/._train.py": b"\0", "large.py": b"#" * (2 << 20)})
    write(mac / "my work", files)
    for kind in ("zip", "tar", "gztar", "xztar"):
        shutil.make_archive(tmp_path / kind, kind, mac)
    write(tmp_path / "nested/deep", files)
    write(tmp_path / "flat", {os.path.basename(file): data for file, data in files.items()})
    (tmp_path / "flat" / "model.py").symlink_to(ROOT / "model.py")
    (tmp_path / "tar.tar").rename(tmp_path / "no-ending")
    for path in tmp_path.iterdir():
        assert read_submission(path, [*files, "model.py", "large.py"]) == (files, []), path


def test_one_submission_is_known_from_many(tmp_path):
    write(tmp_path, dict.fromkeys(("alice/train.py", "bob/notes.txt", "one/in/data/format.py", "flat/format.py",
                                   "zips/a.zip"), b""))
    found = {path.name for path in tmp_path.iterdir() if grade.is_one(path, ASSIGNMENTS[1].files)}
    assert found == {"alice", "one", "flat"} and not grade.is_one(tmp_path, ASSIGNMENTS[1].files)


def test_what_cannot_be_read_gets_nothing_and_stops_nobody(graders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(graders[5], "experiment", lambda question, files: [grade.result_of("q", 10, [None], "visible")])
    work, right = tmp_path / "work", {"prediction.md": b"x"}
    write(work, {"torn.zip": b"PK\3\4 torn", "letter": b"Dear grader", "nothing/notes.txt": b"", "more/a.md": b""})
    shutil.make_archive(work / "empty", "xztar", work / "more")
    write(work / "more", right)
    os.truncate(work / "more" / "a.md", 20 << 20)
    shutil.make_archive(work / "bomb", "xztar", work / "more")
    (work / "torn.tar.xz").write_bytes((work / "bomb.tar.xz").read_bytes()[:40])
    os.mkfifo(work / "pipe")
    (work / "zero").symlink_to("/dev/zero")
    (work / "itself").symlink_to("itself")
    write(Path(os.fsdecode(os.fsencode(work) + b"/\xff")), right)
    grade.grade_many(graders[5], work, tmp_path / "out")
    header, *rows = (line.split(",", 4) for line in (tmp_path / "out" / "grades.csv").read_text().splitlines())
    assert header == ["submission", "total", "5.1", "5.2", "problem"]
    assert {row[0] for row in rows if row[1] == "20.0"} == {"?", "more", "bomb.tar.xz"}
    problems = {row[0]: row[4] for row in rows if row[1] == "0.0"}
    assert problems.keys() == {
        "torn.zip", "letter", "nothing", "empty.tar.xz", "torn.tar.xz", "pipe", "zero", "itself"}
    assert all("hand in what make submission wrote" in problem for problem in problems.values())


def test_mistakes_of_the_command_line_are_one_sentence(tmp_path):
    grading, writing = "tests/assignments/grade.py", "tests/assignments/hand_out.py"
    (tmp_path / "work.zip").write_bytes(os.urandom(99))
    assert_refused(command(grading, 1, tmp_path / "none.zip"), "none.zip", "does not exist")
    assert_refused(command(grading, 1, tmp_path / "work.zip"), "work.zip", "no archive")
    assert_refused(command(grading, 7, tmp_path), "'7' is no assignment; they are 1, 2, 3, 4, 5")
    assert_refused(command(grading, 1, tmp_path, "--seed", 0), "--seed", "from 1")
    assert_refused(command(grading, 5, tmp_path, "--results", tmp_path), "is a folder")
    (tmp_path / "seed").write_text("x")
    assert_refused(command(grading, 5, tmp_path, "--results", tmp_path / "r.json"), tmp_path / "seed", "no number")
    assert_refused(command(writing, "one", "--out", tmp_path), "'one' is no assignment")
    assert_refused(command(writing, 1, "--out", tmp_path), tmp_path, "not an empty folder")
    assert_refused(command(writing, 5, "--solution"), "no solution")


def test_the_private_seed_is_drawn_once_and_has_64_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(grade.secrets, "randbits", lambda n: 2**n - 1)
    assert grade.private_seed(tmp_path / "deep" / "seed") == SEED == grade.private_seed(tmp_path / "deep" / "seed")


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_handout_stands_alone_and_gives_nothing_away(handouts, number):
    files, assignment = handouts[number], ASSIGNMENTS[number]
    assert not [name for name in files if name.startswith((".git", "tests/assignments", "tests/test_", "tests/lab"))]
    text = files["README.md"].decode()
    assert "{questions}" not in text and all(f"| {q.points} |" in text for q in assignment.questions)
    for name, data in files.items():
        if name in assignment.files and number != 5:
            assert data.count(b"raise NotImplementedError\n") == len(assignment.functions(name))
        elif (ROOT / name).exists() and name not in ("README.md", "Makefile"):
            assert data == (ROOT / name).read_bytes()
    others = [name for name in files if name.endswith((".py", ".md", "Makefile")) and name not in assignment.files]
    handed = b"\n".join(map(files.get, others)).decode()
    for line in hand_out.solution(assignment).splitlines() if number != 5 else ():
        if line.startswith("+ ") and len(line.strip("+ ")) > 45:
            assert line[1:].strip() not in handed


@pytest.mark.parametrize("number", [1, 3])
def test_the_check_of_a_handout_knows_the_starter_from_the_solution(handouts, runner, tmp_path, capsys, number):
    write(tmp_path, handouts[number])
    assignment = json.loads((tmp_path / "tests" / "check" / "visible.json").read_bytes())
    if number == 3:
        assert not check.check(assignment, tmp_path, runner)
        assert capsys.readouterr().out.count(": 0 of ") == 3
    write(tmp_path, reference(number))
    assert check.check(assignment, tmp_path, runner)
    if number == 1:
        write(tmp_path, planted.plant("summed_loss", ("[*labels[1:], IGNORE]", "labels")))
        assert not check.check(assignment, tmp_path, runner)
        assert "accumulate_gradient: 0 of 7 cases right; it calls summed_loss, not right yet" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_make_submission_writes_the_archive_that_the_grader_takes(handouts, tmp_path):
    write(tmp_path, handouts[4] | {"judge.py": planted.plant("win_rate", ("ddof=1", "ddof=0"))["judge.py"]})
    made = subprocess.run(["make", "submission", f"PYTHON={sys.executable}"], cwd=tmp_path, text=True,
                          capture_output=True, env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"})
    assert made.returncode == 0, made.stderr
    assert "4.1 win_rate: 2 of 5 cases right" in made.stdout and "4.3 preference_for_second: 7 of 7" in made.stdout
    assert "wrote assignment-4.zip with judge.py" in made.stdout and "not all is right yet" in made.stdout
    assert read_submission(tmp_path / "assignment-4.zip", ["judge.py"])[0].keys() == {"judge.py"}


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
        yield {"seed": experiment.seed_of(PREDICTION)} | experiment.run(experiment.seed_of(PREDICTION))
        experiment.run.cache_clear()


@pytest.mark.parametrize("prediction, change, lost", [
    (PREDICTION, {}, 0), (experiment.TEMPLATE, {}, 50), (PREDICTION, {"loss": 9}, 7.5), (PREDICTION, {"seed": 7}, 30),
    (PREDICTION, {"loss": 10**400}, 7.5), (PREDICTION, {"after": {"stop": "all"}}, 7.5),
    (PREDICTION, {"data_sha256": ""}, 7.5), (PREDICTION.replace("1.5", "1.4"), {}, 30),
    (PREDICTION.replace("if ", ""), {}, 35), (PREDICTION, {"before": None}, 7.5),
])
def test_an_experiment_is_compared_with_one_done_again(graders, run, tmp_path, prediction, change, lost):
    files = {"prediction.md": prediction.encode(), "result.json": json.dumps(run | change).encode()}
    assert sum(scores(graders[5].grade(files, [], tmp_path / "r.json")).values()) == 50 - lost
    for junk in (b"[1]", b"{", b"\xff", b"[" * 99999, b"9" * 5000):
        assert experiment.read_result({"result.json": junk}) == {}


def test_values_are_compared_by_shape_type_and_size():
    right = {"x": [[1.0, 200.0]], "n": [1, None], "type": "torch.float32"}
    assert tolerance.difference(right, right, 1e-4) is None
    assert tolerance.difference(right, right | {"x": [[1.0, 200.0001]]}, 1e-4) is None
    assert tolerance.difference(right, right | {"x": [[1.0, 202.0]]}, 1e-4) == "x[0, 1]: expected 200, found 202"
    for other in ({"x": [1.0, 200.0]}, {"x": [[1, float("nan")]]}, {"x": "passed"}, {"x": [[1, None]]}, {"x": [[]]},
                  {"x": [[1, 10**400]]}, {"x": [[1, True]]}, {"x": [[[[1.0]]]]}, {"n": [1, 2]}, {"n": [True, None]},
                  {"n": [1.0, None]}, {"type": "torch.bfloat16"}, {"more": 1}):
        assert tolerance.difference(right, right | other, 1e-4), other
    assert tolerance.difference([], [], 0) is None and tolerance.difference(0.0, 1e-30, 1e-4)


def test_strip_keeps_all_else():
    clean = 'class A:\n    """Doc."""\n\n    def f(self, x):  # note\n        # why\n        return x\n\n\nB = 1\n'
    assert source.strip(clean, ["A.f"]) == clean.replace("        # why\n        return x\n",
                                                         "        raise NotImplementedError\n")
    assert source.find(clean, "A.g") is None
