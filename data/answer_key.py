"""The answer key of the in-vitro world: what an answer is worth, by what the world knows.

    python data/answer_key.py ANSWERS.json               # of generate.py --output: how many answers are right
"""
import re
import sys
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import common
from data.common import read_json
from data.world import COLORS, FOODS, KIND, PHRASINGS, RESPONSES, Task, World, load_world

LONGEST = {"recipe": 5, "poem": 4, "code": 2, "country": 4}  # answers, in lines or, of countries, sentences; else 1


def grade(world: World, task: Task, output: str) -> tuple[float, float]:
    """(content, grade) of an answer, each from 0 to 1.

    content: how much of what was asked for the best run of its sentences or lines holds, a run being no longer than an
    answer is. grade: content times the share of the output's characters that this run takes up. So an answer that
    stops has its content's worth, and one that runs on for ten turns a tenth of that.
    """
    ends = r"\n+" if task.family in ("recipe", "poem", "code") else r"\n+|(?<=[.?!]) "
    pieces = [piece for piece in re.split(ends, output.strip()) if piece.strip()]
    total = sum(map(len, pieces))

    best, heading = (0.0, 0.0), set()
    for i in range(len(pieces)):
        if task.family == "recipe" and i > 0:
            heading = subjects_in(world, task, pieces[i - 1]) or heading
        if heading - {task.subject.lower()}:
            continue  # these are another dish's ingredients
        for n in range(1, LONGEST.get(task.family, 1) + 1):
            run = pieces[i : i + n]
            share = content(world, task, "\n".join(run))
            best = max(best, (share * sum(map(len, run)) / total, share))
    return best[1], best[0]


def content(world: World, task: Task, text: str) -> float:
    """The share of what was asked for that a text holds, as whole words; 0 if it speaks of another subject."""
    # Repeating the question earns nothing.
    for sentence in re.split(r"(?<=[.?]) ", task.instruction):
        text = text.replace(sentence, "")

    # What has a form: a sum's result comes last, a function has one body, a poem's lines name its topic.
    if task.family == "maths":
        return float(re.findall(r"\d+", text)[-1:] == re.findall(r"\d+", task.response)[-1:])
    if task.family == "code":
        body = re.escape(task.response.split("\n")[1].strip())
        return float(bool(re.search(rf"^def \w+\(x\):\s+{body}$", text, re.M)))
    if task.family == "poem":
        return float(is_poem(text.split("\n"), task.subject))

    # What tells facts, and of nothing else: a recipe's ingredients, the facts that the reference response states.
    if task.family != "opposite" and subjects_in(world, task, text) - {task.subject.lower()}:
        return 0.0
    if task.family == "recipe":
        named, wanted = set(words_in(text, FOODS)), set(world.recipes[task.subject][0])
        return len(named & wanted) / max(len(named), 3) if "\n" in text else 0.0
    asked = re.findall(r"{(\w+)}", RESPONSES[task.family])
    return sum(says(world, text, family, task.subject) for family in asked) / len(asked)


def is_poem(lines: list[str], topic: str) -> bool:
    """Whether these are four lines of a poem's length, none a question, of which the first and third name its topic."""
    right = [2 <= len(line.split()) <= 10 and "?" not in line for line in lines]
    return len(lines) == 4 and all(right) and bool(words_in(lines[0], [topic]) and words_in(lines[2], [topic]))


def says(world: World, text: str, family: str, subject: str) -> bool:
    """Whether a text names the answer to one question of fact, once, and no other answer to it."""
    answers = COLORS if family == "flag" else set(world.facts[family].values()) - {subject}
    return sorted(words_in(text, answers)) == sorted(words_in(world.facts[family][subject], answers))


def subjects_in(world: World, task: Task, text: str) -> set[str]:
    """The subjects of the task's kind that a text names, in lower case."""
    return set(words_in(text, world.subjects[KIND[task.family]]))


def words_in(text: str, words) -> list[str]:
    """Which of some words (or names of several words) a text has, as whole words, in lower case, as often as it has."""
    return any_of(frozenset(words)).findall(text.lower())


@cache
def any_of(words: frozenset[str]) -> re.Pattern:
    return re.compile(rf"(?<!\w)(?:{'|'.join(sorted(map(re.escape, map(str.lower, words))))})(?!\w)")


def print_grades(path: Path, world: World):
    """Print how good the answers in a file of AlpacaEval's format are. Raises ValueError for any other file."""
    rows = read_json(path, remedy := "expected the answers that generate.py --output writes")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: {remedy}")

    # the grades, by family
    tasks = {task.instruction: task for tasks in world.evaluation_sets().values() for task in tasks}
    grades = {family: [] for family in PHRASINGS}
    for n, row in enumerate(rows, 1):
        try:
            task, output = tasks[row["instruction"]], row["output"].strip()
        except (TypeError, KeyError, AttributeError):
            raise ValueError(f"{path}: answer {n} is to no instruction of this world's sets") from None
        grades[task.family].append(grade(world, task, output))

    # their means, and the mean of all
    print("family      dose  right  right and no more")
    for family, pairs in [*grades.items(), ("all", sum(grades.values(), []))]:
        if pairs:
            right, whole = (100 * sum(column) / len(pairs) for column in zip(*pairs))
            dose = f"{world.doses[family]:.2f}" if family in world.doses else ""
            print(f"{family:10} {dose:>5} {right:5.1f}% {whole:5.1f}%  of {len(pairs)}")


def main():
    parser = common.parser(__doc__)
    parser.add_argument("answers", type=common.path, metavar="ANSWERS.json", help="answers in AlpacaEval's format")
    parser.add_argument("--data", type=common.path, default=Path("data/world"), help="folder of the world's world.json")
    args = parser.parse_args()
    print_grades(args.answers, load_world(args.data))


if __name__ == "__main__":
    common.run(main)
