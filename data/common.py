"""What every file here uses: the ends of command lines, files that are whole or absent, JSON lines, journals.

Import this before torch, whose threads it sets. From then on a Ctrl-C ends the program without a traceback.
"""
import argparse
import fcntl
import hashlib
import json
import math
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path

INDEX = "model.safetensors.index.json"  # of a model whose weights are in several files


def quiet_interrupt(kind, error, traceback, previous=sys.excepthook):
    if not issubclass(kind, KeyboardInterrupt):
        previous(kind, error, traceback)


def share_processors():
    """Let PyTorch's threads, if nobody has set them, keep to the quota and sleep soon: see tests/README.md."""
    if "torch" in sys.modules:  # too late
        return
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if n_processors() < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(n_processors()))


def n_processors(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many processors this process can keep busy; a container may have a quota, as with `--cpus 2`."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = limit.read_text().split() if limit.exists() else ("max", "")  # microseconds
    return n if quota == "max" else max(1, min(n, int(quota) // int(period)))


sys.excepthook = quiet_interrupt
share_processors()


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def parser(description: str) -> argparse.ArgumentParser:
    """Its help has the file's docstring as it stands, and each option's default if it has one."""
    return argparse.ArgumentParser(description=description, formatter_class=Help)


def run(main, interrupted: str = "", out_of_memory: str = ""):
    """Call main() and leave the process with one sentence at most, and an exit code. interrupted: what Ctrl-C leaves
    behind and how to go on. out_of_memory: which options take less."""
    name = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # "?" for "±", if the terminal is ASCII
    try:
        main()
        return sys.stdout.flush()
    except BrokenPipeError:  # `... | head`: the reader has gone, so there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        code, problem, remedy = 130, "\ninterrupted", interrupted
    except (ValueError, OSError) as error:
        code, problem, remedy = 2, f"{name}: {error}", ""
    except (RuntimeError, MemoryError) as error:
        if not re.search("MemoryError|DefaultCPUAllocator|out of memory", repr(error)):  # Python's, torch's
            raise
        code, problem, remedy = 2, f"{name}: memory ran out", out_of_memory
    print(f"{problem}; {remedy}" if remedy else problem, file=sys.stderr)
    sys.exit(code)


def checked(kind, good, problem: str):
    """A type for argparse: kind(argument), if good(argument); else the command line is refused with `problem`."""
    def parse(argument):
        if not good(argument):
            raise argparse.ArgumentTypeError(problem)
        return kind(argument)

    parse.__name__ = {int: "whole number", float: "number"}.get(kind, kind.__name__)  # "invalid number value: 'x'"
    return parse


def positive(kind):
    """A type for argparse: a whole number (kind: int) or a number (float) above 0."""
    return checked(kind, lambda argument: 0 < kind(argument) < math.inf, "must be above 0")


share = checked(float, lambda argument: 0 <= float(argument) <= 1, "must be from 0 to 1")
seed = checked(int, lambda argument: 0 <= int(argument) < 2**32, "must be from 0 to 4294967295")  # as torch takes it
path = checked(Path, str.strip, "is empty")  # "" would be the current folder
text = checked(str, lambda argument: not re.search("[\ud800-\udfff]", argument), "is not valid UTF-8")


@contextmanager
def replacing(path):
    """A temporary name beside `path`, renamed over it, or the file that it links to, if the block succeeds."""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a file that can be replaced; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)  # at once: whoever opens `path` sees the old file or the new one
    except OSError as error:
        raise OSError(f"could not write {path} ({error.strerror or error}); what was there is untouched") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text: str):
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_jsonl(path, rows):
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def parse_json(text: str | bytes):
    """The value of a JSON text. Raises ValueError if it is not JSON or is nested too deeply."""
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
    """The rows of a JSON Lines file, which may end with blank lines. check(row): what is wrong with a row, or None.
    Raises FileNotFoundError, or ValueError naming the file and the first line that is not right."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist; data/README.md says which command writes it")
    rows = []
    for n, line in enumerate(Path(path).read_bytes().rstrip().split(b"\n"), 1):
        try:
            rows.append(parse_json(line))
            json.dumps(rows[-1], ensure_ascii=False).encode()  # half a surrogate pair is not text
            problem = check(rows[-1])
        except ValueError:  # of JSON or of UTF-8
            problem = "not JSON" if line.strip() else "empty line"
        if problem:
            raise ValueError(f"{path} line {n}: {problem}; data/README.md shows the format")
    return rows


def check_fields(*names: str):
    """A check for `read_jsonl`: every row is an object with these texts, none of them blank."""
    def check(row):
        for name in names:
            if not isinstance(row, dict) or not isinstance(row.get(name), str) or not row[name].strip():
                return f'expected {{"{name}": "..."}}, found {json.dumps(row)[:60]}'
    return check


def hold(path, wait: bool = False) -> int:
    """Keep a file or folder for this run until the descriptor returned is closed. If it is taken: OSError or wait."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            os.close(descriptor)
            raise OSError(f"{path} is in use by another run; let it end, or choose another name") from None
        print(f"{path} is in use by another run; waiting for its end", file=sys.stderr, flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # a file system without locks, as some of clusters are
        pass
    return descriptor


class Journal:
    """Results on disk, one JSON line each, under a key that names all that determines the result. A run that is killed
    loses nothing that is finished; a line that it tore is passed over. One run at a time has a journal: a second is
    refused (OSError) or, with `wait`, waits."""

    def __init__(self, path, wait: bool = False):
        self.path, self.values = Path(path), {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        self.held = hold(self.path, wait)
        text = self.path.read_bytes()
        for line in text.split(b"\n"):
            try:
                row = parse_json(line)
                self.values[row["key"]] = row["value"]
            except (ValueError, KeyError, TypeError):
                pass
        if text[-1:] not in (b"", b"\n"):
            self.write("")  # ends a torn line, so that the next one stands alone

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.held)

    def add(self, key: str, value):
        """Keep a result. When this returns, killing this process loses nothing. Several threads may call it."""
        self.values[key] = value
        self.write(json.dumps({"key": key, "value": value}))

    def write(self, line: str):
        data = line.encode() + b"\n"
        try:
            with open(self.path, "ab", buffering=0) as file:  # in one piece, whoever else appends
                whole = file.write(data) == len(data)
        except OSError as error:
            raise OSError(f"could not write {self.path} ({error.strerror}); make room and run this again") from None
        if not whole:
            raise OSError(f"could not write {self.path} (the disk is full); make room and run this again")


def digest(value) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a JSON value: a name for all that made a result."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(*paths) -> str | None:
    """The first 16 hexadecimal digits of the files' SHA-256; None if one is absent, which its reader will say."""
    total = hashlib.sha256()
    for path in paths:
        if not Path(path).is_file():
            return None
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: total)
    return total.hexdigest()[:16]


def clock(seconds: float) -> str:
    """A length of time as minutes:seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"


def markdown(rows: list[dict]) -> str:
    """Rows as a Markdown table, with a column for every key of the first. A row that lacks one has an empty cell."""
    lines = ["|" + "".join(f" {column} |" for column in rows[0]), "|---" * len(rows[0]) + "|"]
    for row in rows:
        cells = [str(row.get(column, "")).replace("|", r"\|") for column in rows[0]]
        lines.append("|" + "".join(f" {cell} |" if cell else " |" for cell in cells))
    return "\n".join(lines)
