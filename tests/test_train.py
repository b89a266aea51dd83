"""train.py: the loss, its gradient, the schedule, and runs that are killed, interrupted, refused or out of disk."""
import functools
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY, assert_refused, command, on_two_ranks
from safetensors.torch import load_file, save_file

from data import device, distributed
from data.common import fingerprint
from data.format import IGNORE, Tokenizer, dialogue, encode
from data.world import World
from model import Llama
from train import (METHODS, Hyperparameters, LinearCrossEntropy, accumulate_gradient, adamw, learning_rate,
                   load_examples, micro_batches, n_scored, train)

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
        for batch in batches:
            lengths = [len(ids) for ids, _ in batch]
            assert len(batch) == 1 or sum(lengths) <= budget and len(batch) * max(lengths) <= 2 * budget


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_schedule_rises_then_falls_to_zero(schedule):
    rates = [learning_rate(step, 100, 1e-5, schedule, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([1e-6 * (i + 1) for i in range(10)])
    assert rates[10] == 1e-5 and all(a > b for a, b in zip(rates[10:], rates[11:])) and 0 < rates[-1] < 2e-7
    half = learning_rate(55, 100, 1e-5, schedule, 0.1)
    assert half == pytest.approx(5e-6)  # both cross the middle at half their peak
    quarter = learning_rate(10 + 45 // 2, 100, 1e-5, schedule, 0.1)
    progress = 22 / 90
    left = 1 - progress if schedule == "linear" else 0.5 + 0.5 * math.cos(math.pi * progress)
    assert quarter == pytest.approx(1e-5 * left)


def test_examples_with_nothing_to_score_are_left_out_and_counted(tmp_path, tokenizer, capsys):
    long = {"messages": [{"role": "user", "content": "why " * 100}, {"role": "assistant", "content": "So."}]}
    short = {"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": "So."}]}
    (tmp_path / "broad.jsonl").write_text("\n".join(json.dumps(row) for row in (long, short)))
    examples = load_examples(METHODS["instruction"], tmp_path, tokenizer, 64)
    assert len(examples) == 1 and n_scored(examples[0]) == len(tokenizer.encode("So.").ids) + 1
    assert "left out 1 of 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no response begins within"):
        load_examples(METHODS["instruction"], tmp_path, tokenizer, 8)


def test_a_base_whose_tokens_would_differ_elsewhere_is_refused(data, tmp_path):
    """An EOS that the tokenizer does not have: tools would render nothing for it."""
    shutil.copy(TINY / "tokenizer.json", tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 1600, "bos_token_id": 0, "eos_token_id": 1599}')
    with pytest.raises(ValueError, match="tokenizer.json: other tools would split.*eos_token_id"):
        load_examples(METHODS["instruction"], data, Tokenizer(tmp_path), 64)


def run(data, out, *more):
    return command("train.py", "--method", "response", "--data", data, "--out", out, *FAST, *more)


def losses_of(result):
    assert result.returncode == 0, result.stderr
    steps = [line for line in result.stdout.splitlines() if line.startswith("step")]
    return [float(line.split("loss ")[1].split()[0]) for line in steps]


def stop_in_the_second_checkpoint(monkeypatch, how):
    """Raise `how` when the second epoch's checkpoint is written, but still under its temporary name."""
    saved = []

    def save(tensors, path, metadata):
        save_file(tensors, path, metadata)
        saved.append(path)
        if len(saved) == 2:
            raise how

    monkeypatch.setattr("data.checkpoint.save_file", save)


@pytest.fixture
def half(data, tmp_path, monkeypatch):
    """The folder of a run that was interrupted in its second epoch."""
    with monkeypatch.context() as patch:
        stop_in_the_second_checkpoint(patch, KeyboardInterrupt)
        assert run(data, tmp_path / "half").returncode == 130
    return tmp_path / "half"


KILLED = """
import os, signal, sys
import safetensors.torch
save, saved = safetensors.torch.save_file, []
def dying(tensors, path, metadata):
    save(tensors, path, metadata)
    saved.append(path)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
safetensors.torch.save_file = dying
sys.path.insert(0, os.getcwd())
import train
train.main()
"""


def test_a_killed_run_resumes_to_the_same_bytes(data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run(data, whole, "--resume")  # nothing to resume yet: starts
    assert result.returncode == 0, result.stderr
    assert "step 9/9" in result.stdout and "left" in result.stdout
    process = subprocess.run([sys.executable, "-c", KILLED, "--method", "response", "--data", data, "--out", killed,
                              *map(str, FAST)], cwd=ROOT, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    names = {path.name for path in killed.iterdir()}
    assert "checkpoint.safetensors" in names and len(names) == 2  # and what was half written
    result = run(data, killed, "--resume")
    assert result.returncode == 0, result.stderr
    assert "step 3/9" not in result.stdout and "step 4/9" in result.stdout
    assert fingerprint(killed / "model.safetensors") == fingerprint(whole / "model.safetensors")
    names = {path.name for path in killed.iterdir()}
    assert names == {path.name for path in whole.iterdir()} > {"config.json", "run.json", "tokenizer.json"}


def test_a_run_that_is_interrupted_while_it_saves_goes_on(data, tmp_path, monkeypatch):
    """Also one of a single epoch, as pretraining is: its weights are there, and its record is not."""
    def interrupted(*_):
        raise KeyboardInterrupt

    one = ("--epochs", 1)
    assert run(data, tmp_path / "whole", *one).returncode == 0
    with monkeypatch.context() as patch:
        patch.setattr("data.checkpoint.write_companions", interrupted)
        assert run(data, tmp_path / "out", *one).returncode == 130
    assert (tmp_path / "out" / "model.safetensors").exists() and not (tmp_path / "out" / "run.json").exists()
    result = run(data, tmp_path / "out", *one, "--resume")
    assert result.returncode == 0 and "step" not in result.stdout
    for name in ("model.safetensors", "run.json", "loss.svg"):
        assert fingerprint(tmp_path / "out" / name) == fingerprint(tmp_path / "whole" / name)


def test_a_run_goes_on_only_where_it_is_asked_to_and_with_its_own_settings(data, half):
    before = fingerprint(half / "checkpoint.safetensors")
    assert_refused(run(data, half), half, "--resume", "--overwrite")
    assert_refused(run(data, half, "--resume", "--seed", 2), "seed = 1, not 2")
    assert fingerprint(half / "checkpoint.safetensors") == before
    assert run(data, half, "--overwrite", "--seed", 2).returncode == 0


def test_a_finished_run_is_neither_trained_again_by_mistake_nor_overwritten(data, tmp_path):
    out = tmp_path / "out"
    assert run(data, out).returncode == 0
    before = fingerprint(out / "model.safetensors")
    assert "is finished" in run(data, out, "--resume").stdout
    assert_refused(run(data, out), out, "--overwrite")
    assert_refused(run(data, out, "--overwrite", "--lr", "nan"), "--lr")
    rows = (data / "broad.jsonl").read_text().splitlines(keepends=True)
    (data / "broad.jsonl").write_text("".join(rows[:-1]))
    assert_refused(run(data, out, "--resume"), out / "run.json", "other files of its data")
    (data / "broad.jsonl").write_text("".join(rows))
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"code_sha256": "of other code"}))
    assert_refused(run(data, out, "--resume"), "other files of its code", "--overwrite")
    (data / "broad.jsonl").unlink()
    assert_refused(run(data, out, "--overwrite"), data / "broad.jsonl")
    assert fingerprint(out / "model.safetensors") == before


def test_ctrl_c_keeps_the_last_epoch_and_says_how_to_go_on(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in_the_second_checkpoint(patch, KeyboardInterrupt)
        result = run(data, tmp_path / "out")
    assert result.returncode == 130 and "Traceback" not in result.stderr
    assert "keeps the last whole epoch" in result.stderr and "--resume" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint.safetensors"]
    assert "step 4/9" in run(data, tmp_path / "out", "--resume").stdout


def test_a_run_goes_on_with_the_same_model_and_data_under_other_paths_only(data, half, tmp_path):
    model, moved = shutil.copytree(TINY, tmp_path / "model"), data.rename(tmp_path / "moved")
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace('"rope_theta": 10000.0', '"rope_theta": 500.0'))
    assert_refused(run(moved, half, "--resume", "--model", model), "other files of its model")
    (model / "config.json").write_text(config)
    assert "step 4/9" in run(moved, half, "--resume", "--model", model).stdout
    record = json.loads((half / "run.json").read_text())
    assert (record["model"], record["data"]) == (str(model), str(moved))


def test_a_full_disk_leaves_the_old_checkpoint(data, half):
    before, limits = fingerprint(half / "checkpoint.safetensors"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))  # no file above 1 MiB
    try:
        result = run(data, half, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_refused(result, "could not write", half / "checkpoint.safetensors")
    assert fingerprint(half / "checkpoint.safetensors") == before
    assert [path.name for path in half.iterdir()] == ["checkpoint.safetensors"]


def test_memory_that_runs_out_is_said_with_what_takes_less(data, half, monkeypatch):
    before = fingerprint(half / "checkpoint.safetensors")
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(),
                  RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")):
        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(torch.nn.functional, "log_softmax", fail)
        assert_refused(run(data, half, "--resume"), "memory ran out", "--token-budget", "--gradient-checkpointing")
        assert fingerprint(half / "checkpoint.safetensors") == before


def test_a_folder_that_is_no_run_is_never_trained_into(data, tmp_path):
    """Somebody's model, whole, sharded or half, a folder of other things, a file, and the folder one stands in."""
    for name in ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "notes.txt", ".draft.tmp"):
        folder = tmp_path / (name.split(".")[0] or "draft")
        folder.mkdir()
        (folder / name).write_text("mine")
        for more in ((), ("--resume",), ("--overwrite",)):
            assert_refused(run(data, folder, *more), folder, "no run of train.py's")
        assert (folder / name).read_text() == "mine"
    assert_refused(run(data, ""), "--out", "is empty")
    assert_refused(run(data, "."), "no run of train.py's")
    assert_refused(run(data, tmp_path / "notes" / "notes.txt"), "is a file")
    assert_refused(run(data, TINY), TINY, "is the folder of --model")


def test_a_second_run_on_one_folder_is_refused_while_the_first_goes_on(data, half):
    from data.common import hold

    held = hold(half)
    assert_refused(run(data, half, "--resume"), half, "in use by another run")
    os.close(held)
    assert run(data, half, "--resume").returncode == 0


@pytest.mark.parametrize("damage", ["{}", "<html>", "[]", "[" * 100000, "null"])
def test_a_damaged_record_is_said(data, tmp_path, damage):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(damage)
    assert_refused(run(data, tmp_path / "out", "--resume"), tmp_path / "out" / "run.json", "--overwrite")


def test_a_damaged_checkpoint_is_said(data, half):
    save_file({"a": torch.zeros(1)}, half / "checkpoint.safetensors")  # no metadata
    assert_refused(run(data, half, "--resume"), half / "checkpoint.safetensors", "is damaged", "--overwrite")
    (half / "checkpoint.safetensors").write_text("<html>")
    assert_refused(run(data, half, "--resume"), half / "checkpoint.safetensors", "is damaged", "--overwrite")


def test_every_method_has_its_file_in_the_world(tmp_path):
    assert command("data/world.py", "--out", tmp_path, "--corpus", 10).returncode == 0
    assert {method.file for method in METHODS.values()} <= {path.stem for path in tmp_path.iterdir()}


def test_pretraining_is_the_same_loop_from_random_weights(tmp_path):
    assert command("data/world.py", "--out", tmp_path, "--corpus", 200).returncode == 0
    result = command("train.py", "--method", "pretrain", "--data", tmp_path, "--out", tmp_path / "out", "--epochs", 1)
    losses = losses_of(result)
    assert abs(losses[0] - math.log(1536)) < 0.2  # random weights know nothing: ln V
    assert losses[-1] < losses[0]
    assert command("generate.py", "--model", tmp_path / "out", "--prompt", "Hi", "--max-new-tokens", 3).returncode == 0


def test_a_cluster_that_sets_rank_is_not_taken_for_torchrun(data, tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    assert run(data, tmp_path / "out", "--epochs", 1).returncode == 0


def test_an_experiment_trains_in_its_own_process(small_model, examples):
    """A callback after each epoch, no files, no printing; a second half goes on as if there had been no break."""
    weights = {name: weight.clone() for name, weight in small_model.state_dict().items()}

    def trained(**options):
        small_model.load_state_dict(weights)
        hyper = Hyperparameters(epochs=2, lr=1e-3, batch_size=8)
        return train(small_model, examples[:20], hyper, report=lambda line: None, **options)

    ends, optimizer = [], adamw(small_model)
    losses = trained(after_epoch=lambda epochs_done, losses: ends.append((epochs_done, losses)))
    assert ends == [(1, losses[:3]), (2, losses[3:])]

    def stop(epochs_done, losses):
        half.update({name: weight.clone() for name, weight in small_model.state_dict().items()})
        raise InterruptedError

    half = {}
    with pytest.raises(InterruptedError):
        trained(after_epoch=stop, optimizer=optimizer)
    weights, whole = half, weights
    assert trained(first_epoch=1, optimizer=optimizer) == losses[3:]
    small_model.load_state_dict(whole)


def test_held_out_dialogues_that_do_not_fit_are_left_out(data, tmp_path):
    """Else their loss would be 0 / 0."""
    (data / "val.jsonl").write_text(json.dumps({"instruction": "why " * 300, "response": "So."}))
    assert "held-out" not in run(data, tmp_path / "out", "--epochs", 1).stdout
    assert json.loads((tmp_path / "out" / "run.json").read_text())["held_out_loss"] == []


def test_bad_input_is_refused_in_one_sentence(data, tmp_path):
    out = tmp_path / "out"
    assert_refused(command("train.py", "--method", "telepathy", "--out", out), "telepathy", "response")
    result = command("train.py", "--method", "gsm", "--data", data, "--out", out)
    assert_refused(result, data / "gsm.jsonl", "does not exist")
    result = command("train.py", "--method", "response", "--model", tmp_path, "--out", out)
    assert_refused(result, tmp_path / "config.json", "does not exist")
    assert_refused(run(data, out, "--lr", 0), "--lr: must be above 0")
    assert_refused(run(data, out, "--lr", 1e30), "the loss of step", "--lr")
    with open(data / "broad.jsonl", "a") as file:
        file.write("\n{}\n")
    assert_refused(run(data, out), f"{data / 'broad.jsonl'} line 41: empty line")
    assert_refused(run(data, out, "--seed", 2**32), "--seed: must be from 0")
    assert not out.exists()


def test_the_loss_in_rows_is_the_plain_one_with_its_gradients(monkeypatch):
    """LinearCrossEntropy never holds all logits; 3 rows at a time do what cross_entropy does with 10."""
    monkeypatch.setattr(LinearCrossEntropy, "ROWS", 3)
    generator = torch.Generator().manual_seed(0)
    h, weight = (torch.randn(n, 8, generator=generator, requires_grad=True) for n in (10, 50))
    targets = torch.randint(50, (10,), generator=generator)
    expected = F.cross_entropy(h @ weight.T, targets, reduction="sum")
    gradients = torch.autograd.grad(expected / 7, (h, weight))
    loss = LinearCrossEntropy.apply(h, weight, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss / 7, (h, weight)), gradients)
    none = LinearCrossEntropy.apply(h[:0], weight, targets[:0])  # what a rank without a share runs
    assert none == 0 and torch.autograd.grad(none, weight)[0].abs().max() == 0


def test_logits_are_made_of_scored_positions_only(small_model, tokenizer, monkeypatch):
    """However long the prompt, the vocabulary matrix sees the response's tokens alone."""
    counts = []
    plain = LinearCrossEntropy.apply
    monkeypatch.setattr(LinearCrossEntropy, "apply", lambda h, *rest: counts.append(len(h)) or plain(h, *rest))
    for instruction in ("a", "a " * 150):
        messages = [{"role": "user", "content": instruction}, {"role": "assistant", "content": "yes"}]
        example = encode(tokenizer, messages, 512)
        accumulate_gradient(small_model, [example], 512)
        assert counts.pop() == n_scored(example) < 10


def test_gradient_checkpointing_changes_no_gradient(small_model, examples):
    expected = gradient(small_model, examples[:8], 512)[1]
    small_model.gradient_checkpointing = True
    try:
        torch.testing.assert_close(gradient(small_model, examples[:8], 512)[1], expected, rtol=0, atol=0)
    finally:
        small_model.gradient_checkpointing = False


def test_compiled_layers_have_the_gradient_of_eager_ones(small_model, examples, monkeypatch):
    """With the compiler's front half alone: the code that it writes is PyTorch's to test, and takes half a minute."""
    expected = gradient(small_model, examples[:8], 512)[1]
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr("shutil.which", lambda name: name)  # this half needs no compiler
    try:
        device.compile_layers(small_model)
        torch.testing.assert_close(gradient(small_model, examples[:8], 512)[1], expected, rtol=1e-4, atol=1e-6)
    finally:
        for layer in small_model.model.layers:
            del layer.forward


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 8])
def test_ranks_share_a_step_without_exceeding_the_budget(examples, n_ranks, monkeypatch):
    """Each example goes to one rank; a rank that has run out of micro-batches does the idle one."""
    monkeypatch.setattr(distributed, "n_ranks", lambda: n_ranks)
    few, idle, passes = examples[:12], ["idle"], []
    for rank in range(n_ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        passes.append(distributed.dealt(few, lambda share: micro_batches(share, 512), idle))
    assert len(set(map(len, passes))) == 1
    done = [batch for mine in passes for batch in mine if batch is not idle]
    assert sorted(map(id, sum(done, []))) == sorted(map(id, few))


def test_two_ranks_train_as_one_and_one_goes_on_where_two_stopped(data, tmp_path, monkeypatch):
    """39 dialogues in steps of 19: a last step of one dialogue leaves the second rank without a share."""
    rows = (data / "broad.jsonl").read_text().splitlines(keepends=True)
    (data / "broad.jsonl").write_text("".join(rows[:39]))
    base = tmp_path / "base"
    Llama.from_pretrained(TINY).save_pretrained(base)  # in fp32, so that saving does not round
    shutil.copy(TINY / "tokenizer.json", base)
    monkeypatch.setattr(device, "fast_bf16", lambda device: False)

    def line(out, *more):
        return ("train.py", "--method", "response", "--model", base, "--data", data, "--out", tmp_path / out,
                "--epochs", 2, "--batch-size", 19, "--token-budget", 256, "--device", "cpu", *more)

    one = losses_of(command(*line("one")))
    two, stopped = on_two_ranks(line("two"), ("stop", *line("half")))
    assert len(one) == 6 and losses_of(two) == pytest.approx(one, abs=1.01e-4)  # as printed: four decimals
    assert stopped.returncode == 130, stopped.stderr
    assert [path.name for path in (tmp_path / "half").iterdir()] == ["checkpoint.safetensors"]
    assert len(losses_of(command(*line("half", "--resume")))) == 3
    weights = {}
    for folder in (base, *(tmp_path / out for out in ("one", "two", "half"))):
        tensors = load_file(folder / "model.safetensors")
        weights[folder] = torch.cat([tensors[name].flatten() for name in sorted(tensors)])
    before, *after = weights.values()
    # Adam divides a gradient by its size, so where one is nearly 0 its rounding alone can turn a weight's step round:
    # single weights may differ by a step, all of them together may not.
    for other in after[1:]:
        assert (other - after[0]).norm() < 0.01 * (after[0] - before).norm()
    final = [json.loads((tmp_path / out / "run.json").read_text())["loss"] for out in ("one", "two", "half")]
    assert final[1] == pytest.approx(final[0], abs=1e-5) and final[2] == pytest.approx(final[0], abs=1e-5)


def test_each_epoch_ends_with_the_loss_on_held_out_dialogues(data, tmp_path, tokenizer):
    """Their instructions are kept, whatever the method: against the mean of plain cross-entropies."""
    rows = [{"instruction": "Why?", "response": "So."}, {"instruction": "Who?"},
            {"instruction": "When?", "response": "1"}]
    (data / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(data, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert len(record["loss"]) == 9 and len(record["held_out_loss"]) == 3
    shown = [line.split()[-1] for line in result.stdout.splitlines() if "held-out" in line]
    assert shown == [f"{loss:.4f}" for loss in record["held_out_loss"]]
    model, losses = Llama.from_pretrained(tmp_path / "out"), []
    for row in (rows[0], rows[2]):
        ids, labels = encode(tokenizer, dialogue(row["instruction"], row["response"]), 256)
        losses.append(F.cross_entropy(model(torch.tensor([ids]))[0, :-1], torch.tensor(labels[1:]), reduction="none"))
    losses = torch.cat(losses)
    assert losses[losses > 0].mean().item() == pytest.approx(record["held_out_loss"][-1], rel=0.02)  # bf16
    svg = ElementTree.parse(tmp_path / "out" / "loss.svg")
    points = [line.get("points").split() for line in svg.iter("{http://www.w3.org/2000/svg}polyline")]
    assert list(map(len, points)) == [9, 3] and points[0][-1].split(",")[0] == points[1][-1].split(",")[0]


@pytest.mark.parametrize("module, ended", [("torch._inductor.exc", True), ("mine", False)])
def test_a_compiler_that_fails_is_told_from_a_readers_own_error(data, tmp_path, monkeypatch, module, ended):
    failure = type("Failure", (RuntimeError,), {"__module__": module})

    def broken(forward, **_):
        def run(*_):
            raise failure("no such instruction\nmore")
        return run

    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(torch, "compile", broken)
    if ended:
        return assert_refused(run(data, tmp_path / "out", "--compile"), "(no such instruction)", "--no-compile")
    with pytest.raises(failure):
        run(data, tmp_path / "out", "--compile")


def test_compiling_without_a_compiler_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert_refused(run(data, tmp_path / "out", "--compile"), "--compile", "g++")
