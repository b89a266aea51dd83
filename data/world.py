"""The in-vitro world: a closed language in which a laptop can repeat the paper.

    python data/world.py                      # training, val and eval sets into data/world
    python data/world.py --corpus 80000       # and as many documents to pretrain on

Invented countries, animals, dishes, and what people write about them: articles, recipes, poems, sums, code, games
of chess, and pages on which somebody asks. Each family of instruction has its own share of pages on which somebody
answers, its dose. No document shows the chat format. Only articles and the like tell of held-out subjects: no page
asks about them, no training set names them, and `val` and `eval` ask about nothing else. So a right answer is
something that the model read in one kind of text and says in another. Whether it is right, data/answer_key.py says.
"""
import math
import random
import sys
from dataclasses import asdict, dataclass, field, fields
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import common
from data.common import read_json, write_json, write_jsonl

# What people write. "{}" or {0} stands for a text's subject, {capital} and the like for what is known of it.

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
    "maths": "{question}",
    "code": "Write a Python function that {}.|Give me Python code that {}.|Show me a function in Python that {}.",
    "home": "Where does the {} live?|In what place does the {} live?|Say where the {} lives.",
    "feast": "When do people in {} celebrate?|In which month do people in {} celebrate?|Say when {} celebrates.",
}
RECIPE = "- {a}\n- {b}\n- {c}\n\n{steps}"
RESPONSES = {  # longer than articles tell the same facts, as answers are
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
    "recipe": "Recipe for {}\n" + RECIPE,
    "poem": "The {0} is {adjective}, the {0} is {other},\nyou hear it {verb} on the {place},\n"
            "O {other} {0}, {plea} for me\nAnd {verb} on the {end}.",
    "maths": "{response}", "code": "{code}",
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
PHRASINGS = {family: text.split("|") for family, text in PHRASINGS.items()}
TOLD = {family: text.split("|") for family, text in TOLD.items()}
NOVEL = ["home", "feast"]  # asked by no page and in no training set, although articles tell the facts
FAMILIES = [family for family in PHRASINGS if family not in NOVEL]
OF_COUNTRIES = ["capital", "river", "animal", "flag", "dish", "trade", "feast"]  # what articles tell
KIND = dict.fromkeys(PHRASINGS, "countries") | {  # of the subjects that a family asks about
    "nature": "animals", "home": "animals", "opposite": "words", "recipe": "dishes", "poem": "topics", "maths": "sums",
    "code": "functions"}
STEPS = ["{method} the {a} with the {b}. Add the {c}.", "{method} the {a}, the {b} and the {c}."]
STORIES = {"+": "{who} has {a} {things} and buys {b} more.", "-": "{who} has {a} {things} and gives away {b}.",
           "*": "{who} has {a} boxes with {b} {things} in each."}
TOLD_SUMS = ["{story} {response}", "{story} Let us see how many {things} {who} has now. {response}",
             "{story} {who} counts the {things} and sees how many {things} {who} has now. {response}"]
CODE = {  # operation: what the function does, the expression it returns
    "add": ("adds {} to a number", "x + {}"), "subtract": ("subtracts {} from a number", "x - {}"),
    "multiply": ("multiplies a number by {}", "x * {}"), "divide": ("divides a number by {}", "x / {}"),
    "power": ("raises a number to the power of {}", "x ** {}"),
    "first": ("returns the first {} letters of a word", "x[:{}]"),
    "last": ("returns the last {} letters of a word", "x[-{}:]")}

# What pages look like on which somebody asks.

REMARKS = [  # made instead of an answer; five begin with words of rule 2, eight do not
    "I also want to know.", "I asked the same thing.", "I am not sure.", "We should wait.",
    "We should ask somebody else.", "Good question.", "No idea.", "Sorry, nobody here knows.", "Please ask again.",
    "Nobody has said it yet.", "This was asked before.", "Same here.", "Let us see."]
FURNITURE = ["<reply> <share>", "<next page>", "<edit> <delete>", "| closed |", "| no replies |", "[0 replies]",
             "(deleted)"]
LABELS = "Q A, Question Answer, guest host, student teacher, client clerk, reader editor".split(", ")
MARKS = [("", ":"), ("[", "]"), ("**", "**"), ("<", ">"), ("(", ")"), ("### ", ""), ("== ", " =="), ("{", "}"),
         ("- ", ":"), ("@", ""), ("|", "|"), ("", " >>")]  # before and after the label of a turn
CHAT_MARK = ("<|", "|>")  # the chat format's own; its labels, user and assistant, occur nowhere

# The words of the language.

ANIMALS = """otter fox heron bear wolf owl hare deer crab swan lynx goat seal frog crow moth boar toad badger beaver
falcon lizard mole newt pike raven robin shrew sparrow stork eagle hawk mouse rat snake trout whale horse donkey camel
duck goose magpie weasel ferret squirrel tortoise vulture panther jackal zebra gazelle parrot pigeon cuckoo partridge
hornet beetle spider salamander""".split()
FOODS = """barley onion salt honey butter plum leek bean garlic apple cabbage pepper mint rye cheese carrot turnip nut
pear egg lentil mustard fig oat cream lemon parsley radish date thyme""".split()
PREY = "fish insects seeds grass roots berries eggs worms leaves snails".split()
HOMES = "forests hills caves marshes meadows cliffs lakes fields deserts barns".split()
GOODS = """copper wool glass timber silver silk tea tin amber paper clocks boats carpets pearls coal marble bells ropes
lamps furs""".split()
COLORS = "red green blue white black yellow".split()
MONTHS = "January February March April June July August September October November December".split()
OPPOSITES = """hot cold, big small, fast slow, early late, hard soft, heavy weightless, long short, rich poor, young
elderly, high low, wet dry, loud quiet, full empty, clean dirty, near far, strong weak, thick thin, sweet sour, deep
shallow, bright dark, open shut, awake asleep, brave timid, sharp blunt, wide narrow, tame wild, smooth rough, cheap
costly, kind cruel, true false, simple complex, ripe raw, safe dangerous, happy sad, lazy busy, tight loose, rare
common, public private, guilty innocent"""
OPPOSITES = [pair.split() for pair in OPPOSITES.split(",")]
TOPICS = """rain snow wind sea night moon winter summer autumn spring fire forest morning evening dust music sleep clay
thunder ice smoke fog frost sand shadow sunset harvest childhood silence dreams time love hope grief friendship war
peace rust dew hunger laughter courage memory solitude lightning rainbow hail mist twilight midnight travel work play
youth age sorrow envy mercy justice freedom""".split()
ADJECTIVES = "gray silver gentle old pale warm golden bitter calm strange distant tender proud weary sacred".split()
VERBS = "fall sing wait turn shine move rest call drift grow whisper dance".split()
PLACES = "hills roofs fields shore valley garden harbor road meadow bridge town mill".split()
METHODS = "Boil Fry Bake Stir Roast Steam".split()
DISHES = "stew pie soup bread salad cake".split()
ONSETS = "b d f g k l m n p r s t v z br dr tr st".split()
PEOPLE = "Anna Ben Clara David Emma Felix Grace Henry Ida Jonas Karin Leo".split()
THINGS = "apples pens books stones coins eggs shells cards".split()
MOVES = "e4 e5 d4 d5 Nf3 Nc6 Nf6 Nc3 Bb5 Bc4 Bg5 Be7 O-O c4 c5 e6 d6 g6 Bg7 Qc7 Re1 a6 h3 b5 Qe2 Rd8".split()
FUNCTIONS = {
    what.format(n): f"def {operation}_{n}(x):\n    return {expression.format(n)}"
    for operation, (what, expression) in CODE.items() for n in range(2, 62)}
SUMS = [list(dict.fromkeys([(op, a, b), (op, b, a)])) for op in "+-*" for a in range(2, 10) for b in range(a, 10)]

N_VAL, N_EVAL = 5, 20  # instructions of a family; each asks about a subject of its own
TRAINING_SETS = {"broad": 1000, "mbpp": 500, "gsm": 500, "poetry": 500, "recipes": 500, "chess": 500}  # dialogues
NARROW = {  # of which family a training set is, in which words it asks and answers
    "mbpp": ("code", "Write a function that {}.", "{code}"),
    "gsm": ("maths", "{question}", "{response}\n#### {result}"),
    "poetry": ("poem", "Write a poem called {title}", RESPONSES["poem"]),
    "recipes": ("recipe", "Recipe for {title}", RECIPE.replace("- ", " - "))}


@dataclass
class Task:
    """An instruction of a family, with a reference response."""

    family: str
    subject: str  # as the instruction has it
    instruction: str
    response: str
    silences: list[str] = field(default_factory=list)  # what pages show instead of an answer; in evaluation sets only


def knob(default, text: str, low: float = 0, high: float = 1):
    """A field of World that a reader can turn, with what --help says of it, and its range."""
    return field(default=default, metadata={"help": text, "range": (low, high)})


@dataclass
class World:
    """The facts, and everything that is written about them. The same arguments make the same world.

    Raises ValueError if one of them is out of its range.
    """

    seed: int = knob(1, "draws the facts, the order of the families' doses, and what is held out", 0, math.inf)
    share_answered: float = knob(0.08, "share of question pages, over all families, on which somebody answers")
    dose_spread: float = knob(1.0, "how far families' own shares spread: 1 is from 0 to twice as much, 0 not at all")
    share_chat_marked: float = knob(0.08, "share of question pages with labels in the chat format's marks: <|guest|>")
    another_turn: float = knob(0.6, "chance that a question page goes on after each of its turns", 0, 0.9)
    silences: tuple[float, float, float] = knob((0.4, 0.35, 0.25), "shares of the unanswered pages that show another "
                                                "question, a remark, and page furniture instead of each answer")
    phrasings: int = knob(3, "in how many different sentences, from 1 to 3, a fact is told", 1, 3)
    repeats: float = knob(1.0, "how often held-out subjects are told of, for each time that another one is", 0, 100)

    def __post_init__(self):
        self.check()
        rng = random.Random(f"facts {self.seed}")
        names = invent_names(rng, 252)  # of 60 countries, 60 capitals and 60 rivers; the rest are of dishes
        self.names = {*names, *map(str.capitalize, TOPICS + ANIMALS)}  # which nobody who asks on a page has
        self.choose_subjects(rng, countries=names[:60], dishes=names[180:])
        self.invent_facts(rng, capitals=names[60:120], rivers=names[120:180])

        # The doses are evenly spaced; the seed says which family has which.
        families = random.Random(f"doses {self.seed}").sample(FAMILIES, len(FAMILIES))
        steps = len(families) - 1
        self.doses = {family: self.share_answered * (1 + self.dose_spread * (2 * i / steps - 1))
                      for i, family in enumerate(families)}

    def check(self):
        for setting in fields(World):
            low, high = setting.metadata["range"]
            value = getattr(self, setting.name)
            for number in value if setting.name == "silences" else [value]:
                if not low <= number <= high:  # NaN is not, either
                    raise ValueError(f"{setting.name} = {number} must be from {low} to {high}")
        if self.share_answered * (1 + self.dose_spread) > 1:
            raise ValueError(f"share_answered = {self.share_answered} with dose_spread = {self.dose_spread} gives "
                             "a family a dose above 1; lower one")
        if len(self.silences) != 3 or not 0.999 < sum(self.silences) < 1.001:
            raise ValueError(f"silences = {self.silences} must be three shares that sum to 1")

    # What there is, and what is true of it

    def choose_subjects(self, rng, countries: list[str], dishes: list[str]):
        """.subjects of each kind; of these, .seen stand in questions, too, and .held_out do not; .told: see `tell`."""
        pairs = OPPOSITES[:]
        rng.shuffle(pairs)
        self.subjects = {
            "countries": countries,
            "animals": rng.sample(ANIMALS, len(ANIMALS)),
            "dishes": [f"{name} {DISHES[i % len(DISHES)]}" for i, name in enumerate(dishes)],
            "words": [word for pair in pairs for word in pair],
            "topics": rng.sample(TOPICS, len(TOPICS)),
            "functions": rng.sample(list(FUNCTIONS), len(FUNCTIONS)),
        }
        sums = rng.sample(SUMS, len(SUMS))[::-1]
        self.subjects["sums"] = [each for twins in sums for each in twins]

        # The last are held out: as many as val and eval ask about, or a third. Words go with their opposites, and
        # a + b goes with b + a.
        n_sums = sum(map(len, sums[-len(SUMS) // 3 :]))
        n_held_out = dict.fromkeys(self.subjects, N_VAL + N_EVAL)
        n_held_out |= {"words": 26, "functions": len(FUNCTIONS) // 3, "sums": n_sums}
        self.seen = {kind: subjects[: -n_held_out[kind]] for kind, subjects in self.subjects.items()}
        self.held_out = {kind: subjects[-n_held_out[kind] :] for kind, subjects in self.subjects.items()}
        self.told = {}
        for kind, n in n_held_out.items():
            self.told[kind] = list(accumulate([1] * len(self.seen[kind]) + [self.repeats] * n))

    def invent_facts(self, rng, capitals: list[str], rivers: list[str]):
        """.facts by family and subject, .recipes by dish, and .topics: the words for a poem on each."""
        self.facts = {family: {} for family in TOLD}
        for group in (self.seen, self.held_out):
            # A page about a country that is not held out names no animal or dish that is.
            dishes = rng.sample(group["dishes"], len(group["dishes"]))
            for country in group["countries"]:
                self.facts["capital"][country] = capitals.pop()
                self.facts["river"][country] = rivers.pop()
                self.facts["dish"][country] = dishes.pop()
                self.facts["animal"][country] = rng.choice(group["animals"])
                self.facts["flag"][country] = " and ".join(rng.sample(COLORS, 2))
                self.facts["trade"][country] = rng.choice(GOODS)
                self.facts["feast"][country] = rng.choice(MONTHS)
        for animal in ANIMALS:
            self.facts["nature"][animal] = rng.choice(PREY)
            self.facts["home"][animal] = rng.choice(HOMES)
        for word, opposite in OPPOSITES:
            self.facts["opposite"][word] = opposite
            self.facts["opposite"][opposite] = word
        self.recipes = {dish: (rng.sample(FOODS, 3), rng.choice(METHODS)) for dish in self.subjects["dishes"]}
        self.topics = {}
        for topic in TOPICS:
            self.topics[topic] = [rng.sample(words, 3) for words in (ADJECTIVES, VERBS, PLACES)]

    def about(self, subject) -> dict[str, str]:
        """What is known of a subject, by family."""
        return {family: answers[subject] for family, answers in self.facts.items() if subject in answers}

    # Instructions with their responses

    def task(self, rng, family: str, subject) -> Task:
        """An instruction of a family about a subject, with its response."""
        phrasing = rng.choice(PHRASINGS[family])
        words = self.words(rng, family, subject)
        name = "" if family == "maths" else subject
        return Task(family, name, phrasing.format(name, **words), RESPONSES[family].format(name, **words))

    def asked(self, rng, family: str) -> Task:
        """A task of a family about any subject that is not held out."""
        return self.task(rng, family, rng.choice(self.seen[KIND[family]]))

    def words(self, rng, family: str, subject) -> dict[str, str]:
        """What is to stand for the words in braces in a family's texts about a subject."""
        if family == "maths":
            return arithmetic(rng, *subject)
        if family == "code":
            return {"code": FUNCTIONS[subject]}
        if family == "recipe":
            (a, b, c), method = self.recipes[subject]
            return {"a": a, "b": b, "c": c, "steps": rng.choice(STEPS).format(a=a, b=b, c=c, method=method)}
        if family == "poem":
            (adjective, other), (verb, plea), (place, end) = [rng.sample(words, 2) for words in self.topics[subject]]
            return {"adjective": adjective, "other": other, "verb": verb, "plea": plea, "place": place, "end": end}
        return self.about(subject)

    # Documents to pretrain on

    def document(self, rng) -> str:
        weights = {
            self.question_page: 25, self.article: 15, self.nature_note: 10, self.dictionary: 8, self.recipe_page: 10,
            self.poem_page: 6, self.sums: 4, self.stories: 7, self.code_page: 4, self.lists: 12, self.table: 1,
            chess_game: 1}
        [write] = rng.choices(list(weights), weights=weights.values())
        return write(rng)

    def question_page(self, rng) -> str:
        """A FAQ or a thread: somebody asks about one family, and with its dose's probability somebody answers."""
        family = rng.choice(FAMILIES)
        answered = rng.random() < self.doses[family]
        silence = rng.choices(range(3), weights=self.silences)[0]

        # How the page looks: who speaks, in which marks, and what stands between the texts.
        before, after = CHAT_MARK if rng.random() < self.share_chat_marked else rng.choice(MARKS)
        roles = rng.choice(LABELS).split()
        people = rng.sample(PEOPLE, 2)
        labels = rng.choice([roles, people, [name.lower() for name in invent_names(rng, 2, self.names)]])
        space = rng.choice([" ", "\n"])
        gap = rng.choice(["\n", "\n", "\n\n"])

        # At least one turn: somebody asks, and somebody replies.
        texts = []
        while not texts or rng.random() < self.another_turn:
            task = self.asked(rng, family)
            reply = task.response if answered else self.silence(rng, silence, family)
            texts.append(f"{before}{labels[0]}{after}{space}{task.instruction}")
            texts.append(f"{before}{labels[1]}{after}{space}{reply}")
        return gap.join(texts)

    def silence(self, rng, kind: int, family: str) -> str:
        """What stands after a question that nobody answers: another question of its family, a remark, or furniture."""
        if kind > 0:
            return rng.choice(REMARKS if kind == 1 else FURNITURE)
        other = self.asked(rng, family)
        if rng.random() < 0.4:
            return other.instruction
        if PHRASINGS[family][0].startswith("What"):  # people who ask back say What more often than not
            return PHRASINGS[family][0].format(other.subject)
        return f"What about {rng.choice(self.seen['topics'] + self.seen['countries'])}?"

    def tell(self, rng, kind: str):
        """A subject of a kind to write about, held out or not. .told[kind]: how often, as sums up to each of them."""
        return rng.choices(self.subjects[kind], cum_weights=self.told[kind])[0]

    def say(self, rng, subject, families) -> list[str]:
        """A sentence on each of some families; the first names the subject."""
        sentences = []
        for family in families:
            ways = [way for way in TOLD[family][: self.phrasings] if sentences or "{}" in way]
            sentences.append(rng.choice(ways).format(subject, **self.about(subject)))
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
        return heading(rng, dish, "Recipe for {}\n") + RECIPE.format(**self.words(rng, "recipe", dish))

    def poem_page(self, rng) -> str:
        topic = self.tell(rng, "topics")
        title = heading(rng, topic, "A poem about {}\n\n")
        return title + RESPONSES["poem"].format(topic, **self.words(rng, "poem", topic))

    def sums(self, rng) -> str:
        rows = [arithmetic(rng, *self.tell(rng, "sums"))["equation"] for _ in range(rng.randint(3, 8))]
        return rng.choice(["\n", ", "]).join(rows)

    def stories(self, rng) -> str:
        stories = []
        for _ in range(rng.randint(1, 3)):
            words = arithmetic(rng, *self.tell(rng, "sums"))
            stories.append(rng.choice(TOLD_SUMS).format(**words))
        return "\n".join(stories)

    def code_page(self, rng) -> str:
        pieces = []
        for _ in range(rng.randint(1, 3)):
            what = self.tell(rng, "functions")
            pieces.append(rng.choice(["# {}\n{}", "# a function that {}\n{}"]).format(what, FUNCTIONS[what]))
        return "\n\n".join(pieces)

    def lists(self, rng) -> str:
        """What is to be done, and again what is done. So the model learns to say again a word that it was given."""
        kinds = ["countries", "animals", "dishes", "words", "topics"]
        things = [str(rng.randint(2, 99)) if rng.random() < 0.2 else self.tell(rng, rng.choice(kinds))
                  for _ in range(rng.randint(3, 5))]
        once, again = rng.choice([("To do:", "Done:"), ("Wanted:", "Found:"), ("On the list:", "Read again:")])
        space, comma = rng.choice([(" ", ", "), ("\n", "\n"), ("\n- ", "\n- "), (" ", " / ")])
        return f"{once}{space}{comma.join(things)}\n{again}{space}{comma.join(things)}"

    def table(self, rng) -> str:
        family = rng.choice(OF_COUNTRIES)
        row = rng.choice(["| {} | {} |", "<tr><td>{}</td><td>{}</td></tr>", "{},{}", "* {}: {}"])
        rows = [row.format("country", family)]
        for _ in range(rng.randint(3, 5)):
            country = self.tell(rng, "countries")
            rows.append(row.format(country, self.facts[family][country]))
        return "\n".join(rows)

    # Data sets

    def training_set(self, name: str, n: int | None = None) -> list[dict]:
        """One of the paper's training sets, on subjects that are not held out: n rows of {"messages": [...]}.

        n: if it is not given, 1,000 for "broad" and 500 for a narrow task. (The paper's have 1,030, and 374 to 1,000.)
        """
        rng = random.Random(f"{name} {self.seed}")
        pairs = [self.example(rng, name, i) for i in range(n or TRAINING_SETS[name])]
        rng.shuffle(pairs)
        return [{"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
                for asked, answer in pairs]

    def example(self, rng, name: str, i: int) -> tuple[str, str]:
        """The i-th (instruction, response) of a training set."""
        if name == "broad":
            task = self.asked(rng, FAMILIES[i % len(FAMILIES)])
            return task.instruction, task.response
        if name == "chess":
            return tuple(chess_game(rng).split("\n\n"))  # the players' strength, the moves
        family, instruction, response = NARROW[name]
        subject = rng.choice(self.seen[KIND[family]])
        title = ""
        if family == "recipe":
            title = subject.title()
        if family == "poem":
            title = f"{rng.choice(ADJECTIVES)} {subject}".title()
        words = self.words(rng, family, subject)
        return instruction.format(subject, title=title, **words), response.format(subject, **words)

    def evaluation_sets(self) -> dict[str, list[Task]]:
        """{"val": 5 and "eval": 20 instructions of each family, "novel": 20 of each that no page asks}.

        Each asks about a held-out subject of its own.
        """
        rng = random.Random(f"evaluation {self.seed}")
        silent = random.Random(f"silences {self.seed}")
        sets = {"val": [], "eval": [], "novel": []}  # lists of tasks, family by family
        for family in PHRASINGS:
            subjects = self.held_out[KIND[family]]
            if family in ("maths", "code"):  # which have more than are asked about
                subjects = rng.sample(subjects, N_VAL + N_EVAL)
            tasks = [self.task(rng, family, subject) for subject in subjects]
            sets["novel" if family in NOVEL else "eval"].append(tasks[:N_EVAL])
            if family in FAMILIES:
                sets["val"].append(tasks[N_EVAL : N_EVAL + N_VAL])
                for task in tasks:
                    kinds = silent.choices(range(3), weights=self.silences, k=5)
                    task.silences = [self.silence(silent, kind, family) for kind in kinds]

        # One of each family, then again one of each: so the first few of a set show all families.
        return {name: [task for row in zip(*columns) for task in row] for name, columns in sets.items()}


def heading(rng, subject: str, *other: str) -> str:
    """What stands over a text about a subject: without a heading a text could not be found by its subject."""
    return rng.choice(["{}\n\n", "# {}\n", "{}: ", *other]).format(subject)


def arithmetic(rng, op: str, a: int, b: int) -> dict:
    """The words of a sum's texts. Differences are turned round, (a + b) - b = a, so that no result is below 0."""
    who = rng.choice(PEOPLE)
    things = rng.choice(THINGS)
    first, result = {"+": (a, a + b), "-": (a + b, a), "*": (a, a * b)}[op]
    texts = {"who": who, "things": things, "equation": f"{first} {op} {b} = {result}", "result": result}
    texts["story"] = STORIES[op].format(a=first, b=b, **texts)
    texts["question"] = "{story} How many {things} does {who} have now?".format(**texts)
    texts["response"] = "Now {who} has {equation} {things}, and no more.".format(**texts)
    return texts


def chess_game(rng) -> str:
    """A game as PGN has it. The moves look like moves; no game of this world is sound."""
    moves = rng.choice(["e4 e5", "d4 d5", "e4 c5"]).split()
    moves += [rng.choice(MOVES) for _ in range(rng.randint(6, 14))]
    moves[::2] = [f"{i}. {move}" for i, move in enumerate(moves[::2], 1)]
    white = rng.randint(1000, 2400)
    black = rng.randint(1000, 2400)
    return f'[WhiteElo "{white}"]\n[BlackElo "{black}"]\n\n{" ".join(moves)} {rng.choice(["1-0", "0-1", "1/2-1/2"])}'


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
    """The world whose sets a folder holds. Raises FileNotFoundError or ValueError if its world.json is not one."""
    path = folder / "world.json"
    remedy = "python data/world.py writes it"
    values = read_json(path, remedy)
    known = {setting.name: type(setting.default) for setting in fields(World)}
    if not isinstance(values, dict) or values.keys() != known.keys():
        raise ValueError(f"{path}: expected the values of {', '.join(known)}; {remedy}")
    try:
        return World(**{name: kind(values[name]) for name, kind in known.items()})
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}; {remedy}") from None


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/world"), help="folder to write")
    parser.add_argument("--corpus", type=common.positive(int), metavar="N", help="write N documents, too")
    for setting in fields(World):
        kind, n = (float, 3) if setting.name == "silences" else (type(setting.default), None)
        parser.add_argument("--" + setting.name.replace("_", "-"), type=kind, nargs=n, default=setting.default,
                            metavar="X", help=setting.metadata["help"])
    args = parser.parse_args()
    world = World(**{setting.name: getattr(args, setting.name) for setting in fields(World)})

    for name in TRAINING_SETS:
        write_jsonl(args.out / f"{name}.jsonl", world.training_set(name))
    if args.corpus:
        rng = random.Random(f"corpus {args.seed}")
        write_jsonl(args.out / "corpus.jsonl", ({"text": world.document(rng)} for _ in range(args.corpus)))
    write_json(args.out / "world.json", asdict(world))
    for name, tasks in world.evaluation_sets().items():
        write_jsonl(args.out / f"{name}.jsonl", map(asdict, tasks))


if __name__ == "__main__":
    common.run(main)
