"""The manners of every command line here: bad input ends in one sentence and exit code 2, Ctrl-C in 130, and the
processors are shared with whoever else uses them.

Import this before torch, which reads the settings of its threads as it is loaded. A Ctrl-C during the slow imports ends
the program without a traceback, too.
"""
import argparse
import math
import os
import re
import sys
from pathlib import Path


def cpu_quota(root: Path = Path("/")) -> float:
    """How many processors' time the control group of this process has, as of a container with `--cpus 2`.

    Infinite without a quota, or without control groups of version 2 (Linux). root: of the file system.
    """
    quotas = [math.inf]
    groups = root / "proc/self/cgroup"
    found = re.search(r"^0::/(.*)$", groups.read_text(), re.M) if groups.exists() else None
    if found:
        group = root / "sys/fs/cgroup" / found[1]
        limits = [folder / "cpu.max" for folder in (group, *group.parents)]  # an outer group's quota holds, too
        for limit in filter(Path.exists, limits):
            quota, period = limit.read_text().split()  # microseconds of processor time, in so many of the clock's
            quotas.append(math.inf if quota == "max" else int(quota) / int(period))
    return min(quotas)


def n_processors() -> int:
    """How many processors this process can keep busy: those that it may run on, or fewer where it has a quota."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(n, cpu_quota())))


def share_processors():
    """Settings of PyTorch's threads, for its import. What somebody has set already stays.

    A thread that is out of work spins for a while before it sleeps, since more work may come at once. GNU's OpenMP
    spins 300,000 times. If another process is busy, a thread that spins keeps a processor from the thread that has the
    work. 1,000 times is what OpenMP takes itself when it has more threads than processors. What this saves and costs
    stands in tests/README.md, "A busy machine".
    """
    if "torch" in sys.modules:  # too late
        return
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if cpu_quota() < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(n_processors()))


share_processors()


def quiet_interrupt(kind, error, traceback, previous=sys.excepthook):
    if not issubclass(kind, KeyboardInterrupt):
        previous(kind, error, traceback)


sys.excepthook = quiet_interrupt


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The file's docstring as it stands, and each option's default where it has one."""

    def _get_help_string(self, action):
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def parser(description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=Help)


def run(main, interrupted: str = "", out_of_memory: str = ""):
    """Call main() and leave the process as a user expects.

    interrupted: what Ctrl-C leaves behind and how to go on. out_of_memory: which options take less.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal or pipe that is ASCII gets "?" for "±", and no traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    name = Path(sys.argv[0]).name
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head`: the reader has gone, so there is no one to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print(f"\ninterrupted{'; ' + interrupted if interrupted else ''}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        print(f"{name}: memory ran out{'; ' + out_of_memory if out_of_memory else ''}", file=sys.stderr)
        sys.exit(2)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is a GPU's, a CPU allocator's or Python's way to say so."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    said = any(words in str(error) for words in ("DefaultCPUAllocator", "out of memory"))  # a CPU's, Apple's
    return said or bool(kinds & {"OutOfMemoryError", "MemoryError"})


def positive(kind):
    """A type for argparse: a whole number, or a number, above 0."""
    def parse(text):
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError("must be above 0")
        return value
    parse.__name__ = "number" if kind is float else "whole number"  # "invalid whole number value: 'x'"
    return parse


def seed(argument: str) -> int:
    """A type for argparse: a whole number that torch's generators take."""
    if not 0 <= int(argument) < 2**32:
        raise argparse.ArgumentTypeError("must be from 0 to 4294967295")
    return int(argument)


def path(argument: str) -> Path:
    """A type for argparse: a file or folder, since "" would be the current folder."""
    if not argument.strip():
        raise argparse.ArgumentTypeError("is empty")
    return Path(argument)


def text(argument: str) -> str:
    """A type for argparse: text that is valid in the terminal's encoding."""
    if any("\ud800" <= character <= "\udfff" for character in argument):
        raise argparse.ArgumentTypeError("is not valid UTF-8")
    return argument
