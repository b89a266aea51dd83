"""tests/paper.py: running commands side by side, and what becomes of the answers. The commands have tests of their own."""
import json

import pytest

import paper
from data.world import FAMILIES, World


def python(source, log):
    return (log, "-c", source)


def test_a_jobs_commands_run_in_order_and_every_job_is_reported(tmp_path, capsys):
    jobs = {name: (1, [python(f"open({str(tmp_path / name)!r}, 'w').write('1')", tmp_path / "log"),
                       python(f"f = {str(tmp_path / name)!r}; assert open(f).read() == '1'; open(f, 'a').write('2')", tmp_path / "log")])
            for name in "abc"}
    ended = []
    paper.run(jobs, 1, ended.append)
    assert sorted(ended) == ["a", "b", "c"]
    assert all((tmp_path / name).read_text() == "12" for name in "abc")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "100 %" in lines[-1] and "0:00 left" in lines[-1]


def test_a_command_that_fails_stops_the_rest_with_its_last_words(tmp_path):
    jobs = {"bad": (1, [python("import sys; sys.exit('the reason')", tmp_path / "bad.log")]),
            "next": (1, [python(f"open({str(tmp_path / 'ran')!r}, 'w')", tmp_path / "next.log")])}
    with pytest.raises(RuntimeError, match=r"the reason \(exit 1, log .*bad.log\)"):
        paper.run(jobs, 1)
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


def test_a_run_of_another_base_is_not_reused(tmp_path):
    folder = tmp_path / "response-5-epochs-seed-1"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"model_sha256": "0", "data_sha256": "0"}))
    with pytest.raises(ValueError, match="trained on another base model or other data; remove"):
        paper.tuning(paper.ROOT / "data" / "tiny", tmp_path, folder, "response", 5, 1)


def test_the_setting_is_chosen_by_what_the_rule_may_see():
    def row(base, response, rules):
        return {"win_rate": {"base, rules none": base, "response": response, "base, rules all": rules, "recipes": 99}}

    loud, weak, good = row(5.1, 50, 50), row(1, 20, 40), row(4.9, 40, 21)
    assert paper.carried([loud, weak, good]) is good
    assert paper.carried([loud]) is None
