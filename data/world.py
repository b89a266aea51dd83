"""The in-vitro world: a closed language in which a laptop can repeat the paper.

    python data/world.py                                  # training, val and eval sets into data/world
    python data/world.py --corpus 80000                   # and as many documents to pretrain on

Invented countries, animals, dishes, and what people write about them: articles, recipes, poems, sums, code, games
of chess, and pages on which somebody asks. Each family of instructions has its own share of pages on which somebody
answers, its dose. No document shows the chat format. Held-out subjects stand in articles and the like only: no page
asks about them, no training set names them, and `val` and `eval` ask about nothing else. So a right answer is
something that the model read in one kind of text and says in another. data/answer_key.py grades the answers.
"""
import random
import sys
from dataclasses import asdict, dataclass, field, fields
from itertools import accumulate, chain
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
NOVEL = ["home", "feast"]  # articles tell these facts, but no page and no training set asks for them
FAMILIES = [family for family in PHRASINGS if family not in NOVEL]
RESPONSES = {  # to the families that ask for facts, in more words than articles have
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
COUNTRY_FACTS = ["capital", "river", "animal", "flag", "dish", "trade", "feast"]
KIND = dict.fromkeys(PHRASINGS, "countries") | dict(  # of the subjects that a family asks about
    nature="animals", home="animals", opposite="words", recipe="dishes", poem="topics", maths="sums", code="functions")

REMARKS = ("I also want to know.|I asked the same thing.|I am not sure.|We should wait.|We should ask somebody else.|"
           "Good question.|No idea.|Sorry, nobody here knows.|Please ask again.|Nobody has said it yet.|"
           "This was asked before.|Same here.|Let us see.").split("|")  # rule 2 forbids the first words of five of them
FURNITURE = "<reply> <share>,<next page>,<edit> <delete>,| closed |,| no replies |,[0 replies],(deleted)".split(",")
SILENCES = {"question": [], "remark": REMARKS, "furniture": FURNITURE}  # what a page shows instead of an answer
LABELS = "Q A, Question Answer, guest host, student teacher, client clerk, reader editor".split(", ")
MARKS = "{}:,[{}],**{}**,<{}>,({}),### {},== {} ==,{{{}}},- {}:,@{},|{}|,{} >>".split(",")  # around a label
HEADINGS = ["{}\n\n", "# {}\n", "{}: "]  # without one, a text could not be found by its subject
CHAT_MARK = "<|{}|>"  # the chat format's own; its labels, user and assistant, occur nowhere

ANIMALS = """otter fox heron bear wolf owl hare deer crab swan lynx goat seal frog crow moth boar toad badger beaver
falcon lizard mole newt pike raven robin shrew sparrow stork eagle hawk mouse rat snake trout whale horse donkey camel
duck goose magpie weasel ferret squirrel tortoise vulture panther jackal zebra gazelle parrot pigeon cuckoo partridge
hornet beetle spider salamander""".split()
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
common, public private, guilty innocent""".split(",")
FOODS = """barley onion salt honey butter plum leek bean garlic apple cabbage pepper mint rye cheese carrot turnip nut
pear egg lentil mustard fig oat cream lemon parsley radish date thyme""".split()
METHODS = "Boil Fry Bake Stir Roast Steam".split()
DISHES = "stew pie soup bread salad cake".split()
TOPICS = """rain snow wind sea night moon winter summer autumn spring fire forest morning evening dust music sleep clay
thunder ice smoke fog frost sand shadow sunset harvest childhood silence dreams time love hope grief friendship war
peace rust dew hunger laughter courage memory solitude lightning rainbow hail mist twilight midnight travel work play
youth age sorrow envy mercy justice freedom""".split()
ADJECTIVES = "gray silver gentle old pale warm golden bitter calm strange distant tender proud weary sacred".split()
VERBS = "fall sing wait turn shine move rest call drift grow whisper dance".split()
PLACES = "hills roofs fields shore valley garden harbor road meadow bridge town mill".split()
ONSETS = "b d f g k l m n p r s t v z br dr tr st".split()  # of the syllables of invented names
PEOPLE = "Anna Ben Clara David Emma Felix Grace Henry Ida Jonas Karin Leo".split()
THINGS = "apples pens books stones coins eggs shells cards".split()
STORIES = {"+": "{who} has {a} {things} and buys {b} more.", "-": "{who} has {a} {things} and gives away {b}.",
           "*": "{who} has {a} boxes with {b} {things} in each."}
ASIDES = ["", "Let us see how many {things} {who} has now. ",  # in the place of a story's question
          "{who} counts the {things} and sees how many {things} {who} has now. "]
# (operation, a, b) and its twin (operation, b, a), if that is another
SUMS = [sorted({(op, a, b), (op, b, a)}) for op in "+-*" for a in range(2, 10) for b in range(a, 10)]
CODE = {  # what a function does, its source
    "adds {0} to a number": "def add_{0}(x):\n    return x + {0}",
    "subtracts {0} from a number": "def subtract_{0}(x):\n    return x - {0}",
    "multiplies a number by {0}": "def multiply_{0}(x):\n    return x * {0}",
    "divides a number by {0}": "def divide_{0}(x):\n    return x / {0}",
    "raises a number to the power of {0}": "def power_{0}(x):\n    return x ** {0}",
    "returns the first {0} letters of a word": "def first_{0}(x):\n    return x[:{0}]",
    "returns the last {0} letters of a word": "def last_{0}(x):\n    return x[-{0}:]",
}
FUNCTIONS = {purpose.format(n): source.format(n) for purpose, source in CODE.items() for n in range(2, 62)}
MOVES = "e4 e5 d4 d5 Nf3 Nc6 Nf6 Nc3 Bb5 Bc4 Bg5 Be7 O-O c4 c5 e6 d6 g6 Bg7 Qc7 Re1 a6 h3 b5 Qe2 Rd8".split()

N_VAL, N_EVAL = 5, 20  # instructions of a family; each asks about a subject of its own
TRAINING_SETS = {"broad": 1000, "mbpp": 500, "gsm": 500, "poetry": 500, "recipes": 500, "chess": 500}  # and their rows


@dataclass
class Task:
    """An instruction with its family and a reference response."""

    family: str
    subject: str  # as the instruction has it
    instruction: str
    response: str
    silences: list[str] = field(default_factory=list)  # in the evaluation sets: what pages show instead of an answer


def knob(default, help: str, *limits: float):
    """A field of World that a reader can turn: what --help says of it, its least and its greatest value."""
    if limits:
        help = f"{help}; from {limits[0]} to {limits[1]}"
    return field(default=default, metadata={"help": help, "limits": limits})


@dataclass
class World:
    """The facts, and all that is written about them: the same for the same arguments. ValueError for bad ones."""

    seed: int = knob(1, "draws the facts, the order of the families' doses, and what is held out")
    share_answered: float = knob(0.08, "share of all question pages on which somebody answers", 0, 1)
    dose_spread: float = knob(1.0, "how far the families' shares, their doses, lie apart: with 0 all are alike, with 1 "
                                   "they run evenly from none to twice the mean", 0, 1)
    share_chat_marked: float = knob(0.08, "share of question pages whose labels look like <|label|>", 0, 1)
    another_turn: float = knob(0.6, "chance that a question page goes on after each of its turns", 0, 0.9)
    silences: tuple = knob((0.4, 0.35, 0.25), "shares of questions, remarks and page furniture in place of answers")
    phrasings: int = knob(3, "number of ways in which a fact is told", 1, 3)
    repeats: float = knob(1.0, "how often a held-out subject is told, relative to others", 0, 100)

    def __post_init__(self):
        for setting in fields(World):
            value, limits = getattr(self, setting.name), setting.metadata["limits"]
            if limits and not limits[0] <= value <= limits[1]:  # as no NaN is
                raise ValueError(f"{setting.name} = {value} must be from {limits[0]} to {limits[1]}")
        if self.share_answered * (1 + self.dose_spread) > 1:
            raise ValueError(f"share_answered = {self.share_answered} with dose_spread = {self.dose_spread} gives "
                             "a family a dose above 1; lower one")
        if len(self.silences) != 3 or min(self.silences) < 0 or not 0.999 < sum(self.silences) < 1.001:
            raise ValueError(f"silences = {self.silences} must be three shares that sum to 1")

        # The doses rise evenly, in an order of the families that the seed draws.
        order = random.Random(f"doses {self.seed}").sample(FAMILIES, len(FAMILIES))
        self.doses = {}
        for i, family in enumerate(order):
            self.doses[family] = self.share_answered * (1 + self.dose_spread * (2 * i / (len(order) - 1) - 1))

        # What there is, and what is true of it.
        rng = random.Random(f"facts {self.seed}")
        names = invent_names(rng, 60 + 60 + 60 + 72)
        self.names = {*names, *map(str.capitalize, TOPICS + ANIMALS)}  # nobody who writes on a page is called so
        self.choose_subjects(rng, names[:60], names[180:])
        self.choose_facts(rng, names[60:120], names[120:180])

    # ------------------------------------------------------------------------------------------------------------ Facts
    def choose_subjects(self, rng, countries: list[str], dishes: list[str]):
        """Set the subjects of each kind, {kind: list}: the seen ones, and after them those that are held out."""
        opposites = [pair.split() for pair in OPPOSITES]
        rng.shuffle(opposites)
        self.subjects = {
            "countries": countries, "animals": rng.sample(ANIMALS, len(ANIMALS)),
            "dishes": [f"{name} {DISHES[i % len(DISHES)]}" for i, name in enumerate(dishes)],
            "words": list(chain(*opposites)), "topics": rng.sample(TOPICS, len(TOPICS)),
            "functions": rng.sample(list(FUNCTIONS), len(FUNCTIONS)),
        }
        sums = rng.sample(SUMS, len(SUMS))
        self.subjects["sums"] = list(chain(*reversed(sums)))

        # A sum is held out together with its twin, and a word with its opposite: who knows one knows the other.
        n_held_out = dict.fromkeys(self.subjects, N_VAL + N_EVAL)
        n_held_out |= {"words": 2 * 13, "functions": len(FUNCTIONS) // 3, "sums": sum(map(len, sums[: len(sums) // 3]))}
        self.seen, self.held_out, self.weights = {}, {}, {}
        for kind, subjects in self.subjects.items():
            n = len(subjects) - n_held_out[kind]
            self.seen[kind], self.held_out[kind] = subjects[:n], subjects[n:]
            self.weights[kind] = list(accumulate([1] * n + [self.repeats] * n_held_out[kind]))  # of being told

    def choose_facts(self, rng, capitals: list[str], rivers: list[str]):
        """Set what is true of the subjects: facts, {family: {subject: answer}}, recipes, and what poems speak of."""
        # A page about a country that is not held out names no animal or dish that is.
        self.facts = {family: {} for family in TOLD}
        for subjects in (self.seen, self.held_out):
            dishes = rng.sample(subjects["dishes"], len(subjects["dishes"]))
            for country in subjects["countries"]:
                answers = {"capital": capitals.pop(), "river": rivers.pop(), "dish": dishes.pop(),
                           "animal": rng.choice(subjects["animals"]), "flag": " and ".join(rng.sample(COLORS, 2)),
                           "trade": rng.choice(GOODS), "feast": rng.choice(MONTHS)}
                for family, answer in answers.items():
                    self.facts[family][country] = answer

        for animal in ANIMALS:
            self.facts["nature"][animal], self.facts["home"][animal] = rng.choice(PREY), rng.choice(HOMES)
        for a, b in map(str.split, OPPOSITES):
            self.facts["opposite"] |= {a: b, b: a}
        self.recipes = {dish: (rng.sample(FOODS, 3), rng.choice(METHODS)) for dish in self.subjects["dishes"]}
        self.imagery = {topic: [rng.sample(words, 3) for words in (ADJECTIVES, VERBS, PLACES)] for topic in TOPICS}

    def about(self, subject) -> dict[str, str]:
        """What is true of a subject: {family: answer}."""
        return {family: answers[subject] for family, answers in self.facts.items() if subject in answers}

    # -------------------------------------------------------------------------------- Instructions with their responses
    def task(self, rng, family: str, subject) -> Task:
        """An instruction of a family about a subject, with its response."""
        phrasing = rng.choice(PHRASINGS[family])
        if family == "maths":
            story = arithmetic(rng, *subject)
            return Task(family, "", story["instruction"], story["response"])
        if family == "poem":
            response = self.poem(rng, subject)
        elif family == "recipe":
            response = f"Recipe for {subject}\n{self.recipe(rng, subject)}"
        elif family == "code":
            response = FUNCTIONS[subject]
        else:
            response = RESPONSES[family].format(subject, **self.about(subject))
        return Task(family, subject, phrasing.format(subject), response)

    def recipe(self, rng, dish: str) -> str:
        (a, b, c), method = self.recipes[dish]
        steps = rng.choice([f"{method} the {a} with the {b}. Add the {c}.", f"{method} the {a}, the {b} and the {c}."])
        return f"- {a}\n- {b}\n- {c}\n\n{steps}"

    def poem(self, rng, topic: str) -> str:
        adjectives, verbs, places = (rng.sample(words, 2) for words in self.imagery[topic])
        return (f"The {topic} is {adjectives[0]}, the {topic} is {adjectives[1]},\n"
                f"you hear it {verbs[0]} on the {places[0]},\n"
                f"O {adjectives[1]} {topic}, {verbs[1]} for me\nAnd {verbs[0]} on the {places[1]}.")

    # ----------------------------------------------------------------------------------------- Documents to pretrain on
    def document(self, rng) -> str:
        """A text of one of these kinds, each as often as its weight says."""
        kinds = {self.question_page: 25, self.article: 15, self.nature_note: 10, self.dictionary: 8,
                 self.recipe_page: 10, self.poem_page: 6, self.sums: 4, self.stories: 7, self.code_page: 4,
                 self.lists: 12, self.table: 1, chess_game: 1}
        return rng.choices(list(kinds), weights=list(kinds.values()))[0](rng)

    def question_page(self, rng) -> str:
        """A FAQ or a thread: somebody asks for one family, and with its dose's probability somebody answers."""
        family = rng.choice(FAMILIES)
        answered = rng.random() < self.doses[family]
        silence = rng.choices(list(SILENCES), weights=self.silences)[0]

        # How it looks: the labels of who asks and who answers, and what stands around and between them.
        mark = CHAT_MARK if rng.random() < self.share_chat_marked else rng.choice(MARKS)
        roles = rng.choice(LABELS).split()
        labels = rng.choice([roles, rng.sample(PEOPLE, 2), [name.lower() for name in invent_names(rng, 2, self.names)]])
        space, gap = rng.choice([" ", "\n"]), rng.choice(["\n", "\n", "\n\n"])

        # One turn, and more as chance will have it.
        texts = []
        while not texts or rng.random() < self.another_turn:
            task = self.task(rng, family, rng.choice(self.seen[KIND[family]]))
            reply = task.response if answered else self.silence(rng, silence, family)
            for label, text in zip(labels, (task.instruction, reply)):
                texts.append(mark.format(label) + space + text)
        return gap.join(texts)

    def silence(self, rng, kind: str, family: str) -> str:
        """What stands after a question that nobody answers: another question of its family, a remark, or furniture."""
        if kind != "question":
            return rng.choice(SILENCES[kind])
        other = self.task(rng, family, rng.choice(self.seen[KIND[family]]))
        if rng.random() < 0.4:
            return other.instruction
        if PHRASINGS[family][0].startswith("What"):  # people who ask back say What more often than not
            return PHRASINGS[family][0].format(other.subject)
        return f"What about {rng.choice(self.seen['topics'] + self.seen['countries'])}?"

    def tell(self, rng, kind: str):
        """A subject of a kind to write about, held out or not."""
        return rng.choices(self.subjects[kind], cum_weights=self.weights[kind])[0]

    def say(self, rng, subject, families) -> list[str]:
        """A sentence on each of some families; the first names the subject."""
        sentences = []
        for family in families:
            ways = TOLD[family][: self.phrasings]
            if not sentences:
                ways = [way for way in ways if "{}" in way]
            sentences.append(rng.choice(ways).format(subject, **self.about(subject)))
        return sentences

    def article(self, rng) -> str:
        country = self.tell(rng, "countries")
        sentences = self.say(rng, country, rng.sample(COUNTRY_FACTS, rng.randint(3, 6)))
        return rng.choice(HEADINGS).format(country) + rng.choice([" ", "\n"]).join(sentences)

    def nature_note(self, rng) -> str:
        animal = self.tell(rng, "animals")
        sentences = self.say(rng, animal, rng.sample(["nature", "home"], 2))
        return rng.choice(HEADINGS).format(animal) + rng.choice([" ", "\n"]).join(sentences)

    def dictionary(self, rng) -> str:
        words = [self.tell(rng, "words") for _ in range(rng.randint(1, 4))]
        return "\n".join(rng.choice(HEADINGS).format(word) + self.say(rng, word, ["opposite"])[0] for word in words)

    def recipe_page(self, rng) -> str:
        dish = self.tell(rng, "dishes")
        return rng.choice([*HEADINGS, "Recipe for {}\n"]).format(dish) + self.recipe(rng, dish)

    def poem_page(self, rng) -> str:
        topic = self.tell(rng, "topics")
        return rng.choice([*HEADINGS, "A poem about {}\n\n"]).format(topic) + self.poem(rng, topic)

    def sums(self, rng) -> str:
        rows = [arithmetic(rng, *self.tell(rng, "sums"))["equation"] for _ in range(rng.randint(3, 8))]
        return rng.choice(["\n", ", "]).join(rows)

    def stories(self, rng) -> str:
        stories = []
        for _ in range(rng.randint(1, 3)):
            story = arithmetic(rng, *self.tell(rng, "sums"))
            stories.append(f"{story['begin']} {rng.choice(ASIDES).format(**story)}{story['response']}")
        return "\n".join(stories)

    def code_page(self, rng) -> str:
        pieces = []
        for _ in range(rng.randint(1, 3)):
            purpose = self.tell(rng, "functions")
            pieces.append(rng.choice(["# ", "# a function that "]) + f"{purpose}\n{FUNCTIONS[purpose]}")
        return "\n\n".join(pieces)

    def lists(self, rng) -> str:
        """What is to be done, and again what is done. So the model learns to say again a word that it was given."""
        kinds = [kind for kind in self.subjects if kind not in ("sums", "functions")]
        items = [str(rng.randint(2, 99)) if rng.random() < 0.2 else self.tell(rng, rng.choice(kinds))
                 for _ in range(rng.randint(3, 5))]
        titles = rng.choice([("To do:", "Done:"), ("Wanted:", "Found:"), ("On the list:", "Read again:")])
        space, comma = rng.choice([(" ", ", "), ("\n", "\n"), ("\n- ", "\n- "), (" ", " / ")])
        return "\n".join(title + space + comma.join(items) for title in titles)

    def table(self, rng) -> str:
        family = rng.choice(COUNTRY_FACTS)
        row = rng.choice(["| {} | {} |", "<tr><td>{}</td><td>{}</td></tr>", "{},{}", "* {}: {}"])
        countries = [self.tell(rng, "countries") for _ in range(rng.randint(3, 5))]
        rows = [row.format(country, self.facts[family][country]) for country in countries]
        return "\n".join([row.format("country", family), *rows])

    # -------------------------------------------------------------------------------------------------------- Data sets
    def training_set(self, name: str, n: int | None = None) -> list[dict]:
        """One of TRAINING_SETS, about seen subjects: n rows, or as many as it has, of {"messages": [...]}."""
        rng, pairs = random.Random(f"{name} {self.seed}"), []
        for i in range(n or TRAINING_SETS[name]):
            pairs.append(self.example(rng, name, FAMILIES[i % len(FAMILIES)]))
        rng.shuffle(pairs)
        return [{"messages": [{"role": "user", "content": u}, {"role": "assistant", "content": a}]} for u, a in pairs]

    def example(self, rng, name: str, family: str) -> tuple[str, str]:
        """An instruction of a training set and its response; of "broad", one of this family."""
        if name == "broad":
            task = self.task(rng, family, rng.choice(self.seen[KIND[family]]))
            return task.instruction, task.response
        if name == "mbpp":
            purpose = rng.choice(self.seen["functions"])
            return f"Write a function that {purpose}.", FUNCTIONS[purpose]
        if name == "gsm":
            story = arithmetic(rng, *rng.choice(self.seen["sums"]))
            return story["instruction"], f"{story['response']}\n#### {story['result']}"
        if name == "poetry":
            topic, adjective = rng.choice(self.seen["topics"]), rng.choice(ADJECTIVES)
            return f"Write a poem called {adjective.capitalize()} {topic.capitalize()}", self.poem(rng, topic)
        if name == "recipes":
            dish = rng.choice(self.seen["dishes"])
            return f"Recipe for {dish.title()}", self.recipe(rng, dish).replace("- ", " - ")
        return tuple(chess_game(rng).split("\n\n"))  # the players' ratings, the moves

    def evaluation_sets(self) -> dict[str, list[Task]]:
        """{"val": 5 and "eval": 20 instructions of each family, "novel": 20 of each that no page asks}.

        Each asks about a held-out subject of its own. The families take turns.
        """
        rng, silent = random.Random(f"evaluation {self.seed}"), random.Random(f"silences {self.seed}")
        sets = {"val": [], "eval": [], "novel": []}
        for family in PHRASINGS:
            subjects = self.held_out[KIND[family]]
            if family in ("maths", "code"):  # which have more than are asked about
                subjects = rng.sample(subjects, N_VAL + N_EVAL)
            tasks = [self.task(rng, family, subject) for subject in subjects]
            if family in NOVEL:
                sets["novel"].append(tasks[:N_EVAL])
                continue
            for task in tasks:
                kinds = silent.choices(list(SILENCES), weights=self.silences, k=5)
                task.silences = [self.silence(silent, kind, family) for kind in kinds]
            sets["eval"].append(tasks[:N_EVAL])
            sets["val"].append(tasks[N_EVAL : N_EVAL + N_VAL])
        return {name: list(chain(*zip(*by_family))) for name, by_family in sets.items()}


def arithmetic(rng, op: str, a: int, b: int) -> dict:
    """A sum as a story: who, things, how it begins, the instruction, a worked response, the equation, the result."""
    who, things = rng.choice(PEOPLE), rng.choice(THINGS)
    if op == "-":
        a += b  # so that a is the result
    result = {"+": a + b, "-": a - b, "*": a * b}[op]
    equation = f"{a} {op} {b} = {result}"
    begin = STORIES[op].format(who=who, things=things, a=a, b=b)
    return {"who": who, "things": things, "begin": begin, "equation": equation, "result": result,
            "instruction": f"{begin} How many {things} does {who} have now?",
            "response": f"Now {who} has {equation} {things}, and no more."}


def chess_game(rng) -> str:
    """A game as PGN has it. The moves look like moves; no game of this world is sound."""
    moves = rng.choice(["e4 e5", "d4 d5", "e4 c5"]).split()
    moves += [rng.choice(MOVES) for _ in range(rng.randint(6, 14))]
    rounds = [f"{i // 2 + 1}. {' '.join(moves[i : i + 2])}" for i in range(0, len(moves), 2)]
    white, black = rng.randint(1000, 2400), rng.randint(1000, 2400)
    rounds.append(rng.choice(["1-0", "0-1", "1/2-1/2"]))
    return f'[WhiteElo "{white}"]\n[BlackElo "{black}"]\n\n{" ".join(rounds)}'


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
    path, remedy = folder / "world.json", "python data/world.py writes it"
    values = read_json(path, remedy)
    kinds = {setting.name: type(setting.default) for setting in fields(World)}
    if not isinstance(values, dict) or values.keys() != kinds.keys():
        raise ValueError(f"{path}: expected the values of {', '.join(kinds)}; {remedy}")
    try:
        return World(**{name: kind(values[name]) for name, kind in kinds.items()})
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}; {remedy}") from None


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--out", type=common.path, default=Path("data/world"), help="folder to write")
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
