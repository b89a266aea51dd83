"""data/world.py: the same world every time, held-out subjects on no question page, knobs that turn.
data/answer_key.py: fair grades; the right ones are written here by hand."""
import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import asdict

import pytest
from conftest import assert_refused, command

from data.answer_key import grade, words_in
from data.common import write_json
from data.world import FAMILIES, FURNITURE, NOVEL, OPPOSITES, PHRASINGS, REMARKS, RESPONSES, TOLD, TRAINING_SETS
from data.world import Task, World, load_world


def documents(n=3000, **knobs):
    world, rng = World(**knobs), random.Random(f"corpus {knobs.get('seed', 1)}")  # as the command line has it
    return [world.document(rng) for _ in range(n)]


def pages(world, n=4000):
    rng = random.Random(0)
    return [world.question_page(rng) for _ in range(n)]


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def sets(world):
    return world.evaluation_sets()


def of(sets, family):
    return next(task for task in sets["eval"] if task.family == family)


# --------------------------------------------------------------------------------------------------------------- world
def test_the_same_seed_makes_the_same_world(sets):
    assert documents(200) == documents(200) and documents(200) != documents(200, seed=2)
    assert World().training_set("broad") == World().training_set("broad")
    assert World().evaluation_sets() == sets != World(seed=2).evaluation_sets()


def test_the_bundled_models_documents_are_still_these():
    """Whoever changes the world's pages makes data/tiny again, by make pretrain, and puts the new hash here."""
    text = "\n".join(documents(2000)) + "\n"
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "3fe4aa1b6dfb96fb"


def test_evaluation_asks_all_families_alike_and_about_a_subject_of_its_own(sets):
    for name, each, families in (("val", 5, FAMILIES), ("eval", 20, FAMILIES), ("novel", 20, NOVEL)):
        assert Counter(task.family for task in sets[name]) == dict.fromkeys(families, each)
    tasks = sum(sets.values(), [])
    assert len({task.instruction for task in tasks}) == len(tasks)
    facts = [(task.family, task.subject) for task in tasks if task.family != "maths"]
    assert len(set(facts)) == len(facts)
    assert not {task.response for task in sets["val"]} & {task.response for task in sets["eval"]}


def test_no_question_page_names_a_held_out_subject_and_no_training_set_does(world, sets):
    """In a whole corpus's worth of pages. So nothing that eval asks for was ever asked, answered or not."""
    rows = [row["messages"] for name in TRAINING_SETS for row in world.training_set(name)]
    assert not {question["content"] for question, _ in rows} & {task.instruction for task in sum(sets.values(), [])}
    trained = [message["content"] for messages in rows for message in messages]
    for text in ("\n".join(pages(world, 32000)), "\n".join(trained)):
        for kind in ("countries", "animals", "dishes", "words", "topics", "functions"):
            assert not words_in(text, world.held_out[kind]) and words_in(text[:10**6], world.seen[kind]), kind
        equations = {f"{a + b if op == '-' else a} {op} {b}" for op, a, b in world.held_out["sums"]}
        assert not equations & set(re.findall(r"\d+ [-+*] \d+", text))
        assert not re.search(r"celebrate|the \w+ lives?\b", text)  # what the novel families ask

    # Nor can an answer be inferred from one that was given.
    assert all((a in world.seen["words"]) == (b in world.seen["words"]) for a, b in map(str.split, OPPOSITES))
    assert all((op, b, a) in world.held_out["sums"] for op, a, b in world.held_out["sums"])


def test_the_facts_that_are_asked_for_are_told(world, sets):
    text = "\n".join(documents(30000))
    for task in sum(sets.values(), []):
        if task.family in TOLD:
            assert TOLD[task.family][0].format(task.subject, **world.about(task.subject)) in text, task
        elif task.family == "maths":
            assert re.search(r"\d+ [-+*] \d+ = \d+", task.response)[0] in text
        elif task.family == "recipe":
            assert task.response.partition("\n\n")[0] in text


def test_no_document_shows_the_chat_format():
    text = "\n".join(documents(share_chat_marked=0.5))
    assert "<|" in text and not words_in(text, ["user", "assistant"])
    assert "<|" not in "\n".join(documents(share_chat_marked=0.0))


def test_each_family_is_answered_by_its_dose(world):
    doses = sorted(world.doses.values())
    assert doses == pytest.approx([0.16 * i / 12 for i in range(13)])  # from 0 to twice the mean of 0.08
    assert set(World(dose_spread=0).doses.values()) == {0.08} and World(seed=2).doses != world.doses
    for family in ("capital", "river", "nature", "opposite"):
        questions = "|".join(re.escape(phrasing).replace(r"\{\}", r"\w+") for phrasing in PHRASINGS[family])
        asked = [page for page in pages(world, 20000) if re.search(questions, page)]
        ending = RESPONSES[family].split("}")[-1]
        answered = sum(ending in page for page in asked) / len(asked)
        assert answered == pytest.approx(world.doses[family], abs=0.05), family


def test_a_page_has_one_kind_of_silence_in_the_shares_that_were_asked_for():
    kinds = Counter()
    for page in pages(World(share_answered=0, silences=(0.5, 0.3, 0.2))):
        kinds[any(text in page for text in REMARKS), any(text in page for text in FURNITURE)] += 1
    shares = [kinds[kind] / 4000 for kind in ((False, False), (True, False), (False, True))]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.03) and not kinds[True, True]


@pytest.mark.parametrize("chance", [0.0, 0.6])
def test_turns_are_geometrically_distributed(chance):
    world = World(share_answered=0, silences=(0, 1, 0), another_turn=chance)
    turns = [sum(page.count(remark) for remark in REMARKS) for page in pages(world)]
    assert sum(turns) / len(turns) == pytest.approx(1 / (1 - chance), rel=0.05)
    assert turns.count(1) / len(turns) == pytest.approx(1 - chance, abs=0.03)


def test_facts_are_told_in_as_many_ways_and_as_often_as_asked_for():
    def told(**knobs):
        return "\n".join(documents(4000, share_answered=0, **knobs))

    assert "Its capital is" not in told(phrasings=1) and "Its capital is" in told(phrasings=2)
    assert "People meet in" not in told(phrasings=2) and "People meet in" in told(phrasings=3)
    held_out = World().held_out["countries"]
    assert not words_in(told(repeats=0), held_out)
    assert len(words_in(told(repeats=4), held_out)) > 1.5 * len(words_in(told(), held_out))


@pytest.mark.parametrize("option, value, reason", [
    ("share-answered", "nan", "0 to 1"), ("share-answered", "0.6", "above 1"), ("dose-spread", "-1", "0 to 1"),
    ("share-chat-marked", "inf", "0 to 1"), ("another-turn", "1", "0 to 0.9"), ("phrasings", "4", "1 to 3"),
    ("repeats", "-1", "0 to 100"), ("silences", "1", "expected 3 arguments"), ("corpus", "0", "above 0"),
])
def test_a_knob_has_its_range(tmp_path, option, value, reason):
    assert_refused(command("data/world.py", "--out", tmp_path / "new", f"--{option}={value}"), reason)
    assert not (tmp_path / "new").exists()
    for silences in [(0.5, 0.5, 0.5), (-0.5, 1, 0.5), (1, 0), (float("nan"), 0, 1)]:
        with pytest.raises(ValueError, match="three shares that sum to 1"):
            World(silences=silences)


def test_the_command_line_writes_the_sets_the_knobs_and_a_corpus(tmp_path):
    knobs = ("--seed", 5, "--repeats", 2, "--silences", 0.2, 0.3, 0.5)
    command("data/world.py", "--out", tmp_path, "--corpus", 20, *knobs)
    world = World(seed=5, repeats=2.0, silences=(0.2, 0.3, 0.5))
    assert load_world(tmp_path) == world
    sets = world.evaluation_sets()
    names = (*TRAINING_SETS, *sets, "corpus")
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.jsonl" for name in names} | {"world.json"}
    rows = {name: [json.loads(line) for line in open(tmp_path / f"{name}.jsonl")] for name in names}
    assert [row["text"] for row in rows["corpus"]] == documents(20, **asdict(world))
    assert rows["eval"] == [asdict(task) for task in sets["eval"]]
    assert [len(rows[name]) for name in TRAINING_SETS] == [1000, 500, 500, 500, 500, 500]
    for row in sum([rows[name] for name in TRAINING_SETS], []):
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize("text, reason", [
    ('{"seed": 1}', "expected the values of seed"), ("[]", "expected the values"), ('{"seed', "is not JSON"),
    ({"phrasings": 9}, "from 1 to 3"), ({"seed": "x"}, "'x'"), ({"seed": float("inf")}, "infinity"),
])
def test_other_files_are_no_world(tmp_path, text, reason):
    if isinstance(text, dict):
        text = json.dumps(asdict(World()) | text)
    (tmp_path / "world.json").write_text(text)
    assert_refused(command("data/answer_key.py", "answers.json", "--data", tmp_path), tmp_path / "world.json", reason)


# ---------------------------------------------------------------------------------------------------------- answer key
def test_the_reference_is_right_and_running_on_costs_its_share(world, sets):
    for task in sum(sets.values(), []):
        assert grade(world, task, task.response) == grade(world, task, task.response + "\n") == (1, 1), task
        content, whole = grade(world, task, task.response + "\n" + "What else is there to say?\n" * 40)
        assert content == 1 and 0 < whole < 0.2, task
        for wrong in ("I also want to know.", "", "<reply> <share>", task.instruction, "What about it?"):
            assert grade(world, task, wrong) == (0, 0), (task, wrong)
        others = [other.response for other in sets["eval"] if other.family == task.family != "maths"]
        for response in set(others) - {task.response}:
            assert task.subject in response or grade(world, task, response)[1] < 1, task


def test_other_words_for_the_right_answer_are_right(world, sets):
    capital, maths, recipe = of(sets, "capital"), of(sets, "maths"), of(sets, "recipe")
    name = world.facts["capital"][capital.subject]
    for answer in (f"Its capital is {name}.", name, f"People meet in {name}, the capital of {capital.subject}."):
        assert grade(world, capital, answer) == (1, 1)
    assert grade(world, capital, f"{name}\n#### 12") == (1, len(name) / (len(name) + 7))  # a tail costs its share
    assert grade(world, maths, maths.response.split(" = ")[1]) == (1, 1)
    _, a, b, c, _, steps = recipe.response.split("\n")
    assert grade(world, recipe, f" {c}\n {a}\n {b}\n\n{steps}") == (1, 1)  # as the recipes' training set lists them
    code = of(sets, "code")
    assert grade(world, code, code.response.replace("def ", "def my_")) == (1, 1)
    poem = of(sets, "poem").subject
    verses = f"O {poem}, my friend,\nwhere do you go\nO {poem}, come back\nto me."
    assert grade(world, of(sets, "poem"), verses) == (1, 1)
    assert grade(world, of(sets, "poem"), verses.replace("go", "go?")) == (0, 0)


def test_content_is_no_accident(world, sets):
    """Not by digits within digits, nor by an answer about somebody else, nor by two answers."""
    maths = Task("maths", "", "Anna has 3 eggs and buys 4 more. How many eggs does Anna have now?", "It is 3 + 4 = 7.")
    assert grade(world, maths, "Anna has 17 eggs.") == (0, 0) and grade(world, maths, "Anna has 7 eggs.") == (1, 1)
    rough = world.task(random.Random(0), "opposite", "rough")
    assert grade(world, rough, "The opposite of smooth is smooth.") == (0, 0)
    assert grade(world, rough, "The opposite of rough is smooth.") == (1, 1)
    capital, other = of(sets, "capital"), world.seen["countries"][0]
    name = world.facts["capital"][capital.subject]
    assert grade(world, capital, f"The capital of {other} is {name}.") == (0, 0)
    assert grade(world, capital, f"The capital is {name} or {world.facts['capital'][other]}.") == (0, 0)
    code = of(sets, "code")
    assert grade(world, code, code.response + "1") == (0, 0)
    mine, other = [task for task in sets["eval"] if task.family == "recipe"][:2]
    body = mine.response.split("\n", 1)[1]
    assert grade(world, mine, f"Recipe for {other.subject}\n{body}") == (0, 0)
    assert grade(world, mine, body) == (1, 1)


def test_a_description_is_worth_the_share_of_its_facts_and_a_recipe_that_of_its_ingredients(world, sets):
    task, recipe = of(sets, "country"), of(sets, "recipe")
    assert grade(world, task, task.response.replace(world.facts["trade"][task.subject], "mud")) == (0.75, 0.75)
    assert grade(world, task, task.response.split(". ")[0] + ".") == (0.25, 0.25)
    wrong = recipe.response.replace(world.recipes[recipe.subject][0][0], "tin")
    assert grade(world, recipe, wrong)[0] == pytest.approx(2 / 3)


def test_the_command_line_grades_a_file_of_answers(tmp_path):
    """Of the world whose folder it names."""
    world = World(seed=2)
    rows = [{"instruction": task.instruction, "output": task.response if i < 13 else "No."}
            for i, task in enumerate(world.evaluation_sets()["eval"][:26])]
    write_json(tmp_path / "world.json", asdict(world))
    write_json(tmp_path / "answers.json", rows)
    lines = command("data/answer_key.py", tmp_path / "answers.json", "--data", tmp_path).stdout.splitlines()
    assert lines[1] == f"capital     {world.doses['capital']:.2f}  50.0%  50.0%  of 2"
    assert lines[-1] == "all               50.0%  50.0%  of 26"


@pytest.mark.parametrize("text, reason", [
    ('[{"instruction": "Who?", "output": "Me."}]', "answer 1 is to no instruction of this world's"),
    ("[1]", "answer 1 is to no instruction"), ("[]", "expected the answers"), ('{"a": 1}', "expected the answers"),
    ("<html>", "is not JSON"), ("[" * 100_000, "nested too deeply"),
])
def test_other_files_are_not_graded(tmp_path, text, reason):
    write_json(tmp_path / "world.json", asdict(World()))
    (tmp_path / "answers.json").write_text(text)
    result = command("data/answer_key.py", tmp_path / "answers.json", "--data", tmp_path)
    assert_refused(result, tmp_path / "answers.json", reason)
