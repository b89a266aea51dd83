"""What every file here uses: the ends of command lines, files that are whole or absent, JSON lines, journals.

Import this before torch, which reads the settings of its threads as it is loaded. A Ctrl-C during the slow imports ends
the program without a traceback, too.
"""
import argparse
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import sys
import threading
from contextlib import contextmanager
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


def share(argument: str) -> float:
    """A type for argparse: a number from 0 to 1."""
    if not 0 <= float(argument) <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return float(argument)


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


@contextmanager
def replacing(path):
    """A temporary name beside `path`, renamed over it if the block succeeds and removed if it fails.

    A link stays a link: the file that it names is replaced. Raises OSError, naming `path`, where that is
    something else than a file, or where the disk is full.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a file that can be replaced; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):  # of a write, which names no file
            raise OSError(f"could not write {path} ({error.strerror}); what was there before is untouched") from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text: str):
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_jsonl(path, rows):
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def parse_json(text: str | bytes):
    """The value of a JSON text from outside. Raises ValueError for all that is none, nested too deeply included."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path, remedy: str):
    """The value of a JSON file. Raises FileNotFoundError or ValueError, naming the file and ending with `remedy`."""
    try:
        return parse_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; {remedy}") from None
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{path} is not JSON ({error}); {remedy}") from None


def read_jsonl(path, check) -> list:
    """The rows of a JSON Lines file, which may end with blank lines.

    check(row) returns what is wrong with a row, or None. Raises FileNotFoundError, or ValueError
    naming the file and line of the first row that is not JSON or that `check` objects to.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; data/README.md says which command writes it")
    rows, text = [], path.read_bytes().rstrip()
    if not text:
        raise ValueError(f"{path} is empty")
    for number, line in enumerate(text.split(b"\n"), 1):
        try:
            row = parse_json(line)
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
            problem = check(row)
        except ValueError:  # of JSON or of UTF-8
            problem = "not JSON" if line.strip() else "empty line"
        if problem:
            raise ValueError(f"{path} line {number}: {problem}; data/README.md shows the format")
        rows.append(row)
    return rows


def check_fields(*names: str):
    """A check for `read_jsonl`: every row is an object with these texts, none of them blank."""
    def check(row):
        for name in names:
            if not isinstance(row, dict) or not isinstance(row.get(name), str) or not row[name].strip():
                return f'expected {{"{name}": "..."}}, found {json.dumps(row)[:60]}'
    return check


def digest(value) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a JSON value: a name for all that made a result."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(*paths) -> str | None:
    """The first 16 hexadecimal digits of the files' SHA-256; None where one is absent, which its reader will say."""
    total = hashlib.sha256()
    for path in paths:
        if not Path(path).is_file():
            return None
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()[:16]


def hold(path, wait: bool = False) -> int:
    """Keep a file or folder for this run alone, until the process ends or the file descriptor returned is closed.

    Raises OSError where another run has it; with `wait`, says so and waits for that run's end.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            os.close(descriptor)
            raise OSError(f"{path} is in use by another run; let it end, or choose another name") from None
        print(f"{path} is in use by another run; waiting for its end", file=sys.stderr, flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        pass
    return descriptor


class Journal:
    """Results on disk, one JSON line each, under a key that names all that determines the result.

    A line is appended whole as its result comes, so a run that is killed loses nothing that is finished. One run
    at a time has a journal; a second is refused (OSError) or, with `wait`, waits, and then finds what the first has
    done. Lines that are no JSON (torn by a kill) or that `valid` rejects are passed over. add() may be called from
    several threads.
    """

    def __init__(self, path, valid=lambda value: True, wait: bool = False):
        self.path, self.values, self.lock = Path(path), {}, threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, "ab", buffering=0)
        self.held = hold(self.path, wait)
        text = self.path.read_bytes()
        for line in text.split(b"\n"):
            try:
                row = parse_json(line)
                if valid(row["value"]):
                    self.values[row["key"]] = row["value"]
            except (ValueError, KeyError, TypeError):
                pass
        if text and not text.endswith(b"\n"):
            self.file.write(b"\n")  # ends a torn line, so that the next one stands alone

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not os.fstat(self.held).st_size:
            self.path.unlink(missing_ok=True)
        self.file.close()
        os.close(self.held)

    def add(self, key: str, value):
        """Keep a result. When this returns, the operating system has the line: killing this process loses nothing."""
        line = json.dumps({"key": key, "value": value}).encode() + b"\n"
        with self.lock:
            self.values[key] = value
            try:
                whole = self.file.write(line) == len(line)
            except OSError as error:
                raise OSError(f"could not write {self.path} ({error.strerror}); mend that and run this again") from None
            if not whole:
                raise OSError(f"could not write {self.path} (the disk is full); make room and run this again")


def clock(seconds: float) -> str:
    """A length of time as minutes:seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"


def shorten(items: list, most: int = 3) -> str:
    """The first few of a list that may be long, for an error."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
