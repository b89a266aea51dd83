"""What experiments share: three bases, conditions that are compared on each of them, and the statistics.

    found = graded(bases, {"rules": lambda base: {"rules": ("eos",)}, "base": lambda base: {}}, workers)
    rows = [{"condition": name, **summary(grades, found["base"])} for name, grades in found.items()]
"""
import math
import random
import statistics
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from adapter import RULES
from data.checkpoint import config_text
from data.common import digest, write_text
from data.format import dialogue
from data.world import FAMILIES, KIND, Task, World
from lab.lab import (
    DOCUMENTS, LR, PRETRAINING_LR, ROOT, ask, grade_all, identity, kept, kept_value, pretrain, side_by_side, tune)
from model import Config
from train import METHODS

EPOCHS = {True: 2, False: 5}  # of tuning with instructions blanked, and with instructions
FACTS = ["capital", "river", "animal", "flag", "dish", "trade", "nature"]  # families that ask for one fact


@dataclass(frozen=True)
class Base:
    """A base model, the world that it has read about, and the seed of both, which finetuning on it takes, too.

    limit: how many of its instructions, dialogues and documents an experiment takes; None for all.
    """

    folder: Path
    world: World
    seed: int
    limit: int | None = None

    def tasks(self, *names: str) -> list[Task]:
        """The instructions of one or more of the evaluation sets."""
        return [task for name in names for task in self.sets[name][: self.limit]]

    @cached_property
    def sets(self) -> dict[str, list[Task]]:
        return self.world.evaluation_sets()

    def examples(self, n: int = 1000, families: list[str] = FAMILIES) -> list[Task]:
        """Instructions with responses like the broad training set's: the families in turn, no subject held out."""
        rng = random.Random(f"lab {self.seed}")
        chosen = [families[i % len(families)] for i in range(min(n, self.limit or n))]
        return [self.world.task(rng, family, rng.choice(self.world.seen[KIND[family]])) for family in chosen]

    def pairs(self, n: int = 1000, families: list[str] = FAMILIES) -> list[list[dict]]:
        """The same as dialogues."""
        return [dialogue(task.instruction, task.response) for task in self.examples(n, families)]

    def dialogues(self, method: str) -> list[list[dict]]:
        """The training set of one of the paper's methods."""
        return [row["messages"] for row in self.world.training_set(METHODS[method].file)][: self.limit]


# ------------------------------------------------------------------------------------------------------ bases
def three_bases(workers: int) -> list[Base]:
    """The bundled base and two of other worlds, which are pretrained the first time, about 20 minutes on two cores."""
    worlds, tiny = {seed: World(seed=seed) for seed in (1, 2, 3)}, ROOT / "data" / "tiny"
    made = side_by_side({f"pretraining base {seed}": (1, pretrain, tiny / "config.json", worlds[seed], DOCUMENTS, seed)
                         for seed in (2, 3)}, workers)
    return [Base(folder, worlds[seed], seed) for seed, folder in enumerate([tiny, *made.values()], 1)]


def with_stages(bases: list[Base], workers: int) -> list[Base]:
    """The bases pretrained here, also the bundled one, since their folders then hold the stages of pretraining."""
    config = bases[0].folder / "config.json"
    made = side_by_side({("pretraining", base.seed): (
        1, pretrain, config, base.world, base.limit or DOCUMENTS, base.seed) for base in bases}, workers)
    return [replace(base, folder=made["pretraining", base.seed]) for base in bases]


def another(base: Base, world: World | None = None, lr: float = PRETRAINING_LR, **changes) -> Base:
    """A base that is pretrained with the same seed on as many documents, with changes of its config, or on a world.

    lr: the rate of pretraining.
    """
    config, world = base.folder / "config.json", world or base.world
    if changes:
        words = config_text(replace(Config.from_json(config), **changes))
        config = kept("config", [words], lambda folder: write_text(folder / "config.json", words)) / "config.json"
    return replace(base, folder=pretrain(config, world, base.limit or DOCUMENTS, base.seed, lr), world=world)


def on_each(bases: list[Base], jobs: dict, workers: int) -> dict:
    """{name: [function(base, *arguments) on each base]}; jobs: {name: (cost, function, *arguments)}."""
    on_bases = {}
    for name, (cost, function, *arguments) in jobs.items():
        for base in bases:
            on_bases[name, base.seed] = (cost, function, base, *arguments)
    found = side_by_side(on_bases, workers)
    return {name: [found[name, base.seed] for base in bases] for name in jobs}


def remembered(base: Base, kind: str, function, *arguments):
    """function(base, *arguments), a JSON value, which is kept: the next time it is read."""
    named = [identity(value) if isinstance(value, Path) else value for value in arguments]
    made_from = [identity(base.folder), base.seed, base.limit, *named]
    return kept_value(kind, made_from, partial(function, base, *arguments))


# ------------------------------------------------------------------------------------------------- conditions
def trained_on(pairs: list, blank: bool = False, epochs: int | None = None, how=tune, **more) -> dict:
    """What a condition returns where a model is tuned on dialogues; how, more: another way than `tune`, or settings."""
    return {"make": partial(how, dialogues=pairs, epochs=epochs or EPOCHS[blank], blank=blank, **more)}


def epochs_of(n_steps: int, pairs: list) -> int:
    """In how many epochs there are so many steps of 64 dialogues, or a few more."""
    return math.ceil(n_steps / math.ceil(len(pairs) / 64))


def tuned(base: Base, method: str, epochs: int, lr: float = LR) -> dict:
    """A condition: a method of the paper, on 1,000 examples of all families or on its one task."""
    pairs = base.pairs() if METHODS[method].file == "broad" else base.dialogues(method)
    return trained_on(pairs, METHODS[method].blank, epochs, lr=lr)


def untrained(base: Base, **asking) -> dict:
    """A condition: the base itself; asking: arguments of `ask`."""
    return asking


def ways(lr: float = LR) -> dict:
    """The ways in which a base comes to follow instructions, as conditions for `graded`; lr: the rate of tuning."""
    return {"no tuning": untrained, "three rules": partial(untrained, rules=RULES),
            "poems alone": partial(tuned, method="poetry", epochs=5, lr=lr),
            "response tuning": partial(tuned, method="response", epochs=2, lr=lr),
            "instruction tuning": partial(tuned, method="instruction", epochs=5, lr=lr)}


WAYS = ways()


def made_by(base: Base, condition, seed: int | None = None) -> Path:
    """The folder of the model that a condition makes of a base. seed: of finetuning, if it is not the base's."""
    return condition(base)["make"](base.folder, seed=seed or base.seed)


def graded(bases: list[Base], conditions: dict, workers: int, questions: tuple = ("eval",)) -> dict:
    """{condition: for each base, the (content, grade) of its answers, each from 0 to 1}.

    conditions: {name: a function of a Base that returns arguments of `ask`, but for the model and the instructions}.
    questions: the evaluation sets that are asked.
    Where the model is not the base itself but made of it, "make" is among them, for example
    partial(tune, dialogues=..., epochs=...), which is called with the base's folder and seed.
    """
    # What is asked of whom. A model that several conditions ask is made once, before any is asked.
    asked, names, makers = {}, {}, {}
    for name, condition in conditions.items():
        for base in bases:
            asking, key = dict(condition(base)), None
            if make := asking.pop("make", None):
                key = digest([base.seed, make.func.__name__, make.keywords])
                cost = make.keywords["epochs"] * len(make.keywords["dialogues"])  # in dialogues read
                names.setdefault(key, (name, base.seed))
                makers.setdefault(names[key], (cost, partial(make, base.folder, seed=base.seed)))
            asked[name, base.seed] = base, key, asking
    made = side_by_side(makers, workers)

    # Its answers.
    jobs = {}
    for name, (base, key, asking) in asked.items():
        model = made[names[key]] if key else base.folder
        jobs[name] = (1, partial(grades_of, base, model, base.tasks(*questions), **asking))
    grades = side_by_side(jobs, workers)
    return {name: [grades[name, base.seed] for base in bases] for name in conditions}


def grades_of(base: Base, model: Path, tasks: list[Task], **asking) -> list[tuple[float, float]]:
    """The (content, grade) of a model's answers to instructions of a base's world; asking: more arguments of `ask`."""
    return grade_all(base.world, tasks, ask(model, [task.instruction for task in tasks], **asking))


# ------------------------------------------------------------------------------------------------- statistics
def only(wanted, graded: list, bases: list[Base], questions: tuple = ("eval",)) -> list:
    """For each base, the pairs among those of `graded` whose task wanted(base, task) accepts."""
    chosen = []
    for pairs, base in zip(graded, bases):
        chosen.append([pair for pair, task in zip(pairs, base.tasks(*questions)) if wanted(base, task)])
    return chosen


def of_families(families, graded: list, bases: list[Base], questions: tuple = ("eval",)) -> list:
    return only(lambda base, task: task.family in families, graded, bases, questions)


def percent(values, digits: int = 2) -> float:
    """The mean of numbers from 0 to 1, in percent."""
    return round(100 * statistics.mean(values), digits)


def summary(graded: list, reference: list | None = None) -> dict:
    """The row of a condition: for each base the mean content ("right") and grade of its answers, in percent.

    With the grades of another condition, "difference" is [mean difference of the grades, its standard error], both in
    percent, paired by instruction over all bases. (A point of difference is half a point of win rate.)
    """
    row = {"right": [], "grade": []}
    for pairs in graded:
        for column, values in zip(row.values(), zip(*pairs)):
            column.append(percent(values))
    if reference:
        differences = []
        for pairs, others in zip(graded, reference):
            differences += [100 * (ours[1] - theirs[1]) for ours, theirs in zip(pairs, others)]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        row["difference"] = [round(statistics.mean(differences), 2), round(error, 2)]
    return row


def spearman(x, y) -> float:
    """The rank correlation of two lists, from -1 to 1; equal values share their mean rank. 0 where all are equal."""
    if len(set(x)) == 1 or len(set(y)) == 1:
        return 0.0
    return statistics.correlation(ranks(x), ranks(y))


def ranks(values) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]
