"""The figures of the README, as SVG, from the results that stand beside them and from the bundled tokenizer.

    python tests/lab/figures.py     # writes table.svg, doses.svg and dialogue.svg into tests/lab/results

SVG is text: the same numbers give the same bytes on every machine, and a test holds the committed figures to that.
"""
import statistics
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))
from data.files import read_json, write_text
from data.format import IGNORE, Tokenizer, encode

RESULTS = Path(__file__).parent / "results"
BLUE, ORANGE, GREEN, PINK, SKY, RED, BLACK = (  # Okabe and Ito's, which the colour-blind tell apart
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
INK, GREY, PALE = "#222222", "#767676", "#dddddd"
WIDTH = 700
DIALOGUE = [{"role": "user", "content": "What does the otter eat?"},
            {"role": "assistant", "content": "The otter eats worms, and it looks for them all day."}]


def svg(height: float, title: str, parts: list[str]) -> str:
    """A figure on an opaque ground, so that it reads on a dark page, too."""
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {number(height)}" '
            f'font-family="system-ui, sans-serif" font-size="13" fill="{INK}">\n<title>{escape(title)}</title>\n'
            + "\n".join([rect(0, 0, WIDTH, height, "#ffffff"), *parts]) + "\n</svg>\n")


def number(x: float) -> str:
    return f"{x:.1f}".removesuffix(".0")


def rect(x, y, width, height, color) -> str:
    return f'<rect x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}" fill="{color}"/>'


def line(points, color, width=1.0, dashes="") -> str:
    path = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    return (f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{number(width)}"'
            + f' stroke-dasharray="{dashes}"' * bool(dashes) + "/>")


def text(x, y, words: str, color=INK, anchor="start", more="") -> str:
    return (f'<text x="{number(x)}" y="{number(y)}" fill="{color}" text-anchor="{anchor}"{" " * bool(more)}{more}>'
            f"{escape(words)}</text>")


def table_figure(results: list[dict]) -> str:
    """The paper's tables as bars: Llama-2-7B beside the mean over the bases of `results`."""
    left, top, right, high, most = 216, 64, 664, 36, 52.0

    def x(rate):
        return left + (right - left) * rate / most

    kept = [i for i, row in enumerate(results[0]["rows"]) if not row["penalise_prompt"] and row["llama"] != "50"]
    bottom = top + high * len(kept)
    bases = "one base" if len(results) == 1 else f"mean of {len(results)} bases ± deviation"
    parts = [text(left, 22, "Win rate against instruction tuning, %", more='font-weight="600"'),
             rect(left, 33, 12, 12, GREY), text(left + 18, 44, "Llama-2-7B, the paper"),
             rect(left + 170, 33, 12, 12, ORANGE), text(left + 188, 44, f"in vitro, {bases}")]
    for tick in range(0, 51, 10):
        parts += [line([(x(tick), top), (x(tick), bottom)], PALE),
                  text(x(tick), bottom + 17, str(tick), GREY, "middle")]
    parts.append(line([(x(50), top), (x(50), bottom)], INK, dashes="4 3"))
    for y, i in zip(range(top, bottom, high), kept):
        row = results[0]["rows"][i]
        rates = [statistics.mean(result["rows"][i]["win_rates"]) for result in results]
        mean, spread = statistics.mean(rates), statistics.stdev(rates) if len(rates) > 1 else 0.0
        paper = float(row["llama"].split()[0])
        low, up = max(mean - spread, 0), min(mean + spread, most)
        parts += [text(left - 8, y + 22, row["words"], anchor="end"),
                  rect(left, y + 5, x(paper) - left, 12, GREY), text(x(paper) + 5, y + 15.5, f"{paper:.1f}", GREY),
                  rect(left, y + 18, x(mean) - left, 12, ORANGE), text(x(up) + 5, y + 28.5, f"{mean:.1f}")]
        if spread:
            parts.append(line([(x(low), y + 24), (x(up), y + 24)], INK, 1.5))
    return svg(bottom + 28, "Win rates of the paper's adaptations, Llama-2-7B and in vitro", parts)


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


def dose_figure(results: list[dict]) -> str:
    """Grade by family against its dose, one small panel for a group of models; the mean over the bases of `results`.

    The bases have the same doses in another order, so point i is the mean over the families of the i-th dose.
    """
    wide, high, gap, top = 290, 170, 56, 64
    doses = sorted(results[0]["doses"].values())
    most = 100 * doses[-1]
    parts = [text(44, 22, "Mean grade of a family's answers, %, against the family's dose in pretraining",
                  more='font-weight="600"')]
    for panel, (title, curves) in enumerate(PANELS):
        left, low = 44 + panel % 2 * (wide + gap), top + panel // 2 * (high + 86) + high

        def at(dose, grade):
            return left + wide * 100 * dose / most, low - high * grade / 100

        parts.append(text(left, low - high - 8, title, more='font-weight="600"'))
        for tick in (0, 25, 50, 75, 100):
            y = at(0, tick)[1]
            parts += [line([(left, y), (left + wide, y)], PALE), text(left - 6, y + 4, str(tick), GREY, "end")]
        for i in range(5):
            parts.append(text(left + wide * i / 4, low + 17, f"{most * i / 4:.0f}", GREY, "middle"))
        parts.append(text(left + wide, low + 33, "dose: pages answered, %", GREY, "end"))
        place = left
        for method, rules, words, color in curves:
            points = [at(dose, grade) for dose, grade in zip(doses, grades_by_dose(results, method, rules))]
            parts += [line(points, color, 2.0),
                      *(f'<circle cx="{number(x)}" cy="{number(y)}" r="3" fill="{color}"/>' for x, y in points),
                      rect(place, low + 41, 10, 10, color), text(place + 14, low + 50, words)]
            place += 24 + 7 * len(words)
    return svg(top + 2 * high + 86 + 62, "Grade by family against its dose in pretraining", parts)


def grades_by_dose(results: list[dict], method: str, rules: str) -> list[float]:
    """The mean grade in percent of the families of each dose, from the lowest dose to the highest."""
    columns = []
    for result in results:
        row = next(row for row in result["rows"] if (row["method"], row["rules"]) == (method, rules)
                   and not row["penalise_prompt"])
        columns.append([100 * statistics.mean(
            grade for grade, asked in zip(row["grades"], result["questions"]) if asked == family)
            for family in sorted(result["doses"], key=result["doses"].get)])
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
    parts += [rect(14, y + 2, 12, 12, ORANGE), text(32, y + 13, "scored: the model learns to predict it"),
              rect(300, y + 2, 12, 12, PALE), text(318, y + 13, "given: read, but not scored")]
    return svg(y + 28, "One dialogue as tokens: what each way of tuning shows, and what it scores", parts)


def figures() -> dict[str, str]:
    """{file name: SVG} of all that can be drawn from what is there."""
    drawn = {"dialogue.svg": dialogue_figure(Tokenizer(ROOT / "data" / "tiny"))}
    if results := [read_json(path, "make table wrote it") for path in sorted(RESULTS.glob("table-*.json"))]:
        drawn |= {"table.svg": table_figure(results), "doses.svg": dose_figure(results)}
    return drawn


if __name__ == "__main__":
    for name, drawn in figures().items():
        write_text(RESULTS / name, drawn)
        print(RESULTS.relative_to(ROOT) / name)
