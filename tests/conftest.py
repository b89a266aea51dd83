"""Shared by several tests: the bundled model, a small data folder, and running a command line as a user does."""
import contextlib
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import data.common  # before torch, whose threads it sets

import pytest
import torch

from bpe import sentencepiece  # for several tests
from data.format import Tokenizer
from data.world import World
from model import Config, Llama
from server import start  # for several tests

signal.signal(signal.SIGINT, signal.default_int_handler)  # under nohup or some CI it is ignored, by children too
ROOT = Path(__file__).parent.parent
TINY = ROOT / "data" / "tiny"


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer(TINY)


@pytest.fixture(scope="session")
def small_model():
    """A random Llama over the tiny vocabulary: grouped heads, weights wide enough that attention matters."""
    config = Config(vocab_size=1536, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=512, eos_token_id=1, bos_token_id=0,
                    tie_word_embeddings=True)
    generator = torch.Generator().manual_seed(0)
    model = Llama(config).init_weights(generator)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data.mul_(10)
    return model.eval()


@pytest.fixture
def data(tmp_path):
    """A folder with the world's training sets, 40 dialogues each."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("broad", "poetry"):
        rows = World().training_set(name, 40)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(script, *arguments):
    """Run one of the scripts as its command line would, in this process: .returncode, .stdout, .stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before = sys.argv
    sys.argv = [script, *map(str, arguments)]
    try:
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


RANK = """
import json, os, sys
import data.checkpoint, data.device
from conftest import command
data.device.fast_bf16 = lambda device: False  # in fp32, so that only the order of additions differs
results = []
for port, arguments in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = port
    if arguments[0] == "stop":  # after the first checkpoint
        save = data.checkpoint.save_checkpoint
        def save_and_stop(*arguments):
            save(*arguments)
            raise KeyboardInterrupt
        data.checkpoint.save_checkpoint = save_and_stop
    results.append(vars(command(*arguments[arguments[0] == "stop":])))
print(json.dumps(results))
"""


def on_two_ranks(*commands):
    """Run command lines one after the other, each on two ranks as torchrun would start them: rank 0's results.
    The last may begin with "stop": it is interrupted when its first checkpoint is written.

    One pair of processes for all of them, and no torchrun, since imports take longer than the work.
    """
    # a free port for each
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in commands]
    ports = [str(server.getsockname()[1]) for server in servers]
    for server in servers:
        server.close()

    work = json.dumps(list(zip(ports, commands)), default=str)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2",
                                "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1"}
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, work], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True)
             for rank in range(2)]
    (out, error), _ = (process.communicate(timeout=120) for process in ranks)
    assert ranks[0].returncode == 0, error
    return [SimpleNamespace(**result) for result in json.loads(out.splitlines()[-1])]


def assert_refused(result, *fragments):
    """One clear sentence on stderr that holds every fragment, exit code 2, no traceback."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith(("usage:", "  "))]
    assert len(lines) == 1, result.stderr
    for fragment in fragments:
        assert str(fragment) in lines[0], result.stderr
