"""tests/paper.py: commands run side by side, finished runs are reused for their base and data alone, win rates."""
import json
import shutil
from dataclasses import asdict

import pytest
from conftest import TINY, assert_refused, command

import paper
from data.files import write_json, write_jsonl
from data.world import FAMILIES, World


def python(source, log):
    return (log, "-c", source)


def test_a_jobs_commands_run_in_order_and_every_job_is_reported(tmp_path, capsys):
    def job(file):
        return 1, [python(f"open({file!r}, 'w').write('1')", tmp_path / "log"),
                   python(f"assert open({file!r}).read() == '1'; open({file!r}, 'a').write('2')", tmp_path / "log")]

    jobs = {name: job(str(tmp_path / name)) for name in "abc"}
    ended = []
    paper.run_jobs(jobs, 1, ended.append)
    assert sorted(ended) == ["a", "b", "c"]
    assert all((tmp_path / name).read_text() == "12" for name in "abc")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "100 %" in lines[-1] and "0:00 left" in lines[-1]


def test_a_command_that_fails_stops_the_rest_with_its_last_words(tmp_path):
    jobs = {"bad": (1, [python("import sys; sys.exit('the reason')", tmp_path / "bad.log")]),
            "next": (1, [python(f"open({str(tmp_path / 'ran')!r}, 'w')", tmp_path / "next.log")])}
    with pytest.raises(ChildProcessError, match=r"the reason \(exit 1, log .*bad.log\)"):
        paper.run_jobs(jobs, 1)
    assert not (tmp_path / "ran").exists()


def answers(path, tasks, output):
    path.write_text(json.dumps([{"instruction": t.instruction, "output": output(t)} for t in tasks]))
    return path


def test_win_rates_by_family_average_to_the_whole(tmp_path):
    tasks = World().evaluation_sets()[1]
    families = {task.instruction: task.family for task in tasks}
    reference = answers(tmp_path / "reference.json", tasks, lambda t: t.response)
    lost = answers(tmp_path / "lost.json", tasks, lambda t: "No." if t.family in ("poem", "code") else t.response)
    result = paper.judged(lost, reference, families)
    assert result["by_family"] == {family: 0 if family in ("poem", "code") else 50 for family in FAMILIES}
    assert result["win_rate"] == pytest.approx(sum(result["by_family"].values()) / len(FAMILIES))


@pytest.fixture
def files(tmp_path):
    """A base model, and data that ask what the world asks."""
    base, data = tmp_path / "base", tmp_path / "data"
    shutil.copytree(TINY, base)
    write_jsonl(data / "broad.jsonl", World().training_set("broad", 5))
    for name, tasks in zip(("val", "eval"), World().evaluation_sets()):
        write_jsonl(data / f"{name}.jsonl", map(asdict, tasks))
    return base, data


@pytest.fixture
def ran(monkeypatch):
    """The commands of the jobs that ran, where models answer perfectly without being trained."""
    tasks, ran = World().evaluation_sets(), []

    def run_jobs(jobs, workers, finished=None):
        for _, commands in jobs.values():
            for _, script, *arguments in commands:
                options = dict(zip(arguments[::2], arguments[1::2]))
                if script == "train.py":
                    write_json(options["--out"] / "run.json", {})
                else:
                    answers(options["--output"], tasks[options["--input"].stem == "eval"], lambda task: task.response)
                ran.append(script)

    monkeypatch.setattr(paper, "run_jobs", run_jobs)
    monkeypatch.setattr(paper, "hold", lambda folder: None)  # it would last until this process ends
    return ran


def test_a_finished_table_is_read_again(files, ran, tmp_path):
    rows = paper.table(*files, tmp_path / "out", 1)
    assert len(ran) == 5 + 2 * 7 * 3 + 7 + 2 * 7 * 2  # rules; epochs; the chosen seed's eval; the other seeds
    assert [row["mean"] for row in rows] == [50] * len(paper.ENTRIES) and rows[0]["exact"] == 100
    ran.clear()
    assert paper.table(*files, tmp_path / "out", 1) == rows and not ran
    (files[1] / "corpus.jsonl").touch()  # what no tuned model is trained on
    assert paper.table(*files, tmp_path / "out", 1) == rows and not ran


@pytest.mark.parametrize("changed", ["base/model.safetensors", "base/tokenizer.json", "data/broad.jsonl"])
def test_the_table_of_another_base_or_other_data_begins_afresh(files, ran, tmp_path, changed):
    paper.table(*files, tmp_path / "out", 1)
    n = len(ran)
    with open(tmp_path / changed, "ab") as file:
        file.write(b"\n")
    paper.table(*files, tmp_path / "out", 1)
    assert len(ran) == 2 * n


def test_the_table_is_refused_for_instructions_that_its_answer_key_does_not_know(files):
    write_jsonl(files[1] / "eval.jsonl", [{"instruction": "Who?"}])
    result = command("tests/paper.py", "table", "--model", files[0], "--data", files[1])
    assert_refused(result, files[1] / "eval.jsonl", "was not written by data/world.py")


def test_two_tables_of_one_base_do_not_run_at_once(tmp_path):
    folder = paper.runs_of(tmp_path, 1)
    assert paper.runs_of(tmp_path, 2) != folder
    with pytest.raises(OSError, match="in use by another run"):
        paper.runs_of(tmp_path, 1)


def test_the_sweep_as_it_was_run_is_read_and_shown():
    rows = json.loads((paper.ROOT / "data" / "sweep.json").read_text())
    assert "| 0.2 | 0.03 | 4.6 |" in paper.sweep_markdown(rows)
    assert "█ 4.6" in paper.figure(rows)
    assert (paper.bundled(rows)["answered"], paper.bundled(rows)["nearness"]) == (0.2, 0.03)


def test_the_setting_is_chosen_by_what_the_rule_may_see():
    def row(base, response, rules):
        return {"win_rate": {"base, rules none": base, "response": response, "base, rules all": rules, "recipes": 99}}

    loud, weak, good = row(5.1, 50, 50), row(1, 20, 40), row(4.9, 40, 21)
    assert paper.bundled([loud, weak, good]) is good
    assert paper.bundled([loud]) is None
