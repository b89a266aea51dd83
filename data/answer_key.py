"""The answer key of the in-vitro world: how much of an answer is right, and how much of the output is the answer.

    python data/answer_key.py ANSWERS.json                     # how many of a model's answers are right, by family
    python data/answer_key.py ANSWERS.json --data out/world-2  # in the world that this folder's sets ask about

An answer is right in any words, as long as it names what was asked for and nothing else of the kind. The key cannot
see that a sentence is odd.
"""
import re
import sys
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import common
from data.common import read_json
from data.world import COLORS, FOODS, KIND, PHRASINGS, Task, World, load_world

DESCRIBED = ["capital", "river", "animal", "trade"]  # what a description of a country should tell
SENTENCES = {"country": 4}  # in the longest answer, of the families that answer in sentences: else 1
LINES = {"recipe": 5, "poem": 4, "code": 2}  # in the longest answer, of the families that answer in lines


def grade(world: World, task: Task, output: str) -> tuple[float, float]:
    """How good an output is as an answer to a task, as two numbers from 0 to 1.

    content: how much of what was asked for the best run of its sentences or lines holds, no longer than an answer is.
    grade: content times the share of the output's characters that this run takes up. So an answer that stops has its
    content's worth, and one that runs on for ten turns a tenth of that.
    """
    # Cut the output into what an answer consists of: lines, or sentences.
    longest = LINES.get(task.family) or SENTENCES.get(task.family, 1)
    ends = r"\n+" if task.family in LINES else r"\n+|(?<=[.?!]) "
    pieces = [piece for piece in re.split(ends, output.strip()) if piece.strip()]
    n_characters = sum(map(len, pieces))

    # Any run of pieces may be the answer; the one that is worth most counts.
    best = (0.0, 0.0)
    for start in range(len(pieces)):
        if task.family == "recipe" and stands_under_another(world, task, pieces[:start]):
            continue  # these are another dish's ingredients
        for end in range(start + 1, min(start + longest, len(pieces)) + 1):
            answer = pieces[start:end]
            right = content(world, task, "\n".join(answer))
            best = max(best, (right * sum(map(len, answer)) / n_characters, right))
    return best[1], best[0]


def content(world: World, task: Task, text: str) -> float:
    """The share of what was asked for that a text holds, as whole words; 0 if it speaks of another subject."""
    # Repeating the question earns nothing.
    for sentence in re.split(r"(?<=[.?]) ", task.instruction):
        text = text.replace(sentence, "")

    # Sums, functions and poems have forms of their own.
    if task.family == "maths":
        return float(re.findall(r"\d+", text)[-1:] == re.findall(r"\d+", task.response)[-1:])  # the last number
    if task.family == "code":
        body = re.escape(task.response.split("\n")[1].strip())
        return float(bool(re.search(rf"^def \w+\(x\):\s+{body}$", text, re.M)))  # under any name
    if task.family == "poem":
        return float(is_poem(text.split("\n"), task.subject))

    # A recipe lists ingredients, the other families ask for facts. An opposite is a subject of the same kind, too.
    if task.family != "opposite" and subjects_in(world, task, text) - {task.subject.lower()}:
        return 0.0
    if task.family == "recipe":
        named = set(words_in(text, FOODS))
        wanted = named & set(world.recipes[task.subject][0])
        return len(wanted) / max(len(named), 3) if "\n" in text else 0.0
    families = DESCRIBED if task.family == "country" else [task.family]
    return sum(says(world, text, family, task.subject) for family in families) / len(families)


def is_poem(lines: list[str], topic: str) -> bool:
    """Whether lines are four short ones without a question, of which the first and the third name the topic."""
    if len(lines) != 4 or any("?" in line for line in lines):
        return False
    short = all(2 <= len(line.split()) <= 10 for line in lines)
    return short and all(words_in(line, [topic]) for line in (lines[0], lines[2]))


def says(world: World, text: str, family: str, subject: str) -> bool:
    """Whether a text names the answer to one question of fact, once, and no other answer to it."""
    answers = COLORS if family == "flag" else set(world.facts[family].values()) - {subject}
    return sorted(words_in(text, answers)) == sorted(words_in(world.facts[family][subject], answers))


def stands_under_another(world: World, task: Task, lines: list[str]) -> bool:
    """Whether the last line above a text that names a dish names another one than the task's."""
    named = list(filter(None, (subjects_in(world, task, line) for line in lines)))
    return bool(named) and named[-1] != {task.subject.lower()}


def subjects_in(world: World, task: Task, text: str) -> set[str]:
    """The subjects of the task's kind that a text names, in lower case."""
    return set(words_in(text, world.subjects[KIND[task.family]]))


def words_in(text: str, words) -> list[str]:
    """Which of some words (or names of several words) a text has, as whole words, in lower case, as often as it has."""
    return any_of(frozenset(words)).findall(text.lower())


@cache
def any_of(words: frozenset[str]) -> re.Pattern:
    escaped = sorted(re.escape(word.lower()) for word in words)
    return re.compile(rf"(?<!\w)(?:{'|'.join(escaped)})(?!\w)")


def print_grades(path: Path, world: World):
    """Print how good the answers in a file of AlpacaEval's format are. Raises ValueError for any other file."""
    remedy = "expected the answers that generate.py --output writes"
    rows = read_json(path, remedy)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: {remedy}")

    # Each answer belongs to the task with its instruction.
    tasks = {task.instruction: task for tasks in world.evaluation_sets().values() for task in tasks}
    grades = {family: [] for family in PHRASINGS}
    for i, row in enumerate(rows, 1):
        try:
            task = tasks[row["instruction"]]
            grades[task.family].append(grade(world, task, row["output"]))
        except (TypeError, KeyError, AttributeError):
            raise ValueError(f"{path}: answer {i} is to no instruction of this world's sets") from None

    # A line for each family that was asked, and one for all.
    grades["all"] = [pair for pairs in grades.values() for pair in pairs]
    print("family      dose  right  right and no more")
    for family, pairs in grades.items():
        if pairs:
            right, worth = (100 * sum(column) / len(pairs) for column in zip(*pairs))
            dose = f"{world.doses[family]:.2f}" if family in world.doses else ""
            print(f"{family:10} {dose:>5} {right:5.1f}% {worth:5.1f}%  of {len(pairs)}")


def main():
    parser = common.parser(__doc__)
    parser.add_argument("answers", type=common.path, metavar="ANSWERS.json", help="what generate.py --output wrote")
    parser.add_argument("--data", type=common.path, default=Path("data/world"), help="folder of the world's sets")
    args = parser.parse_args()
    print_grades(args.answers, load_world(args.data))


if __name__ == "__main__":
    common.run(main)
