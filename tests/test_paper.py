"""tests/paper.py: win rates from grades, epochs chosen on val, the sweep's rule."""
import json
from dataclasses import asdict

import pytest
from conftest import TINY, assert_refused, command

import paper
from data.common import write_json
from data.world import World

WORLD = World()
TASKS = {task.instruction: task for tasks in WORLD.evaluation_sets().values() for task in tasks}


@pytest.fixture
def asked(monkeypatch):
    """The calls of `answers`, here without a model: the tuned are perfect after 10 epochs, the others write poems."""
    asked = []

    def answers(base, world, method, epochs, seed, instructions, rules=(), penalise_prompt=False):
        asked.append((method, epochs, seed, rules, penalise_prompt, len(instructions)))
        return [TASKS[instruction].response if epochs == 10 or TASKS[instruction].family == "poem" else "No."
                for instruction in instructions]

    monkeypatch.setattr(paper, "answers", answers)
    monkeypatch.setattr(paper, "side_by_side", lambda jobs, workers: {
        name: call(*arguments) for name, (_, call, *arguments) in jobs.items()})
    monkeypatch.setattr(paper, "EPOCHS", (5, 10, 20))
    return asked


def test_epochs_are_chosen_on_val_and_every_entry_is_asked_the_same(asked):
    found = paper.table(TINY, WORLD, 1)
    val, test = asked[:21], asked[21:]
    assert {call[5] for call in val} == {65} and {call[5] for call in test} == {300}
    assert {row["epochs"] for row in found["rows"]} == {10, None}
    tuned = [call for call in test if call[0] != "base"]
    assert {call[:3] for call in tuned} == {(method, 10, seed) for method in paper.TUNED for seed in (1, 2, 3)}
    assert len(tuned) == 21 and len(test) == 29
    assert ("base", None, 3, ("eos", "repeats"), True, 300) in test


def test_a_table_holds_win_rates_over_the_families_that_have_a_dose(asked):
    found = paper.table(TINY, WORLD, 1)
    assert json.loads(json.dumps(found)) == found and len(found["questions"]) == 300
    rates = {row["method"]: row["win_rates"] for row in found["rows"]}
    assert rates["chess"] == [50] * 3 and rates["base"] == pytest.approx([50 / 13] * 3, abs=0.01)  # of 13, one tie
    base, response = found["rows"][0], found["rows"][2]
    assert base["grades"] == [1 if family == "poem" else 0 for family in found["questions"]]
    assert response["contents"] == [1] * 300
    table = paper.table_markdown([found, found])
    assert "| base model | 3.8 ± 0.0 | 3.8 ± 0.0 | 7.7 | 7.7 | 0.0 | – | 2.4 ± 0.14 |" in table
    assert "| response tuning | 50.0 ± 0.0 | 50.0 ± 0.0 | 100.0 | 100.0 | 100.0 | 10 |" in table
    doses = sorted(found["doses"].values())
    assert paper.doses_markdown(found).splitlines()[2].startswith(f"| dose | 0.00 | {doses[1]:.2f} |")


def test_differences_are_paired_by_instruction():
    def row(rules, grades):
        return {"method": "base", "rules": rules, "penalise_prompt": False, "grades": grades}

    rows = [row("none", [0, 0, 0, 9]), row("all", [1, 1, 0, 9])] + [row(name, [1, 0, 0, 9]) for name in paper.ABLATIONS]
    lines = paper.differences({"rows": rows, "questions": ["capital", "poem", "maths", "home"]}).splitlines()
    assert lines[0] == "all three rules against without rule 1 (EOS): +16.7 ± 16.7 (standard error)"
    assert lines[-1] == "without rule 2 (token changes) against the base: +16.7 ± 16.7 (standard error)"


def test_a_sweeps_setting_compares_with_its_own_instruction_tuning(asked, monkeypatch, tmp_path):
    monkeypatch.setattr(paper, "pretrain", lambda config, world, documents: TINY)
    monkeypatch.setattr(paper, "ask", lambda base, instructions, rules: [
        TASKS[instruction].response if rules else "No." for instruction in instructions])
    row = paper.setting(tmp_path, 0.1)  # the tuned, who were not trained for 10 epochs, write poems alone
    assert row["share_answered"] == 0.1 and row["grade"]["base, rules none"] == 0
    assert row["win_rate"]["response"] == row["win_rate"]["instruction"] == 50
    assert row["win_rate"]["base, rules none"] == pytest.approx(50 - 50 / 13, abs=0.01)


def test_a_table_wants_a_folder_that_says_which_world(tmp_path):
    write_json(tmp_path / "world.json", asdict(WORLD) | {"share_answered": 2})
    result = command("tests/paper.py", "table", "--data", tmp_path)
    assert_refused(result, tmp_path / "world.json", "share_answered = 2", "must be from 0 to 1")


def test_the_setting_is_chosen_by_what_the_rule_may_see():
    def row(base, response, rules, right=90):
        return {"win_rate": {"response": response, "base, rules all": rules, "mbpp": 99},
                "grade": {"base, rules none": base}, "content": {"instruction": right}}

    loud, weak, good, ignorant = row(5.1, 50, 50), row(1, 20, 40), row(4.9, 40, 21), row(1, 50, 50, right=79)
    assert paper.bundled([loud, weak, good, ignorant]) is good
    assert paper.bundled([loud, row(6, 50, 50)]) is loud
    assert "| 0.2 | 20.0 | 40.0 | 99.0 | 90.0 |" in paper.sweep_markdown([{"share_answered": 0.2} | weak])
