"""Does it hold for other architectures? (Open question 15.)

Llama's blocks, OLMo's (norms without weights, clipped queries, keys and values) and Mistral's (a token sees the last 32
alone, while an instruction with its answer has about 45), pretrained alike on three worlds; then every way of following
on each.

Expected: every way works with all blocks, within 10 points of Llama's, since nothing in the argument for it looks into
a block. Mistral's loses a little everywhere: the end of an answer sees its instruction only through what earlier tokens
pass on. The hand-written rules differ most, because their numbers meet logits of another scale.
Held against: response tuning wins 43.3 (Llama-2-7B) and 43.7 (OLMo-7B); single tasks differ by up to 7 points.
"""
from functools import partial

from lab.conditions import WAYS, another, graded, on_each, summary
from lab.svg import BLUE, GREEN, ORANGE, bars, grouped

BLOCKS = {"OLMo": {"model_type": "olmo", "clip_qkv": 8.0}, "Mistral": {"model_type": "mistral", "sliding_window": 32}}
COLORS = {"Llama": BLUE, "OLMo": ORANGE, "Mistral": GREEN}


def run(bases, workers) -> list[dict]:
    made = on_each(bases, {("pretraining", blocks): (1, partial(another, **changes))
                           for blocks, changes in BLOCKS.items()}, workers)
    found = {"Llama": graded(bases, WAYS, workers)}
    for (_, blocks), others in made.items():
        found[blocks] = graded(others, WAYS, workers)
    return [{"blocks": blocks, "way": way, **summary(grades, found["Llama"][way])}
            for blocks, ways in found.items() for way, grades in ways.items()]


def draw(rows) -> str:
    shown = dict.fromkeys(row["blocks"] for row in rows)
    return bars("Mean grade with each kind of blocks, %", [(f"{blocks}'s", COLORS[blocks]) for blocks in shown],
                grouped(rows, "way"))
