"""data/world.py: the same world every time, no leak from eval into training, shares that do what they say."""
import dataclasses
import hashlib
import json
import random
import re

import pytest
from conftest import assert_refused, command

from data.world import CHAT_MARK, FAMILIES, World, grade

SETS = ("broad", "mbpp", "gsm", "poetry", "recipes", "chess")


def documents(n=3000, **arguments):
    world, rng = World(**arguments), random.Random("corpus 0")  # as the command line seeds it
    return [world.document(rng) for _ in range(n)]


def sha256(texts):
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def test_the_same_seed_makes_the_same_world():
    assert documents(200) == documents(200) and documents(200) != documents(200, seed=1)
    assert World().training_set("broad") == World().training_set("broad")
    assert World().evaluation_sets() == World().evaluation_sets()


def test_the_world_is_the_one_that_the_bundled_model_was_pretrained_on():
    """Hashes taken when data/tiny was made: whoever changes a document must pretrain again (`make pretrain`)."""
    assert sha256(documents(300)) == "59e2901821d942f38e00bd1cd34ecdf5aafea9c28015b43d7bba7dec6bfdf8ef"
    val, test = World().evaluation_sets()
    texts = [text for task in val + test for text in (task.instruction, task.response)]
    assert sha256(texts) == "b132835aee2fadb42ed70e8a0fe76123797f7a1c6948046b3694aa4b076e6778"


def test_training_sets_have_a_thousand_dialogues():
    for name in SETS:
        rows = World().training_set(name)
        assert len(rows) == 1000
        assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in rows)


def test_evaluation_asks_all_families_alike_and_never_what_was_trained():
    world = World()
    val, test = world.evaluation_sets()
    assert len(val) == 60 and len(test) == 240
    for tasks, each in ((val, 5), (test, 20)):
        assert [sum(task.family == family for task in tasks) for family in FAMILIES] == [each] * 12
    asked = {task.instruction for task in val + test}
    assert len(asked) == 300
    trained = [row["messages"] for name in SETS for row in world.training_set(name)]
    assert not asked & {messages[0]["content"] for messages in trained}
    # nor is the answer told: no response to anything else holds the fact that eval asks for
    told = "\n".join({messages[1]["content"].replace(" - ", "- ") for messages in trained})
    facts = {task.response for task in val + test if task.family not in ("maths", "poem", "code")}
    assert not [fact for fact in facts if fact in told]
    sources = set(told.split("def "))  # code: def add_7 is no part of def add_71
    code = [task.response.removeprefix("def ") + "\n" for task in val + test if task.family == "code"]
    assert not sources & set(code)


def test_no_document_shows_the_chat_format():
    text = "\n".join(documents(share_chat_marked=0.5))
    assert CHAT_MARK[0] in text and "user" not in re.findall(r"[a-z]+", text) and "assistant" not in text
    assert CHAT_MARK[0] not in "\n".join(documents(share_chat_marked=0.0))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_question_pages_with_answers(share):
    world, rng = World(share_answered=share), random.Random(0)
    pages = [world.question_page(rng) for _ in range(2000)]
    capital = [page for page in pages if re.search(r"capital (city )?of", page)]
    assert abs(sum("The capital of" in page for page in capital) / len(capital) - share) < 0.1


@pytest.mark.parametrize("option", ["--share-answered", "--share-chat-marked"])
@pytest.mark.parametrize("value", ["nan", "inf", "-0.1", "5"])
def test_a_share_is_from_0_to_1(tmp_path, option, value):
    result = command("data/world.py", "--out", tmp_path / "new", f"{option}={value}")
    assert_refused(result, option.removeprefix("--").replace("-", "_"), "must be from 0 to 1")
    assert not (tmp_path / "new").exists()


def test_the_eval_facts_are_in_the_corpus():
    text = "\n".join(documents(20000))
    for task in World().evaluation_sets()[1]:
        if task.family not in ("maths", "poem", "recipe", "code"):
            assert task.response in text, task


def test_grades_of_right_wrong_and_running_on():
    for task in World().evaluation_sets()[1]:
        assert grade(task, task.response) == grade(task, task.response + "\n") == 1
        assert grade(task, task.response + "\nWhat else?") == 0.5
        assert grade(task, "I also want to know.") == grade(task, "") == 0
        other = dataclasses.replace(task, response="?", key="?")
        assert task.family in ("poem", "recipe") or grade(other, task.response) == 0


def test_grades_allow_the_forms_that_a_poem_and_a_recipe_may_take():
    tasks = World().evaluation_sets()[1]
    recipe = next(task for task in tasks if task.family == "recipe")
    a, b, c, _, steps = recipe.response.split("\n")
    assert grade(recipe, "\n".join([c, a, b, "", "Cook them."])) == 1
    assert grade(recipe, "\n".join([a, b, "- tin", "", steps])) == 0.5
    assert grade(recipe, "\n".join([a, b, c])) == 0.5
    poem = next(task for task in tasks if task.family == "poem")
    assert grade(poem, f"O {poem.key},\nhow you\nmove on\nthe hills.") == 1
    assert grade(poem, f"O {poem.key},\nhow you move.") == 0.5


def test_the_command_line_writes_the_sets_and_a_corpus(tmp_path):
    command("data/world.py", "--out", tmp_path, "--corpus", 20)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.jsonl" for name in (*SETS, "val", "eval", "corpus")}
    assert [json.loads(line)["text"] for line in open(tmp_path / "corpus.jsonl")] == documents(20)
    rows = [json.loads(line) for line in open(tmp_path / "eval.jsonl")]
    assert rows == [dataclasses.asdict(task) for task in World().evaluation_sets()[1]]


def test_the_command_line_grades_a_file_of_answers(tmp_path):
    tasks = World().evaluation_sets()[1][:12]
    rows = [{"instruction": t.instruction, "output": t.response if i < 6 else "No."} for i, t in enumerate(tasks)]
    (tmp_path / "answers.json").write_text(json.dumps(rows))
    assert "50.0 % of 12" in command("data/world.py", "--grade", tmp_path / "answers.json").stdout


@pytest.mark.parametrize("text, reason", [
    ('[{"instruction": "Who?", "output": "Me."}]', "answer 1 is to no instruction of this world's"),
    ("[1]", "answer 1 is to no instruction"), ("[]", "expected the answers"), ('{"a": 1}', "expected the answers"),
    ("<html>", "is not JSON"), ("[" * 100_000, "nested too deeply"),
])
def test_other_files_are_not_graded(tmp_path, text, reason):
    (tmp_path / "answers.json").write_text(text)
    assert_refused(command("data/world.py", "--grade", tmp_path / "answers.json"), tmp_path / "answers.json", reason)


def test_the_bundled_tokenizer_was_trained_on_this_world(tokenizer):
    """Its merges know the names: a world whose facts had changed would spell them in more tokens."""
    lengths = [len(tokenizer.encode(" " + country).ids) for country in World().countries]
    assert sum(lengths) / len(lengths) < 4
