"""Starts the process in which cases run (worker.py), and reads its answers: with a deadline, and as plain values."""
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data.common import parse_json

HERE = Path(__file__).parent
SECONDS, MEMORY, OUTPUT = 30, 2 << 30, 16 << 20  # of a job: seconds, bytes beyond torch's, bytes of values
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUTF8": "1",
               "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"}
KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")


class Runner:
    """Runs cases in one process, for as long as that lives. Use it in a `with` block, which ends the process.

    fence: a function that gives, for the only folder that the process needs, the command that fences it off.
    options: of subprocess.Popen.
    """

    def __init__(self, fence=lambda folder: [], seconds: float = SECONDS, memory: int = MEMORY, **options):
        self.fence, self.seconds, self.memory, self.options = fence, seconds, memory, options
        self.process, self.n_jobs = None, 0

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(os.path.realpath(self.folder.name))  # macOS has a link here
        self.path.chmod(0o755)  # another user may run the worker
        for name in ("worker.py", "calls.py"):
            (self.path / name).write_bytes((HERE / name).read_bytes())
        return self

    def __exit__(self, *_):
        self.stop()
        self.folder.cleanup()

    def start(self):
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.process = subprocess.Popen(
            [*self.fence(self.path), sys.executable, "-B", str(self.path / "worker.py")], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, start_new_session=True,
            env=kept | ENVIRONMENT, cwd=self.path, **self.options)
        _, ended = self.read(60)
        if ended:
            raise OSError(f"the process for a submission did not start: {ended}; run this again")

    def stop(self):
        """End the process and all that it started. Within bubblewrap nothing can outlive it."""
        if not self.process:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has ended
            pass
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process = None

    def run(self, files: dict[str, bytes], cases: list[dict], submitted: dict | None = None) -> list[dict]:
        """{"value": ...} or {"error": ...} for each case. Only its call and its inputs are handed on.

        files: {path: content}, the folder in which the cases run. submitted: see worker.put_in.
        """
        if not self.process:
            self.start()
        self.n_jobs += 1
        folder = self.path / str(self.n_jobs)
        inputs = json.dumps([{"call": case["call"], "inputs": case["inputs"]} for case in cases], default=list_of)
        for path, content in {**files, "cases.json": inputs.encode()}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        job = {"folder": str(folder), "seconds": self.seconds, "memory": self.memory, "submitted": submitted}
        try:
            self.process.stdin.write(json.dumps(job).encode() + b"\n")  # shorter than a pipe is, so it cannot block
            lines, ended = self.read(self.seconds)
        except BrokenPipeError:
            lines, ended = [], "the process ended early"
        if ended:
            self.stop()
        results = [value_of(line) for line in lines[: len(cases)]]
        return results + [{"error": ended or "the process ended early"}] * (len(cases) - len(results))

    def read(self, seconds: float) -> tuple[list[bytes], str | None]:
        """The lines before the next "null", and what went wrong or None."""
        text, deadline, out = bytearray(b"\n"), time.monotonic() + seconds, self.process.stdout.fileno()
        while not text.endswith(b"\nnull\n"):
            if not select.select([out], [], [], max(0, deadline - time.monotonic()))[0]:
                return whole_lines(text), f"it took longer than {seconds:g} seconds"
            piece = os.read(out, 1 << 16)
            text += piece
            if not piece or len(text) > OUTPUT:
                return whole_lines(text), "the process ended early" if not piece else "its values are too long"
        return whole_lines(text)[:-1], None


def whole_lines(text: bytearray) -> list[bytes]:
    return bytes(text).split(b"\n")[1:-1]


def value_of(line: bytes) -> dict:
    """A line of the worker's, or of the submission's that writes in its place."""
    try:
        result = parse_json(line)
    except ValueError:
        result = None
    return result if isinstance(result, dict) else {"error": "no value"}


def list_of(value):
    """numpy's array or number as JSON's."""
    return value.tolist()
