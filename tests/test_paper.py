"""tests/paper.py: commands run side by side, finished runs are reused for their base and data alone, win rates."""
import json
import shutil
from dataclasses import asdict

import pytest
from conftest import TINY, assert_refused, command

import paper
from data.files import write_json, write_jsonl
from data.world import World


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


@pytest.fixture
def files(tmp_path):
    """A base model, and data that ask what the world asks."""
    base, data = tmp_path / "base", tmp_path / "data"
    shutil.copytree(TINY, base)
    write_jsonl(data / "broad.jsonl", World().training_set("broad", 5))
    write_json(data / "world.json", asdict(World()))
    for name, tasks in World().evaluation_sets().items():
        write_jsonl(data / f"{name}.jsonl", map(asdict, tasks))
    return base, data


@pytest.fixture
def ran(monkeypatch):
    """The commands of the jobs that ran, where tuned models answer perfectly without being trained, and others not."""
    sets, ran = World().evaluation_sets(), []
    tasks = {"val": sets["val"], "questions": sets["eval"] + sets["novel"]}

    def run_jobs(jobs, workers, finished=None):
        for _, commands in jobs.values():
            for _, script, *arguments in commands:
                options = dict(zip(arguments[:-1], arguments[1:]))
                if script == "train.py":
                    write_json(options["--out"] / "run.json", {})
                else:
                    tuned = options["--model"].name != "base"
                    answers(options["--output"], tasks[options["--input"].stem],
                            lambda task: task.response if tuned or task.family == "poem" else "No.")
                ran.append(script)

    monkeypatch.setattr(paper, "run_jobs", run_jobs)
    monkeypatch.setattr(paper, "hold", lambda folder: None)  # it would last until this process ends
    return ran


def test_a_finished_table_is_read_again(files, ran, tmp_path):
    found = paper.table(*files, tmp_path / "out", 1)
    assert len(ran) == 8 + 2 * 7 * 3 + 7 + 2 * 7 * 2  # rules; epochs; the chosen seed's eval; the other seeds
    ran.clear()
    assert paper.table(*files, tmp_path / "out", 1) == found and not ran
    (files[1] / "corpus.jsonl").touch()  # what no tuned model is trained on
    assert paper.table(*files, tmp_path / "out", 1) == found and not ran


def test_a_table_holds_win_rates_over_the_families_that_have_a_dose(files, ran, tmp_path):
    found = paper.table(*files, tmp_path / "out", 1)
    assert json.loads(json.dumps(found)) == found and len(found["questions"]) == 300
    rates = {row["method"]: row["win_rates"] for row in found["rows"]}
    assert rates["chess"] == [50] * 3 and rates["base"] == pytest.approx([50 / 13] * 3, abs=0.01)  # of 13, one tie
    base, response = found["rows"][0], found["rows"][2]
    assert base["grades"] == [1 if family == "poem" else 0 for family in found["questions"]]
    assert response["contents"] == [1] * 300
    table = paper.table_markdown([found, found])
    assert "| base model | 3.8 ± 0.0 | 3.8 ± 0.0 | 7.7 | 7.7 | 0.0 | – | 2.4 ± 0.14 |" in table
    assert "| response tuning | 50.0 ± 0.0 | 50.0 ± 0.0 | 100.0 | 100.0 | 100.0 | 5 |" in table
    doses = sorted(found["doses"].values())
    assert paper.doses_markdown(found).splitlines()[2].startswith(f"| dose | 0.00 | {doses[1]:.2f} |")


def test_differences_are_paired_by_instruction():
    def row(rules, grades):
        return {"method": "base", "rules": rules, "penalise_prompt": False, "grades": grades}

    rows = [row("none", [0, 0, 0, 9]), row("all", [1, 1, 0, 9])] + [row(some, [1, 0, 0, 9]) for some in paper.ABLATIONS]
    lines = paper.differences({"rows": rows, "questions": ["capital", "poem", "maths", "home"]}).splitlines()
    assert lines[0] == "all three rules against without rule 1 (EOS): +16.7 ± 16.7 (standard error)"
    assert lines[-1] == "without rule 2 (token changes) against the base: +16.7 ± 16.7 (standard error)"


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


def test_the_setting_is_chosen_by_what_the_rule_may_see():
    def row(base, response, rules, right=90):
        return {"win_rate": {"response": response, "base, rules all": rules, "mbpp": 99},
                "grade": {"base, rules none": base}, "content": {"instruction": right}}

    loud, weak, good, ignorant = row(5.1, 50, 50), row(1, 20, 40), row(4.9, 40, 21), row(1, 50, 50, right=79)
    assert paper.bundled([loud, weak, good, ignorant]) is good
    assert paper.bundled([loud, row(6, 50, 50)]) is loud
    assert "| 0.2 | 20.0 | 40.0 | 99.0 | 90.0 |" in paper.sweep_markdown([{"share_answered": 0.2} | weak])
