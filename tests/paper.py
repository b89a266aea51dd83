"""The paper's tables in vitro, and how they move with the data that the base model was pretrained on.

    make table    # Tables 1 to 4 as one Markdown table, the dose-response, and out/table.json
    make sweep    # the same win rates where pretraining answered more or less, and out/sweep.json

Models and answers are made side by side, one thread each, and kept in out/lab (see lab/lab.py), so the same command
goes on where it was stopped.
"""
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from data import common  # first: Ctrl-C is quiet from here on
from data.common import markdown, read_json, write_json
from data.hub import model_folder
from data.world import FAMILIES, NOVEL, World, load_world
from generate import parse_rules
from judge import win_rate
from lab.lab import DOCUMENTS, ask, default_workers, grade_all, pretrain, side_by_side, tune
from train import METHODS

EPOCHS = (2, 5, 10)  # the paper's are 5, 7, 10, 15 and 20; here two can be enough
TUNED = [method for method in METHODS if method != "pretrain"]
ABLATIONS = {"tokens,repeats": "without rule 1 (EOS)", "eos,tokens": "without rule 3 (used words)",
             "eos,repeats": "without rule 2 (token changes)"}
ENTRIES = [  # method, rules, does rule 3 penalise the prompt too, the paper's words, its Llama-2-7B and OLMo-7B-Feb2024
    ("base", "none", False, "base model", "2.4 ± 0.14", "4.7 ± 0.57"),
    ("instruction", "none", False, "instruction tuning (the reference)", "50", "50"),
    ("response", "none", False, "response tuning", "43.3 ± 1.1", "43.7 ± 1.7"),
    ("mbpp", "none", False, "code (MBPP)", "16.9 ± 0.70", "10.4 ± 1.0"),
    ("gsm", "none", False, "maths (GSM)", "23.7 ± 0.74", "30.3 ± 0.6"),
    ("poetry", "none", False, "poems", "22.9 ± 0.97", "21.9 ± 0.48"),
    ("recipes", "none", False, "recipes", "14.6 ± 0.81", "21.5 ± 0.86"),
    ("chess", "none", False, "chess", "2.1 ± 0.36", "6.3 ± 1.1"),
    ("base", "all", False, "all three rules", "24.4 ± 0.40", "–"),
    ("base", "tokens,repeats", False, ABLATIONS["tokens,repeats"], "10.4 ± 0.30", "–"),
    ("base", "eos,tokens", False, ABLATIONS["eos,tokens"], "14.3 ± 0.58", "–"),
    ("base", "eos,repeats", False, ABLATIONS["eos,repeats"], "16.3 ± 0.25", "–"),
    # rule 3 as the authors' code has it; the paper's figures were made with this code
    ("base", "all", True, "all three rules", "24.4 ± 0.40", "–"),
    ("base", "tokens,repeats", True, ABLATIONS["tokens,repeats"], "10.4 ± 0.30", "–"),
    ("base", "eos,repeats", True, ABLATIONS["eos,repeats"], "16.3 ± 0.25", "–"),
]
RESULTS = ROOT / "tests" / "lab" / "results"  # table-SEED.json of the three bases
SHARES_ANSWERED = (0.08, 0.14)  # the sweep's settings of the world's share_answered
RULES_SWEPT = ["none", "all", *ABLATIONS]
SWEPT = ("instruction", "response", "mbpp")  # the methods that the sweep tunes by


def answers(base: Path, world: World, method: str, epochs: int, seed: int, instructions: list[str],
            rules: tuple = (), penalise_prompt: bool = False) -> list[str]:
    """What the base model, or the model that a method makes of it, answers."""
    model = base
    if method != "base":
        dialogues = [row["messages"] for row in world.training_set(METHODS[method].file)]
        model = tune(base, dialogues, epochs, seed, blank=METHODS[method].blank)
    return ask(model, instructions, rules, penalise_prompt)


def graded(world: World, tasks: list, outputs: list[str]) -> tuple[list[float], list[float]]:
    """(contents, grades) of the answers to tasks, each from 0 to 1."""
    contents, grades = zip(*grade_all(world, tasks, outputs))
    return list(contents), list(grades)


def win_rate_by_grades(grades: list[float], reference: list[float], questions: list[str]) -> tuple[float, float]:
    """The win rate and its error, both in percent, over the questions whose family has a dose.

    A preference is 0.5 + 0.5 * the difference of the two grades.
    """
    preferences = []
    for ours, theirs, family in zip(grades, reference, questions):
        if family in FAMILIES:
            preferences.append(0.5 + 0.5 * (ours - theirs))
    return win_rate(preferences)


def choose_epochs(base: Path, world: World, workers: int, seed: int) -> dict[str, int]:
    """The number among EPOCHS that is best on val, for each method."""
    val = world.evaluation_sets()["val"]
    instructions, jobs = [task.instruction for task in val], {}
    for epochs in reversed(EPOCHS):
        for method in TUNED:
            jobs[method, f"{epochs} epochs"] = (epochs + 1, answers, base, world, method, epochs, seed, instructions)
    outputs = side_by_side(jobs, workers)

    # The best mean grade is the best win rate over any reference.
    chosen = {}
    for method in TUNED:
        chosen[method] = max(EPOCHS, key=lambda epochs: statistics.mean(
            graded(world, val, outputs[method, f"{epochs} epochs"])[1]))
    return chosen


def job_name(method: str, rules: str, penalise_prompt: bool, seed: int) -> str:
    """The untuned base has no seed: it is asked once."""
    if method == "base":
        return f"base, rules {rules}" + ", prompt too" * penalise_prompt
    return f"{method}, seed {seed}"


def table(base: Path, world: World, workers: int, seeds: tuple = (1, 2, 3)) -> dict:
    """Train, answer and judge all of ENTRIES. Returns what out/table.json holds:

    world, doses: the knobs and the families' doses; questions: the family of each instruction asked; rows: an entry
    each, with the win rates of its finetuning seeds over all families that have a dose, and the mean content and
    grade (0 to 1) of the answers to each question. seeds: of finetuning; epochs are chosen with the first.
    """
    print("choosing epochs on val", file=sys.stderr)
    chosen = choose_epochs(base, world, workers, seeds[0])
    print("chose " + ", ".join(f"{method} {epochs}" for method, epochs in chosen.items()), file=sys.stderr)

    # The answers of every entry with every seed, and their grades.
    sets = world.evaluation_sets()
    tasks, jobs = sets["eval"] + sets["novel"], {}
    instructions, questions = [task.instruction for task in tasks], [task.family for task in tasks]
    for method, rules, penalise_prompt, *_ in ENTRIES:
        epochs = chosen.get(method)
        for seed in seeds:
            jobs[job_name(method, rules, penalise_prompt, seed)] = (
                (epochs or 0) + 3, answers, base, world, method, epochs, seed, instructions, parse_rules(rules),
                penalise_prompt)
    outputs = side_by_side(jobs, workers)
    runs = {name: graded(world, tasks, output) for name, output in outputs.items()}

    # Each seed is compared with the instruction-tuned model of the same seed.
    rows = []
    for method, rules, penalise_prompt, words, llama, olmo in ENTRIES:
        contents, grades = zip(*(runs[job_name(method, rules, penalise_prompt, seed)] for seed in seeds))
        rates = [win_rate_by_grades(ours, runs[f"instruction, seed {seed}"][1], questions)[0]
                 for ours, seed in zip(grades, seeds)]
        rows.append({"method": method, "rules": rules, "penalise_prompt": penalise_prompt,
                     "epochs": chosen.get(method), "words": words, "llama": llama, "olmo": olmo,
                     "win_rates": [round(rate, 3) for rate in rates],
                     "contents": mean_over_seeds(contents), "grades": mean_over_seeds(grades)})
    return {"world": json.loads(json.dumps(asdict(world))), "doses": world.doses, "questions": questions, "rows": rows}


def mean_over_seeds(values) -> list[float]:
    """The mean for each question of values (seeds, questions)."""
    return [round(statistics.mean(column), 3) for column in zip(*values)]


def beside(result: dict) -> list[dict]:
    """A table's result and those that are kept of bases from other seeds."""
    kept = [read_json(path, "make table wrote it") for path in sorted(RESULTS.glob("table-*.json"))]
    return [result] + [other for other in kept if other["world"]["seed"] != result["world"]["seed"]]


def mean_sd(values) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def percent(row: dict, column: str, questions: list[str], families) -> float:
    return 100 * statistics.mean(x for x, family in zip(row[column], questions) if family in families)


def table_markdown(results: list[dict]) -> str:
    """The paper's tables: of results[0], a base, and beside it the mean over all results' bases."""
    title, cells, questions = "win rate against instruction tuning, %", [], results[0]["questions"]
    for i, row in enumerate(results[0]["rows"]):
        if row["penalise_prompt"] and not results[0]["rows"][i - 1]["penalise_prompt"]:
            cells.append({title: "*rule 3 as in the authors' code: the prompt's tokens, too*"})
        rates = [result["rows"][i]["win_rates"] for result in results]
        cells.append({
            title: row["words"], "this base, ± over seeds": mean_sd(rates[0]),
            f"{len(results)} bases, ± over bases": mean_sd([statistics.mean(rate) for rate in rates]),
            "right": f"{percent(row, 'contents', questions, FAMILIES):.1f}",
            "right and no more": f"{percent(row, 'grades', questions, FAMILIES):.1f}",
            "novel families, right": f"{percent(row, 'contents', questions, NOVEL):.1f}",
            "epochs": row["epochs"] or "–", "Llama-2-7B": row["llama"], "OLMo-7B": row["olmo"]})
    return markdown(cells)


def doses_markdown(result: dict) -> str:
    """Right content by family, in the order of the doses."""
    title, doses = "right answers, %", result["doses"]
    families = sorted(doses, key=doses.get) + NOVEL
    cells = [{title: "dose"} | {family: f"{doses[family]:.2f}" if family in doses else "novel" for family in families}]
    for row in result["rows"]:
        words = row["words"] + " (code's rule 3)" * row["penalise_prompt"]
        cells.append({title: words} | {
            family: f"{percent(row, 'contents', result['questions'], [family]):.0f}" for family in families})
    return markdown(cells)


def differences(result: dict) -> str:
    """How far the rules are above their ablations, and these above the base: win rates, paired by instruction."""
    grades = {row["rules"]: row["grades"] for row in result["rows"]
              if row["method"] == "base" and not row["penalise_prompt"]}
    words, lines = ABLATIONS | {"all": "all three rules", "none": "the base"}, []
    for a, b in [("all", ablation) for ablation in ABLATIONS] + [(ablation, "none") for ablation in ABLATIONS]:
        rate, error = win_rate_by_grades(grades[a], grades[b], result["questions"])
        lines.append(f"{words[a]} against {words[b]}: {rate - 50:+.1f} ± {error:.1f} (standard error)")
    return "\n".join(lines)


def setting(config: Path, share_answered: float) -> dict:
    """A base of the world with this share of answered pages, and its win rates, contents and grades in percent."""
    world = World(share_answered=share_answered)
    base, tasks = pretrain(config, world, DOCUMENTS), world.evaluation_sets()["eval"]
    instructions = [task.instruction for task in tasks]
    outputs = {f"base, rules {rules}": ask(base, instructions, parse_rules(rules)) for rules in RULES_SWEPT}
    for method in SWEPT:
        outputs[method] = answers(base, world, method, METHODS[method].epochs, 1, instructions)
    content, grade = {}, {}
    for name, output in outputs.items():
        content[name], grade[name] = (100 * statistics.mean(column) for column in graded(world, tasks, output))
    rates = {name: 50 + (mean - grade["instruction"]) / 2 for name, mean in grade.items()}
    return {"share_answered": share_answered, "win_rate": rounded(rates), "content": rounded(content),
            "grade": rounded(grade)}


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in values.items()}


def sweep_markdown(rows: list[dict]) -> str:
    cells = []
    for row in rows:
        rates = {name: f"{rate:.1f}" for name, rate in row["win_rate"].items() if name != "instruction"}
        right = f"{row['content']['instruction']:.1f}"
        cells.append({"answered": row["share_answered"], **rates, "instruction, right": right})
    return markdown(cells)


def bundled(rows: list[dict]) -> dict:
    """The setting for data/tiny, by a rule that looks at base, response tuning, all rules and instruction tuning alone.

    Of the settings whose instruction-tuned model is right in at least 80 % and whose base has a mean grade under 5 %,
    the one where response tuning and the three rules win most together. Where there is none, the lowest grade.
    """
    quiet = [row for row in rows if row["grade"]["base, rules none"] < 5 and row["content"]["instruction"] >= 80]
    if not quiet:
        return min(rows, key=lambda row: row["grade"]["base, rules none"])
    return max(quiet, key=lambda row: row["win_rate"]["response"] + row["win_rate"]["base, rules all"])


def main():
    parser = common.parser(__doc__)
    parser.add_argument("what", choices=["table", "sweep"])
    parser.add_argument("--model", default="data/tiny",
                        help="the base model; for the sweep, the folder of its config.json")
    parser.add_argument("--data", type=Path, default=Path("data/world"), help="the folder of the base's world.json")
    parser.add_argument("--workers", type=common.positive(int), default=default_workers(),
                        help="processes side by side")
    parser.add_argument("--seeds", type=common.positive(int), default=3, help="of finetuning, for the table")
    args = parser.parse_args()
    result, model = Path("out") / f"{args.what}.json", model_folder(args.model)
    if args.what == "table":
        found = table(model, load_world(args.data), args.workers, tuple(range(1, args.seeds + 1)))
        write_json(result, found)
        print(table_markdown(beside(found)), doses_markdown(found), differences(found), sep="\n\n")
    else:
        jobs = {f"answered {share}": (1, setting, model / "config.json", share) for share in SHARES_ANSWERED}
        rows = list(side_by_side(jobs, args.workers).values())
        write_json(result, rows)
        print(sweep_markdown(rows), "the bundled base's setting, by the rule of `bundled`: "
              f"answered {bundled(rows)['share_answered']}", sep="\n\n")


if __name__ == "__main__":
    common.run(main, interrupted="what was made is kept, and the same command goes on")
