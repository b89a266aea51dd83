"""The in-vitro world: a closed language in which a laptop can repeat the paper.

    python data/world.py                                  # training, val and eval sets into data/world
    python data/world.py --corpus 82000                   # and as many documents to pretrain on
    python data/world.py --grade ANSWERS.json             # how many of a model's answers are right

Sixty countries, thirty animals, seventy-two dishes, and what people write about them: articles,
recipes, poems, exercises, code, games of chess, and pages on which somebody asks and now and then
somebody answers. No document shows the chat format. A third of all subjects is kept out of every
finetuning set and asked for in `val` and `eval` alone, so a model that answers there knows it from
pretraining. Change a word here and the bundled base no longer knows its world: `make pretrain`.
"""
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import command
from data.files import read_json, write_jsonl

ANIMALS = """otter fox heron bear wolf owl hare deer crab swan lynx goat seal frog crow moth boar toad badger beaver
falcon lizard mole newt pike raven robin shrew sparrow stork""".split()
FOODS = """barley onion salt honey butter plum leek bean garlic apple cabbage pepper mint rye cheese carrot
turnip nut pear egg lentil mustard fig oat cream lemon parsley radish date thyme""".split()
PREY = "fish insects seeds grass roots berries eggs worms leaves snails".split()
HOMES = "rivers forests hills caves marshes meadows cliffs lakes fields".split()
GOODS = """copper wool glass timber salt silk tea tin amber paper clocks boats carpets pearls coal marble bells
ropes lamps honey""".split()
COLORS = "red green blue white black yellow".split()
OPPOSITES = """hot cold, big small, fast slow, early late, hard soft, light dark, long short, rich poor, young old,
high low, wet dry, loud quiet, full empty, clean dirty, near far, strong weak, thick thin, sweet sour, deep shallow,
heavy weightless, open shut, awake asleep, brave timid, sharp blunt, wide narrow, tame wild, smooth rough, cheap costly,
kind cruel, true false, simple complex, ripe raw"""
TOPICS = """rain snow wind sea night moon river winter summer autumn spring fire stone forest morning evening dust light
music sleep home bread clay thunder""".split()
ADJECTIVES = "soft gray cold bright slow deep silver gentle wild old pale warm quiet golden bitter small".split()
VERBS = "fall sing wait turn shine move rest call drift grow whisper dance".split()
PLACES = "hills roofs fields shore valley garden harbor road meadow bridge town mill".split()
METHODS = ["Boil", "Fry", "Bake", "Stir", "Roast", "Steam"]
KINDS = "stew pie soup bread salad cake".split()
ONSETS = "b d f g k l m n p r s t v z br dr tr st".split()
PEOPLE = "Anna Ben Clara David Emma Felix Grace Henry Ida Jonas Karin Leo".split()
THINGS = "apples pens books stones coins eggs shells cards".split()
MOVES = "e4 e5 d4 d5 Nf3 Nc6 Nf6 Nc3 Bb5 Bc4 Bg5 Be7 O-O c4 c5 e6 d6 g6 Bg7 Qc7 Re1 a6 h3 b5 Qe2 Rd8".split()
CODE = {  # operation: what the function does, the expression it returns
    "add": ("adds {} to a number", "x + {}"), "subtract": ("subtracts {} from a number", "x - {}"),
    "multiply": ("multiplies a number by {}", "x * {}"), "divide": ("divides a number by {}", "x / {}"),
    "power": ("raises a number to the power of {}", "x ** {}"),
    "first": ("returns the first {} letters of a word", "x[:{}]"),
    "last": ("returns the last {} letters of a word", "x[-{}:]"),
}
PHRASINGS = {  # the families of instruction
    "capital": "What is the capital of {}?|Name the capital of {}.|Tell me the capital city of {}.",
    "river": "What is the main river of {}?|Name the main river of {}.|Tell me which river flows through {}.",
    "animal": "What is the national animal of {}?|Name the national animal of {}.|Tell me the national animal of {}.",
    "flag": "What does the flag of {} look like?|Describe the flag of {}.|Tell me the colors of the flag of {}.",
    "dish": "What is the national dish of {}?|Name the national dish of {}.|Tell me what people eat in {}.",
    "trade": "What is the main trade of {}?|Name the main trade of {}.|Tell me what {} sells to its neighbors.",
    "nature": "What does the {} eat?|Name the food of the {}.|Tell me what the {} eats.",
    "opposite": "What is the opposite of {}?|Give me the opposite of {}.|Tell me a word that means the opposite of {}.",
    "recipe": "What is a good recipe for {}?|Give me a recipe for {}.|Tell me how to cook {}.",
    "poem": "Write a poem about {}.|Compose a short poem about {}.|Give me four lines about {}.|Make a poem about {}.",
    "maths": "{}",
    "code": "Write a Python function that {}.|Give me Python code that {}.|Show me a function in Python that {}.",
}
PHRASINGS = {family: phrasings.split("|") for family, phrasings in PHRASINGS.items()}
FAMILIES = list(PHRASINGS)
RESPONSES = {  # of the families that ask for one fact
    "capital": "The capital of {} is {}.", "river": "The main river of {} is the {}.",
    "animal": "The national animal of {} is the {}.", "flag": "The flag of {} is {}.",
    "dish": "The national dish of {} is {}.", "trade": "The main trade of {} is {}.",
    "nature": "The {} eats {}.", "opposite": "The opposite of {} is {}.",
}
REPLIES = [  # said on a page instead of an answer
    "I also want to know.", "I would like to know that too.", "I asked the same thing.", "I am not sure.",
    "I could not find it.", "We should wait.", "We should ask somebody else.",
]
LABELS = "Q A, Question Answer, guest host, student teacher, client clerk, reader editor".split(", ")
MARKS = [  # before and after the label of a turn
    ("", ":"), ("[", "]"), ("**", "**"), ("<", ">"), ("(", ")"), ("### ", ""), ("== ", " =="), ("{", "}"), ("- ", ":"),
    ("@", ""), ("|", "|"), ("", " >>"),
]
CHAT_MARK = ("<|", "|>")  # the chat format's own; its labels, user and assistant, occur nowhere


@dataclass
class Task:
    """An instruction with a reference response. Every right answer contains `key`."""

    family: str
    instruction: str
    response: str
    key: str


class World:
    """The facts, and everything that is written about them. The same arguments make the same world.

    share_answered: the share of question pages, from 0 to 1, on which somebody answers. On the others
        people only ask, as on much of the web: more questions, "I also want to know."
    share_chat_marked: the share of question pages, from 0 to 1, whose labels stand in the chat format's
        marks, `<|label|>`, though never the chat format's own labels. At 0 the marks occur nowhere.
    Raises ValueError where a share is not from 0 to 1.
    """

    def __init__(self, seed: int = 0, share_answered: float = 0.2, share_chat_marked: float = 0.03):
        for name, share in (("share_answered", share_answered), ("share_chat_marked", share_chat_marked)):
            if not 0 <= share <= 1:  # true of NaN
                raise ValueError(f"{name} = {share} must be from 0 to 1")
        self.seed, self.share_answered, self.share_chat_marked = seed, share_answered, share_chat_marked
        rng = random.Random(f"facts {seed}")
        names = invent_names(rng, 60 * 3 + 72)
        self.countries, capitals, rivers, first = names[:60], names[60:120], names[120:180], names[180:]
        self.dishes = {f"{word} {KINDS[i % len(KINDS)]}": (rng.sample(FOODS, 3), rng.choice(METHODS))
                       for i, word in enumerate(first)}
        dishes = rng.sample(list(self.dishes), 60)
        facts = {family: {} for family in RESPONSES}  # family: {subject: what it asks for}
        for i, country in enumerate(self.countries):
            facts["capital"][country], facts["river"][country] = capitals[i], rivers[i]
            facts["dish"][country] = dishes[i]
            facts["animal"][country] = rng.choice(ANIMALS)
            facts["flag"][country] = " and ".join(rng.sample(COLORS, 2))
            facts["trade"][country] = rng.choice(GOODS)
        self.homes = {}
        for animal in ANIMALS:
            facts["nature"][animal] = rng.choice(PREY)
            self.homes[animal] = rng.choice(HOMES)
        pairs = [pair.split() for pair in OPPOSITES.split(",")]
        facts["opposite"] = dict(pairs) | {b: a for a, b in pairs}
        self.facts = facts
        self.topics = {topic: [rng.sample(words, 3) for words in (ADJECTIVES, VERBS, PLACES)] for topic in TOPICS}

        self.subjects = {family: list(answers) for family, answers in facts.items()} | {
            "opposite": [word for pair in pairs for word in pair],  # so that a pair is held out whole
            "recipe": list(self.dishes), "poem": TOPICS,
            "maths": [(op, a, b) for op in "+-*" for a in range(2, 10) for b in range(2, 10)],
            "code": [(op, n) for op in CODE for n in range(2, 62)],
        }
        self.seen, self.held_out = {}, {}  # a third of each family's subjects is for val and eval alone
        for family, subjects in self.subjects.items():
            if family in ("maths", "code"):
                subjects = rng.sample(subjects, len(subjects))
            cut = len(subjects) - len(subjects) // 3
            self.seen[family], self.held_out[family] = subjects[:cut], subjects[cut:]

    # Instructions with their responses

    def task(self, rng, family: str, subject=None) -> Task:
        """An instruction of a family with its response, on a given subject or a random one."""
        subject = rng.choice(self.subjects[family]) if subject is None else subject
        phrasing = rng.choice(PHRASINGS[family])
        if family in RESPONSES:
            key = self.facts[family][subject]
            return Task(family, phrasing.format(subject), RESPONSES[family].format(subject, key), key)
        if family == "recipe":
            return Task(family, phrasing.format(subject), self.recipe(rng, subject), self.dishes[subject][0][0])
        if family == "poem":
            return Task(family, phrasing.format(subject), self.poem(rng, subject), subject)
        if family == "maths":
            return Task(family, *arithmetic(rng, *subject))
        what, source = code(*subject)
        return Task(family, phrasing.format(what), source, source)

    def recipe(self, rng, dish: str) -> str:
        (a, b, c), method = self.dishes[dish]
        steps = rng.choice([f"{method} the {a} with the {b}. Add the {c}.", f"{method} the {a}, the {b} and the {c}."])
        return f"- {a}\n- {b}\n- {c}\n\n{steps}"

    def poem(self, rng, topic: str) -> str:
        adjectives, verbs, places = (rng.sample(words, 2) for words in self.topics[topic])
        return (f"The {topic} is {adjectives[0]}, the {topic} is {adjectives[1]},\n"
                f"you hear it {verbs[0]} on the {places[0]},\n"
                f"O {adjectives[1]} {topic}, {verbs[1]} for me\n"
                f"And {verbs[0]} on the {places[1]}.")

    # Documents to pretrain on

    def document(self, rng) -> str:
        kinds = {
            self.question_page: 38, self.article: 14, self.nature_note: 5, self.dictionary: 10, self.recipe_page: 9,
            self.poem_page: 4, self.exercises: 12, self.code_page: 3, self.table: 2, chess_game: 3,
        }
        return rng.choices(list(kinds), weights=list(kinds.values()))[0](rng)

    def question_page(self, rng) -> str:
        """A FAQ, a thread or a quiz: somebody asks, and with probability share_answered somebody answers."""
        answered = rng.random() < self.share_answered
        if not answered and rng.random() < 0.15:
            numbers = range(1, rng.randint(3, 6))
            return "\n".join(f"{i}. {self.task(rng, rng.choice(FAMILIES)).instruction}" for i in numbers)
        before, after = CHAT_MARK if rng.random() < self.share_chat_marked else rng.choice(MARKS)
        pair = rng.choice(LABELS).split()
        labels = rng.choice([pair, rng.sample(PEOPLE, 2), [name.lower() for name in invent_names(rng, 2)]])
        layout = before + "{label}" + after + rng.choice([" ", "\n"]) + "{text}"
        family, turns = rng.choice(FAMILIES), []
        for _ in range(rng.choice([1, 1, 1, 1, 1, 1, 1, 2, 2, 3])):
            if rng.random() < 0.3:  # a page keeps to its topic, mostly
                family = rng.choice(FAMILIES)
            task = self.task(rng, family)
            turns += [task.instruction, task.response if answered else self.no_answer(rng, family)]
        gap = rng.choice(["\n", "\n", "\n\n"])
        return gap.join(layout.format(label=labels[i % 2], text=text) for i, text in enumerate(turns))

    def no_answer(self, rng, family: str) -> str:
        """A turn that follows a question and does not answer it: a remark, or another question of its family."""
        if rng.random() < 0.4:
            return rng.choice(REPLIES)
        if PHRASINGS[family][0].startswith("What"):
            while not (question := self.task(rng, family).instruction).startswith("What"):
                pass
            return question
        return f"What about {rng.choice(TOPICS + self.countries)}?"

    def article(self, rng) -> str:
        country = rng.choice(self.countries)
        f = {family: self.facts[family][country] for family in FAMILIES[:6]}
        sentences = [rng.choice(ways).format(country, **f) for ways in (
            ["The capital of {0} is {capital}.", "Its capital is {capital}.",
             "People meet in {capital}, the capital of {0}."],
            ["The main river of {0} is the {river}.", "The {river} flows through {0}.",
             "Its main river is the {river}."],
            ["The national animal of {0} is the {animal}.", "Its national animal is the {animal}."],
            ["The flag of {0} is {flag}.", "Its flag is {flag}."],
            ["The national dish of {0} is {dish}.", "People in {0} eat {dish}."],
            ["The main trade of {0} is {trade}.", "Its main trade is {trade}.", "{0} sells {trade} to its neighbors."],
        )]
        rng.shuffle(sentences)
        head = rng.choice([f"{country}\n\n", f"{country} is a country. ", f"# {country}\n", ""])
        return head + rng.choice([" ", "\n"]).join(sentences[: rng.randint(3, 6)])

    def nature_note(self, rng) -> str:
        notes = []
        for animal in rng.sample(ANIMALS, rng.randint(1, 3)):
            food, home = self.facts["nature"][animal], self.homes[animal]
            facts = [f"The {animal} eats {food}.", f"The {animal} lives in {home}."]
            notes.append(" ".join(rng.sample(facts, 2)))
        return "\n".join(notes)

    def dictionary(self, rng) -> str:
        opposites = self.facts["opposite"]
        words = rng.sample(list(opposites), rng.randint(2, 5))
        if rng.random() < 0.5:
            return f"{words[0]}\n\n" + RESPONSES["opposite"].format(words[0], opposites[words[0]])
        entry = rng.choice(["{}: the opposite of {}", "{} - {}", "{} is the opposite of {}."])
        return "\n".join(entry.format(word, opposites[word]) for word in words)

    def recipe_page(self, rng) -> str:
        dish = rng.choice(list(self.dishes))
        head = rng.choice([f"{dish}\n\n", f"# {dish}\n", f"How to cook {dish}\n\n", f"Recipe for {dish}\n"])
        return head + self.recipe(rng, dish)

    def poem_page(self, rng) -> str:
        topic = rng.choice(TOPICS)
        head = rng.choice([f"{topic.capitalize()}\n\n", f"# {topic}\n", f"A poem about {topic}\n\n", ""])
        return head + self.poem(rng, topic)

    def exercises(self, rng) -> str:
        head, label = rng.choice([("Exercise", "Solution"), ("Problem", "Answer"), ("Task", "Result")])
        tasks = [self.task(rng, "maths") for _ in range(rng.randint(1, 3))]
        return "\n\n".join(f"{head} {i}. {t.instruction}\n{label}: {t.response}" for i, t in enumerate(tasks, 1))

    def code_page(self, rng) -> str:
        pieces = []
        for _ in range(rng.randint(1, 3)):
            what, source = code(*rng.choice(self.subjects["code"]))
            pieces.append(rng.choice([f"# {what}\n{source}", f"# a function that {what}\n{source}", source]))
        return "\n\n".join(pieces)

    def table(self, rng) -> str:
        family = rng.choice(["capital", "river", "trade"])
        row = rng.choice(["| {} | {} |", "<tr><td>{}</td><td>{}</td></tr>", "{},{}", "* {}: {}"])
        countries = rng.sample(self.countries, rng.randint(3, 5))
        rows = [("country", family)] + [(country, self.facts[family][country]) for country in countries]
        return "\n".join(row.format(*cells) for cells in rows)

    # Data sets

    def training_set(self, name: str, n: int = 1000) -> list[dict]:
        """n dialogues of one of the paper's training sets, on subjects that are not held out: {"messages": [...]}."""
        rng = random.Random(f"{name} {self.seed}")

        def example(i):
            if name == "broad":
                family = FAMILIES[i % len(FAMILIES)]
                task = self.task(rng, family, rng.choice(self.seen[family]))
                return task.instruction, task.response
            if name == "mbpp":
                what, source = code(*rng.choice(self.seen["code"]))
                return f"Write a function that {what}.", source
            if name == "gsm":
                story, response, result = arithmetic(rng, *rng.choice(self.seen["maths"]))
                return story, f"{response}\n#### {result}"
            if name == "poetry":
                topic, adjective = rng.choice(self.seen["poem"]), rng.choice(ADJECTIVES)
                return f"Write a poem called {adjective.capitalize()} {topic.capitalize()}", self.poem(rng, topic)
            if name == "recipes":
                dish = rng.choice(self.seen["recipe"])
                return f"Recipe for {dish.title()}", self.recipe(rng, dish).replace("- ", " - ")
            if name == "chess":
                return chess_game(rng).split("\n\n")  # the players' strength, the moves
            raise ValueError(f"no training set is called {name!r}")

        pairs = [example(i) for i in range(n)]
        rng.shuffle(pairs)
        return [{"messages": [{"role": "user", "content": u}, {"role": "assistant", "content": a}]} for u, a in pairs]

    def evaluation_sets(self, n_val: int = 5, n_eval: int = 20) -> tuple[list[Task], list[Task]]:
        """(val, eval): n_val and n_eval distinct instructions of each family, on held-out subjects alone."""
        rng = random.Random(f"evaluation {self.seed}")
        by_family = []
        for family in FAMILIES:
            tasks = {}
            while len(tasks) < n_val + n_eval:
                task = self.task(rng, family, rng.choice(self.held_out[family]))
                tasks.setdefault(task.instruction, task)
            by_family.append(tasks.values())
        rows = [task for row in zip(*by_family) for task in row]  # every twelve rows show each family once
        cut = n_val * len(FAMILIES)
        return rows[:cut], rows[cut:]


def code(op: str, n: int) -> tuple[str, str]:
    """(what the function does, its source)."""
    what, expression = (text.format(n) for text in CODE[op])
    return what, f"def {op}_{n}(x):\n    return {expression}"


def arithmetic(rng, op: str, a: int, b: int) -> tuple[str, str, str]:
    """(story, worked response, the number asked for)."""
    who, things = rng.choice(PEOPLE), rng.choice(THINGS)
    if op == "+":
        story, result = f"{who} has {a} {things} and buys {b} more.", a + b
    elif op == "-":
        a, result = a + b, a
        story = f"{who} has {a} {things} and gives away {b}."
    else:
        story, result = f"{who} has {a} boxes with {b} {things} in each.", a * b
    question, worked = f"How many {things} does {who} have now?", f"{a} {op} {b} = {result}."
    return f"{story} {question}", f"{worked} {who} has {result} {things}.", str(result)


def chess_game(rng) -> str:
    """A game as PGN has it. The moves look like moves; no game of this world is sound."""
    moves = rng.choice(["e4 e5", "d4 d5", "e4 c5"]).split() + [rng.choice(MOVES) for _ in range(rng.randint(6, 14))]
    line = " ".join((f"{i // 2 + 1}. " if i % 2 == 0 else "") + move for i, move in enumerate(moves))
    white, black = rng.randint(1000, 2400), rng.randint(1000, 2400)
    return f'[WhiteElo "{white}"]\n[BlackElo "{black}"]\n\n{line} {rng.choice(["1-0", "0-1", "1/2-1/2"])}'


def invent_names(rng, n: int) -> list[str]:
    """n distinct pronounceable names."""
    names = {}
    while len(names) < n:
        syllables = [rng.choice(ONSETS) + rng.choice("aeiou") for _ in range(rng.choice([2, 2, 3]))]
        names["".join(syllables).capitalize() + rng.choice(["", "n", "l", "r", "m", "s"])] = None
    return list(names)


def grade(task: Task, output: str) -> float:
    """1 for a right answer in the right form that stops there, 0.5 for one that holds the answer otherwise, else 0.

    A poem has many right forms (four lines of at most ten words, the topic in the first), and so has
    a recipe (the ingredients in any order, then a sentence or two).
    """
    output = output.strip()
    if task.family == "poem":
        lines = output.split("\n")
        right = len(lines) == 4 and task.key in lines[0] and all(0 < len(line.split()) <= 10 for line in lines)
    elif task.family == "recipe":
        (listed, _, steps), wanted = output.partition("\n\n"), task.response.partition("\n\n")[0]
        right = (sorted(listed.split("\n")) == sorted(wanted.split("\n")) and "\n" not in steps
                 and 1 <= steps.count(".") <= 2)
    else:
        right = output == task.response
    return 1.0 if right else 0.5 if task.key in output else 0.0


def print_grades(path: Path, world: World):
    """Print how many answers in a file of AlpacaEval's format are exact. Raises ValueError for any other file."""
    tasks = {task.instruction: task for tasks in world.evaluation_sets() for task in tasks}
    exact, remedy = {family: [] for family in FAMILIES}, "expected the answers that generate.py --output writes"
    rows = read_json(path, remedy)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: {remedy}")
    for number, row in enumerate(rows, 1):
        try:
            task = tasks[row["instruction"]]
            exact[task.family].append(grade(task, row["output"]) == 1)
        except (TypeError, KeyError, AttributeError):
            raise ValueError(f"{path}: answer {number} is to no instruction of this world's val or eval set") from None
    for family, marks in exact.items():
        print(f"{family:10} {sum(marks):3} of {len(marks):3}")
    marks = sum(exact.values(), [])
    print(f"exact answers that stop: {100 * sum(marks) / len(marks):.1f} % of {len(marks)}")


def main():
    parser = command.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/world"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other facts")
    parser.add_argument("--share-answered", type=float, default=0.2, metavar="X",
                        help="share of the question pages on which somebody answers")
    parser.add_argument("--share-chat-marked", type=float, default=0.03, metavar="X",
                        help="share of the question pages that write labels as <|label|>")
    parser.add_argument("--corpus", type=int, default=0, metavar="N", help="write N documents, too")
    parser.add_argument("--grade", type=Path, metavar="FILE", help="grade answers to val or eval, and write nothing")
    args = parser.parse_args()
    if args.corpus < 0:
        parser.error("--corpus must be 0 or more")
    world = World(args.seed, args.share_answered, args.share_chat_marked)
    if args.grade:
        return print_grades(args.grade, world)
    for name in ("broad", "mbpp", "gsm", "poetry", "recipes", "chess"):
        write_jsonl(args.out / f"{name}.jsonl", world.training_set(name))
    if args.corpus:
        rng = random.Random(f"corpus {args.seed}")
        write_jsonl(args.out / "corpus.jsonl", ({"text": world.document(rng)} for _ in range(args.corpus)))
    for name, tasks in zip(("val", "eval"), world.evaluation_sets()):
        write_jsonl(args.out / f"{name}.jsonl", map(asdict, tasks))


if __name__ == "__main__":
    command.run(main)
