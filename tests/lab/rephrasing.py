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
from lab.conditions import FACTS, graded, summary, trained_on
from lab.svg import BLUE, GREY, bars, grouped


def without_restating(base, task) -> str:
    if task.family == "recipe":
        return task.response.split("\n", 1)[1]
    if task.family == "country":
        return task.response.replace(f"The capital of {task.subject}", "Its capital")
    if task.family in [*FACTS, "opposite"]:
        return re.sub(r"^The .*? (is|eats) ", r"It \1 ", task.response)
    return task.response


def bare(base, task) -> str:
    known = base.world.about(task.subject)
    if task.family == "country":
        return ", ".join(known[family] for family in ("capital", "river", "animal", "trade")) + "."
    if task.family == "maths":
        return re.findall(r"\d+", task.response)[-1] + "."
    return known[task.family] + "." if task.family in known else without_restating(base, task)


FORMS = {"as they are": lambda base, task: task.response, "without restating": without_restating, "bare": bare}


def condition(base, form: str, blank: bool) -> dict:
    return trained_on([dialogue(task.instruction, FORMS[form](base, task)) for task in base.examples()], blank)


def run(bases, workers) -> list[dict]:
    found = graded(bases, {(form, blank): partial(condition, form=form, blank=blank)
                           for blank in (True, False) for form in FORMS}, workers)
    return [{"responses": form, "instructions": "blanked" if blank else "kept",
             **summary(grades, found["as they are", blank])} for (form, blank), grades in found.items()]


def draw(rows) -> str:
    return bars("Responses that restate the instruction, and those that do not: mean grade, %",
                [("instructions blanked: response tuning", BLUE), ("instructions kept: instruction tuning", GREY)],
                grouped(rows, "responses"))
