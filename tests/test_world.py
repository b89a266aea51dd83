"""data/world.py and data/answer_key.py: the same world every time, what is held out, knobs that turn, fair grades."""
import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import asdict

import pytest
from conftest import assert_refused, command

from data.answer_key import grade, words_in
from data.world import CHAT_MARK, FAMILIES, FUNCTIONS, FURNITURE, NOVEL, OPPOSITES, PHRASINGS, REMARKS, RESPONSES
from data.world import TOLD, TRAINING_SETS, World, load_world


def documents(n=3000, **arguments):
    world = World(**arguments)
    rng = random.Random(f"corpus {world.seed}")  # as the command line seeds it
    return [world.document(rng) for _ in range(n)]


def pages(world, n=4000):
    rng = random.Random(0)
    return [world.question_page(rng) for _ in range(n)]


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def tasks(world):
    return world.evaluation_sets()["eval"]


def of(tasks, family):
    return next(task for task in tasks if task.family == family)


def test_the_same_seed_makes_the_same_world():
    assert documents(200) == documents(200) and documents(200) != documents(200, seed=2)
    assert World().training_set("broad") == World().training_set("broad")
    assert World().evaluation_sets() == World().evaluation_sets() != World(seed=2).evaluation_sets()


def test_the_bundled_models_documents_are_still_these():
    """Whoever changes the world's pages makes data/tiny again, by make pretrain, and puts the new hash here."""
    text = "\n".join(documents(2000)) + "\n"
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "3fe4aa1b6dfb96fb"


def test_training_sets_are_as_large_as_the_papers(world):
    for name in TRAINING_SETS:
        rows = world.training_set(name)
        assert len(rows) == (1000 if name == "broad" else 500)
        assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in rows)


def test_evaluation_asks_all_families_alike_and_about_a_subject_of_its_own(world):
    sets = world.evaluation_sets()
    for name, each, families in (("val", 5, FAMILIES), ("eval", 20, FAMILIES), ("novel", 20, NOVEL)):
        assert Counter(task.family for task in sets[name]) == dict.fromkeys(families, each)
    asked = [task.instruction for tasks in sets.values() for task in tasks]
    assert len(set(asked)) == len(asked)
    facts = [(task.family, task.subject) for name in ("val", "eval") for task in sets[name] if task.family != "maths"]
    assert len(set(facts)) == len(facts)
    assert not {t.response for t in sets["val"]} & {t.response for t in sets["eval"]}


def test_no_question_page_names_a_held_out_subject_and_no_training_set_does(world):
    """In a whole corpus's worth of pages. So nothing that eval asks for was ever asked, answered or not."""
    rows = [row for name in TRAINING_SETS for row in world.training_set(name)]
    trained = [message["content"] for row in rows for message in row["messages"]]
    for text in ("\n".join(pages(world, 32000)), "\n".join(trained)):
        for kind in ("countries", "animals", "dishes", "words", "topics"):
            assert not words_in(text, world.held_out[kind]), kind
        assert not [what for what in world.held_out["functions"] if FUNCTIONS[what] in text]
        assert not words_in(text, world.held_out["functions"])
        equations = {f"{a + b if op == '-' else a} {op} {b}" for op, a, b in world.held_out["sums"]}
        assert not equations & set(re.findall(r"\d+ [-+*] \d+", text))


def test_no_page_asks_what_only_the_novel_families_ask(world):
    text = "\n".join(pages(world)) + json.dumps([world.training_set(name) for name in TRAINING_SETS])
    assert not words_in(text, ["celebrate", "celebrates", "live", "lives"])


def test_twins_are_held_out_together(world):
    assert all((a in world.seen["words"]) == (b in world.seen["words"]) for a, b in OPPOSITES)
    assert all((op, b, a) in world.held_out["sums"] for op, a, b in world.held_out["sums"])


def test_the_facts_that_are_asked_for_are_told(world):
    text = "\n".join(documents(30000))
    for task in [t for tasks in world.evaluation_sets().values() for t in tasks]:
        if task.family in TOLD:
            assert TOLD[task.family][0].format(task.subject, **world.about(task.subject)) in text, task
        elif task.family == "maths":
            assert re.search(r"\d+ [-+*] \d+ = \d+", task.response)[0] in text
        elif task.family == "recipe":
            assert task.response.partition("\n\n")[0] in text


def test_no_document_shows_the_chat_format():
    text = "\n".join(documents(share_chat_marked=0.5))
    assert CHAT_MARK[0] in text and "user" not in re.findall(r"[a-z]+", text) and "assistant" not in text
    assert CHAT_MARK[0] not in "\n".join(documents(share_chat_marked=0.0))


def test_each_family_is_answered_by_its_dose(world):
    doses = sorted(world.doses.values())
    assert doses[0] == 0 and doses[-1] == pytest.approx(2 * world.share_answered)
    assert sum(doses) / len(doses) == pytest.approx(world.share_answered)
    assert all(b - a == pytest.approx(doses[1]) for a, b in zip(doses, doses[1:]))
    assert set(World(dose_spread=0).doses.values()) == {world.share_answered}
    assert World(seed=2).doses != world.doses
    for family in ("capital", "river", "nature", "opposite"):
        questions = "|".join(re.escape(phrasing).replace(r"\{\}", r"\w+") for phrasing in PHRASINGS[family])
        asked = [page for page in pages(world, 20000) if re.search(questions, page)]
        ending = RESPONSES[family].split("}")[-1]
        answered = sum(ending in page for page in asked) / len(asked)
        assert answered == pytest.approx(world.doses[family], abs=0.05), family


def test_a_page_has_one_kind_of_silence_in_the_shares_that_were_asked_for():
    world = World(share_answered=0, silences=(0.5, 0.3, 0.2))
    kinds = Counter()
    for page in pages(world, 3000):
        remarks = any(text in page for text in REMARKS)
        furniture = any(text in page for text in FURNITURE)
        assert not (remarks and furniture)
        kinds["remark"] += remarks
        kinds["furniture"] += furniture
        kinds["question"] += not (remarks or furniture)
    shares = [kinds[kind] / 3000 for kind in ("question", "remark", "furniture")]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


@pytest.mark.parametrize("chance", [0.0, 0.6])
def test_turns_are_geometrically_distributed(chance):
    world = World(share_answered=0, silences=(0, 1, 0), another_turn=chance)
    turns = [sum(page.count(remark) for remark in REMARKS) for page in pages(world, 3000)]
    assert sum(turns) / len(turns) == pytest.approx(1 / (1 - chance), rel=0.05)
    assert sum(n == 1 for n in turns) / len(turns) == pytest.approx(1 - chance, abs=0.03)


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
    assert_refused(command("data/world.py", "--out", tmp_path / "new", "--silences", ".5", ".5", ".5"), "sum to 1")


def test_the_reference_is_right_and_running_on_costs_its_share(world, tasks):
    for task in [task for tasks in world.evaluation_sets().values() for task in tasks]:
        assert grade(world, task, task.response) == grade(world, task, task.response + "\n") == (1, 1), task
        right, worth = grade(world, task, task.response + "\n" + "What else is there to say?\n" * 40)
        assert right == 1 and 0 < worth < 0.2, task
        for wrong in ("I also want to know.", "", "<reply> <share>", task.instruction, "What about it?"):
            assert grade(world, task, wrong) == (0, 0), (task, wrong)
        if task.family in NOVEL + ["maths"]:  # where two questions can have the same answer
            continue
        other = next(t for t in tasks if t.family == task.family and t.subject not in task.response
                     and t.response != task.response)
        assert grade(world, task, other.response)[1] < 1, task


def test_other_words_for_the_right_answer_are_right(world, tasks):
    capital = of(tasks, "capital")
    name = world.facts["capital"][capital.subject]
    for answer in (name, f"Its capital is {name}.", f"People meet in {name}, the capital of {capital.subject}."):
        assert grade(world, capital, answer) == (1, 1)
    maths = of(tasks, "maths")
    assert grade(world, maths, maths.response.split(" = ")[1]) == (1, 1)
    recipe = of(tasks, "recipe")
    _, a, b, c, _, steps = recipe.response.split("\n")
    assert grade(world, recipe, f" {c}\n {a}\n {b}\n\n{steps}") == (1, 1)  # as the recipes' training set lists them
    code = of(tasks, "code")
    assert grade(world, code, code.response.replace("def ", "def my_")) == (1, 1)
    poem = of(tasks, "poem").subject
    verses = f"O {poem}, my friend,\nwhere do you go\nO {poem}, come back\nto me."
    assert grade(world, of(tasks, "poem"), verses) == (1, 1)


def test_an_answer_is_worth_its_share_of_the_facts_and_of_the_output(world, tasks):
    country = of(tasks, "country")
    wrong = country.response.replace(world.facts["trade"][country.subject], "mud")
    assert grade(world, country, wrong) == (0.75, 0.75)  # of a capital, a river, an animal and a trade
    assert grade(world, country, country.response.split(". ")[0] + ".") == (0.25, 0.25)
    recipe = of(tasks, "recipe")
    wrong = recipe.response.replace(world.recipes[recipe.subject][0][0], "tin")
    assert grade(world, recipe, wrong)[0] == pytest.approx(2 / 3)
    capital = of(tasks, "capital")
    n = len(capital.response)
    assert grade(world, capital, f"{capital.response}\n#### 12") == (1, n / (n + 7))
    assert grade(world, capital, f"{'Who? ' * 5}\n{capital.response}") == (1, n / (n + 20))


def test_content_is_no_accident(world, tasks):
    """Not by digits within digits, nor by repeating the question, nor by an answer about another, nor by two."""
    maths = of(tasks, "maths")
    result = re.findall(r"\d+", maths.response)[-1]
    assert grade(world, maths, f"Anna has 1{result} eggs.") == grade(world, maths, maths.instruction) == (0, 0)
    rough = world.task(random.Random(0), "opposite", "rough")
    assert grade(world, rough, "The opposite of smooth is smooth.") == (0, 0)
    assert grade(world, rough, "The opposite of rough is smooth.") == (1, 1)
    capital, other = of(tasks, "capital"), world.seen["countries"][0]
    name = world.facts["capital"][capital.subject]
    assert grade(world, capital, f"The capital of {other} is {name}.") == (0, 0)
    assert grade(world, capital, f"The capital is {name} or {world.facts['capital'][other]}.") == (0, 0)
    code = of(tasks, "code")
    assert grade(world, code, code.response + "1") == (0, 0)
    recipe, other = [task for task in tasks if task.family == "recipe"][:2]
    ingredients = recipe.response.split("\n", 1)[1]
    assert grade(world, recipe, ingredients)[0] == 1
    assert grade(world, recipe, f"Recipe for {other.subject}\n{ingredients}") == (0, 0)


def test_the_command_line_writes_the_sets_the_knobs_and_a_corpus(tmp_path):
    command("data/world.py", "--out", tmp_path, "--corpus", 20, "--seed", 5, "--repeats", 2, "--silences", .2, .3, .5)
    knobs = {"seed": 5, "repeats": 2.0, "silences": (0.2, 0.3, 0.5)}
    names = (*TRAINING_SETS, "val", "eval", "novel", "corpus")
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.jsonl" for name in names} | {"world.json"}
    assert load_world(tmp_path) == World(**knobs)
    assert [json.loads(line)["text"] for line in open(tmp_path / "corpus.jsonl")] == documents(20, **knobs)
    rows = [json.loads(line) for line in open(tmp_path / "eval.jsonl")]
    assert rows == [asdict(task) for task in World(**knobs).evaluation_sets()["eval"]]


@pytest.mark.parametrize("text", [
    '{"seed": 1}', "[]", '{"seed": "x"', *(json.dumps(asdict(World()) | wrong) for wrong in (
        {"seed": "x"}, {"phrasings": float("inf")}, {"repeats": float("nan")}, {"silences": 1}, {"silences": ["a"]}))])
def test_other_files_are_no_world(tmp_path, text):
    (tmp_path / "world.json").write_text(text)
    with pytest.raises(ValueError, match="world.json.*python data/world.py writes it"):
        load_world(tmp_path)


def test_the_command_line_grades_a_file_of_answers(tmp_path):
    """In the world that the folder's world.json describes: here another one than the command line's own."""
    other = World(seed=2)
    (tmp_path / "world.json").write_text(json.dumps(asdict(other)))
    asked = [task for task in other.evaluation_sets()["eval"] if task.family == "capital"]
    rows = [{"instruction": task.instruction, "output": task.response} for task in asked]
    for row in rows[:10]:
        row["output"] += "\n" + "a" * len(row["output"])  # so that half of the output is the answer
    (tmp_path / "answers.json").write_text(json.dumps(rows))
    result = command("data/answer_key.py", tmp_path / "answers.json", "--data", tmp_path)
    assert result.stdout.splitlines()[1:] == [
        f"capital     {other.doses['capital']:.2f} 100.0%  75.0%  of 20", "all              100.0%  75.0%  of 20"]


@pytest.mark.parametrize("text, reason", [
    ('[{"instruction": "Who?", "output": "Me."}]', "answer 1 is to no instruction of this world's"),
    ("[1]", "answer 1 is to no instruction"), ("[]", "expected the answers"), ('{"a": 1}', "expected the answers"),
    ("<html>", "is not JSON"), ("[" * 100_000, "nested too deeply"),
])
def test_other_files_are_not_graded(tmp_path, text, reason):
    (tmp_path / "answers.json").write_text(text)
    (tmp_path / "world.json").write_text(json.dumps(asdict(World())))
    result = command("data/answer_key.py", tmp_path / "answers.json", "--data", tmp_path)
    assert_refused(result, tmp_path / "answers.json", reason)
