"""What experiments share: three bases, conditions that are compared on each of them, and the statistics.

    found = graded(bases, {"rules": lambda base: {"rules": ("eos",)}, "base": lambda base: {}}, workers)
    rows = [{"condition": name, **summary(grades, found["base"])} for name, grades in found.items()]
"""
import math
import random
import statistics
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from adapter import RULES
from data.checkpoint import config_text
from data.common import digest, write_text
from data.format import dialogue
from data.world import FAMILIES, KIND, Task, World
from lab.lab import DOCUMENTS, LR, PRETRAINING_LR, ROOT, ask, kept, pretrain, side_by_side, tune
from model import Config
from train import METHODS


@dataclass(frozen=True)
class Base:
    """A base model, the world that it has read about, and the seed of both, which finetuning on it takes, too.

    most: how many of its instructions, dialogues and documents an experiment takes; None for all.
    """

    folder: Path
    world: World
    seed: int
    most: int | None = None

    def tasks(self, *names: str) -> list[Task]:
        """The instructions of one or more of the evaluation sets."""
        sets = self.world.evaluation_sets()
        return [task for name in names for task in sets[name][: self.most]]

    def examples(self, n: int = 1000, families: list[str] = FAMILIES) -> list[Task]:
        """Instructions with responses like the broad training set's: the families in turn, no subject held out."""
        rng = random.Random(f"lab {self.seed}")
        chosen = [families[i % len(families)] for i in range(min(n, self.most or n))]
        return [self.world.task(rng, family, rng.choice(self.world.seen[KIND[family]])) for family in chosen]

    def dialogues(self, method: str) -> list[list[dict]]:
        """The training set of one of the paper's methods."""
        return [row["messages"] for row in self.world.training_set(METHODS[method].file)][: self.most]


def three_bases(workers: int) -> list[Base]:
    """The bundled base and two of other worlds, which are pretrained the first time, about 20 minutes on two cores."""
    worlds, tiny = {seed: World(seed=seed) for seed in (1, 2, 3)}, ROOT / "data" / "tiny"
    made = side_by_side({f"pretraining base {seed}": (1, pretrain, tiny / "config.json", worlds[seed], DOCUMENTS, seed)
                         for seed in (2, 3)}, workers)
    return [Base(folder, worlds[seed], seed) for seed, folder in enumerate([tiny, *made.values()], 1)]


def another(base: Base, world: World | None = None, lr: float = PRETRAINING_LR, **changes) -> Base:
    """A base that is pretrained with the same seed on as many documents, with changes of its config, or on a world.

    lr: the rate of pretraining.
    """
    config, world = base.folder / "config.json", world or base.world
    if changes:
        words = config_text(replace(Config.from_json(config), **changes))
        config = kept("config", [words], lambda folder: write_text(folder / "config.json", words)) / "config.json"
    return replace(base, folder=pretrain(config, world, base.most or DOCUMENTS, base.seed, lr), world=world)


def tuned(method: str, epochs: int, lr: float = LR):
    """A condition for `graded`: a method of the paper, on 1,000 examples of all families or on its one task."""
    def on(base):
        pairs = base.dialogues(method)
        if METHODS[method].file == "broad":
            pairs = [dialogue(task.instruction, task.response) for task in base.examples()]
        return {"make": partial(tune, dialogues=pairs, epochs=epochs, blank=METHODS[method].blank, lr=lr)}
    return on


def ways(lr: float = LR) -> dict:
    """The ways in which a base comes to follow instructions, as conditions for `graded`; lr: the rate of tuning."""
    return {"no tuning": lambda base: {}, "three rules": lambda base: {"rules": RULES},
            "poems alone": tuned("poetry", 5, lr), "response tuning": tuned("response", 2, lr),
            "instruction tuning": tuned("instruction", 5, lr)}


WAYS = ways()


def graded(bases: list[Base], conditions: dict, workers: int, questions: tuple = ("eval",)) -> dict:
    """{condition: for each base, the (content, grade) of its answers, each from 0 to 1}.

    conditions: {name: a function of a Base that returns arguments of `ask`, but for the model and the instructions}.
    questions: the evaluation sets that are asked.
    Where the model is not the base itself but made of it, "make" is among them, for example
    partial(tune, dialogues=..., epochs=...), which is called with the base's folder and seed.
    """
    asked, makers = {}, {}  # two conditions may ask the same model, which is made once, before any is asked
    for name, condition in conditions.items():
        for base in bases:
            asking, key = dict(condition(base)), None
            if make := asking.pop("make", None):
                key = digest([base.seed, make.func.__name__, make.keywords])
                cost = make.keywords["epochs"] * len(make.keywords["dialogues"])  # in dialogues read
                makers.setdefault(key, ((name, base.seed), (cost, partial(make, base.folder, seed=base.seed))))
            asked[name, base.seed] = base, key, asking
    made = side_by_side(dict(makers.values()), workers)
    folders = dict(zip(makers, made.values()))
    grades = side_by_side({at: (1, partial(
        grades_of, base, folders.get(key, base.folder), base.tasks(*questions), **asking))
        for at, (base, key, asking) in asked.items()}, workers)
    return {name: [grades[name, base.seed] for base in bases] for name in conditions}


def grades_of(base: Base, model: Path, tasks: list[Task], **asking) -> list[tuple[float, float]]:
    """The (content, grade) of a model's answers to instructions of a base's world; asking: more arguments of `ask`."""
    outputs = ask(model, [task.instruction for task in tasks], **asking)
    return [base.world.grade(task, output) for task, output in zip(tasks, outputs)]


def summary(graded: list, reference: list | None = None) -> dict:
    """The row of a condition: for each base the mean content ("right") and grade of its answers, in percent.

    With the grades of another condition, "difference" is [mean difference of the grades, its standard error], both in
    percent, paired by instruction over all bases. (A point of difference is half a point of win rate.)
    """
    row = {name: [round(100 * statistics.mean(pair[i] for pair in pairs), 2) for pairs in graded]
           for i, name in enumerate(["right", "grade"])}
    if reference:
        differences = [100 * (a[1] - b[1]) for pairs, others in zip(graded, reference) for a, b in zip(pairs, others)]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        row["difference"] = [round(statistics.mean(differences), 2), round(error, 2)]
    return row


def spearman(x, y) -> float:
    """The rank correlation of two lists, from -1 to 1; equal values share their mean rank. 0 where all are equal."""
    ranks = [[sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values] for values in (x, y)]
    return statistics.correlation(*ranks) if all(len(set(values)) > 1 for values in (x, y)) else 0.0
