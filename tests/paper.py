"""The paper's tables in vitro, and how they move with the data that the base model was pretrained on.

    make table    # Tables 1 to 4 as one Markdown table, the dose-response, and out/table.json
    make sweep    # the same win rates where pretraining answered more or less, and out/sweep.json

This file runs the commands that a reader could type, train.py and generate.py, and then the world's judge.
They run side by side with one thread each; two threads hardly help a model this small. Finished runs are kept
in a folder named by a hash of the base model and the data, so the same command goes on where it was stopped,
and the runs of another base or other data never mix with them.
"""
import os
import json
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from data import command  # first: Ctrl-C is quiet from here on
from data.answers import read_outputs
from data.download import model_folder
from data.files import check_fields, clock, digest, fingerprint, hold, read_json, read_jsonl, write_json, write_jsonl
from data.hub import weight_files
from data.world import FAMILIES, NOVEL, World, load_world
from judge import win_rate
from train import METHODS

SEEDS = (1, 2, 3)  # of finetuning
EPOCHS = (5, 10, 20)  # of the paper's 5, 7, 10, 15 and 20
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
DOCUMENTS = 80_000  # that a base model sees, once each
SHARES_ANSWERED = (0.08, 0.14)  # the sweep's settings of the world's share_answered
SWEPT = ("instruction", "response", "mbpp")  # the methods that the sweep tunes by


def run_jobs(jobs: dict[str, tuple[float, list]], workers: int, finished=lambda name: None):
    """Run jobs, {name: (cost, commands)}, `workers` at a time, each job's commands in order.

    Prints a line as each ends, with the time that the costs (in any unit) say is left, and calls finished(name).
    Raises ChildProcessError with a failed command's last words; those under way stop too.
    """
    total, done, began = sum(cost for cost, _ in jobs.values()), 0, time.perf_counter()
    running, stop = set(), threading.Event()

    def work(commands):
        for log, *arguments in commands:
            if stop.is_set():
                return
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "w", encoding="utf-8") as file:
                process = subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, stdout=file, stderr=file,
                                           env=os.environ | {"OMP_NUM_THREADS": "1"})
                running.add(process)
                code = process.wait()
                running.discard(process)
            if code:
                stop.set()
                last = (log.read_text(encoding="utf-8").strip() or "no output").splitlines()[-1]
                raise ChildProcessError(f"{last} (exit {code}, log {log})")

    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(work, commands): name for name, (_, commands) in jobs.items()}
        try:
            for future in as_completed(futures):
                future.result()
                name = futures[future]
                done += jobs[name][0]
                finished(name)
                spent = time.perf_counter() - began
                left = spent / done * (total - done)
                print(f"{name}  ({100 * done / total:.0f} %, {clock(spent)} so far, {clock(left)} left)",
                      file=sys.stderr, flush=True)
        except BaseException:
            stop.set()
            for process in list(running):
                process.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def runs_of(out: Path, *made_from) -> Path:
    """The folder in `out` for the runs made from these, a JSON value each; it is this process's alone from now on."""
    folder = out / digest(made_from)
    folder.mkdir(parents=True, exist_ok=True)
    hold(folder)
    print(f"finished runs are kept in {folder}", file=sys.stderr)
    return folder


def fingerprints(*paths: Path) -> dict[str, str | None]:
    return {path.name: fingerprint(path) for path in paths}


def answering(model: Path, questions: Path, answers: Path, rules: str = "none", penalise_prompt: bool = False) -> list:
    """The commands, one or none, after which `answers` holds a model's answers."""
    if answers.exists():
        return []
    return [(answers.with_suffix(".log"), "generate.py", "--model", model, "--rules", rules,
             "--input", questions, "--output", answers, *["--penalise-prompt"][:penalise_prompt])]


def tuning(model: Path, data: Path, folder: Path, method: str, *options) -> list:
    """The commands, one or none, after which `folder` holds the tuned model."""
    if (folder / "run.json").exists():
        return []
    return [(folder.with_suffix(".log"), "train.py", "--method", method, "--model", model, "--data", data,
             "--out", folder, "--resume", *options)]


def graded(answers: Path, world: World, tasks: dict) -> tuple[list[float], list[float]]:
    """(contents, grades) of a file of answers, in its order."""
    rows = read_outputs(answers)
    return tuple(map(list, zip(*(world.grade(tasks[row["instruction"]], row["output"]) for row in rows))))


def table(model: Path, data: Path, out: Path, workers: int) -> dict:
    """Train, answer and judge all of ENTRIES. Returns what out/table.json holds:

    world, doses: the knobs and the families' doses; questions: the family of each instruction asked; rows: an entry
    each, with the win rates of its finetuning seeds over all families that have a dose, and the mean content and
    grade (0 to 1) of the answers to each question. Raises ValueError where the data are not the world's.
    """
    world = load_world(data)
    sets = world.evaluation_sets()
    for name, tasks in sets.items():
        rows = read_jsonl(data / f"{name}.jsonl", check_fields("instruction"))
        if [row["instruction"] for row in rows] != [task.instruction for task in tasks]:
            raise ValueError(f"{data / name}.jsonl was not written by data/world.py, whose answer key judges the table")
    val = {task.instruction: task for task in sets["val"]}
    test = {task.instruction: task for task in sets["eval"] + sets["novel"]}
    files = [path for path in sorted(data.glob("*.jsonl")) if path.stem != "corpus"]
    base = [model / "config.json", model / "tokenizer.json", *weight_files(model)]
    out = runs_of(out, fingerprints(*base), fingerprints(*files))
    write_jsonl(out / "questions.jsonl", [{"instruction": instruction} for instruction in test])

    def tune(method, epochs, seed, questions):
        path = out / f"{method}-{epochs}-epochs-seed-{seed}"
        options = ("--epochs", epochs, "--seed", seed, "--token-budget", 1024)
        return epochs + 2, (tuning(model, data, path, method, *options)
                            + answering(path, questions, path / f"{questions.stem}.json"))

    def answers(method, rules, prompt, seed, questions="questions"):
        if method == "base":
            return out / f"base-{rules}{'-prompt' if prompt else ''}.json"
        return out / f"{method}-{chosen[method]}-epochs-seed-{seed}" / f"{questions}.json"

    print("choosing epochs on val", file=sys.stderr)
    jobs = {f"base, rules {rules}{', prompt too' if prompt else ''}": (
        3, answering(model, out / "questions.jsonl", answers("base", rules, prompt, 0), rules, prompt))
        for method, rules, prompt, *_ in ENTRIES if method == "base"}
    jobs |= {f"{method}, {epochs} epochs": tune(method, epochs, SEEDS[0], data / "val.jsonl")
             for epochs in reversed(EPOCHS) for method in TUNED}  # the longest first, so that the workers end together
    run_jobs(unfinished(jobs), workers)

    def val_grade(method, epochs):
        return statistics.mean(graded(out / f"{method}-{epochs}-epochs-seed-{SEEDS[0]}" / "val.json", world, val)[1])

    # A preference is half the difference of two grades, so the best mean grade is the best win rate over any reference.
    chosen = {method: max(EPOCHS, key=lambda epochs: val_grade(method, epochs)) for method in TUNED}
    print("chose " + ", ".join(f"{method} {epochs}" for method, epochs in chosen.items()), file=sys.stderr)
    run_jobs(unfinished({f"{method}, seed {seed}": tune(method, chosen[method], seed, out / "questions.jsonl")
                         for method in TUNED for seed in SEEDS}), workers)

    known, rows = [task.family in FAMILIES for task in test.values()], []
    for method, rules, prompt, words, llama, olmo in ENTRIES:
        runs, rates = [], []
        for seed in SEEDS:
            runs.append(graded(answers(method, rules, prompt, seed), world, test))
            reference = graded(answers("instruction", "none", False, seed), world, test)[1]
            rates.append(win_rate([0.5 + 0.5 * (g - r) for g, r, ok in zip(runs[-1][1], reference, known) if ok])[0])
        contents, grades = ([round(statistics.mean(one), 3) for one in zip(*column)] for column in zip(*runs))
        rows.append({"method": method, "rules": rules, "penalise_prompt": prompt, "epochs": chosen.get(method),
                     "words": words, "llama": llama, "olmo": olmo, "win_rates": [round(rate, 3) for rate in rates],
                     "contents": contents, "grades": grades})
    return {"world": vars_of(world), "doses": world.doses, "questions": [task.family for task in test.values()],
            "rows": rows}


def vars_of(world: World) -> dict:
    return json.loads(json.dumps(asdict(world)))


def unfinished(jobs: dict) -> dict:
    return {name: (cost, commands) for name, (cost, commands) in jobs.items() if commands}


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
    lines = [f"| win rate against instruction tuning, % | this base, ± over seeds | {len(results)} bases, ± over bases "
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


def sweep(config: Path, out: Path, workers: int, result: Path) -> list[dict]:
    """A base for each of SHARES_ANSWERED, and its win rates. `result` grows as settings finish."""
    out = runs_of(out, fingerprints(config / "config.json", ROOT / "data" / "world.py"), DOCUMENTS)
    folders = {f"answered {share}": out / f"answered-{share}" for share in SHARES_ANSWERED}
    rules = ["none", "all", *ABLATIONS]
    jobs, rows = {}, {}
    for (name, folder), share in zip(folders.items(), SHARES_ANSWERED):
        data, base = folder / "data", folder / "base"
        commands = []
        if not (data / "novel.jsonl").exists():  # the last that world.py writes
            commands.append((folder / "world.log", "data/world.py", "--out", data, "--share-answered", share,
                             "--corpus", DOCUMENTS))
        commands += tuning(config, data, base, "pretrain", "--batch-size", 32, "--token-budget", 1024)
        for some in rules:
            commands += answering(base, data / "eval.jsonl", folder / f"base-{some}.json", some)
        for method in SWEPT:
            path = folder / method
            commands += tuning(base, data, path, method, "--token-budget", 1024)
            commands += answering(path, data / "eval.jsonl", path / "eval.json")
        jobs[name] = 1, commands

    def judge_setting(name):
        folder = folders[name]
        answers = {f"base, rules {some}": folder / f"base-{some}.json" for some in rules}
        answers |= {method: folder / method / "eval.json" for method in SWEPT}
        world = load_world(folder / "data")
        tasks = {task.instruction: task for task in world.evaluation_sets()["eval"]}
        means = {who: [100 * statistics.mean(column) for column in graded(path, world, tasks)]
                 for who, path in answers.items()}
        rows[name] = {
            "share_answered": world.share_answered,
            "win_rate": {who: round(50 + (mean[1] - means["instruction"][1]) / 2, 2) for who, mean in means.items()},
            "content": {who: round(content, 2) for who, (content, _) in means.items()},
            "grade": {who: round(grade, 2) for who, (_, grade) in means.items()}}
        write_json(result, [rows[name] for name in folders if name in rows])

    for name, (_, commands) in jobs.items():
        if not commands:
            judge_setting(name)
    run_jobs(unfinished(jobs), workers, judge_setting)
    return [rows[name] for name in folders]


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
    parser = command.parser(__doc__)
    parser.add_argument("what", choices=["table", "sweep"])
    parser.add_argument("--model", default="data/tiny",
                        help="the base model; for the sweep, the folder of its config.json")
    parser.add_argument("--data", type=Path, default=Path("data/world"),
                        help="the table's training and eval sets")
    parser.add_argument("--workers", type=command.positive(int), default=min(os.cpu_count() or 1, 8),
                        help="commands side by side")
    args = parser.parse_args()
    result = Path("out") / f"{args.what}.json"
    model = model_folder(args.model)
    if args.what == "table":
        found = table(model, args.data, result.with_suffix(""), args.workers)
        write_json(result, found)
        print(table_markdown(beside(found)), doses_markdown(found), differences(found), sep="\n\n")
    else:
        rows = sweep(model, result.with_suffix(""), args.workers, result)
        setting = bundled(rows)
        print(sweep_markdown(rows), "the bundled base's setting, by the rule of `bundled`: "
              f"answered {setting['share_answered']}", sep="\n\n")


if __name__ == "__main__":
    command.run(main, interrupted="finished runs are kept, and the same command goes on")
