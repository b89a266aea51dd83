"""Does the format carry it? (The paper's Table 3: tags <|A|> and <|B|> in place of <|user|> and <|assistant|>.)

Response tuning in each of five formats, asked in each of the five.

Expected: every model answers best in the format that it was trained in, and there A/B is as good as user/assistant,
since no document has either. In another format than its own a model answers less, the more so the more that format
looks like the pages on which nobody answers: least in a page's own. Without tags the instruction stands like a
document's first line; I expect it to be the worst of the five on the diagonal, and still far above the base.
Held against: 43.3 to 41.8 points of win rate.
"""
from functools import partial

from data.format import PROMPT, dialogue
from lab.conditions import graded, summary
from lab.lab import tune
from lab.svg import heat

FORMATS = {
    "user/assistant": PROMPT,
    "A/B": "<|A|>\n{instruction}\n<|B|>\n",
    "a page's": "guest:\n{instruction}\nhost:\n",
    "nonsense": "vrel;\n{instruction}\ntupo;\n",
    "none": "{instruction}\n",
}


def condition(trained: str | None, asked: str):
    def on(base):
        pairs = [dialogue(task.instruction, task.response) for task in base.examples()]
        make = partial(tune, dialogues=pairs, epochs=2, blank=True, prompt=FORMATS[trained or asked])
        return {"prompt": FORMATS[asked]} | ({"make": make} if trained else {})
    return on


def run(bases, workers) -> list[dict]:
    pairs = [(trained, asked) for trained in [None, *FORMATS] for asked in FORMATS]
    found = graded(bases, {pair: condition(*pair) for pair in pairs}, workers)
    own = found["user/assistant", "user/assistant"]
    return [{"trained in": trained or "not trained", "asked in": asked, **summary(found[trained, asked], own)}
            for trained, asked in pairs]


def draw(rows) -> str:
    trained, asked = (list(dict.fromkeys(row[name] for row in rows)) for name in ("trained in", "asked in"))
    cells = {(row["trained in"], row["asked in"]): sum(row["grade"]) / len(row["grade"]) for row in rows}
    return heat("Response tuning in one format, asked in another: mean grade, %", trained, asked,
                [[cells[a, b] for b in asked] for a in trained], "trained in", "asked in")
