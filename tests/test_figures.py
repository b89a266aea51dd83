"""tests/lab/figures.py: committed figures are what their results draw, and every figure can be read."""
import random
import re
from xml.etree import ElementTree

import pytest
from conftest import TINY

import paper
from data.format import Tokenizer, dialogue
from data.world import FAMILIES, World
from lab.figures import RESULTS, dialogue_figure, dose_figure, figures, grades_by_dose, table_figure
from lab.svg import WIDTH

RESULTS_DRAWN = figures()


@pytest.fixture(scope="module")
def results():
    """Made-up results of two bases: the grade of an answer is its family's dose."""
    rng, results = random.Random(0), []
    for seed in (1, 2):
        doses, questions = World(seed=seed).doses, FAMILIES * 3
        rows = [{"method": method, "rules": rules, "penalise_prompt": prompt, "words": words, "llama": llama,
                 "win_rates": [50 * rng.random() for _ in range(3)], "grades": [doses[family] for family in questions]}
                for method, rules, prompt, words, llama, _ in paper.ENTRIES]
        results.append({"doses": doses, "questions": questions, "rows": rows})
    return results


def test_committed_figures_are_what_the_committed_results_draw():
    assert {path.name for path in RESULTS.glob("*.svg")} == RESULTS_DRAWN.keys()
    for name, drawn in RESULTS_DRAWN.items():
        assert (RESULTS / name).read_text(encoding="utf-8") == drawn, f"{name}: run python tests/lab/figures.py"


def assert_legible(drawn: str):
    """A figure has a title and an opaque ground, and nothing in it reaches over its edges."""
    figure = ElementTree.fromstring(drawn)
    height = float(figure.attrib["viewBox"].split()[3])
    title, ground, *parts = figure
    assert title.text and ground.attrib | {"fill": "#ffffff"} == ground.attrib
    assert float(ground.attrib["width"]) == WIDTH and float(ground.attrib["height"]) == height
    for part in parts:
        box = part.attrib
        xs = [float(box[name]) for name in ("x", "cx") if name in box]
        ys = [float(box[name]) for name in ("y", "cy") if name in box]
        if "width" in box:
            xs, ys = xs + [xs[0] + float(box["width"])], ys + [ys[0] + float(box["height"])]
        for x, y in re.findall(r"([-\d.]+),([-\d.]+)", box.get("points", "")):
            xs, ys = xs + [float(x)], ys + [float(y)]
        if part.text and "monospace" not in str(box):  # a letter of the system's font is about 7 wide
            room = {"start": WIDTH - xs[0], "end": xs[0], "middle": 2 * min(xs[0], WIDTH - xs[0])}
            assert 6.9 * len(part.text) <= room[box["text-anchor"]], part.text
        assert all(0 <= x <= WIDTH for x in xs) and all(0 <= y <= height for y in ys), box


def test_figures_are_legible(results):
    for drawn in (table_figure(results), table_figure(results[:1]), dose_figure(results), dialogue_figure(TOKENIZER)):
        assert_legible(drawn)


TOKENIZER = Tokenizer(TINY)


def test_the_doses_are_those_of_each_base(results):
    expected = [100 * (a + b) / 2 for a, b in zip(*(sorted(result["doses"].values()) for result in results))]
    assert grades_by_dose(results, "base", "all") == pytest.approx(expected)


def test_the_dialogue_colours_the_response_and_its_eos_alone():
    figure = ElementTree.fromstring(dialogue_figure(TOKENIZER, dialogue("Why <b>?", "So.")))
    parts = list(figure)
    tokens = {color: "".join(word.text for box, word in zip(parts, parts[1:])
                             if box.get("fill") == color and word.get("font-family"))
              for color in ("#E69F00", "#dddddd")}
    assert tokens["#E69F00"] == "So.</s>" * 2
    assert tokens["#dddddd"] == "<s><|user|>↵Why·<b>?↵<|assistant|>↵" + "<s><|user|>↵↵<|assistant|>↵"
