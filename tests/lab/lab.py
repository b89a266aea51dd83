"""The laboratory's bench: pretrain, tune, ask, grade. Whatever was made is kept, and jobs run side by side.

Each of the first three is a function of the data themselves, and what it makes lies in out/lab under the hash of all
that made it: so experiments share models and answers, and one that was interrupted goes on. The hash does not hold the
code: whoever changes train.py, model.py or generate.py removes out/lab first.

An experiment compares conditions on each of three bases, of three worlds; `graded` does what most of them need.
"""
import math
import os
import random
import shutil
import signal
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import torch

from adapter import Adapter
from data import machine
from data.files import clock, digest, fingerprint, read_json, write_json, write_text
from data.format import PROMPT, Tokenizer, encode, encode_document, encode_prompt, train_tokenizer
from data.hub import weight_files
from data.world import FAMILIES, KIND, Task, World
from generate import generate
from model import Config, Llama
from train import METHODS, adamw, n_scored, train

KEPT = ROOT / "out" / "lab"
TOKEN_BUDGET = 1024  # of a micro-batch: the fastest for a model this small
LR = 1e-4  # twice train.py's for a narrow model: with half the epochs it ends as well, in half the time
DOCUMENTS = 80_000  # that a base model reads, once each
STAGES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of pretraining, after which the model is kept, too


@dataclass(frozen=True)
class Base:
    """A base model, the world that it has read about, and the seed of both, which finetuning on it takes, too.

    most: how many of its instructions, dialogues and documents an experiment takes; None for all.
    """

    folder: Path
    world: World
    seed: int
    most: int | None = None

    def tasks(self, *names: str) -> list[Task]:
        """The instructions of one or more of the evaluation sets."""
        sets = self.world.evaluation_sets()
        return [task for name in names for task in sets[name][: self.most]]

    def examples(self, n: int = 1000, families: list[str] = FAMILIES) -> list[Task]:
        """Instructions with responses like the broad training set's: the families in turn, no subject held out."""
        rng = random.Random(f"lab {self.seed}")
        chosen = [families[i % len(families)] for i in range(min(n, self.most or n))]
        return [self.world.task(rng, family, rng.choice(self.world.seen[KIND[family]])) for family in chosen]

    def dialogues(self, method: str) -> list[list[dict]]:
        """The training set of one of the paper's methods."""
        return [row["messages"] for row in self.world.training_set(METHODS[method].file)][: self.most]


def dialogue(instruction: str, response: str) -> list[dict]:
    return [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]


def three_bases(workers: int) -> list[Base]:
    """The bundled base and two of other worlds, which are pretrained the first time: 10 to 20 minutes on two cores."""
    worlds, tiny = {seed: World(seed=seed) for seed in (1, 2, 3)}, ROOT / "data" / "tiny"
    made = side_by_side({f"pretraining base {seed}": (1, pretrain, tiny / "config.json", worlds[seed], DOCUMENTS, seed)
                         for seed in (2, 3)}, workers)
    return [Base(folder, worlds[seed], seed) for seed, folder in enumerate([tiny, *made.values()], 1)]


def pretrain(config: Path, world: World, documents: int, seed: int = 1) -> Path:
    """The folder of a base model that has read so many documents of a world, each once, as `make pretrain` does it.

    config: a config.json. seed: of the first weights and of the order. Subfolders "1-32", "1-16" and so on hold the
    model as it was after that share of the documents.
    """
    def make(folder):
        settings, rng = Config.from_json(config), random.Random(f"corpus {world.seed}")
        texts = [world.document(rng) for _ in range(documents)]
        tokenizer_json = train_tokenizer(texts, settings.vocab_size).to_str(pretty=True)
        model = Llama(settings).init_weights(torch.Generator().manual_seed(seed))

        def save(folder):
            folder.mkdir(exist_ok=True)
            write_text(folder / "tokenizer.json", tokenizer_json)
            model.save_pretrained(folder, getattr(torch, settings.dtype))

        def report(line):
            nonlocal step
            step += 1
            for share in STAGES:
                if step == math.ceil(n_steps * share):
                    save(folder / f"1-{1 / share:.0f}")

        save(folder)
        tokenizer, step, n_steps = Tokenizer(folder), 0, math.ceil(documents / 32)
        examples = [encode_document(tokenizer, text, settings.context) for text in texts]
        train(model, examples, epochs=1, lr=3e-3, batch_size=32, seed=seed, token_budget=TOKEN_BUDGET,
              optimizer=adamw(model, beta2=0.95), report=report)
        save(folder)

    return kept("base", [fingerprint(config), asdict(world), documents, seed, STAGES], make)


def tune(base: Path, dialogues: list[list[dict]], epochs: int, seed: int = 1, lr: float = LR, blank: bool = False,
         prompt: str = PROMPT) -> Path:
    """The folder of a base model tuned on dialogues, each a list of messages; prompt and blank as for `encode`."""
    def make(folder):
        model, tokenizer = load(base)
        examples = [encode(tokenizer, messages, model.config.context, blank, prompt) for messages in dialogues]
        train(model, list(filter(n_scored, examples)), epochs=epochs, lr=lr, seed=seed, token_budget=TOKEN_BUDGET,
              report=lambda line: None)
        save_tuned(model, base, folder)

    return kept("tuned", [identity(base), dialogues, epochs, seed, lr, blank, prompt], make)


def save_tuned(model: Llama, base: Path, folder: Path):
    """Write a model that was made of a base, in the base's type of weights, with its tokenizer."""
    model.save_pretrained(folder, getattr(torch, model.config.dtype))
    shutil.copy(base / "tokenizer.json", folder)


def ask(model: Path, instructions: list[str], rules=(), penalise_prompt: bool = False, prompt: str = PROMPT,
        changed: dict | None = None) -> list[str]:
    """A model's greedy answers, under some of the rules. A response ends with EOS, or with the model's context.

    changed: other numbers for an Adapter's eos_slope, repeat_penalty or token_shift (a list of V).
    """
    def make(folder):
        llama, tokenizer = load(model)
        adapter = None
        if rules or changed:
            adapter = Adapter(tokenizer, llama.config.vocab_size, rules, penalise_prompt=penalise_prompt)
            for name, value in (changed or {}).items():
                setattr(adapter, name, torch.tensor(value) if name == "token_shift" else value)
        prompts, answers = [encode_prompt(tokenizer, instruction, prompt) for instruction in instructions], []
        for i in range(0, len(prompts), 64):
            answers += generate(llama, prompts[i : i + 64], tokenizer.eos_id, llama.config.context, adapter=adapter)
        write_json(folder / "answers.json", [tokenizer.decode(ids).strip() for ids in answers])

    made = kept("answers", [identity(model), instructions, sorted(rules), penalise_prompt, prompt, changed], make)
    return read_json(made / "answers.json", "remove its folder")


def kept(kind: str, made_from: list, make) -> Path:
    """The folder of what is made from these JSON values; where it is not there yet, make(folder) fills it."""
    folder = KEPT / kind / digest(made_from)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(mkdtemp(dir=folder.parent))
        try:
            make(new)
            with suppress(OSError):  # another job may have made the same meanwhile
                new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return folder


@cache
def identity(folder: Path) -> str:
    """What a model's folder holds, whatever it is called."""
    return fingerprint(folder / "config.json", folder / "tokenizer.json", *weight_files(folder))


def load(folder: Path) -> tuple[Llama, Tokenizer]:
    return Llama.from_pretrained(folder).eval(), Tokenizer(folder)


def graded(bases: list[Base], conditions: dict, workers: int, questions: tuple = ("eval",)) -> dict:
    """{condition: for each base, the (content, grade) of its answers, each from 0 to 1}.

    conditions: {name: a function of a Base that returns arguments of `ask`, but for the model and the instructions}.
    questions: the evaluation sets that are asked.
    Where the model is not the base itself but made of it, "make" is among them, for example
    partial(tune, dialogues=..., epochs=...), which is called with the base's folder and seed.
    """
    asked, makers = {}, {}  # two conditions may ask the same model, which is made once, before any is asked
    for name, condition in conditions.items():
        for base in bases:
            asking, key = dict(condition(base)), None
            if make := asking.pop("make", None):
                key = digest([base.seed, make.func.__name__, make.keywords])
                cost = make.keywords["epochs"] * len(make.keywords["dialogues"])
                makers.setdefault(key, ((name, base.seed), (cost, partial(make, base.folder, seed=base.seed))))
            asked[name, base.seed] = base, key, asking
    made = side_by_side(dict(makers.values()), workers)
    folders = dict(zip(makers, made.values()))
    grades = side_by_side({at: (1, partial(grades_of, base, folders.get(key, base.folder), questions, **asking))
                           for at, (base, key, asking) in asked.items()}, workers)
    return {name: [grades[name, base.seed] for base in bases] for name in conditions}


def grades_of(base: Base, model: Path, questions: tuple = ("eval",), **asking) -> list[tuple[float, float]]:
    """The (content, grade) of a model's answers to a base's instructions; asking: more arguments of `ask`."""
    tasks = base.tasks(*questions)
    outputs = ask(model, [task.instruction for task in tasks], **asking)
    return [base.world.grade(task, output) for task, output in zip(tasks, outputs)]


def summary(graded: list, reference: list | None = None) -> dict:
    """The row of a condition: for each base the mean content ("right") and grade of its answers, in percent.

    With the grades of another condition, "difference" is [mean difference of the grades, its standard error], both in
    percent, paired by instruction over all bases. (A point of difference is half a point of win rate.)
    """
    row = {name: [round(100 * statistics.mean(pair[i] for pair in pairs), 2) for pairs in graded]
           for i, name in enumerate(["right", "grade"])}
    if reference:
        differences = [100 * (a[1] - b[1]) for pairs, others in zip(graded, reference) for a, b in zip(pairs, others)]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        row["difference"] = [round(statistics.mean(differences), 2), round(error, 2)]
    return row


def begin():
    """In each worker: one thread, since two hardly help a model this small; Ctrl-C ends it without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    machine.prepare("cpu")


def side_by_side(jobs: dict, workers: int) -> dict:
    """Run jobs, {name: (cost, function, *arguments)}, in so many processes. Returns {name: result}. A name is a text,
    or a tuple whose parts are printed with commas between.

    Prints a line as each ends, with the time that the costs (in any unit) say is left. Raises what a job raised.
    """
    total, done, began, results = sum(cost for cost, *_ in jobs.values()), 0, time.perf_counter(), {}
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers, get_context("spawn"), begin) as pool:
        futures = {pool.submit(*call): name for name, (_, *call) in jobs.items()}
        try:
            for future in as_completed(futures):
                name = futures[future]
                results[name], done = future.result(), done + jobs[name][0]
                spent = time.perf_counter() - began
                shown = ", ".join(map(str, flat(name)))
                print(f"{shown}  ({100 * done / total:.0f} %, {clock(spent)} so far, "
                      f"{clock(spent / done * (total - done))} left)", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: results[name] for name in jobs}


def flat(name) -> list:
    return [part for each in name for part in flat(each)] if isinstance(name, tuple) else [name]


def spearman(x, y) -> float:
    """The rank correlation of two lists, from -1 to 1; equal values share their mean rank. 0 where all are equal."""
    ranks = [[sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values] for values in (x, y)]
    return statistics.correlation(*ranks) if all(len(set(values)) > 1 for values in (x, y)) else 0.0
