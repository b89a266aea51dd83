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
from dataclasses import asdict, dataclass
from itertools import accumulate

from data.world import KIND, TOLD, World
from lab.conditions import FACTS, WAYS, another, grades_of, made_by, on_each, percent
from lab.svg import BLUE, GREEN, ORANGE, Panel, plot, points

REPEATS = (1 / 64, 1 / 16, 1 / 4, 1, 4)  # of the held-out subjects in turn, relative to others
TIMES = 125  # that a fact is told of a subject with a weight of 1, in 80,000 documents
LEVELS = {f"{TIMES * repeats:.0f}": TIMES * repeats for repeats in REPEATS}  # words: how often a fact is told
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
        sentences = []
        for family in families:
            ways = [way for way in TOLD[family] if "{}" in way]  # those that name the subject
            way = ways[0] if self.wording == "as answered" else ways[-1]
            sentences.append(way.format(subject, **self.about(subject)))
        return sentences


def told(base, wording: str):
    """The base of a corpus with these wordings."""
    return another(base, Told(**asdict(base.world), wording=wording))


def rights(base, wording: str, way: str) -> dict[str, list[float]]:
    """{how often a subject was told: the content of the answers about such subjects}; "seen" for those not held out."""
    base = told(base, wording)
    rng, world, model = random.Random(f"seen {base.seed}"), base.world, made_by(base, WAYS[way])
    held_out = [task for task in base.tasks("eval") if task.family in FACTS]
    seen = [world.task(rng, task.family, rng.choice(world.seen[KIND[task.family]])) for task in held_out]
    found = {level: [] for level in LEVELS} | {"seen": [right for right, _ in grades_of(base, model, seen)]}
    for task, (right, _) in zip(held_out, grades_of(base, model, held_out)):
        i = world.held_out[KIND[task.family]].index(task.subject)
        found[list(LEVELS)[i % len(REPEATS)]].append(right)
    return found


def run(bases, workers) -> list[dict]:
    on_each(bases, {f"pretraining, told {wording}": (1, told, wording) for wording in COLORS}, workers)  # it is kept
    found = on_each(bases, {(wording, way): (2 + 3 * (way == "instruction tuning"), rights, wording, way)
                            for wording in COLORS for way in TUNINGS}, workers)
    rows = []
    for (wording, way), of_bases in found.items():
        for level in (*LEVELS, "seen"):
            values = [contents[level] or [0.0] for contents in of_bases]
            rows.append({"told": wording, "way": way, "times": level, "questions": sum(map(len, values)),
                         "right": [percent(contents) for contents in values]})
    return rows


def draw(rows) -> str:
    marks, panels = {times: level for level, times in LEVELS.items()} | {SEEN: "seen"}, []
    for way in TUNINGS:
        groups = []
        for wording, color in COLORS.items():
            curve = points(rows, "times", "right", way=way, told=wording)
            groups.append((f"told {wording}", color, [(SEEN if level == "seen" else float(level), right)
                                                           for level, right in curve]))
        panels.append(Panel(way, groups, "times told; seen: asked about, too", log=True, x_marks=marks))
    return plot("Right answers about a subject against how often its facts were told, %", panels)
