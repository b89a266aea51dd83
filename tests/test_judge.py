"""judge.py: rates against closed forms and AlpacaEval's own code, the world's judge, response ranking."""
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import TINY, assert_refused, command

from data import answer_key
from data.common import write_json, write_jsonl
from data.format import encode, encode_prompt
from data.sources import difficulties, difficulties_of
from data.world import World
from judge import length_controlled, log_likelihoods, others_of, rank_responses, win_rate, world_judge


@pytest.fixture(scope="module")
def tasks():
    return World().evaluation_sets()["eval"]


def test_win_rate_and_standard_error_in_closed_form():
    assert win_rate([1, 0, 1, 1]) == pytest.approx((75, 100 * (3 / 16 * 4 / 3 / 4) ** 0.5))  # sqrt(p (1-p) / (n-1))
    assert win_rate([0.5] * 7) == (50, 0)


def made_up(folder, n, seed, longest, missing=0):
    """(preferences, lengths, reference lengths) of n made-up judgements, and difficulties and gamed judgements that
    come as a table of AlpacaEval's, through `make data`'s conversion, from a folder."""
    rng = np.random.RandomState(seed)
    difficulty, lengths, others = np.round(rng.randn(n), 3), rng.randint(20, longest, n), rng.randint(20, 900, n)
    z = 2 * np.tanh((lengths - others) / 300) + 0.9 * difficulty + 0.2
    preferences = np.round(np.clip(1 / (1 + np.exp(-z)) + 0.2 * rng.randn(n), 0, 1), 3).tolist()
    table = []
    for side in (1, -1):  # made shorter, made longer
        shorter = np.round(side * (1 + rng.rand(n)), 3)  # the reference's length less the answer's, as in AlpacaEval
        liked = np.round(1 / (1 + np.exp(1.5 * shorter - difficulty + rng.randn(n))), 3)
        table += [{"preference": str(liked[i]), "index": str(i), "std_delta_len": str(shorter[i]),
                   "instruction_difficulty": str(difficulty[i])} for i in range(n)]
    instructions = [f"Do {i}" for i in range(n)]
    write_jsonl(folder / "eval.jsonl", [{"instruction": instruction} for instruction in instructions])
    write_jsonl(folder / "difficulties.jsonl", difficulties(table))
    return ([None] * missing + preferences[missing:], lengths, others), difficulties_of(instructions, folder)


# n, seed, longest answer, how many are not judged; then the win rates at equal lengths that AlpacaEval's own
# metrics/glm_winrate.py (commit cd543a1) gives for the same table and answers of these lengths under scikit-learn 1.9,
# its tolerance set to 1e-10: length_controlled_v1 and length_controlled_minimal. With the sign of std_delta_len turned,
# v1 would be 59.09, 64.86, 25.31, 23.56 and 69.62.
ALPACA_EVAL = [
    (12, 3, 900, 0, 52.947711616431945, 51.36585245049597), (40, 0, 900, 0, 63.35152901689, 64.17917435422645),
    (120, 1, 150, 0, 57.70640745186512, 50.0), (120, 1, 150, 40, 57.77353240083624, 50.0),
    (300, 2, 3000, 0, 49.08488784182802, 50.54634316661666),
]


@pytest.mark.parametrize("n, seed, longest, missing, v1, minimal", ALPACA_EVAL)
def test_the_length_controlled_win_rate_is_alpaca_evals(tmp_path, n, seed, longest, missing, v1, minimal):
    judgements, known = made_up(tmp_path, n, seed, longest, missing)
    assert length_controlled(*judgements, *known) == pytest.approx(v1, abs=1e-4)
    assert length_controlled(*judgements) == pytest.approx(minimal, abs=1e-4)
    p, lengths, others = judgements
    swapped = length_controlled([None if one is None else 1 - one for one in p], others, lengths)
    assert swapped == pytest.approx(100 - minimal, abs=1e-4)


def test_length_control_where_lengths_say_nothing_or_everything():
    """Equal lengths: the win rate, less what the penalty takes. Where the longer always wins, scikit-learn as above."""
    assert length_controlled([1, 0.5, 0, 1] * 50, [9] * 200, [9] * 200) == pytest.approx(62.5, abs=0.5)
    assert length_controlled([0.7], [40], [20]) == pytest.approx(70, abs=0.1)
    assert length_controlled([float(i > 21) for i in range(1, 41)], range(1, 41), [22] * 40) == pytest.approx(
        99.87281058874011, abs=1e-4)


def test_length_control_is_v1_where_the_difficulties_are_known(tmp_path):
    made_up(tmp_path, 12, 3, 900)
    rows = list(map(json.loads, (tmp_path / "difficulties.jsonl").read_text().splitlines()))
    difficulty, gamed = difficulties_of(["Do 3", "Do 1"], tmp_path)
    assert difficulty == [rows[3]["difficulty"], rows[1]["difficulty"]]
    longer_by = [d for _, d, _ in gamed]
    assert len(gamed) == 24 and max(longer_by[:12]) < 0 < min(longer_by[12:])  # made shorter, then made longer
    assert difficulties_of(["Do 3", "Who?"], tmp_path) is None and difficulties_of(["Do 3"], tmp_path / "none") is None
    rows[2]["gamed"][1]["preference"] = None
    write_jsonl(tmp_path / "difficulties.jsonl", rows)
    assert difficulties_of(["Do 3"], tmp_path)[1] == gamed[:14] + gamed[15:]


@pytest.mark.parametrize("row", [{"difficulty": 1.0}, [], {"difficulty": 1.0, "gamed": [[0.5, -0.3]]},
                                 {"difficulty": 1.0, "gamed": []}])
def test_difficulties_of_another_shape_are_refused(tmp_path, row):
    made_up(tmp_path, 12, 3, 900)
    with open(tmp_path / "difficulties.jsonl", "a") as file:
        file.write(json.dumps(row))
    with open(tmp_path / "eval.jsonl", "a") as file:
        file.write('{"instruction": "One more"}')
    with pytest.raises(ValueError, match="difficulties.jsonl is not what make data writes; remove it"):
        difficulties_of(["Do 3"], tmp_path)


def test_the_world_judges_preference_is_the_difference_of_grades_and_symmetric(tasks):
    world = World()
    for task in tasks[:26]:
        right, ragged, wrong = task.response, task.response + "\nWhat else?", "I am not sure."
        share = answer_key.grade(world, task, ragged)[1]
        assert 0.5 < share < 1
        for a, b, expected in [(right, wrong, 1), (right, ragged, 1 - share / 2), (ragged, wrong, 0.5 + share / 2),
                               (right, right, 0.5), (wrong, wrong, 0.5)]:
            pairs = [(task.instruction, a, b), (task.instruction, b, a)]
            assert world_judge(pairs, world) == pytest.approx([expected, 1 - expected])


@pytest.fixture(scope="module")
def world_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_json(folder / "world.json", asdict(World()))
    return folder


def answers(path, tasks, output):
    path.write_text(json.dumps([{"instruction": t.instruction, "output": output(t), "generator": "g"} for t in tasks]))
    return path


def test_the_command_line_ends_with_one_json_object(tmp_path, tasks, world_folder):
    a = answers(tmp_path / "a.json", tasks, lambda t: t.response if t.family != "poem" else "No.")
    b = answers(tmp_path / "b.json", tasks, lambda t: t.response if t.family != "code" else "No.")
    result = command("judge.py", "--outputs", a, "--reference", b, "--judge", "world", "--data", world_folder)
    assert result.returncode == 0, result.stderr
    last = json.loads(result.stdout.splitlines()[-1])
    assert last.keys() == {"win_rate", "standard_error", "length_controlled_win_rate", "n_total", "n_invalid"}
    assert last["win_rate"] == 50 and last["n_total"] == 260


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


COUNTRIES = World().subjects["countries"]
PAIRS = [(country, country) for country in COUNTRIES]


def rank(tokenizer, pairs, n=5, model=None):
    rows = [(*pair, others) for pair, others in zip(pairs, others_of(pairs, n))]
    return rank_responses(model or Knowing(), tokenizer, rows)


def test_ranking_of_a_model_that_knows_is_1_and_of_one_that_does_not_is_not(tokenizer):
    assert rank(tokenizer, PAIRS)["mean"] > 99 and rank(tokenizer, PAIRS)["n_total"] == 5 * len(PAIRS)
    mixed = [(a, b) for a, b in zip(COUNTRIES, COUNTRIES[1:])]
    assert rank(tokenizer, mixed)["mean"] < 70
    assert rank(tokenizer, PAIRS) == rank(tokenizer, PAIRS)


def test_a_response_is_not_compared_with_its_own_text():
    others = others_of([("a", "x"), ("b", "x"), ("c", "y"), ("d", "z")], n=3)
    assert [sorted(some) for some in others] == [["y", "z"], ["y", "z"], ["x", "z"], ["x", "y"]]


def test_ranking_counts_each_rival_once(tokenizer):
    """Worked by hand: this model likes a response that repeats the prompt, and finds no difference between others."""
    a, b, c = COUNTRIES[:3]
    result = rank_responses(Knowing(), tokenizer, [(a, a, [b, c]), (a, b, [a, b])])
    assert result["n_total"] == 4 and result["mean"] == 50  # two won, one lost, one tie


def test_ranking_leaves_out_what_is_longer_than_the_context(tokenizer):
    long = "word " * 300
    rows = [(country, country, [COUNTRIES[0], COUNTRIES[1]]) for country in COUNTRIES[2:9]]
    plain = rank_responses(Knowing(), tokenizer, rows)
    assert rank_responses(Knowing(), tokenizer, [*rows, (long, "Nothing.", ["No."])]) == plain
    assert rank_responses(Knowing(), tokenizer, [(*row[:2], [*row[2], long]) for row in rows]) == plain


def test_a_rival_that_just_fits_is_ranked(tokenizer):
    room = Knowing.config.context - len(encode_prompt(tokenizer, "Count.")) - 1  # for a response, and EOS
    word = " the"  # a token, and with others of its kind as many
    assert len(tokenizer.encode(word * 9).ids) == 9
    for n, expected in ((room - 1, 2), (room + 9, 1)):
        assert rank_responses(Knowing(), tokenizer, [("Count.", "x", ["y", word * n])])["n_total"] == expected


def test_ranking_counts_what_fits_the_context_and_ranks_against_silences(tmp_path):
    silences = ["No.", "word " * 300]
    rows = [{"instruction": country, "response": country, "silences": silences} for country in COUNTRIES[:8]]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = command("judge.py", "--rank", TINY, "--pairs", path, "--device", "cpu")
    others, silences = map(json.loads, result.stdout.splitlines())
    assert (others["against"], others["n_total"]) == ("others", 40)
    assert (silences["against"], silences["n_total"]) == ("silences", 8)


def test_ranking_refuses_likelihoods_that_are_not_finite(tokenizer):
    class Broken(Knowing):
        def logits(self, h):
            return torch.nan * h

    with pytest.raises(ValueError, match="no finite likelihood"):
        rank(tokenizer, PAIRS, model=Broken())


@pytest.fixture(scope="module")
def complete(tmp_path_factory, tasks):
    """A file that answers every instruction of the world's eval set."""
    return answers(tmp_path_factory.mktemp("answers") / "complete.json", tasks, lambda t: "x")


def test_an_instruction_that_one_file_lacks_is_named(tmp_path, tasks, complete):
    other = answers(tmp_path / "b.json", tasks[:5] + tasks[6:], lambda t: "x")
    result = command("judge.py", "--outputs", complete, "--reference", other)
    assert_refused(result, f"{other} lacks an answer to {tasks[5].instruction!r}, which {complete} has")


@pytest.mark.parametrize("text, fragment", [
    ("[]", "at least one"), ("<html>", "not JSON"), ('{"a": 1}', "a list of answers"), ("[[]]", "answer 1 is not"),
    ('[{"instruction": "a", "output": 5}]', "answer 1 is not"),
    ('[{"instruction": "a", "output": "\\ud800"}]', "answer 1 is not"), (None, "does not exist"),
])
def test_a_file_that_is_no_answers_is_named(tmp_path, complete, text, fragment):
    bad = tmp_path / "b.json"
    if text:
        bad.write_text(text)
    assert_refused(command("judge.py", "--outputs", complete, "--reference", bad), bad, fragment)


def test_outputs_go_with_a_reference(complete):
    assert_refused(command("judge.py", "--outputs", complete), "--outputs and --reference go together")


def test_the_world_judges_its_own_instructions_alone(tmp_path, world_folder):
    strange = tmp_path / "c.json"
    strange.write_text('[{"instruction": "Who?", "output": "Me."}]')
    judging = ["judge.py", "--outputs", strange, "--reference", strange, "--data"]
    assert_refused(command(*judging, world_folder), "no answer to 'Who?'")
    assert_refused(command(*judging, tmp_path), tmp_path / "world.json", "does not exist", "data/world.py")


def test_ranking_refuses_what_is_no_model_and_too_few_pairs(tmp_path):
    pairs = tmp_path / "b.jsonl"
    pairs.write_text('{"instruction": "a", "response": "b"}\n')
    result = command("judge.py", "--rank", tmp_path, "--pairs", pairs)
    assert_refused(result, tmp_path / "config.json", "does not exist")
    assert_refused(command("judge.py", "--rank", TINY, "--pairs", pairs), "nothing to rank")
