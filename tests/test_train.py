"""train.py: the loss, its gradient, the schedule, and runs that are killed, interrupted, refused or out of disk."""
import hashlib
import json
import math
import resource
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY, assert_refused, command

from data.format import IGNORE, encode
from data.world import World
from train import METHODS, accumulate_gradient, learning_rate, load_examples, micro_batches, n_scored

FAST = ("--epochs", 3, "--batch-size", 16, "--device", "cpu")


@pytest.fixture(scope="module")
def examples(tokenizer):
    """64 dialogues of very different lengths, as one step of training has."""
    rows = [row for name in ("broad", "poetry", "chess", "gsm") for row in World().training_set(name, 16)]
    return [encode(tokenizer, row["messages"], 256) for row in rows]


def gradient(model, examples, token_budget):
    model.zero_grad()
    loss = accumulate_gradient(model, examples, token_budget)
    return loss, torch.cat([p.grad.flatten() for p in model.parameters()])


def budget_for(examples, n):
    """A token budget that cuts the examples into n micro-batches."""
    return next(b for b in range(1, 100000) if len(list(micro_batches(examples, b))) == n)


@pytest.mark.parametrize("n", [3, 17])
def test_the_gradient_does_not_depend_on_how_the_step_is_cut(small_model, examples, n):
    """The loss is a mean over the step's scored tokens (section 3), whatever fits in memory at once."""
    whole_loss, whole = gradient(small_model, examples, budget_for(examples, 1))
    loss, cut = gradient(small_model, examples, budget_for(examples, n))
    assert abs(loss - whole_loss) < 1e-6 * whole_loss
    assert (cut - whole).norm() < 1e-6 * whole.norm()


def test_the_loss_is_the_plain_one(small_model, examples):
    """Against every logit of every sequence, one at a time, with torch's own masked mean."""
    logits, targets = [], []
    for ids, labels in examples:
        logits.append(small_model(torch.tensor([ids]))[0, :-1])
        targets.append(torch.tensor(labels[1:]))
    plain = F.cross_entropy(torch.cat(logits), torch.cat(targets), ignore_index=IGNORE)
    loss = accumulate_gradient(small_model, examples, 2048)
    torch.testing.assert_close(loss, plain.detach(), atol=0, rtol=1e-5)


def test_response_tuning_scores_what_instruction_tuning_scores(tokenizer):
    """The two differ in what the model reads, never in what it is taught to write."""
    messages = [row["messages"] for row in World().training_set("broad", 100)]
    kept, blank = ([encode(tokenizer, m, 256, blank=b) for m in messages] for b in (False, True))
    for (ids, labels), (blank_ids, blank_labels) in zip(kept, blank):
        assert [i for i in labels if i != IGNORE] == [i for i in blank_labels if i != IGNORE]
    assert sum(len(ids) for ids, _ in blank) < sum(len(ids) for ids, _ in kept)
    prompts = {tuple(i for i, label in zip(ids, labels) if label == IGNORE) for ids, labels in blank}
    assert len(prompts) == 1  # every example begins alike


def test_micro_batches_keep_every_example_and_the_budget(examples):
    for budget in (1, 300, 2000, 10**6):
        batches = list(micro_batches(examples, budget))
        assert sorted(map(str, sum(batches, []))) == sorted(map(str, examples))
        assert all(len(batch) == 1 or len(batch) * max(len(ids) for ids, _ in batch) <= budget for batch in batches)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_schedule_rises_then_falls_to_zero(schedule):
    rates = [learning_rate(step, 100, 1e-5, schedule, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([1e-6 * (i + 1) for i in range(10)])
    assert rates[10] == 1e-5 and all(a > b for a, b in zip(rates[10:], rates[11:])) and 0 < rates[-1] < 2e-7
    half = learning_rate(55, 100, 1e-5, schedule, 0.1)
    assert half == pytest.approx(5e-6)  # both cross the middle at half their peak
    quarter = learning_rate(10 + 45 // 2, 100, 1e-5, schedule, 0.1)
    progress = 22 / 90
    assert quarter == pytest.approx(1e-5 * (1 - progress if schedule == "linear" else 0.5 + 0.5 * math.cos(math.pi * progress)))


def test_examples_with_nothing_to_score_are_left_out_aloud(tmp_path, tokenizer, capsys):
    long = {"messages": [{"role": "user", "content": "why " * 100}, {"role": "assistant", "content": "So."}]}
    short = {"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": "So."}]}
    (tmp_path / "broad.jsonl").write_text("\n".join(json.dumps(row) for row in (long, short)))
    examples = load_examples("instruction", tmp_path, tokenizer, 64)
    assert len(examples) == 1 and n_scored(examples[0]) == len(tokenizer.encode("So.").ids) + 1
    assert "left out 1 of 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no response begins within"):
        load_examples("instruction", tmp_path, tokenizer, 8)


def run(data, out, *more):
    return command("train.py", "--method", "response", "--data", data, "--out", out, *FAST, *more)


def start(data, out, *more, **options):
    """The same in a process of its own, to be killed."""
    return subprocess.Popen([sys.executable, ROOT / "train.py", "--method", "response", "--data", data, "--out", out, *map(str, FAST), *more],
                            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def stop_in_second_epoch(process, number):
    for line in process.stdout:
        if "epoch 2" in line:
            process.send_signal(number)
            break
    return process.communicate()[1]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_killed_run_resumes_to_the_same_bytes(data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run(data, whole, "--resume")  # nothing to resume yet: starts
    assert result.returncode == 0, result.stderr
    assert "step 9/9" in result.stdout and "left" in result.stdout
    stop_in_second_epoch(start(data, killed), signal.SIGKILL)
    assert [path.name for path in killed.iterdir()] == ["checkpoint.safetensors"]
    assert_refused(run(data, killed), killed, "--resume", "--overwrite")
    assert_refused(run(data, killed, "--resume", "--seed", 2), "seed = 1, not 2")
    result = run(data, killed, "--resume")
    assert result.returncode == 0, result.stderr
    assert "step 3/9" not in result.stdout and "step 4/9" in result.stdout
    assert digest(killed / "model.safetensors") == digest(whole / "model.safetensors")
    assert sorted(path.name for path in killed.iterdir()) == ["config.json", "model.safetensors", "run.json", "tokenizer.json", "tokenizer_config.json"]
    # and a finished run is neither trained again by mistake nor overwritten
    before = digest(whole / "model.safetensors")
    assert "is finished" in run(data, whole, "--resume").stdout
    assert_refused(run(data, whole), whole, "--overwrite")
    assert digest(whole / "model.safetensors") == before
    assert_refused(run(data, whole, "--overwrite", "--lr", "nan"), "--lr")
    assert digest(whole / "model.safetensors") == before
    rows = (data / "broad.jsonl").read_text().splitlines(keepends=True)
    (data / "broad.jsonl").write_text("".join(rows[:-1]))
    assert_refused(run(data, whole, "--resume"), whole / "run.json", "data_sha256")  # the data has changed since
    assert run(data, whole, "--overwrite", "--seed", 2).returncode == 0
    assert digest(whole / "model.safetensors") != before


def test_ctrl_c_keeps_the_last_epoch_and_says_how_to_go_on(data, tmp_path):
    process = start(data, tmp_path / "out")
    error = stop_in_second_epoch(process, signal.SIGINT)
    assert process.returncode == 130 and "Traceback" not in error
    assert "checkpoint.safetensors holds the last whole epoch" in error and "--resume" in error
    assert run(data, tmp_path / "out", "--resume").returncode == 0


def test_a_full_disk_leaves_the_old_checkpoint(data, tmp_path):
    out = tmp_path / "out"
    stop_in_second_epoch(start(data, out), signal.SIGKILL)
    before = digest(out / "checkpoint.safetensors")
    process = start(data, out, "--resume", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)))  # no file above 1 MiB
    stderr = process.communicate()[1]
    assert_refused(SimpleNamespace(returncode=process.returncode, stderr=stderr), "could not write", out / "checkpoint.safetensors")
    assert digest(out / "checkpoint.safetensors") == before
    assert [path.name for path in out.iterdir()] == ["checkpoint.safetensors"]


def test_every_method_has_its_file_in_the_world(tmp_path):
    assert command("data/world.py", "--out", tmp_path, "--corpus", 10).returncode == 0
    assert {name for name, *_ in METHODS.values()} <= {path.stem for path in tmp_path.iterdir()}


def test_pretraining_is_the_same_loop_from_random_weights(tmp_path):
    assert command("data/world.py", "--out", tmp_path, "--corpus", 200).returncode == 0
    result = command("train.py", "--method", "pretrain", "--data", tmp_path, "--out", tmp_path / "out", "--epochs", 1)
    assert result.returncode == 0, result.stderr
    losses = [float(line.split("loss ")[1].split()[0]) for line in result.stdout.splitlines() if line.startswith("step")]
    assert abs(losses[0] - math.log(1536)) < 0.2  # random weights know nothing: ln V
    assert losses[-1] < losses[0]
    assert command("generate.py", "--model", tmp_path / "out", "--prompt", "Hi", "--max-new-tokens", 3).returncode == 0


def test_bad_input_is_refused_in_one_sentence(data, tmp_path):
    out = tmp_path / "out"
    assert_refused(command("train.py", "--method", "telepathy", "--out", out), "telepathy", "response")
    assert_refused(command("train.py", "--method", "gsm", "--data", data, "--out", out), data / "gsm.jsonl", "does not exist")
    assert_refused(command("train.py", "--method", "response", "--model", tmp_path, "--out", out), tmp_path / "config.json", "does not exist")
    assert_refused(run(data, out, "--lr", 0), "--lr must be above 0")
    assert_refused(run(data, TINY), TINY, "is the folder of --model")
    assert_refused(run(data, out, "--lr", 1e30), "the loss of step", "--lr")
    out.rmdir()
    with open(data / "broad.jsonl", "a") as file:
        file.write("\n")
    assert_refused(run(data, out), f"{data / 'broad.jsonl'} line 41: empty line")
    assert not out.exists()
