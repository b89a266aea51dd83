"""The figures, as SVG, from the results that stand beside them and from the bundled tokenizer.

    python tests/lab/figures.py     # writes every figure that the files in tests/lab/results allow

A test holds the committed figures to what the committed results draw.
"""
import statistics
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from data.common import read_json, write_text
from data.format import IGNORE, Tokenizer, dialogue, encode
from lab.svg import (
    BLACK, BLUE, GREEN, GREY, ORANGE, PALE, PINK, RED, SKY, WIDTH, Panel, bars, legend, plot, rect, svg, text)

RESULTS = Path(__file__).parent / "results"
QUESTIONS = ["similarity", "tags", "pairing", "rephrasing", "size", "epochs", "rules", "bias", "cross", "greedy",
             "weighting", "ranking", "mixing", "scale", "chess", "predict", "blocks", "refusal", "memory", "novel",
             "inside", "simple"]
DIALOGUE = dialogue("What does the otter eat?", "The otter eats worms, and it looks for them all day.")
PANELS = [  # title, [(method, rules, words, colour)]
    ("No training", [("base", "none", "base model", BLACK), ("base", "all", "all three rules", ORANGE)]),
    ("The rules without one", [("base", "tokens,repeats", "EOS", SKY), ("base", "eos,tokens", "used words", GREEN),
                               ("base", "eos,repeats", "token changes", PINK)]),
    ("All kinds of response", [("instruction", "none", "instruction tuning", GREY),
                               ("response", "none", "response tuning", BLUE)]),
    ("One kind of task", [("mbpp", "none", "code", BLUE), ("gsm", "none", "maths", RED),
                          ("poetry", "none", "poems", PINK), ("recipes", "none", "recipes", GREEN),
                          ("chess", "none", "chess", BLACK)]),
]


def table_figure(results: list[dict]) -> str:
    """The paper's tables as bars: Llama-2-7B beside the mean over the bases of `results`."""
    bases = "one base" if len(results) == 1 else f"mean of {len(results)} bases ± deviation"
    rows = []
    for i, row in enumerate(results[0]["rows"]):
        if not row["penalise_prompt"] and row["llama"] != "50":
            rates = [statistics.mean(result["rows"][i]["win_rates"]) for result in results]
            rows.append((row["words"], [[float(row["llama"].split()[0])], rates]))
    series = [("Llama-2-7B, the paper", GREY), (f"in vitro, {bases}", ORANGE)]
    return bars("Win rate against instruction tuning, %", series, rows, limit=52, mark=50)


def dose_figure(results: list[dict]) -> str:
    """Grade by family against its dose, one small panel for a group of models, over the bases of `results`.

    The bases have the same doses in another order, so point i is the mean over the families of the i-th dose.
    """
    doses = [100 * dose for dose in sorted(results[0]["doses"].values())]
    panels = []
    for title, curves in PANELS:
        groups = [(words, color, list(zip(doses, grades_by_dose(results, method, rules))))
                  for method, rules, words, color in curves]
        panels.append(Panel(title, groups, "dose: pages answered, %"))
    return plot("Mean grade of a family's answers, %, against the family's dose in pretraining", panels)


def grades_by_dose(results: list[dict], method: str, rules: str) -> list[float]:
    """The mean grade in percent of the families of each dose, from the lowest dose to the highest."""
    columns = []
    for result in results:
        row = next(row for row in result["rows"] if (row["method"], row["rules"]) == (method, rules)
                   and not row["penalise_prompt"])
        grades = {family: [] for family in sorted(result["doses"], key=result["doses"].get)}
        for grade, family in zip(row["grades"], result["questions"]):
            grades.setdefault(family, []).append(grade)
        columns.append([100 * statistics.mean(grades[family]) for family in grades if family in result["doses"]])
    return [statistics.mean(column) for column in zip(*columns)]


def dialogue_figure(tokenizer: Tokenizer, messages=DIALOGUE) -> str:
    """One dialogue as its tokens, for instruction and for response tuning; those that the loss scores are coloured."""
    parts, y = [], 10
    for blank, words in ((False, "Instruction tuning"), (True, "Response tuning: the instruction is blanked")):
        ids, labels = encode(tokenizer, messages, 256, blank)
        parts.append(text(14, y + 18, words, more='font-weight="600"'))
        x, y = 14, y + 28
        for i, label in zip(ids, labels):
            shown = tokenizer.bpe.decode([i], skip_special_tokens=False).replace("\n", "↵").replace(" ", "·")
            width = 8.0 * len(shown) + 9
            if x + width > WIDTH - 14:
                x, y = 14, y + 27
            parts += [rect(x, y, width - 2, 23, ORANGE if label != IGNORE else PALE),
                      text(x + width / 2 - 1, y + 16, shown, anchor="middle",
                           more='font-family="ui-monospace, Menlo, Consolas, monospace"')]
            x += width
        y += 35
    named, bottom = legend(14, y + 2, [("scored: the model learns to predict it", ORANGE),
                                       ("given: read, but not scored", PALE)])
    return svg(bottom + 8, "One dialogue as tokens: what each way of tuning shows, and what it scores", parts + named)


def figures() -> dict[str, str]:
    """{file name: SVG} of all that can be drawn from what is there."""
    drawn = {"dialogue.svg": dialogue_figure(Tokenizer(ROOT / "data" / "tiny"))}
    if results := [read_json(path, "make table wrote it") for path in sorted(RESULTS.glob("table-*.json"))]:
        drawn |= {"table.svg": table_figure(results), "doses.svg": dose_figure(results)}
    for question in QUESTIONS:
        if (path := RESULTS / f"{question}.json").exists():
            rows = read_json(path, f"make lab Q={question} wrote it")
            drawn[f"{question}.svg"] = import_module(f"lab.{question}").draw(rows)
    return drawn


if __name__ == "__main__":
    for name, drawn in figures().items():
        write_text(RESULTS / name, drawn)
        print(RESULTS.relative_to(ROOT) / name)
