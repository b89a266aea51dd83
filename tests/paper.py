"""The paper's tables in vitro, and how they move with the data that the base model was pretrained on.

    make table    # Tables 1 to 4 as one Markdown table, and out/table.json
    make sweep    # the same win rates over a grid of the world's two knobs, and out/sweep.json

This file only lists what a reader could type: train.py, generate.py, and the world's judge. Commands run
side by side with one thread each; two threads hardly help a model this small. What is finished is kept, and
the same command goes on where it was stopped.
"""
import argparse
import json
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
from data.world import FAMILIES, World, grade
from judge import length_controlled_win_rate, pair, read_outputs, win_rate, world_judge
from model import replacing, weight_files
from train import METHODS, fingerprint

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
ANSWERED, NEARNESS = (0.1, 0.2, 0.4), (0.0, 0.03, 0.3)  # the sweep's grid
SWEPT = ("instruction", "response", "mbpp", "recipes")  # and under RULES


def run(jobs: dict[str, tuple[float, list]], workers: int, finished=lambda name: None):
    """Run jobs, {name: (cost, commands)}, `workers` at a time, each job's commands in order.

    Prints a line as each ends, with the time left as the costs (in any unit) foretell it, and calls
    finished(name). Raises RuntimeError with a failed command's last words; those under way stop too.
    """
    total, done, began = sum(cost for cost, _ in jobs.values()), 0, time.perf_counter()
    running, stop = set(), threading.Event()

    def work(commands):
        for log, *command in commands:
            if stop.is_set():
                return
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "w", encoding="utf-8") as file:
                process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdout=file, stderr=file,
                                           env=os.environ | {"OMP_NUM_THREADS": "1"})
                running.add(process)
                code = process.wait()
                running.discard(process)
            if code:
                stop.set()
                last = (log.read_text(encoding="utf-8").strip() or "no output").splitlines()[-1]
                raise RuntimeError(f"{last} (exit {code}, log {log})")

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


def clock(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


def answering(model: Path, questions: Path, answers: Path, rules: str = "none") -> list:
    """The commands, one or none, after which `answers` holds a model's answers."""
    if answers.exists():
        return []
    return [(answers.with_suffix(".log"), "generate.py", "--model", model, "--rules", rules,
             "--input", questions, "--output", answers)]


def tuning(model: Path, data: Path, folder: Path, method: str, epochs: int, seed: int) -> list:
    """The commands, one or none, after which `folder` holds the tuned model. ValueError where it holds one of another base."""
    record = folder / "run.json"
    if record.exists():
        found = json.loads(record.read_bytes())
        if (found["model_sha256"], found["data_sha256"]) == (
                fingerprint(*weight_files(model)), fingerprint(data / f"{METHODS[method][0]}.jsonl")):
            return []
        raise ValueError(f"{folder} was trained on another base model or other data; remove {folder.parent} to begin afresh")
    return [(folder.with_suffix(".log"), "train.py", "--method", method, "--model", model, "--data", data,
             "--epochs", epochs, "--seed", seed, "--token-budget", 1024, "--out", folder, "--resume")]


def judged(answers: Path, reference: Path, families: dict[str, str]) -> dict:
    """Win rate, length-controlled win rate, and win rate by family, in percent, of one file of answers over another."""
    pairs = pair(answers, reference)
    preferences = world_judge(pairs)
    by_family = {family: [p for p, (instruction, _, _) in zip(preferences, pairs) if families[instruction] == family]
                 for family in FAMILIES}
    return {
        "win_rate": win_rate(preferences)[0],
        "length_controlled": length_controlled_win_rate(preferences, [len(a) for _, a, _ in pairs], [len(b) for _, _, b in pairs]),
        "by_family": {family: win_rate(p)[0] for family, p in by_family.items()},
    }


def mean_grade(answers: Path, tasks: dict) -> float:
    return statistics.mean(grade(tasks[row["instruction"]], row["output"]) for row in read_outputs(answers))


def table(model: Path, data: Path, out: Path, workers: int) -> list[dict]:
    """Train, answer and judge all of ENTRIES. Returns one row for each, as out/table.json has them."""
    val, test = ({task.instruction: task for task in tasks} for tasks in World().evaluation_sets())
    families = {instruction: task.family for instruction, task in test.items()}

    def folder(method, epochs, seed):
        return out / f"{method}-{epochs}-epochs-seed-{seed}"

    def tune(method, epochs, seed, questions):
        path = folder(method, epochs, seed)
        return epochs + 2, (tuning(model, data, path, method, epochs, seed)
                            + answering(path, data / f"{questions}.jsonl", path / f"{questions}.json"))

    print("choosing epochs on val", file=sys.stderr)
    jobs = {f"base, rules {rules}": (2, answering(model, data / "eval.jsonl", out / f"base-{rules}.json", rules))
            for rules in RULES}
    jobs |= {f"{method}, {epochs} epochs": tune(method, epochs, SEEDS[0], "val") for method in TUNED for epochs in EPOCHS}
    run(unfinished(jobs), workers)
    chosen = {method: max(EPOCHS, key=lambda epochs: mean_grade(folder(method, epochs, SEEDS[0]) / "val.json", val))
              for method in TUNED}  # of equals the first, which trains least
    print("chose " + ", ".join(f"{method} {epochs}" for method, epochs in chosen.items()), file=sys.stderr)
    run(unfinished({f"{method}, seed {seed}": tune(method, chosen[method], seed, "eval")
                    for method in TUNED for seed in SEEDS}), workers)

    rows = []
    for method, rules, *_ in ENTRIES:
        judgements, grades = [], []
        for seed in SEEDS:
            answers = out / f"base-{rules}.json" if method == "base" else folder(method, chosen[method], seed) / "eval.json"
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
    lines = ["| win rate against instruction tuning, % | in vitro | length-controlled | exact answers | hold the answer "
             "| epochs | Llama-2-7B | OLMo-7B |", "|---|---|---|---|---|---|---|---|"]
    for row, (_, _, words, llama, olmo) in zip(rows, ENTRIES):
        lines.append(f"| {words} | {row['mean']:.1f} ± {row['sd']:.1f} | {row['length_controlled']:.1f} | {row['exact']:.1f} | "
                     f"{row['holds']:.1f} | {row['epochs'] or '–'} | {llama} | {olmo} |")
    return "\n".join(lines)


def families_markdown(rows: list[dict]) -> str:
    lines = ["| | " + " | ".join(FAMILIES) + " |", "|---" * (len(FAMILIES) + 1) + "|"]
    for row, (_, _, words, *_) in zip(rows, ENTRIES):
        lines.append(f"| {words} | " + " | ".join(f"{row['by_family'][family]:.0f}" for family in FAMILIES) + " |")
    return "\n".join(lines)


def sweep(config: Path, out: Path, workers: int, result: Path) -> list[dict]:
    """A base for each setting of the world's knobs, and its win rates. `result` grows as settings finish."""
    families = {task.instruction: task.family for task in World().evaluation_sets()[1]}
    settings = {f"answered {a}, nearness {n}": (a, n) for a in ANSWERED for n in NEARNESS}
    folders = {name: out / f"answered-{a}-nearness-{n}" for name, (a, n) in settings.items()}
    jobs = {}
    for name, (answered, nearness) in settings.items():
        folder = folders[name]
        data, base = folder / "data", folder / "base"
        commands = []
        if not (data / "eval.jsonl").exists():  # the last that world.py writes
            commands.append((folder / "world.log", "data/world.py", "--out", data, "--answered", answered,
                             "--nearness", nearness, "--corpus", DOCUMENTS))
        if not (base / "run.json").exists():
            commands.append((folder / "base.log", "train.py", "--method", "pretrain", "--model", config, "--data", data,
                             "--token-budget", 1024, "--out", base, "--resume"))
        for rules in RULES:
            commands += answering(base, data / "eval.jsonl", folder / f"base-{rules}.json", rules)
        for method in SWEPT:
            path = folder / method
            if not (path / "run.json").exists():
                commands.append((folder / f"{method}.log", "train.py", "--method", method, "--model", base, "--data", data,
                                 "--out", path, "--resume"))
            commands += answering(path, data / "eval.jsonl", path / "eval.json")
        jobs[name] = 1, commands

    def judge_setting(name):
        folder, (answered, nearness) = folders[name], settings[name]
        reference = folder / "instruction" / "eval.json"
        rates = {f"base, rules {rules}": judged(folder / f"base-{rules}.json", reference, families)["win_rate"] for rules in RULES}
        rates |= {method: judged(folder / method / "eval.json", reference, families)["win_rate"] for method in SWEPT}
        rows[name] = {"answered": answered, "nearness": nearness, "win_rate": rates}
        with replacing(result) as temporary:
            temporary.write_text(json.dumps([rows[name] for name in settings if name in rows], indent=1) + "\n")

    rows = {}
    for name, (_, commands) in jobs.items():
        if not commands:
            judge_setting(name)
    run(unfinished(jobs), workers, judge_setting)
    return [rows[name] for name in settings]


def sweep_markdown(rows: list[dict]) -> str:
    columns = list(rows[0]["win_rate"])
    lines = ["| answered | nearness | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for row in rows:
        rates = " | ".join(f"{rate:.1f}" for rate in row["win_rate"].values())
        lines.append(f"| {row['answered']} | {row['nearness']} | {rates} |")
    return "\n".join(lines)


def figure(rows: list[dict]) -> str:
    """The sweep as bars in plain text: a row for each entry and `answered`, a column for each `nearness`."""
    lines = ["win rate, %".ljust(32) + "".join(f"nearness {n}".ljust(24) for n in NEARNESS)]
    for column in ("base, rules none", "response", "base, rules all", "mbpp", "recipes"):
        for answered in ANSWERED:
            rates = [row["win_rate"][column] for row in rows if row["answered"] == answered]
            name = column if answered == ANSWERED[0] else ""
            lines.append((f"{name:17} answered {answered}".ljust(32)
                          + "".join(f"{'█' * round(rate / 4) or '▏'} {rate:.1f}".ljust(24) for rate in rates)).rstrip())
    return "\n".join(lines)


def carried(rows: list[dict]) -> dict | None:
    """The setting for data/tiny, by a rule that does not look at the single tasks: of those whose base wins under 5 %,
    the one where response tuning and the three rules win most together."""
    quiet = [row for row in rows if row["win_rate"]["base, rules none"] < 5]
    return max(quiet, key=lambda row: row["win_rate"]["response"] + row["win_rate"]["base, rules all"], default=None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["table", "sweep"])
    parser.add_argument("--model", type=Path, default=Path("data/tiny"), help="the base model; for the sweep, its config.json")
    parser.add_argument("--data", type=Path, default=Path("data/world"), help="what the table's models are trained on")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8), help="commands side by side")
    args = parser.parse_args()
    result = Path("out") / f"{args.what}.json"
    if args.what == "table":
        rows = table(args.model, args.data, result.with_suffix(""), args.workers)
        print(table_markdown(rows), families_markdown(rows), sep="\n\n")
        with replacing(result) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n")
    else:
        rows = sweep(args.model, result.with_suffix(""), args.workers, result)
        print(sweep_markdown(rows), figure(rows), sep="\n\n")
        if setting := carried(rows):
            print("\nthe carried base's setting, by the rule of `carried`: "
                  f"answered {setting['answered']}, nearness {setting['nearness']}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        print(f"paper.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; what is finished is kept, and the same command goes on", file=sys.stderr)
        sys.exit(130)
