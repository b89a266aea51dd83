"""The process in which cases run. It reads jobs from stdin, and forks a child for each, since importing torch is slow.

It has code and inputs, and never a value that is right: those stay with the process that started it (runner.py).
"""
import gc
import importlib
import importlib.util
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

import torch

import calls

LIBRARIES = ("multiprocessing.pool", "requests", "safetensors.torch", "tokenizers.decoders", "torch.distributed",
             "torch.utils.checkpoint")


def serve():
    """Answer each job, a line on stdin, by its cases' lines on stdout and then "null", which means ready, too."""
    for library in LIBRARIES:
        importlib.import_module(library)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # else every child copies the pages that its collector looks at
    os.write(1, b"null\n")
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            try:
                work(**job)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.write(1, b"null\n")


def work(folder: str, seconds: float, memory: int, submitted: dict | None):
    """Run the cases of folder/cases.json on the folder's code: a line with a value, or with an error, for each."""
    out, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what a submission prints is not read
        os.dup2(nothing, stream)
    os.chdir(folder)
    sys.path[0] = folder  # in place of this file's folder
    cases, failed = json.loads(Path("cases.json").read_text()), None
    limit(seconds, memory)
    if submitted:
        try:
            put_in(**submitted)
        except BaseException as error:  # sys.exit() and KeyboardInterrupt, too
            failed = error
    for case in cases:
        torch.manual_seed(0)
        try:
            if failed:
                raise failed
            value = getattr(calls, case["call"])(**case["inputs"])
            text = json.dumps({"value": value}, default=as_plain)
        except BaseException as error:
            text = json.dumps({"error": describe(error, folder)})
        with open(out, "w", closefd=False) as pipe:
            pipe.write(text + "\n")


def put_in(file: str, functions: list[str], others: list[str]):
    """Load submission/FILE, and put some of its functions in the place of the clean file's.

    Where these call other functions that the assignment asks for, they get the clean file's.
    """
    clean = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    spec = importlib.util.spec_from_file_location("submission", f"submission/{file}")
    theirs = sys.modules["submission"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    for name in others:
        give(clean, theirs, name)
    for name in functions:
        give(theirs, clean, name)


def give(source, target, function: str):
    """Give a module another one's function, or its class's method with the helpers that stand beside that."""
    *classes, name = function.split(".")
    for each in classes:
        source, target = getattr(source, each, None), getattr(target, each, None)
        for helper, value in vars(source).items() if source and target else ():
            if not hasattr(target, helper):
                setattr(target, helper, value)
    if not hasattr(source, name):
        raise LookupError(f"there is no function {function} at its place")
    if target:
        setattr(target, name, getattr(source, name))


def limit(seconds: float, memory: int):
    """Limits of this process and of those that it starts; the clock, the parent holds."""
    limits = {"RLIMIT_CPU": int(seconds) + 2, "RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0,  # no file gets longer
              "RLIMIT_NPROC": 0}  # no other process; the system does not hold root to this
    if sys.platform == "linux":
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits["RLIMIT_AS"] = now + memory
    for kind, most in limits.items():
        resource.setrlimit(getattr(resource, kind), (most, most))
    signal.alarm(int(seconds) + 5)  # should the parent die first


def as_plain(value):
    """A tensor or numpy's array or number as JSON's lists and numbers."""
    return value.detach().tolist() if isinstance(value, torch.Tensor) else value.tolist()


def describe(error: BaseException, folder: str) -> str:
    """An exception in one sentence, with the line of the submission that raised it."""
    steps = [step for step in traceback.extract_tb(error.__traceback__) if step.filename.startswith(folder)]
    if isinstance(error, SystemExit):
        return "it called sys.exit"
    if isinstance(error, NotImplementedError):
        return f"{steps[-1].name if steps else 'it'} is not written yet"
    said = " ".join(str(error).split())[:200]
    where = f", at `{steps[-1].line}`" if steps and steps[-1].line else ""
    return f"{type(error).__name__}{': ' if said else ''}{said}{where}"


if __name__ == "__main__":
    serve()
