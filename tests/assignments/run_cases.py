"""Runs the cases of one question in a process of its own, fenced off, and hands back plain values.

`Runner` is the grader's side. It starts this file as a server, which imports torch once and then forks a child for
each question. The child gets a folder of code and the inputs; it has no right answers, so there are none to find.

The fence stops accidents and simple tricks: no network, no writing, no reading beyond the folder and Python's own
libraries, no other programs. It is no jail. Whoever expects worse grades in a container.
"""
import gc
import importlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import plain

LIBRARIES = ("multiprocessing.pool", "requests", "safetensors.torch", "tokenizers.decoders", "torch.distributed",
             "torch.utils.checkpoint")
SECONDS, MEMORY, OUTPUT = 30, 2 << 30, 64 << 20  # of one question: wall time, bytes beyond torch's, bytes of values
REFUSED = ("socket.", "subprocess.", "shutil.", "ctypes.dl", "os.exec", "os.fork", "os.kill", "os.posix_spawn",
           "os.spawn", "os.system", "os.startfile", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link",
           "os.symlink", "os.truncate", "os.ch", "os.utime", "os.putenv", "pty.", "signal.pthread_kill",
           "ftplib.", "http.client", "urllib.", "smtplib.", "webbrowser.")


class Runner:
    """Runs cases on folders of code. Use it in a `with` block: it holds a process."""

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY):
        self.seconds, self.memory, self.server = seconds, memory, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.server:
            self.server.kill()
            self.server.communicate()
            self.server = None

    def start(self):
        environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
                                                           "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
                       if name in os.environ}
        self.server = subprocess.Popen(
            [sys.executable, "-B", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,  # Ctrl-C is for the grader, which then ends this
            env=environment | {"OMP_NUM_THREADS": "1", "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES", "PYTHONUTF8": "1"})

    def run(self, files: dict[str, bytes], cases: list[dict]) -> tuple[list, str | None]:
        """(a list with {"value": ...} or {"error": ...} for each case, why it ended early or None).

        files: {path: content}, the folder in which the cases run.
        """
        if not self.server:
            self.start()
        with tempfile.TemporaryDirectory() as folder:
            folder = os.path.realpath(folder)  # macOS has a link here
            for path, content in files.items():
                Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
                Path(folder, path).write_bytes(content)
            Path(folder, "cases.json").write_text(plain.dumps(cases))
            sign = secrets.token_hex(8)  # before every line of the child's own: other lines are the submission's
            try:
                self.server.stdin.write(json.dumps([folder, self.seconds, self.memory, sign]) + "\n")
                self.server.stdin.flush()
                text, ended = json.loads(self.server.stdout.readline())
            except (OSError, ValueError):  # something has killed the server
                self.__exit__()
                text, ended = "", "the process ended early"
        results = {}
        for line in text.split("\n"):
            if line.startswith(f"{sign} "):
                try:
                    results[len(results)] = plain.loads(line.removeprefix(f"{sign} "))
                except ValueError:  # it was cut off
                    break
        ended = ended if len(results) < len(cases) else None
        return [results.get(i, {"error": ended}) for i in range(len(cases))], ended


def serve():
    """For each line on stdin, [folder, seconds, memory, sign]: fork a child, answer [what it wrote, why it ended]."""
    import torch

    for library in LIBRARIES:
        importlib.import_module(library)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # else every child copies the pages that its collector looks at
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(fork(*job)), flush=True)


def fork(folder, seconds, memory, sign) -> tuple[str, str]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            in_child(folder, seconds, memory, sign, writer)
        finally:
            os._exit(0)
    os.close(writer)
    pieces, size, deadline, ended = [], 0, time.monotonic() + seconds, "the process ended early"
    while True:
        if not select.select([reader], [], [], max(0, deadline - time.monotonic()))[0]:
            ended = f"it took longer than {seconds:g} seconds"
            break
        piece = os.read(reader, 1 << 16)
        pieces.append(piece)
        size += len(piece)
        if not piece or size > OUTPUT:
            break
    os.kill(child, signal.SIGKILL)  # of one that has ended, too: it waits for its parent
    os.waitpid(child, 0)
    os.close(reader)
    return b"".join(pieces).decode(errors="replace"), ended


def in_child(folder, seconds, memory, sign, writer):
    """Every case of the folder's cases.json: a line with `sign` and its value or error goes to `writer`."""
    import calls  # this folder's
    import torch

    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.setsid()
    os.chdir(folder)
    cases = plain.loads(Path("cases.json").read_bytes())
    os.environ.clear()
    limit(seconds, memory)
    here = str(Path(__file__).resolve().parents[2]) + os.sep
    libraries = tuple(os.path.realpath(path) for path in sys.path if path and ("site-packages" in path or not
                      f"{os.path.realpath(path)}/".startswith(here)))
    sys.path[:] = [folder, *libraries]
    os.remove("cases.json")
    fence((folder, *libraries, os.path.dirname(os.path.realpath(os.__file__))))
    for case in cases:
        torch.manual_seed(0)
        try:
            result = plain.dumps({"value": getattr(calls, case["call"])(**case["inputs"])})
        except BaseException as error:  # sys.exit() and KeyboardInterrupt, too
            result = json.dumps({"error": describe(error, folder)})
        write(writer, f"\n{sign} {result}\n")


def write(descriptor, text):
    data = memoryview(text.encode())
    while data:
        data = data[os.write(descriptor, data):]


def limit(seconds, memory):
    """Limits of this process, where the system has them."""
    import resource

    def at_most(kind, amount):
        try:
            resource.setrlimit(getattr(resource, kind), (amount, amount))
        except (AttributeError, ValueError, OSError):
            pass  # the wall clock still holds

    if sys.platform == "linux":  # elsewhere a limit of memory does nothing; grade.py says so
        now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        at_most("RLIMIT_AS", now + memory)
    at_most("RLIMIT_CPU", int(seconds) + 2)
    signal.alarm(int(seconds) + 5)  # should the server die first
    at_most("RLIMIT_CORE", 0)


def fence(folders):
    """From here on this process raises PermissionError where it leaves the given folders, writes, or calls out."""
    inside = tuple(folder + os.sep for folder in folders) + (os.devnull,)
    real, decode, flags_of_writing = os.path.realpath, os.fsdecode, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    def check(event, arguments):
        if event in ("open", "os.listdir", "os.scandir", "os.chdir"):
            path = arguments[0]
            if path is None or isinstance(path, int):
                return
            path = decode(path)
            if event == "open" and path != "/dev/null" and arguments[2] & flags_of_writing:
                raise PermissionError(f"a submission may not write files ({path})")
            if not (real(path) + ("/" if event != "open" else "")).startswith(inside):
                raise PermissionError(f"a submission may not read {path}")
        elif event.startswith(REFUSED):
            raise PermissionError(f"a submission may not use {event}")

    sys.addaudithook(check)


def describe(error: BaseException, folder: str) -> str:
    """An exception in one sentence, with the line of the submission that raised it."""
    if isinstance(error, SystemExit):
        return "it called sys.exit"
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)
              if frame.f_code.co_filename.startswith(folder)]
    if isinstance(error, NotImplementedError):
        name = frames[-1].f_code.co_qualname if frames else "it"
        return f"{name} is not written yet"
    steps = [step for step in traceback.extract_tb(error.__traceback__) if step.filename.startswith(folder)]
    said = " ".join(str(error).split())[:200]
    where = f", at `{steps[-1].line}`" if steps and steps[-1].line else ""
    return f"{type(error).__name__}{': ' if said else ''}{said}{where}"


if __name__ == "__main__":
    serve()
