"""What must pretraining have memorised? (Open question 18.)

Held-out subjects are told about 2 to 500 times, in one and the same corpus, and every fact in the words of the answers
alone ("The capital of X is Y."), in other words alone ("People meet in Y, the capital of X."), or in all its wordings.
A page on which somebody answers has the words of the answers, but asks about seen subjects, those that are not held
out. Each of the three corpora trains three bases; then they are asked about seven facts of 20 held-out and of 20 seen
subjects.

Expected: a threshold: nothing is right that was told 2 or 8 times, nearly all that was told 125 times. Told in the
words of the answer it lies at fewer tellings. Told in other words alone it is not reached with 500, for the facts whose
telling ends with the subject: repetition does not take the place of another wording. Response tuning has the threshold
of instruction tuning: both bring out what is there. Seen subjects, which pages answer at times, are right in any
corpus.
Held against: Physics of Language Models 3.1 (Allen-Zhu & Li, 2023): no extraction without paraphrases, at any number of
repeats; the reversal curse (Berglund et al., 2023).
"""
import random
import statistics
from dataclasses import asdict, dataclass
from itertools import accumulate

from data.world import KIND, TOLD, World
from lab.conditions import WAYS, another, grades_of
from lab.lab import side_by_side
from lab.svg import BLUE, GREEN, ORANGE, Panel, plot

FACTS = ["capital", "river", "animal", "flag", "dish", "trade", "nature"]
REPEATS = (1 / 64, 1 / 16, 1 / 4, 1, 4)  # of the held-out subjects in turn, relative to others
TIMES = 125  # that a fact is told of a subject with a weight of 1, in 80,000 documents
SEEN = 16 * TIMES  # where the charts put subjects that are not held out, and that pages ask about
COLORS = {"as answered": BLUE, "otherwise": ORANGE, "in all ways": GREEN}  # the wordings of a corpus
TUNINGS = ["response tuning", "instruction tuning"]


@dataclass
class Told(World):
    """A world that tells of its held-out subjects more or less often, and each fact in some of its wordings."""

    wording: str = "in all ways"

    def __post_init__(self):
        super().__post_init__()
        for kind, subjects in self.subjects.items():
            n = len(self.seen[kind])
            weights = [1 if i < n else REPEATS[(i - n) % len(REPEATS)] for i in range(len(subjects))]
            self.told[kind] = list(accumulate(weights))

    def say(self, rng, subject, families) -> list[str]:
        if self.wording == "in all ways":
            return super().say(rng, subject, families)
        which = 0 if self.wording == "as answered" else -1  # of those that name the subject
        ways = [[way for way in TOLD[family] if "{}" in way][which] for family in families]
        return [way.format(subject, **self.about(subject)) for way in ways]


def told(base, wording: str):
    """The base of a corpus with these wordings."""
    return another(base, Told(**asdict(base.world), wording=wording))


def rights(base, way: str) -> dict[str, list[float]]:
    """{how often a subject was told: the content of the answers about such subjects}; "seen" for those not held out."""
    rng, world = random.Random(f"seen {base.seed}"), base.world
    held_out = [task for task in base.tasks("eval") if task.family in FACTS]
    seen = [world.task(rng, task.family, rng.choice(world.seen[KIND[task.family]])) for task in held_out]
    model = WAYS[way](base)["make"](base.folder, seed=base.seed)
    found = {"seen": [pair[0] for pair in grades_of(base, model, seen)]}
    for task, (right, _) in zip(held_out, grades_of(base, model, held_out)):
        subjects = world.held_out[KIND[task.family]]
        times = TIMES * REPEATS[subjects.index(task.subject) % len(REPEATS)]
        found.setdefault(f"{times:.0f}", []).append(right)
    return found


def run(bases, workers) -> list[dict]:
    made = side_by_side({(f"pretraining, told {wording}", base.seed): (1, told, base, wording)
                         for wording in COLORS for base in bases}, workers)
    found = side_by_side({(wording, way, base.seed): (
        2 + 3 * (way == "instruction tuning"), rights, made[f"pretraining, told {wording}", base.seed], way)
        for wording in COLORS for way in TUNINGS for base in bases}, workers)
    rows, levels = [], [f"{TIMES * repeats:.0f}" for repeats in REPEATS] + ["seen"]
    for wording in COLORS:
        for way in TUNINGS:
            for level in levels:
                values = [found[wording, way, base.seed].get(level, [0.0]) for base in bases]
                rows.append({"told": wording, "way": way, "times": level, "questions": sum(map(len, values)),
                             "right": [round(100 * statistics.mean(some), 2) for some in values]})
    return rows


def draw(rows) -> str:
    return plot("Right answers about a subject against how often its facts were told, %", [
        Panel(way, [(f"told {wording}", color, [
            (SEEN if row["times"] == "seen" else float(row["times"]), row["right"]) for row in rows
            if (row["way"], row["told"]) == (way, wording)]) for wording, color in COLORS.items()],
              "times told; seen: asked about, too", log=True,
              x_marks={TIMES * repeats: f"{TIMES * repeats:.0f}" for repeats in REPEATS} | {SEEN: "seen"})
        for way in TUNINGS])
