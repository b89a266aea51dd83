"""The laboratory's bench: pretrain, tune, ask. Whatever was made is kept, and jobs run side by side.

Each of the three is a function of the data themselves, and what it makes lies in out/lab under the hash of all that
made it, the code included: so experiments share models and answers, and one that was interrupted goes on.
"""
import ctypes
import math
import os
import random
import re
import shutil
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import torch

from adapter import Adapter
from data import answer_key
from data.checkpoint import weight_files
from data.common import clock, digest, fingerprint, n_processors, read_json, write_json, write_text
from data.device import prepare, reorder_weights_for_cpu
from data.format import PROMPT, Tokenizer, encode, encode_document, encode_prompt, train_tokenizer
from data.world import World
from generate import generate
from model import Config, Llama
from train import CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET, Hyperparameters, adamw, n_scored, train

KEPT = ROOT / "out" / "lab"
CODE = fingerprint(*(ROOT / name for name in ("train.py", "generate.py", "adapter.py", "model.py", "data/format.py")))
LR = 1e-4  # twice train.py's for a narrow model: with half the epochs it ends as well, in half the time
PRETRAINING_LR = 3e-3  # the one of `make pretrain`
DOCUMENTS = 80_000  # that a base model reads, once each
STAGES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of pretraining, after which the model is kept, too
WORKER_BYTES = 700_000_000  # of memory that a process of `side_by_side` takes


def pretrain(config: Path, world: World, documents: int, seed: int = 1, lr: float = PRETRAINING_LR) -> Path:
    """The folder of a base model that has read so many documents of a world, each once, as `make pretrain` does it.

    config: a config.json. seed: of the first weights and of the order. Subfolders "1-32", "1-16" and so on hold the
    model as it was after that share of the documents. A GPU does it, where there is one: half a minute instead of ten.
    """
    def make(folder):
        device, budget = ("cuda", GPU_TOKEN_BUDGET) if torch.cuda.is_available() else ("cpu", CPU_TOKEN_BUDGET)
        prepare(device)
        settings, rng = Config.from_json(config), random.Random(f"corpus {world.seed}")
        texts = [world.document(rng) for _ in range(documents)]
        tokenizer_json = train_tokenizer(texts, settings.vocab_size).to_str(pretty=True)
        model = Llama(settings).init_weights(torch.Generator().manual_seed(seed)).to(device)

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
        train(model, examples, Hyperparameters(1, lr, batch_size=32, seed=seed, token_budget=budget),
              adamw(model, beta2=0.95), report=report)
        save(folder)

    return kept("base", [fingerprint(config), asdict(world), documents, seed, lr, STAGES], make)


def tune(base: Path, dialogues: list[list[dict]], epochs: int, seed: int = 1, lr: float = LR, blank: bool = False,
         prompt: str = PROMPT) -> Path:
    """The folder of a base model tuned on dialogues, each a list of messages; prompt and blank as for `encode`."""
    def make(folder):
        model, tokenizer = load(base)
        examples = [encode(tokenizer, messages, model.config.context, blank, prompt) for messages in dialogues]
        fit(model, list(filter(n_scored, examples)), epochs, lr, seed)
        save_tuned(model, base, folder)

    return kept("tuned", [identity(base), dialogues, epochs, seed, lr, blank, prompt], make)


def fit(model: Llama, examples: list, epochs: int, lr: float, seed: int, **options):
    """`train` without a word; examples: (ids, labels) pairs; options: more of its arguments."""
    train(model, examples, Hyperparameters(epochs, lr, seed=seed), **{"report": lambda line: None} | options)


def save_tuned(model: Llama, base: Path, folder: Path):
    """Write a model that was made of a base, in the base's type of weights, with its tokenizer."""
    model.save_pretrained(folder, getattr(torch, model.config.dtype))
    shutil.copy(base / "tokenizer.json", folder)


def ask(model: Path, instructions: list[str], rules=(), penalise_prompt: bool = False, prompt: str = PROMPT,
        changed: dict | None = None) -> list[str]:
    """A model's greedy answers, under some of the rules. A response ends with EOS, or with the model's context.

    changed: other numbers for the rules, as for `set_numbers`.
    """
    def make():
        llama, tokenizer = load(model)
        adapter = None
        if rules or changed:
            adapter = Adapter(tokenizer, llama.config.vocab_size, rules, penalise_prompt=penalise_prompt)
            set_numbers(adapter, changed or {})
        prompts = [encode_prompt(tokenizer, instruction, prompt) for instruction in instructions]
        reorder_weights_for_cpu(llama, min(64, len(prompts)))
        answers = decode(llama, prompts, tokenizer.eos_id, adapter=adapter)
        return [tokenizer.decode(ids).strip() for ids in answers]

    return kept_value("answers", [identity(model), instructions, sorted(rules), penalise_prompt, prompt, changed], make)


def decode(model: Llama, prompts: list[list[int]], eos_id: int, max_new_tokens: int | None = None, **options) -> list:
    """`generate` for any number of prompts, 64 at a time; max_new_tokens: None for the model's context."""
    answers = []
    for i in range(0, len(prompts), 64):
        answers += generate(model, prompts[i : i + 64], eos_id, max_new_tokens or model.config.context, **options)
    return answers


def grade_all(world: World, tasks: list, outputs: list[str]) -> list[tuple[float, float]]:
    """The (content, grade) of each answer by the world's answer key, each from 0 to 1."""
    return [answer_key.grade(world, task, output) for task, output in zip(tasks, outputs)]


def set_numbers(adapter: Adapter, numbers: dict):
    """Give the rules other numbers: {"eos_slope": ..., "repeat_penalty": ..., "token_shift": a list of V}, or some."""
    for name, value in numbers.items():
        setattr(adapter, name, torch.tensor(value) if name == "token_shift" else value)


def kept(kind: str, made_from: list, make) -> Path:
    """The folder of what is made from these JSON values; where it is not there yet, make(folder) fills it."""
    folder = KEPT / kind / digest([made_from, CODE])
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


def kept_value(kind: str, made_from: list, make):
    """The JSON value of make(), kept in such a folder."""
    folder = kept(kind, made_from, lambda folder: write_json(folder / f"{kind}.json", make()))
    return read_json(folder / f"{kind}.json", "remove its folder")


@cache
def identity(folder: Path) -> str:
    """What a model's folder holds, whatever it is called."""
    return fingerprint(folder / "config.json", folder / "tokenizer.json", *weight_files(folder))


def load(folder: Path) -> tuple[Llama, Tokenizer]:
    return Llama.from_pretrained(folder).eval(), Tokenizer(folder)


def begin():
    """In each worker: one thread, since two hardly help a model this small; Ctrl-C ends it without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    prepare("cpu")


def work(function, *arguments):
    """A job, after which glibc gives freed memory back: a worker of many jobs would keep pieces of all of them."""
    try:
        return function(*arguments)
    finally:
        if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
            ctypes.CDLL(None).malloc_trim(0)


def side_by_side(jobs: dict, workers: int) -> dict:
    """Run jobs, {name: (cost, function, *arguments)}, in so many processes. Returns {name: result}. A name is a text,
    or a tuple whose parts are printed with commas between.

    Prints a line as each ends, with the time that the costs (in any unit) say is left. Raises what a job raised.
    """
    total, done, began, results = sum(cost for cost, *_ in jobs.values()), 0, time.perf_counter(), {}
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "16"  # else it keeps a program for each shape of 1,024 products
    with ProcessPoolExecutor(workers, get_context("spawn"), begin) as pool:
        costly_first = sorted(jobs, key=lambda name: -jobs[name][0])  # so that none is left alone at the end
        futures = {pool.submit(work, *jobs[name][1:]): name for name in costly_first}
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


def default_workers(meminfo: Path = Path("/proc/meminfo")) -> int:
    """As many processes as there are processors, at most 8, and no more than have room in the memory that is free.

    Only Linux says in a file how much is free; elsewhere the processors decide.
    """
    workers = min(n_processors(), 8)
    if meminfo.exists():
        available = re.search(r"^MemAvailable: +(\d+) kB$", meminfo.read_text(), re.MULTILINE)
        workers = min(workers, 1024 * int(available[1]) // WORKER_BYTES)
    return max(workers, 1)


def flat(name) -> list:
    return [part for each in name for part in flat(each)] if isinstance(name, tuple) else [name]
