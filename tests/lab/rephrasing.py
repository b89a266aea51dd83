"""Does it need responses that restate the instruction? (Appendix C.)

Responses as they are ("The capital of Povor is Lobrim, and most of its roads lead there."), without the words that
repeat the instruction ("It is Lobrim, and most ..."), and bare ("Lobrim."), with instructions kept and blanked.

Expected: with instructions kept, hardly a difference. Under response tuning a response that restates its instruction
shows what such an instruction may have been; without that it still shows the form. The paper found no change; but a
model this small finds a fact by the words that stand before it in articles ("The capital of Povor is"), so I expect a
loss here, more for bare answers than for "It is".
Held against: 43.3 with and 43.3 ± 5.3 without restatement (OLMo-7B: 43.7).
"""
import re
from functools import partial

from data.format import dialogue
from lab.conditions import graded, summary
from lab.lab import tune
from lab.svg import BLUE, GREY, bars

FACTS = ["capital", "river", "animal", "flag", "dish", "trade"]


def without_restating(base, task) -> str:
    if task.family == "recipe":
        return task.response.split("\n", 1)[1]
    if task.family == "country":
        return task.response.replace(f"The capital of {task.subject}", "Its capital")
    return re.sub(r"^The .*? (is|eats) ", r"It \1 ", task.response) if task.family in FACTS + [
        "nature", "opposite"] else task.response


def bare(base, task) -> str:
    known = base.world.about(task.subject)
    if task.family == "country":
        return ", ".join(known[family] for family in ("capital", "river", "animal", "trade")) + "."
    if task.family == "maths":
        return re.findall(r"\d+", task.response)[-1] + "."
    return known[task.family] + "." if task.family in known else without_restating(base, task)


FORMS = {"as they are": lambda base, task: task.response, "without restating": without_restating, "bare": bare}


def condition(form: str, blank: bool):
    def on(base):
        pairs = [dialogue(task.instruction, FORMS[form](base, task)) for task in base.examples()]
        return {"make": partial(tune, dialogues=pairs, epochs=2 if blank else 5, blank=blank)}
    return on


def run(bases, workers) -> list[dict]:
    pairs = [(blank, form) for blank in (True, False) for form in FORMS]
    found = graded(bases, {(form, blank): condition(form, blank) for blank, form in pairs}, workers)
    return [{"responses": form, "instructions": "blanked" if blank else "kept",
             **summary(found[form, blank], found["as they are", blank])} for blank, form in pairs]


def draw(rows) -> str:
    grades = {(row["responses"], row["instructions"]): row["grade"] for row in rows}
    return bars("Responses that restate the instruction, and those that do not: mean grade, %",
                [("instructions blanked: response tuning", BLUE), ("instructions kept: instruction tuning", GREY)],
                [(form, [grades[form, "blanked"], grades[form, "kept"]]) for form in FORMS])
