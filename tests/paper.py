"""The paper's tables in vitro, and how they move with the data that the base model was pretrained on.

    make table    # Tables 1 to 4 as one Markdown table, and out/table.json
    make sweep    # the same win rates over a grid of the world's two shares, and out/sweep.json

This file runs the commands that a reader could type, train.py and generate.py, and then the world's judge.
They run side by side with one thread each; two threads hardly help a model this small. Finished runs are kept
in a folder named by a hash of the base model and the data, so the same command goes on where it was stopped,
and the runs of another base or other data never mix with them.
"""
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from data import command  # first: Ctrl-C is quiet from here on
from data.answers import pair, read_outputs
from data.download import model_folder
from data.files import check_fields, clock, digest, fingerprint, hold, read_jsonl, write_json
from data.hub import weight_files
from data.world import FAMILIES, World, grade
from judge import length_controlled_win_rate, win_rate, world_judge
from train import METHODS

SEEDS = (1, 2, 3)
EPOCHS = (5, 7, 15)  # of the paper's 5, 7, 10, 15 and 20, those that its scripts settled on for Llama-2-7B
TUNED = [method for method in METHODS if method != "pretrain"]
RULES = ("none", "all", "tokens,repeats", "eos,tokens", "eos,repeats")  # that the base model answers under
DOCUMENTS = 82_000  # that a base model sees, once each: 3.6 million tokens
ENTRIES = [  # method, rules, the paper's words, its win rates for Llama-2-7B and OLMo-7B-Feb2024 (± over 5 seeds)
    ("base", "none", "base model", "2.4 ± 0.14", "4.7 ± 0.57"),
    ("instruction", "none", "instruction tuning (the reference)", "50", "50"),
    ("response", "none", "response tuning", "43.3 ± 1.1", "43.7 ± 1.7"),
    ("mbpp", "none", "code (MBPP)", "16.9 ± 0.70", "10.4 ± 1.0"),
    ("gsm", "none", "maths (GSM)", "23.7 ± 0.74", "30.3 ± 0.6"),
    ("poetry", "none", "poems", "22.9 ± 0.97", "21.9 ± 0.48"),
    ("recipes", "none", "recipes", "14.6 ± 0.81", "21.5 ± 0.86"),
    ("chess", "none", "chess", "2.1 ± 0.36", "6.3 ± 1.1"),
    ("base", "all", "all three rules", "24.4 ± 0.40", "–"),
    ("base", "tokens,repeats", "without rule 1 (EOS)", "10.4 ± 0.30", "–"),
    ("base", "eos,tokens", "without rule 3 (used words)", "14.3 ± 0.58", "–"),
    ("base", "eos,repeats", "without rule 2 (token changes)", "16.3 ± 0.25", "–"),
]
SHARES_ANSWERED, SHARES_CHAT_MARKED = (0.1, 0.2, 0.4), (0.0, 0.03, 0.3)  # the sweep's grid
SWEPT = ("instruction", "response", "mbpp", "recipes")  # the methods that the sweep tunes by


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


def answering(model: Path, questions: Path, answers: Path, rules: str = "none") -> list:
    """The commands, one or none, after which `answers` holds a model's answers."""
    if answers.exists():
        return []
    return [(answers.with_suffix(".log"), "generate.py", "--model", model, "--rules", rules,
             "--input", questions, "--output", answers)]


def tuning(model: Path, data: Path, folder: Path, method: str, *options) -> list:
    """The commands, one or none, after which `folder` holds the tuned model."""
    if (folder / "run.json").exists():
        return []
    return [(folder.with_suffix(".log"), "train.py", "--method", method, "--model", model, "--data", data,
             "--out", folder, "--resume", *options)]


def judged(answers: Path, reference: Path, families: dict[str, str]) -> dict:
    """Win rate, length-controlled win rate, and win rate by family, in percent, of one file of answers over another."""
    pairs = pair(answers, reference)
    preferences = world_judge(pairs)
    lengths, reference_lengths = ([len(row[i]) for row in pairs] for i in (1, 2))
    by_family = {family: [p for p, (instruction, _, _) in zip(preferences, pairs) if families[instruction] == family]
                 for family in FAMILIES}
    return {
        "win_rate": win_rate(preferences)[0],
        "length_controlled": length_controlled_win_rate(preferences, lengths, reference_lengths),
        "by_family": {family: win_rate(p)[0] for family, p in by_family.items()},
    }


def mean_grade(answers: Path, tasks: dict) -> float:
    return statistics.mean(grade(tasks[row["instruction"]], row["output"]) for row in read_outputs(answers))


def table(model: Path, data: Path, out: Path, workers: int) -> list[dict]:
    """Train, answer and judge all of ENTRIES. Returns one row for each, as out/table.json has them.

    Raises ValueError where val.jsonl or eval.jsonl asks what the world's answer key does not know.
    """
    val, test = ({task.instruction: task for task in tasks} for tasks in World().evaluation_sets())
    families = {instruction: task.family for instruction, task in test.items()}
    for name, tasks in (("val", val), ("eval", test)):
        rows = read_jsonl(data / f"{name}.jsonl", check_fields("instruction"))
        if {row["instruction"] for row in rows} != tasks.keys():
            raise ValueError(f"{data / name}.jsonl was not written by data/world.py, whose answer key judges the table")
    sets = [path for path in sorted(data.glob("*.jsonl")) if path.stem != "corpus"]
    base = [model / "config.json", model / "tokenizer.json", *weight_files(model)]
    out = runs_of(out, fingerprints(*base), fingerprints(*sets))

    def folder(method, epochs, seed):
        return out / f"{method}-{epochs}-epochs-seed-{seed}"

    def tune(method, epochs, seed, questions):
        path = folder(method, epochs, seed)
        options = ("--epochs", epochs, "--seed", seed, "--token-budget", 1024)
        return epochs + 2, (tuning(model, data, path, method, *options)
                            + answering(path, data / f"{questions}.jsonl", path / f"{questions}.json"))

    print("choosing epochs on val", file=sys.stderr)
    jobs = {f"base, rules {rules}": (2, answering(model, data / "eval.jsonl", out / f"base-{rules}.json", rules))
            for rules in RULES}
    jobs |= {f"{method}, {epochs} epochs": tune(method, epochs, SEEDS[0], "val")
             for method in TUNED for epochs in EPOCHS}
    run_jobs(unfinished(jobs), workers)
    chosen = {method: max(EPOCHS, key=lambda epochs: mean_grade(folder(method, epochs, SEEDS[0]) / "val.json", val))
              for method in TUNED}  # of equals the first, which trains least
    print("chose " + ", ".join(f"{method} {epochs}" for method, epochs in chosen.items()), file=sys.stderr)
    run_jobs(unfinished({f"{method}, seed {seed}": tune(method, chosen[method], seed, "eval")
                         for method in TUNED for seed in SEEDS}), workers)

    rows = []
    for method, rules, *_ in ENTRIES:
        judgements, grades = [], []
        for seed in SEEDS:
            answers = out / f"base-{rules}.json"
            if method != "base":
                answers = folder(method, chosen[method], seed) / "eval.json"
            reference = folder("instruction", chosen["instruction"], seed) / "eval.json"
            judgements.append(judged(answers, reference, families))
            grades.append([grade(test[row["instruction"]], row["output"]) for row in read_outputs(answers)])
        rates = [judgement["win_rate"] for judgement in judgements]
        rows.append({
            "method": method, "rules": rules, "epochs": chosen.get(method), "seeds": len(SEEDS),
            "mean": statistics.mean(rates), "sd": statistics.stdev(rates),
            "length_controlled": statistics.mean(judgement["length_controlled"] for judgement in judgements),
            "exact": 100 * statistics.mean(g == 1 for run in grades for g in run),
            "holds": 100 * statistics.mean(g > 0 for run in grades for g in run),
            "by_family": {family: statistics.mean(j["by_family"][family] for j in judgements) for family in FAMILIES},
        })
    return rows


def unfinished(jobs: dict) -> dict:
    return {name: (cost, commands) for name, (cost, commands) in jobs.items() if commands}


def table_markdown(rows: list[dict]) -> str:
    lines = ["| win rate against instruction tuning, % | in vitro | length-controlled | exact answers "
             "| hold the answer | epochs | Llama-2-7B | OLMo-7B |", "|---|---|---|---|---|---|---|---|"]
    for row, (_, _, words, llama, olmo) in zip(rows, ENTRIES):
        cells = [words, f"{row['mean']:.1f} ± {row['sd']:.1f}"]
        cells += [f"{row[key]:.1f}" for key in ("length_controlled", "exact", "holds")]
        lines.append(f"| {' | '.join(cells)} | {row['epochs'] or '–'} | {llama} | {olmo} |")
    return "\n".join(lines)


def families_markdown(rows: list[dict]) -> str:
    lines = ["| | " + " | ".join(FAMILIES) + " |", "|---" * (len(FAMILIES) + 1) + "|"]
    for row, (_, _, words, *_) in zip(rows, ENTRIES):
        lines.append(f"| {words} | " + " | ".join(f"{row['by_family'][family]:.0f}" for family in FAMILIES) + " |")
    return "\n".join(lines)


def sweep(config: Path, out: Path, workers: int, result: Path) -> list[dict]:
    """A base for each setting of the world's shares, and its win rates. `result` grows as settings finish."""
    families = {task.instruction: task.family for task in World().evaluation_sets()[1]}
    settings = {f"answered {a}, chat-marked {c}": (a, c) for a in SHARES_ANSWERED for c in SHARES_CHAT_MARKED}
    out = runs_of(out, fingerprints(config / "config.json", ROOT / "data" / "world.py"), DOCUMENTS)
    folders = {name: out / f"answered-{a}-chat-marked-{c}" for name, (a, c) in settings.items()}
    jobs = {}
    for name, (answered, chat_marked) in settings.items():
        folder = folders[name]
        data, base = folder / "data", folder / "base"
        commands = []
        if not (data / "eval.jsonl").exists():  # the last that world.py writes
            commands.append((folder / "world.log", "data/world.py", "--out", data, "--share-answered", answered,
                             "--share-chat-marked", chat_marked, "--corpus", DOCUMENTS))
        commands += tuning(config, data, base, "pretrain", "--token-budget", 1024)
        for rules in RULES:
            commands += answering(base, data / "eval.jsonl", folder / f"base-{rules}.json", rules)
        for method in SWEPT:
            path = folder / method
            commands += tuning(base, data, path, method) + answering(path, data / "eval.jsonl", path / "eval.json")
        jobs[name] = 1, commands

    def judge_setting(name):
        folder, (answered, chat_marked) = folders[name], settings[name]
        answers = {f"base, rules {rules}": folder / f"base-{rules}.json" for rules in RULES}
        answers |= {method: folder / method / "eval.json" for method in SWEPT}
        rates = {who: judged(path, answers["instruction"], families)["win_rate"] for who, path in answers.items()}
        rows[name] = {"answered": answered, "nearness": chat_marked, "win_rate": rates}  # as data/sweep.json has them
        write_json(result, [rows[name] for name in settings if name in rows])

    rows = {}
    for name, (_, commands) in jobs.items():
        if not commands:
            judge_setting(name)
    run_jobs(unfinished(jobs), workers, judge_setting)
    return [rows[name] for name in settings]


def sweep_markdown(rows: list[dict]) -> str:
    columns = list(rows[0]["win_rate"])
    lines = ["| answered | chat-marked | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for row in rows:
        rates = " | ".join(f"{rate:.1f}" for rate in row["win_rate"].values())
        lines.append(f"| {row['answered']} | {row['nearness']} | {rates} |")
    return "\n".join(lines)


def figure(rows: list[dict]) -> str:
    """The sweep as bars in plain text: a row for each entry and share answered, a column for each share chat-marked."""
    lines = ["win rate, %".ljust(32) + "".join(f"chat-marked {share}".ljust(24) for share in SHARES_CHAT_MARKED)]
    for column in ("base, rules none", "response", "base, rules all", "mbpp", "recipes"):
        for answered in SHARES_ANSWERED:
            rates = [row["win_rate"][column] for row in rows if row["answered"] == answered]
            name = column if answered == SHARES_ANSWERED[0] else ""
            bars = "".join(f"{'█' * round(rate / 4) or '▏'} {rate:.1f}".ljust(24) for rate in rates)
            lines.append((f"{name:17} answered {answered}".ljust(32) + bars).rstrip())
    return "\n".join(lines)


def bundled(rows: list[dict]) -> dict | None:
    """The setting for data/tiny, by a rule that does not look at the single tasks: of those whose base wins under 5 %,
    the one where response tuning and the three rules win most together."""
    quiet = [row for row in rows if row["win_rate"]["base, rules none"] < 5]
    return max(quiet, key=lambda row: row["win_rate"]["response"] + row["win_rate"]["base, rules all"], default=None)


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
        rows = table(model, args.data, result.with_suffix(""), args.workers)
        print(table_markdown(rows), families_markdown(rows), sep="\n\n")
        write_json(result, rows)
    else:
        rows = sweep(model, result.with_suffix(""), args.workers, result)
        print(sweep_markdown(rows), figure(rows), sep="\n\n")
        if setting := bundled(rows):
            print("\nthe bundled base's setting, by the rule of `bundled`: "
                  f"answered {setting['answered']}, chat-marked {setting['nearness']}")


if __name__ == "__main__":
    command.run(main, interrupted="finished runs are kept, and the same command goes on")
