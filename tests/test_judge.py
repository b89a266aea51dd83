"""judge.py: rates against closed forms and an independent fit, the world's judge, response ranking."""
import json

import pytest
import torch
from conftest import TINY, assert_refused, command

from data.format import encode, encode_prompt
from data.world import World
from judge import length_controlled_win_rate, log_likelihoods, rank_responses, win_rate, world_judge

# (preferences, lengths, reference lengths) and the length-controlled win rate that scikit-learn 1.x gives for them:
#   x = tanh(d / d.std(ddof=1)); LogisticRegression(C=inf, solver="newton-cholesky", tol=1e-12).fit on every x twice,
#   once as a win of weight p and once as a loss of weight 1 - p; 100 * predict_proba at x = 0.
INDEPENDENT = [
    ([0.9, 0.2, 0.7, 1.0, 0.0, 0.5, 0.35, 0.8, 0.05, 0.6, 0.99, 0.4],
     [310, 120, 455, 900, 80, 200, 150, 620, 60, 340, 1010, 210],
     [200, 180, 300, 500, 160, 210, 240, 400, 190, 300, 420, 260], 44.56747561210022),
    ([1, 0, 0.5, 0, 1, 0, 0.5, 1, 0, 0], list(range(10, 101, 10)), [50] * 10, 40.82916917682366),
]


@pytest.fixture(scope="module")
def tasks():
    return World().evaluation_sets()[1]


def test_win_rate_and_standard_error_in_closed_form():
    assert win_rate([1, 0, 1, 1]) == pytest.approx((75, 100 * (3 / 16 * 4 / 3 / 4) ** 0.5))  # sqrt(p (1-p) / (n-1))
    assert win_rate([0.5] * 7) == (50, 0)


@pytest.mark.parametrize("preferences, lengths, reference_lengths, expected", INDEPENDENT)
def test_length_control_equals_an_independent_fit(preferences, lengths, reference_lengths, expected):
    assert length_controlled_win_rate(preferences, lengths, reference_lengths) == pytest.approx(expected, abs=1e-3)
    swapped = length_controlled_win_rate([1 - p for p in preferences], reference_lengths, lengths)
    assert swapped == pytest.approx(100 - expected, abs=1e-3)


def test_length_control_of_equal_lengths_is_the_win_rate():
    assert length_controlled_win_rate([1, 0.5, 0, 1], [9, 9, 9, 9], [9, 9, 9, 9]) == pytest.approx(62.5, abs=1e-3)
    assert length_controlled_win_rate([1] * 20, range(20), [10] * 20) > 99.9  # separable: finite all the same


def test_the_world_judge_prefers_right_to_ragged_to_wrong_and_is_symmetric(tasks):
    for task in tasks[:24]:
        right, ragged, wrong = task.response, task.response + "\nWhat else?", "I am not sure."
        for a, b, expected in [(right, wrong, 1), (right, ragged, 1), (ragged, wrong, 1), (right, right, 0.5),
                               (wrong, wrong, 0.5)]:
            assert world_judge([(task.instruction, a, b), (task.instruction, b, a)]) == [expected, 1 - expected]


def answers(path, tasks, output):
    path.write_text(json.dumps([{"instruction": t.instruction, "output": output(t), "generator": "g"} for t in tasks]))
    return path


def test_the_command_line_ends_with_one_json_object(tmp_path, tasks):
    a = answers(tmp_path / "a.json", tasks, lambda t: t.response if t.family != "poem" else "No.")
    b = answers(tmp_path / "b.json", tasks, lambda t: t.response if t.family != "code" else "No.")
    result = command("judge.py", "--outputs", a, "--reference", b, "--judge", "world")
    assert result.returncode == 0, result.stderr
    last = json.loads(result.stdout.splitlines()[-1])
    assert last.keys() == {"win_rate", "standard_error", "length_controlled_win_rate", "n_total", "n_invalid"}
    assert last["win_rate"] == 50 and last["n_total"] == 240


def test_log_likelihoods_are_those_of_one_sequence_at_a_time(small_model, tokenizer):
    rows = World().training_set("broad", 20)
    examples = [encode(tokenizer, row["messages"], 256) for row in rows]
    totals, means = log_likelihoods(small_model, examples, batch_size=7)
    for (ids, labels), total, mean in zip(examples, totals, means):
        log_p = small_model(torch.tensor([ids]))[0].log_softmax(-1)
        scored = [log_p[t - 1, ids[t]].item() for t in range(1, len(ids)) if labels[t] == ids[t]]
        assert total.item() == pytest.approx(sum(scored), rel=1e-4)
        assert mean.item() == pytest.approx(sum(scored) / len(scored), rel=1e-4)


class Knowing:
    """A model that gives the words of its prompt a high probability, and so prefers a response that repeats it."""

    class config:
        context = 256

    device = torch.device("cpu")

    def hidden(self, ids):
        seen = torch.nn.functional.one_hot(ids, 1536).cumsum(1).clamp(max=1)  # (B, T, V)
        return 5.0 * seen

    def logits(self, h):
        return h


def test_ranking_of_a_model_that_knows_is_1_and_of_one_that_does_not_is_not(tokenizer):
    pairs = [(country, country) for country in World().countries]
    assert rank_responses(Knowing(), tokenizer, pairs)["mean"] > 99
    mixed = [(a, b) for a, b in zip(World().countries, World().countries[1:])]
    assert rank_responses(Knowing(), tokenizer, mixed)["mean"] < 70
    assert rank_responses(Knowing(), tokenizer, pairs) == rank_responses(Knowing(), tokenizer, pairs)


def test_ranking_leaves_out_what_is_longer_than_the_context(tokenizer):
    pairs = [(country, country) for country in World().countries]
    long = ("word " * 300, "Nothing.")  # does not fit with any response
    assert rank_responses(Knowing(), tokenizer, [*pairs, long]) == rank_responses(Knowing(), tokenizer, pairs)
    assert rank_responses(Knowing(), tokenizer, pairs)["n_total"] == len(pairs)


def test_ranking_leaves_out_an_instruction_that_is_too_long_with_anothers_response(tokenizer):
    short = [(country, country) for country in World().countries[:6]]
    words = "word " * 100
    room = Knowing.config.context - len(encode_prompt(tokenizer, words)) - 1  # for a response to these words, and EOS
    pairs = [*short, (words, "x"), ("Count.", "1" * (room + 1))]  # a digit is a token
    assert rank_responses(Knowing(), tokenizer, pairs, n_others=7)["n_total"] == 7
    pairs[-1] = ("Count.", "1" * room)
    assert rank_responses(Knowing(), tokenizer, pairs, n_others=7)["n_total"] == 8


def test_ranking_says_how_many_it_left_out(tmp_path):
    rows = [{"instruction": country, "response": country} for country in World().countries[:8]]
    path = tmp_path / "pairs.jsonl"
    rows.append({"instruction": "word " * 300, "response": "x"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = command("judge.py", "--rank", TINY, "--pairs", path, "--device", "cpu")
    assert "1 of 9 instructions are left out" in result.stderr and "256 tokens" in result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["n_total"] == 8


def test_ranking_refuses_likelihoods_that_are_not_finite(tokenizer):
    class Broken(Knowing):
        def logits(self, h):
            return torch.nan * h

    with pytest.raises(ValueError, match="no finite likelihood"):
        rank_responses(Broken(), tokenizer, [(country, country) for country in World().countries])


@pytest.fixture(scope="module")
def complete(tmp_path_factory, tasks):
    """A file that answers every instruction of the world's eval set."""
    return answers(tmp_path_factory.mktemp("answers") / "complete.json", tasks, lambda t: "x")


def test_two_files_must_answer_the_same_instructions(tmp_path, tasks, complete):
    other = answers(tmp_path / "b.json", tasks[:5] + tasks[6:], lambda t: "x")
    result = command("judge.py", "--outputs", complete, "--reference", other)
    assert_refused(result, "number 6 is", repr(tasks[5].instruction))
    other = answers(tmp_path / "b.json", tasks[:-1], lambda t: "x")
    assert_refused(command("judge.py", "--outputs", complete, "--reference", other), "has 240 answers", "has 239")


@pytest.mark.parametrize("text, fragment", [
    ("[]", "at least one"), ("<html>", "not JSON"), ("[" * 100_000, "nested too deeply"),
    ('{"a": 1}', "a list of answers"), ("[[]]", "answer 1 is not"), ('[{"instruction": "a"}]', "answer 1 is not"),
    ('[{"instruction": "a", "output": 5}]', "answer 1 is not"),
    ('[{"instruction": "a", "output": "\\ud800"}]', "answer 1 is not"),
])
def test_a_file_that_is_no_answers_is_named(tmp_path, complete, text, fragment):
    bad = tmp_path / "b.json"
    bad.write_text(text)
    assert_refused(command("judge.py", "--outputs", complete, "--reference", bad), bad, fragment)


def test_answers_that_are_missing_are_named(tmp_path, complete):
    result = command("judge.py", "--outputs", complete, "--reference", tmp_path / "none.json")
    assert_refused(result, "none.json", "does not exist")
    assert_refused(command("judge.py", "--outputs", complete), "--outputs and --reference go together")


def test_the_world_judges_its_own_instructions_alone(tmp_path):
    strange = tmp_path / "c.json"
    strange.write_text('[{"instruction": "Who?", "output": "Me."}]')
    assert_refused(command("judge.py", "--outputs", strange, "--reference", strange), "no answer to 'Who?'")


def test_ranking_refuses_what_is_no_model_and_too_few_pairs(tmp_path):
    pairs = tmp_path / "b.jsonl"
    pairs.write_text('{"instruction": "a", "response": "b"}\n')
    result = command("judge.py", "--rank", tmp_path, "--pairs", pairs)
    assert_refused(result, tmp_path / "config.json", "does not exist")
    assert_refused(command("judge.py", "--rank", TINY, "--pairs", pairs), "more than 5 pairs")
