"""The paper's tables in vitro, and how they move with the data that the base model was pretrained on.

    make table    # Tables 1 to 4 as one Markdown table, the dose-response, and out/table.json
    make sweep    # the same win rates where pretraining answered more or less, and out/sweep.json

Models and answers are made side by side, one thread each, and kept in out/lab (see lab/lab.py), so the same command
goes on where it was stopped.
"""
import json
import os
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from data import common  # first: Ctrl-C is quiet from here on
from data import answer_key
from data.hub import model_folder
from data.common import read_json, write_json
from data.world import FAMILIES, NOVEL, World, load_world
from generate import parse_rules
from judge import win_rate
from lab.lab import DOCUMENTS, ask, pretrain, side_by_side, tune
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


def dialogues(world: World, method: str) -> list[list[dict]]:
    return [row["messages"] for row in world.training_set(METHODS[method].file)]


def answers(base: Path, world: World, method: str, epochs: int, seed: int, instructions: list[str],
            rules: tuple = (), penalise_prompt: bool = False) -> list[str]:
    """What the base model, or the model that a method makes of it, answers."""
    model = base if method == "base" else tune(base, dialogues(world, method), epochs, seed,
                                               blank=METHODS[method].blank)
    return ask(model, instructions, rules, penalise_prompt)


def graded(world: World, tasks: list, outputs: list[str]) -> tuple[list[float], list[float]]:
    """(contents, grades) of the answers to some tasks."""
    return tuple(map(list, zip(*(answer_key.grade(world, task, output) for task, output in zip(tasks, outputs)))))


def table(base: Path, world: World, workers: int, seeds: tuple = (1, 2, 3)) -> dict:
    """Train, answer and judge all of ENTRIES. Returns what out/table.json holds:

    world, doses: the knobs and the families' doses; questions: the family of each instruction asked; rows: an entry
    each, with the win rates of its finetuning seeds over all families that have a dose, and the mean content and
    grade (0 to 1) of the answers to each question. seeds: of finetuning; epochs are chosen with the first.
    """
    sets = world.evaluation_sets()
    val, tasks = sets["val"], sets["eval"] + sets["novel"]
    short, long = ([task.instruction for task in some] for some in (val, tasks))

    print("choosing epochs on val", file=sys.stderr)
    tried = {f"{method}, {epochs} epochs": (method, epochs) for epochs in reversed(EPOCHS) for method in TUNED}
    outputs = side_by_side({name: (epochs + 1, answers, base, world, method, epochs, seeds[0], short)
                            for name, (method, epochs) in tried.items()}, workers)
    # A preference is half the difference of two grades, so the best mean grade is the best win rate over any reference.
    val_grade = {tried[name]: statistics.mean(graded(world, val, output)[1]) for name, output in outputs.items()}
    chosen = {method: max(EPOCHS, key=lambda epochs: val_grade[method, epochs]) for method in TUNED}
    print("chose " + ", ".join(f"{method} {epochs}" for method, epochs in chosen.items()), file=sys.stderr)

    def name(method, rules, prompt, seed):
        if method == "base":
            return f"base, rules {rules}{', prompt too' if prompt else ''}"
        return f"{method}, seed {seed}"

    outputs = side_by_side({name(method, rules, prompt, seed): (
        chosen.get(method, 0) + 3, answers, base, world, method, chosen.get(method), seed, long, parse_rules(rules),
        prompt) for method, rules, prompt, *_ in ENTRIES for seed in seeds}, workers)
    runs = {who: graded(world, tasks, output) for who, output in outputs.items()}

    known, rows = [task.family in FAMILIES for task in tasks], []
    for method, rules, prompt, words, llama, olmo in ENTRIES:
        tuned = [runs[name(method, rules, prompt, seed)] for seed in seeds]
        rates = [win_rate([0.5 + 0.5 * (g - r) for g, r, ok in
                           zip(grades, runs[f"instruction, seed {seed}"][1], known) if ok])[0]
                 for (_, grades), seed in zip(tuned, seeds)]
        contents, grades = ([round(statistics.mean(one), 3) for one in zip(*column)] for column in zip(*tuned))
        rows.append({"method": method, "rules": rules, "penalise_prompt": prompt, "epochs": chosen.get(method),
                     "words": words, "llama": llama, "olmo": olmo, "win_rates": [round(rate, 3) for rate in rates],
                     "contents": contents, "grades": grades})
    return {"world": json.loads(json.dumps(asdict(world))), "doses": world.doses,
            "questions": [task.family for task in tasks], "rows": rows}


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
    lines = ["| win rate against instruction tuning, % | this base, ± over seeds "
             f"| {len(results)} bases, ± over bases "
             "| right | right and no more | novel families, right | epochs | Llama-2-7B | OLMo-7B |", "|---" * 9 + "|"]
    for i, row in enumerate(results[0]["rows"]):
        if row["penalise_prompt"] and not results[0]["rows"][i - 1]["penalise_prompt"]:
            lines.append("| *rule 3 as in the authors' code: the prompt's tokens, too* |" + " |" * 8)
        rates, questions = [result["rows"][i]["win_rates"] for result in results], results[0]["questions"]
        cells = [row["words"], mean_sd(rates[0]), mean_sd([statistics.mean(rate) for rate in rates])]
        cells += [f"{percent(row, column, questions, families):.1f}" for column, families in (
            ("contents", FAMILIES), ("grades", FAMILIES), ("contents", NOVEL))]
        lines.append(f"| {' | '.join(cells)} | {row['epochs'] or '–'} | {row['llama']} | {row['olmo']} |")
    return "\n".join(lines)


def dose(result: dict, family: str) -> str:
    return f"{result['doses'][family]:.2f}" if family in result["doses"] else "novel"


def doses_markdown(result: dict) -> str:
    """Right content by family, in the order of the doses."""
    families = sorted(result["doses"], key=result["doses"].get) + NOVEL
    lines = ["| right answers, % | " + " | ".join(families) + " |", "|---" * (len(families) + 1) + "|",
             "| dose | " + " | ".join(dose(result, family) for family in families) + " |"]
    for row in result["rows"]:
        words = row["words"] + (" (code's rule 3)" if row["penalise_prompt"] else "")
        cells = [f"{percent(row, 'contents', result['questions'], [family]):.0f}" for family in families]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(result: dict) -> str:
    """How far the rules are above their ablations, and these above the base: win rates, paired by instruction."""
    grades = {row["rules"]: row["grades"] for row in result["rows"]
              if row["method"] == "base" and not row["penalise_prompt"]}
    words, lines = ABLATIONS | {"all": "all three rules", "none": "the base"}, []
    for a, b in [("all", ablation) for ablation in ABLATIONS] + [(ablation, "none") for ablation in ABLATIONS]:
        rate, error = win_rate([0.5 * (x - y) for x, y, family in zip(grades[a], grades[b], result["questions"])
                                if family in FAMILIES])
        lines.append(f"{words[a]} against {words[b]}: {rate:+.1f} ± {error:.1f} (standard error)")
    return "\n".join(lines)


def setting(config: Path, share_answered: float) -> dict:
    """A base of the world with this share of answered pages, and its win rates, contents and grades in percent."""
    world = World(share_answered=share_answered)
    tasks = world.evaluation_sets()["eval"]
    base, instructions = pretrain(config, world, DOCUMENTS), [task.instruction for task in tasks]
    outputs = {f"base, rules {rules}": ask(base, instructions, parse_rules(rules)) for rules in RULES_SWEPT}
    outputs |= {method: answers(base, world, method, METHODS[method].epochs, 1, instructions)
                for method in SWEPT}
    means = {who: [100 * statistics.mean(column) for column in graded(world, tasks, output)]
             for who, output in outputs.items()}
    return {"share_answered": share_answered,
            "win_rate": {who: round(50 + (mean[1] - means["instruction"][1]) / 2, 2) for who, mean in means.items()},
            "content": {who: round(content, 2) for who, (content, _) in means.items()},
            "grade": {who: round(grade, 2) for who, (_, grade) in means.items()}}


def sweep_markdown(rows: list[dict]) -> str:
    columns = [column for column in rows[0]["win_rate"] if column != "instruction"]
    lines = ["| answered | " + " | ".join(columns) + " | instruction, right |", "|---" * (len(columns) + 2) + "|"]
    for row in rows:
        rates = " | ".join(f"{row['win_rate'][column]:.1f}" for column in columns)
        lines.append(f"| {row['share_answered']} | {rates} | {row['content']['instruction']:.1f} |")
    return "\n".join(lines)


def bundled(rows: list[dict]) -> dict:
    """The setting for data/tiny, by a rule that looks at base, response tuning, all rules and instruction tuning alone.

    Of the settings whose instruction-tuned model is right in at least 80 % and whose base has a mean grade under 5 %,
    the one where response tuning and the three rules win most together. Where there is none, the lowest grade.
    """
    quiet = [row for row in rows if row["grade"]["base, rules none"] < 5 and row["content"]["instruction"] >= 80]
    return (max(quiet, key=lambda row: row["win_rate"]["response"] + row["win_rate"]["base, rules all"]) if quiet
            else min(rows, key=lambda row: row["grade"]["base, rules none"]))


def main():
    parser = common.parser(__doc__)
    parser.add_argument("what", choices=["table", "sweep"])
    parser.add_argument("--model", default="data/tiny",
                        help="the base model; for the sweep, the folder of its config.json")
    parser.add_argument("--data", type=Path, default=Path("data/world"), help="the folder of the base's world.json")
    parser.add_argument("--workers", type=common.positive(int), default=min(common.n_processors(), 8),
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
