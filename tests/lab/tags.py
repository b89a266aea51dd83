"""Does the format carry it? (The paper's Table 3: tags <|A|> and <|B|> in place of <|user|> and <|assistant|>.)

Response tuning in each of five formats, asked in each of the five.

Expected: every model answers best in the format that it was trained in, and there A/B is as good as user/assistant,
since no document has either. In another format than its own a model answers less, the more so the more that format
looks like the pages on which nobody answers: least in a page's own. Without tags the instruction stands like a
document's first line; I expect it to be the worst of the five on the diagonal, and still far above the base.
Held against: 43.3 to 41.8 points of win rate.
"""
from functools import partial

from data.format import PROMPT
from lab.conditions import graded, summary, trained_on
from lab.svg import grouped, heat

FORMATS = {
    "user/assistant": PROMPT,
    "A/B": "<|A|>\n{instruction}\n<|B|>\n",
    "a page's": "guest:\n{instruction}\nhost:\n",
    "nonsense": "vrel;\n{instruction}\ntupo;\n",
    "none": "{instruction}\n",
}
UNTRAINED = "not trained"


def condition(base, trained: str, asked: str) -> dict:
    if trained == UNTRAINED:
        return {"prompt": FORMATS[asked]}
    return {"prompt": FORMATS[asked]} | trained_on(base.pairs(), blank=True, prompt=FORMATS[trained])


def run(bases, workers) -> list[dict]:
    conditions = {(trained, asked): partial(condition, trained=trained, asked=asked)
                  for trained in [UNTRAINED, *FORMATS] for asked in FORMATS}
    found = graded(bases, conditions, workers)
    own = found["user/assistant", "user/assistant"]
    return [{"trained in": trained, "asked in": asked, **summary(grades, own)}
            for (trained, asked), grades in found.items()]


def draw(rows) -> str:
    trained, grades = zip(*grouped(rows, "trained in"))
    means = [[sum(grade) / len(grade) for grade in of_formats] for of_formats in grades]
    return heat("Response tuning in one format, asked in another: mean grade, %", trained,
                list(dict.fromkeys(row["asked in"] for row in rows)), means, "trained in", "asked in")
