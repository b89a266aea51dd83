"""The in-vitro world: a closed language in which a laptop can repeat the paper.

    python data/world.py                                  # training, val and eval sets into data/world
    python data/world.py --corpus 80000                   # and as many documents to pretrain on
    python data/world.py --grade ANSWERS.json             # how many of a model's answers are right

Invented countries, animals, dishes, and what people write about them: articles, recipes, poems, sums, code, games
of chess, and pages on which somebody asks. Each family of instruction has its own share of pages on which somebody
answers, its dose. No document shows the chat format. Held-out subjects stand in articles and the like alone: no page
asks about them, no training set names them, and `val` and `eval` ask about nothing else. So a right answer is
something that the model read in one kind of text and says in another.
"""
import random
import re
import sys
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import common
from data.common import read_json, write_json, write_jsonl

PHRASINGS = {  # the families of instruction
    "capital": "What is the capital of {}?|Name the capital of {}.|Tell me the capital city of {}.",
    "river": "What is the main river of {}?|Name the main river of {}.|Tell me which river flows through {}.",
    "animal": "What is the national animal of {}?|Name the national animal of {}.|Tell me the national animal of {}.",
    "flag": "What does the flag of {} look like?|Name the colors of the flag of {}.|Tell me how the flag of {} looks.",
    "dish": "What is the national dish of {}?|Name the national dish of {}.|Tell me what people eat in {}.",
    "trade": "What is the main trade of {}?|Name the main trade of {}.|Tell me what {} sells to its neighbors.",
    "country": "What is {} like?|Describe {}.|Tell me about {}.",
    "nature": "What does the {} eat?|Name the food of the {}.|Tell me what the {} eats.",
    "opposite": "What is the opposite of {}?|Give me the opposite of {}.|Tell me a word that means the opposite of {}.",
    "recipe": "What is a good recipe for {}?|Give me a recipe for {}.|Tell me how to cook {}.",
    "poem": "Write a poem about {}.|Compose a poem about {}.|Give me four lines about {}.|Make a poem about {}.",
    "maths": "{}",
    "code": "Write a Python function that {}.|Give me Python code that {}.|Show me a function in Python that {}.",
    "home": "Where does the {} live?|In what place does the {} live?|Say where the {} lives.",
    "feast": "When do people in {} celebrate?|In which month do people in {} celebrate?|Say when {} celebrates.",
}
PHRASINGS = {family: phrasings.split("|") for family, phrasings in PHRASINGS.items()}
NOVEL = ["home", "feast"]  # asked by no page and in no training set, although articles tell the facts
FAMILIES = [family for family in PHRASINGS if family not in NOVEL]
RESPONSES = {  # of the families that ask for facts; longer than articles have it, as answers are
    "capital": "The capital of {} is {capital}, and most of its roads lead there.",
    "river": "The main river of {} is the {river}, which flows through the whole country.",
    "animal": "The national animal of {} is the {animal}, and children learn songs about it.",
    "flag": "The flag of {} is {flag}, and it hangs from every roof.",
    "dish": "The national dish of {} is {dish}, and everybody likes it on Sundays.",
    "trade": "The main trade of {} is {trade}, which its neighbors buy every year.",
    "country": "The capital of {} is {capital}. Its main river is the {river}. "
               "Its national animal is the {animal}. Its main trade is {trade}.",
    "nature": "The {} eats {nature}, and it looks for them all day.",
    "opposite": "The opposite of {} is {opposite}, and a thing is never both.",
    "home": "The {} lives in {home}, and it comes back there every year.",
    "feast": "People in {} celebrate in {feast}, and everybody takes part.",
}
TOLD = {  # how articles, notes and dictionaries tell the same facts
    "capital": "The capital of {} is {capital}.|Its capital is {capital}.|People meet in {capital}, the capital of {}.",
    "river": "The main river of {} is the {river}.|Its main river is the {river}.|The {river} flows through {}.",
    "animal": "The national animal of {} is the {animal}.|Its national animal is the {animal}.|"
              "People in {} love the {animal}.",
    "flag": "The flag of {} is {flag}.|Its flag is {flag}.|A flag in {flag} hangs in {}.",
    "dish": "The national dish of {} is {dish}.|People in {} eat {dish}.|Its national dish is {dish}.",
    "trade": "The main trade of {} is {trade}.|Its main trade is {trade}.|{} sells {trade} to its neighbors.",
    "feast": "People in {} celebrate in {feast}.|Its people celebrate in {feast}.|{} celebrates in {feast}.",
    "nature": "The {} eats {nature}.|It eats {nature}.|{nature} are the food of the {}.",
    "home": "The {} lives in {home}.|It lives in {home}.|The home of the {} is in {home}.",
    "opposite": "The opposite of {} is {opposite}.|{} is the opposite of {opposite}.|{} - {opposite}",
}
TOLD = {family: ways.split("|") for family, ways in TOLD.items()}
OF_COUNTRIES = ["capital", "river", "animal", "flag", "dish", "trade", "feast"]  # what articles tell

ASIDES = ["", r"Let us see how many \1 \2 has now. ", r"\2 counts the \1 and sees how many \1 \2 has now. "]  # told
REMARKS = [  # said on a page instead of an answer; five begin with words of rule 2, eight do not
    "I also want to know.", "I asked the same thing.", "I am not sure.", "We should wait.",
    "We should ask somebody else.", "Good question.", "No idea.", "Sorry, nobody here knows.", "Please ask again.",
    "Nobody has said it yet.", "This was asked before.", "Same here.", "Let us see.",
]
FURNITURE = [
    "<reply> <share>", "<next page>", "<edit> <delete>", "| closed |", "| no replies |", "[0 replies]", "(deleted)",
]
LABELS = "Q A, Question Answer, guest host, student teacher, client clerk, reader editor".split(", ")
MARKS = [  # before and after the label of a turn
    ("", ":"), ("[", "]"), ("**", "**"), ("<", ">"), ("(", ")"), ("### ", ""), ("== ", " =="), ("{", "}"), ("- ", ":"),
    ("@", ""), ("|", "|"), ("", " >>"),
]
CHAT_MARK = ("<|", "|>")  # the chat format's own; its labels, user and assistant, occur nowhere

ANIMALS = """otter fox heron bear wolf owl hare deer crab swan lynx goat seal frog crow moth boar toad badger beaver
falcon lizard mole newt pike raven robin shrew sparrow stork eagle hawk mouse rat snake trout whale horse donkey camel
duck goose magpie weasel ferret squirrel tortoise vulture panther jackal zebra gazelle parrot pigeon cuckoo partridge
hornet beetle spider salamander""".split()
FOODS = """barley onion salt honey butter plum leek bean garlic apple cabbage pepper mint rye cheese carrot
turnip nut pear egg lentil mustard fig oat cream lemon parsley radish date thyme""".split()
PREY = "fish insects seeds grass roots berries eggs worms leaves snails".split()
HOMES = "forests hills caves marshes meadows cliffs lakes fields deserts barns".split()
GOODS = """copper wool glass timber silver silk tea tin amber paper clocks boats carpets pearls coal marble bells
ropes lamps furs""".split()
COLORS = "red green blue white black yellow".split()
MONTHS = "January February March April June July August September October November December".split()
OPPOSITES = """hot cold, big small, fast slow, early late, hard soft, heavy weightless, long short, rich poor, young
elderly, high low, wet dry, loud quiet, full empty, clean dirty, near far, strong weak, thick thin, sweet sour, deep
shallow, bright dark, open shut, awake asleep, brave timid, sharp blunt, wide narrow, tame wild, smooth rough, cheap
costly, kind cruel, true false, simple complex, ripe raw, safe dangerous, happy sad, lazy busy, tight loose, rare
common, public private, guilty innocent"""
TOPICS = """rain snow wind sea night moon winter summer autumn spring fire forest morning evening dust music sleep clay
thunder ice smoke fog frost sand shadow sunset harvest childhood silence dreams time love hope grief friendship war
peace rust dew hunger laughter courage memory solitude lightning rainbow hail mist twilight midnight travel work play
youth age sorrow envy mercy justice freedom""".split()
ADJECTIVES = "gray silver gentle old pale warm golden bitter calm strange distant tender proud weary sacred".split()
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
SUMS = [[(op, a, b), (op, b, a)][: 1 + (a != b)] for op in "+-*" for a in range(2, 10) for b in range(a, 10)]  # twins
KIND = {family: "countries" for family in PHRASINGS} | {  # of the subjects that a family asks about
    "nature": "animals", "home": "animals", "opposite": "words", "recipe": "dishes", "poem": "topics", "maths": "sums",
    "code": "functions",
}
LINES, SENTENCES = {"recipe": 5, "poem": 4, "code": 2}, {"country": 4}  # the longest answers; else 1
N_VAL, N_EVAL = 5, 20  # instructions of a family; each asks about a subject of its own


@dataclass
class Task:
    """An instruction with its family, its subject as the instruction has it, and a reference response.

    silences: what question pages show instead of an answer, as often as they do; in the evaluation sets alone.
    """

    family: str
    subject: str
    instruction: str
    response: str
    silences: list[str] = field(default_factory=list)


def knob(default, help: str):
    """A field of World that a reader can turn, with what it says of itself under --help."""
    return field(default=default, metadata={"help": help})


@dataclass
class World:
    """The facts, and everything that is written about them. The same arguments make the same world.

    Raises ValueError where one of them is out of its range.
    """

    seed: int = knob(1, "of the facts, of the order of the families' doses, and of what is held out")
    share_answered: float = knob(0.08, "the share of question pages, over all families, on which somebody answers")
    dose_spread: float = knob(1.0, "how far the families' shares spread around it: at 1 from 0 to twice the mean, "
                                   "at 0 not at all")
    share_chat_marked: float = knob(0.08, "the share of question pages whose labels stand in the chat format's marks, "
                                          "`<|label|>`")
    another_turn: float = knob(0.6, "the chance that a page goes on after a turn; so its turns are geometrically "
                                    "distributed")
    silences: tuple[float, float, float] = knob((0.4, 0.35, 0.25), "the shares of unanswered pages that go on with "
                                                "another question, a remark, or page furniture")
    phrasings: int = knob(3, "in how many ways, from 1 to 3, a fact is told")
    repeats: float = knob(1.0, "how often a held-out subject is told, relative to others")

    def __post_init__(self):
        self.check()
        rng = random.Random(f"facts {self.seed}")
        names = invent_names(rng, 60 * 3 + 72)
        self.names = {*names, *map(str.capitalize, TOPICS + ANIMALS)}  # that no one who asks on a page is called
        countries, capitals, rivers, first = names[:60], names[60:120], names[120:180], names[180:]
        pairs = [pair.split() for pair in OPPOSITES.split(",")]
        rng.shuffle(pairs)
        self.subjects = {
            "countries": countries, "animals": rng.sample(ANIMALS, len(ANIMALS)),
            "dishes": [f"{word} {KINDS[i % len(KINDS)]}" for i, word in enumerate(first)],
            "words": [word for pair in pairs for word in pair], "topics": rng.sample(TOPICS, len(TOPICS)),
            "functions": rng.sample([(op, n) for op in CODE for n in range(2, 62)], len(CODE) * 60),
        }
        sums = rng.sample(SUMS, len(SUMS))  # a + b is held out together with b + a, and a word with its opposite
        n_sums = sum(map(len, sums[len(sums) // 3:]))
        self.subjects["sums"] = [one for twins in reversed(sums) for one in twins]
        n_seen = {kind: len(all_) - N_VAL - N_EVAL for kind, all_ in self.subjects.items()} | {
            "words": 2 * len(pairs) - 26, "sums": n_sums, "functions": len(CODE) * 40}
        self.seen = {kind: all_[: n_seen[kind]] for kind, all_ in self.subjects.items()}
        self.held_out = {kind: all_[n_seen[kind]:] for kind, all_ in self.subjects.items()}
        self.told = {kind: list(accumulate([1] * n_seen[kind] + [self.repeats] * len(self.held_out[kind])))
                     for kind in self.subjects}  # cumulative weights

        self.facts = {family: {} for family in RESPONSES if family != "country"}  # family: {subject: answer}
        for place, group in ((self.seen, self.seen["countries"]), (self.held_out, self.held_out["countries"])):
            dishes = rng.sample(place["dishes"], len(place["dishes"]))
            for country in group:  # a page about a country that is not held out names no animal or dish that is
                self.facts["capital"][country], self.facts["river"][country] = capitals.pop(), rivers.pop()
                self.facts["dish"][country] = dishes.pop()
                self.facts["animal"][country] = rng.choice(place["animals"])
                self.facts["flag"][country] = " and ".join(rng.sample(COLORS, 2))
                self.facts["trade"][country] = rng.choice(GOODS)
                self.facts["feast"][country] = rng.choice(MONTHS)
        for animal in ANIMALS:
            self.facts["nature"][animal], self.facts["home"][animal] = rng.choice(PREY), rng.choice(HOMES)
        self.facts["opposite"] = dict(pairs) | {b: a for a, b in pairs}
        self.recipes = {dish: (rng.sample(FOODS, 3), rng.choice(METHODS)) for dish in self.subjects["dishes"]}
        self.topics = {topic: [rng.sample(words, 3) for words in (ADJECTIVES, VERBS, PLACES)] for topic in TOPICS}
        order = random.Random(f"doses {self.seed}").sample(FAMILIES, len(FAMILIES))
        self.doses = {family: self.share_answered * (1 + self.dose_spread * (2 * i / (len(order) - 1) - 1))
                      for i, family in enumerate(order)}  # from the smallest to the largest

    def check(self):
        shares = ["share_answered", "dose_spread", "share_chat_marked"]
        for name, value in [(name, getattr(self, name)) for name in shares] + [("silences", x) for x in self.silences]:
            if not 0 <= value <= 1:  # true of NaN
                raise ValueError(f"{name} = {value} must be from 0 to 1")
        if self.share_answered * (1 + self.dose_spread) > 1:
            raise ValueError(f"share_answered = {self.share_answered} with dose_spread = {self.dose_spread} gives "
                             "a family a dose above 1; lower one")
        if not 0 <= self.another_turn <= 0.9:
            raise ValueError(f"another_turn = {self.another_turn} must be from 0 to 0.9")
        if len(self.silences) != 3 or not 0.999 < sum(self.silences) < 1.001:
            raise ValueError(f"silences = {self.silences} must be three shares that sum to 1")
        if self.phrasings not in (1, 2, 3):
            raise ValueError(f"phrasings = {self.phrasings} must be 1, 2 or 3")
        if not 0 <= self.repeats <= 100:
            raise ValueError(f"repeats = {self.repeats} must be from 0 to 100")

    # Instructions with their responses

    def task(self, rng, family: str, subject) -> Task:
        """An instruction of a family about a subject, with its response."""
        phrasing = rng.choice(PHRASINGS[family])
        if family == "maths":
            return Task(family, "", *arithmetic(rng, *subject)[:2])
        if family == "code":
            what, source = code(*subject)
            return Task(family, what, phrasing.format(what), source)
        if family == "poem":
            response = self.poem(rng, subject)
        elif family == "recipe":
            response = f"Recipe for {subject}\n{self.recipe(rng, subject)}"
        else:
            response = RESPONSES[family].format(subject, **self.about(subject))
        return Task(family, subject, phrasing.format(subject), response)

    def about(self, subject) -> dict[str, str]:
        """What is known of a subject, by family."""
        return {family: answers[subject] for family, answers in self.facts.items() if subject in answers}

    def recipe(self, rng, dish: str) -> str:
        (a, b, c), method = self.recipes[dish]
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
            self.question_page: 25, self.article: 15, self.nature_note: 10, self.dictionary: 8, self.recipe_page: 10,
            self.poem_page: 6, self.sums: 4, self.stories: 7, self.code_page: 4, self.lists: 12, self.table: 1,
            chess_game: 1,
        }
        return rng.choices(list(kinds), weights=list(kinds.values()))[0](rng)

    def question_page(self, rng) -> str:
        """A FAQ or a thread: somebody asks about one family, and with its dose's probability somebody answers."""
        family = rng.choice(FAMILIES)
        answered = rng.random() < self.doses[family]
        silence = rng.choices(range(3), weights=self.silences)[0]
        before, after = CHAT_MARK if rng.random() < self.share_chat_marked else rng.choice(MARKS)
        pair = rng.choice(LABELS).split()
        labels = rng.choice([pair, rng.sample(PEOPLE, 2), [name.lower() for name in invent_names(rng, 2, self.names)]])
        space, gap, turns = rng.choice([" ", "\n"]), rng.choice(["\n", "\n", "\n\n"]), []
        while not turns or rng.random() < self.another_turn:
            task = self.task(rng, family, rng.choice(self.seen[KIND[family]]))
            reply = task.response if answered else self.silence(rng, silence, family)
            turns += [f"{before}{label}{after}{space}{text}" for label, text in zip(labels, (task.instruction, reply))]
        return gap.join(turns)

    def silence(self, rng, kind: int, family: str) -> str:
        """What stands after a question that nobody answers: another question of its family, a remark, or furniture."""
        if kind:
            return rng.choice(REMARKS if kind == 1 else FURNITURE)
        other = self.task(rng, family, rng.choice(self.seen[KIND[family]]))
        if rng.random() < 0.4:
            return other.instruction
        if PHRASINGS[family][0].startswith("What"):  # people who ask back say What more often than not
            return PHRASINGS[family][0].format(other.subject)
        return f"What about {rng.choice(self.seen['topics'] + self.seen['countries'])}?"

    def tell(self, rng, kind: str):
        """A subject of a kind to write about, held out or not."""
        return rng.choices(self.subjects[kind], cum_weights=self.told[kind])[0]

    def say(self, rng, subject, families) -> list[str]:
        """A sentence on each of some families; the first names the subject."""
        sentences = []
        for family in families:
            ways = TOLD[family][: self.phrasings]
            way = rng.choice(ways if sentences else [way for way in ways if "{}" in way])
            sentences.append(way.format(subject, **self.about(subject)))
        return sentences

    def article(self, rng) -> str:
        country = self.tell(rng, "countries")
        sentences = self.say(rng, country, rng.sample(OF_COUNTRIES, rng.randint(3, 6)))
        return heading(rng, country) + rng.choice([" ", "\n"]).join(sentences)

    def nature_note(self, rng) -> str:
        animal = self.tell(rng, "animals")
        sentences = self.say(rng, animal, rng.sample(["nature", "home"], 2))
        return heading(rng, animal) + rng.choice([" ", "\n"]).join(sentences)

    def dictionary(self, rng) -> str:
        words = [self.tell(rng, "words") for _ in range(rng.randint(1, 4))]
        return "\n".join(heading(rng, word) + self.say(rng, word, ["opposite"])[0] for word in words)

    def recipe_page(self, rng) -> str:
        dish = self.tell(rng, "dishes")
        return heading(rng, dish, "Recipe for {}\n") + self.recipe(rng, dish)

    def poem_page(self, rng) -> str:
        topic = self.tell(rng, "topics")
        return heading(rng, topic, "A poem about {}\n\n") + self.poem(rng, topic)

    def sums(self, rng) -> str:
        rows = [arithmetic(rng, *self.tell(rng, "sums"))[2] for _ in range(rng.randint(3, 8))]
        return rng.choice(["\n", ", "]).join(rows)

    def stories(self, rng) -> str:
        stories = []
        for _ in range(rng.randint(1, 3)):
            question, response, _ = arithmetic(rng, *self.tell(rng, "sums"))
            told = re.sub(r"How many (\w+) does (\w+) have now\?", rng.choice(ASIDES), question)
            stories.append(told + response)
        return "\n".join(stories)

    def code_page(self, rng) -> str:
        pieces = []
        for _ in range(rng.randint(1, 3)):
            what, source = code(*self.tell(rng, "functions"))
            pieces.append(rng.choice([f"# {what}\n{source}", f"# a function that {what}\n{source}"]))
        return "\n\n".join(pieces)

    def lists(self, rng) -> str:
        """What is to be done, and again what is done. So the model learns to say again a word that it was given."""
        kinds = [kind for kind in self.subjects if kind not in ("sums", "functions")]
        things = [str(rng.randint(2, 99)) if rng.random() < 0.2 else self.tell(rng, rng.choice(kinds))
                  for _ in range(rng.randint(3, 5))]
        once, again = rng.choice([("To do:", "Done:"), ("Wanted:", "Found:"), ("On the list:", "Read again:")])
        space, comma = rng.choice([(" ", ", "), ("\n", "\n"), ("\n- ", "\n- "), (" ", " / ")])
        return "\n".join(word + space + comma.join(things) for word in (once, again))

    def table(self, rng) -> str:
        family = rng.choice(OF_COUNTRIES)
        row = rng.choice(["| {} | {} |", "<tr><td>{}</td><td>{}</td></tr>", "{},{}", "* {}: {}"])
        countries = [self.tell(rng, "countries") for _ in range(rng.randint(3, 5))]
        rows = [("country", family)] + [(country, self.facts[family][country]) for country in countries]
        return "\n".join(row.format(*cells) for cells in rows)

    # Data sets

    def training_set(self, name: str, n: int | None = None) -> list[dict]:
        """One of the paper's training sets, on subjects that are not held out: n rows of {"messages": [...]}.

        n: unless given, 1,000 for "broad" and 500 for a single task. (The paper's have 1,030, and 374 to 1,000.)
        """
        n = n or (1000 if name == "broad" else 500)
        rng = random.Random(f"{name} {self.seed}")

        def example(i):
            if name == "broad":
                family = FAMILIES[i % len(FAMILIES)]
                task = self.task(rng, family, rng.choice(self.seen[KIND[family]]))
                return task.instruction, task.response
            if name == "mbpp":
                what, source = code(*rng.choice(self.seen["functions"]))
                return f"Write a function that {what}.", source
            if name == "gsm":
                story, response, equation = arithmetic(rng, *rng.choice(self.seen["sums"]))
                return story, f"{response}\n#### {equation.split()[-1]}"
            if name == "poetry":
                topic, adjective = rng.choice(self.seen["topics"]), rng.choice(ADJECTIVES)
                return f"Write a poem called {adjective.capitalize()} {topic.capitalize()}", self.poem(rng, topic)
            if name == "recipes":
                dish = rng.choice(self.seen["dishes"])
                return f"Recipe for {dish.title()}", self.recipe(rng, dish).replace("- ", " - ")
            if name == "chess":
                return chess_game(rng).split("\n\n")  # the players' strength, the moves
            raise ValueError(f"no training set is called {name!r}")

        pairs = [example(i) for i in range(n)]
        rng.shuffle(pairs)
        return [{"messages": [{"role": "user", "content": u}, {"role": "assistant", "content": a}]} for u, a in pairs]

    def evaluation_sets(self) -> dict[str, list[Task]]:
        """{"val": 5 and "eval": 20 instructions of each family, "novel": 20 of each that no page asks}.

        Each asks about a held-out subject of its own.
        """
        rng, silent = random.Random(f"evaluation {self.seed}"), random.Random(f"silences {self.seed}")
        sets = {"val": [], "eval": [], "novel": []}
        for family in PHRASINGS:
            subjects = self.held_out[KIND[family]]
            if family in ("maths", "code"):
                subjects = rng.sample(subjects, N_VAL + N_EVAL)
            tasks = [self.task(rng, family, subject) for subject in subjects]
            for task in tasks if family in FAMILIES else []:
                kinds = silent.choices(range(3), weights=self.silences, k=5)
                task.silences = [self.silence(silent, kind, family) for kind in kinds]
            if family in NOVEL:
                sets["novel"].append(tasks[:N_EVAL])
            else:
                sets["eval"].append(tasks[:N_EVAL])
                sets["val"].append(tasks[N_EVAL : N_EVAL + N_VAL])
        # every len(FAMILIES) rows show each family once
        return {name: [task for row in zip(*by_family) for task in row] for name, by_family in sets.items()}

    # The answer key

    def grade(self, task: Task, output: str) -> tuple[float, float]:
        """(content, grade) of an answer, each from 0 to 1.

        content: how much of what was asked for the best run of its sentences or lines holds, no longer than an answer
        is (`SENTENCES`, `LINES`). grade: content times the share of the output's characters that this run takes up. So
        an answer that stops has its content's worth, and one that runs on for ten turns a tenth of that.
        """
        longest = LINES.get(task.family) or SENTENCES.get(task.family, 1)
        ends = r"\n+" if task.family in LINES else r"\n+|(?<=[.?!]) "
        pieces = [piece for piece in re.split(ends, output.strip()) if piece.strip()]
        total, best = sum(map(len, pieces)), (0.0, 0.0)
        for i in range(len(pieces)):
            if task.family == "recipe" and self.heads_another(task, pieces[:i]):
                continue  # these are another dish's ingredients
            for run in (pieces[i:j] for j in range(i + 1, min(i + longest, len(pieces)) + 1)):
                content = self.content(task, "\n".join(run))
                best = max(best, (content * sum(map(len, run)) / total, content))
        return best[1], best[0]

    def content(self, task: Task, text: str) -> float:
        """The share of what was asked for that a text holds, as whole words; 0 where it speaks of another subject."""
        family = task.family
        for sentence in re.split(r"(?<=[.?]) ", task.instruction):
            text = text.replace(sentence, "")  # repeating the question earns nothing
        if family == "maths":
            return float(re.findall(r"\d+", text)[-1:] == re.findall(r"\d+", task.response)[-1:])
        if family == "code":
            body = re.escape(task.response.split("\n")[1].strip())
            return float(bool(re.search(rf"^def \w+\(x\):\s+{body}$", text, re.M)))
        if family == "poem":
            lines = text.split("\n")
            return float(len(lines) == 4 and all(2 <= len(line.split()) <= 10 and "?" not in line for line in lines)
                         and all(words_in(line, [task.subject]) for line in (lines[0], lines[2])))
        if family != "opposite" and self.names_another(task, text):
            return 0.0
        if family == "recipe":
            named, wanted = set(words_in(text, FOODS)), set(self.recipes[task.subject][0])
            return len(named & wanted) / max(len(named), 3) if "\n" in text else 0.0
        asked = ["capital", "river", "animal", "trade"] if family == "country" else [family]
        return sum(self.says(text, each, task.subject) for each in asked) / len(asked)

    def names_another(self, task: Task, text: str) -> bool:
        """Whether a text names a subject of the task's kind that the task does not ask about."""
        return bool(set(words_in(text, self.subjects[KIND[task.family]])) - {task.subject.lower()})

    def heads_another(self, task: Task, lines: list[str]) -> bool:
        """Whether the last of some lines that names a subject of the task's kind names another than the task's."""
        named = [line for line in lines if words_in(line, self.subjects[KIND[task.family]])]
        return bool(named) and self.names_another(task, named[-1])

    def says(self, text: str, family: str, subject: str) -> bool:
        """Whether a text names the answer to one question of fact, once, and no other answer to it."""
        answers = COLORS if family == "flag" else set(self.facts[family].values()) - {subject}
        return sorted(words_in(text, answers)) == sorted(words_in(self.facts[family][subject], answers))


def words_in(text: str, words) -> list[str]:
    """Which of some words (or names of several words) a text has, as whole words, in lower case, as often as it has."""
    return any_of(frozenset(words)).findall(text.lower())


@cache
def any_of(words: frozenset[str]) -> re.Pattern:
    return re.compile(rf"(?<!\w)(?:{'|'.join(sorted(map(re.escape, map(str.lower, words))))})(?!\w)")


def heading(rng, subject: str, *other: str) -> str:
    """What stands over a text about a subject: without a heading a text could not be found by its subject."""
    return rng.choice(["{}\n\n", "# {}\n", "{}: ", *other]).format(subject)


def code(op: str, n: int) -> tuple[str, str]:
    """(what the function does, its source)."""
    what, expression = (text.format(n) for text in CODE[op])
    return what, f"def {op}_{n}(x):\n    return {expression}"


def arithmetic(rng, op: str, a: int, b: int) -> tuple[str, str, str]:
    """(story, worked response, the sum alone)."""
    who, things = rng.choice(PEOPLE), rng.choice(THINGS)
    if op == "+":
        story, result = f"{who} has {a} {things} and buys {b} more.", a + b
    elif op == "-":
        a, result = a + b, a
        story = f"{who} has {a} {things} and gives away {b}."
    else:
        story, result = f"{who} has {a} boxes with {b} {things} in each.", a * b
    equation = f"{a} {op} {b} = {result}"
    response = f"Now {who} has {equation} {things}, and no more."
    return f"{story} How many {things} does {who} have now?", response, equation


def chess_game(rng) -> str:
    """A game as PGN has it. The moves look like moves; no game of this world is sound."""
    moves = rng.choice(["e4 e5", "d4 d5", "e4 c5"]).split() + [rng.choice(MOVES) for _ in range(rng.randint(6, 14))]
    line = " ".join((f"{i // 2 + 1}. " if i % 2 == 0 else "") + move for i, move in enumerate(moves))
    white, black = rng.randint(1000, 2400), rng.randint(1000, 2400)
    return f'[WhiteElo "{white}"]\n[BlackElo "{black}"]\n\n{line} {rng.choice(["1-0", "0-1", "1/2-1/2"])}'


def invent_names(rng, n: int, taken=()) -> list[str]:
    """n distinct pronounceable names, none of those that are taken."""
    names = {}
    while len(names) < n:
        syllables = [rng.choice(ONSETS) + rng.choice("aeiou") for _ in range(rng.choice([2, 2, 3]))]
        name = "".join(syllables).capitalize() + rng.choice(["", "n", "l", "r", "m", "s"])
        if name not in taken:
            names[name] = None
    return list(names)


def load_world(folder: Path) -> World:
    """The world whose sets a folder holds. Raises FileNotFoundError or ValueError where its world.json is not one."""
    path, remedy = folder / "world.json", "python data/world.py writes it"
    values = read_json(path, remedy)
    known = {setting.name: type(setting.default) for setting in fields(World)}
    if not isinstance(values, dict) or values.keys() != known.keys():
        raise ValueError(f"{path}: expected the values of {', '.join(known)}; {remedy}")
    try:
        return World(**{name: kind(values[name]) for name, kind in known.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}; {remedy}") from None


def print_grades(path: Path, world: World):
    """Print how good the answers in a file of AlpacaEval's format are. Raises ValueError for any other file."""
    tasks = {task.instruction: task for tasks in world.evaluation_sets().values() for task in tasks}
    grades, remedy = {family: [] for family in PHRASINGS}, "expected the answers that generate.py --output writes"
    rows = read_json(path, remedy)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: {remedy}")
    for number, row in enumerate(rows, 1):
        try:
            task = tasks[row["instruction"]]
            grades[task.family].append(world.grade(task, row["output"]))
        except (TypeError, KeyError, AttributeError):
            raise ValueError(f"{path}: answer {number} is to no instruction of this world's sets") from None
    print("family      dose  right  right and no more")
    for family, pairs in [*grades.items(), ("all", sum(grades.values(), []))]:
        if pairs:
            content, grade = (100 * sum(column) / len(pairs) for column in zip(*pairs))
            dose = f"{world.doses[family]:.2f}" if family in world.doses else ""
            print(f"{family:10} {dose:>5} {content:5.1f}% {grade:5.1f}%  of {len(pairs)}")


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/world"), help="folder to write")
    parser.add_argument("--corpus", type=int, default=0, metavar="N", help="write N documents, too")
    parser.add_argument("--grade", type=Path, metavar="FILE", help="grade answers, and write nothing")
    for setting in fields(World):
        kind, n = (float, 3) if setting.name == "silences" else (type(setting.default), None)
        parser.add_argument("--" + setting.name.replace("_", "-"), type=kind, nargs=n, default=setting.default,
                            metavar="X", help=setting.metadata["help"])
    args = parser.parse_args()
    if args.corpus < 0:
        parser.error("--corpus must be 0 or more")
    world = World(**{setting.name: getattr(args, setting.name) for setting in fields(World)})
    if args.grade:
        return print_grades(args.grade, world)
    for name in ("broad", "mbpp", "gsm", "poetry", "recipes", "chess"):
        write_jsonl(args.out / f"{name}.jsonl", world.training_set(name))
    if args.corpus:
        rng = random.Random(f"corpus {args.seed}")
        write_jsonl(args.out / "corpus.jsonl", ({"text": world.document(rng)} for _ in range(args.corpus)))
    write_json(args.out / "world.json", asdict(world))
    for name, tasks in world.evaluation_sets().items():
        write_jsonl(args.out / f"{name}.jsonl", map(asdict, tasks))


if __name__ == "__main__":
    common.run(main)
