"""Records against a trajectory kept by hand, cut off, killed, resumed; and everything refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from flatcl.errors import DataError, NonFiniteError, OptionError, StateError
from flatcl.fluctuations.pca import principal_directions
from flatcl.fluctuations.record import Recorder, SketchRecorder, open_record

ALL = ("weights", "increments", "gradients")
LR = 0.25  # a power of two: lr · gradient / lr is exact


def mlp(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def train(model, steps, *recorders, optimizer=None, seed=1):
    """Weights [steps + 1, P] and gradients [steps, P] of every step, kept by hand."""
    g = torch.Generator().manual_seed(seed)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=LR)
    dtype = next(model.parameters()).dtype
    weights, gradients = [flat(model.parameters())], []
    for _ in range(steps):
        x = torch.randn(5, 3, generator=g, dtype=torch.float64).to(dtype)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        for recorder in recorders:
            recorder.step()
        weights.append(flat(model.parameters()))
        gradients.append(flat(p.grad for p in model.parameters()))
    return torch.stack(weights), torch.stack(gradients)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_record_is_the_trajectory_kept_by_hand(tmp_path, every, kind):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters()) if kind == "adam" else None
    facts = {"lr": LR, "tags": ["a", "b"]}
    with Recorder(
        model, tmp_path / "r", quantities=ALL, every=every, epoch_steps=10, facts=facts
    ) as recorder:
        W, G = train(model, 10, recorder, optimizer=optimizer)
    assert (recorder.steps, recorder.snapshots) == (10, 10 // every)
    record = open_record(tmp_path / "r")
    taken = slice(every - 1, None, every)
    assert torch.equal(record.weights(), W[1:][taken])
    assert torch.equal(record.increments(), W.diff(dim=0)[taken])
    assert torch.equal(record.gradients(), G[taken])
    assert record.names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert record.shapes == ((4, 3), (4,), (2, 4), (2,))
    assert (record.every, record.epoch_steps, record.facts) == (every, 10, facts)
    assert (record.count, record.width, record.dtype) == (10 // every, 26, torch.float64)
    assert torch.equal(record.block("2.weight"), W[1:][taken, 16:24])
    assert torch.equal(record.block("2.bias", "increments"), W.diff(dim=0)[taken, 24:])
    for rows in (1, 2, 100):
        chunks = list(record.chunks("weights", rows))
        assert all(len(chunk) <= rows for chunk in chunks)
        assert torch.equal(torch.cat(chunks), record.weights())


def test_the_gradient_of_plain_sgd_is_minus_its_increment_over_the_rate(tmp_path):
    model = mlp()
    with Recorder(model, tmp_path / "r", quantities=("increments", "gradients")) as recorder:
        train(model, 20, recorder)
    record = open_record(tmp_path / "r")
    torch.testing.assert_close(record.gradients(), -record.increments() / LR, rtol=0, atol=1e-14)


def test_what_the_loop_does_is_not_changed_by_recording(tmp_path):
    plain, watched = mlp(), mlp()
    W, _ = train(plain, 5)
    with Recorder(watched, tmp_path / "r", quantities=ALL) as recorder:
        V, _ = train(watched, 5, recorder)
    assert torch.equal(W, V)


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ("2.weight", ["2.weight"]),
        ("*.bias", ["0.bias", "2.bias"]),
        (["2.*", "0.bias"], ["0.bias", "2.weight", "2.bias"]),  # in the model's order, once
        (lambda model: model[0], ["0.weight", "0.bias"]),
        (lambda model: [model[2], "2.weight", "0.weight"], ["0.weight", "2.weight", "2.bias"]),
    ],
)
def test_selection_by_pattern_and_by_module(tmp_path, parameters, names):
    model = mlp()
    chosen = parameters(model) if callable(parameters) else parameters
    with Recorder(model, tmp_path / "r", parameters=chosen) as recorder:
        train(model, 2, recorder)
    record = open_record(tmp_path / "r")
    assert list(record.names) == names
    last = flat(p for name, p in model.named_parameters() if name in names)
    assert torch.equal(record.weights()[-1], last)


def test_only_what_is_trained_is_recorded_and_a_tied_weight_once(tmp_path):
    model = mlp()
    model[0].weight.requires_grad_(False)
    assert SketchRecorder(model, 1).names == ("0.bias", "2.weight", "2.bias")
    with pytest.raises(OptionError, match=r"'0.weight' matches no .*it has 0.bias, 2.weight"):
        Recorder(model, tmp_path / "r", parameters="0.weight")
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    assert SketchRecorder(tied, 1).names == ("0.weight",)
    assert SketchRecorder(tied, 1, parameters="1.weight").names == ("0.weight",)


def test_parameters_without_a_gradient_or_with_a_sparse_one(tmp_path):
    embedding = nn.Embedding(4, 2, sparse=True)
    model = nn.ModuleDict({"used": embedding, "unused": nn.Linear(2, 2)})
    with Recorder(model, tmp_path / "r", quantities=("gradients",)) as recorder:
        embedding(torch.tensor([1, 1])).sum().backward()
        recorder.step()
        model.zero_grad()
        with pytest.warns(UserWarning, match="all 0 at step 2: call the recorder's step") as seen:
            recorder.step()
    assert seen[0].filename == __file__
    record = open_record(tmp_path / "r")
    assert record.block("used.weight", "gradients").tolist() == [[0, 0, 2, 2, 0, 0, 0, 0], [0] * 8]
    assert not record.block("unused.weight", "gradients").any()


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_rows_are_as_wide_as_the_parameters_and_single_at_least(tmp_path, dtype, kept):
    model = mlp(dtype)
    with Recorder(model, tmp_path / "r") as recorder:
        W, _ = train(model, 3, recorder)
    record = open_record(tmp_path / "r")
    assert record.weights().dtype == kept
    assert torch.equal(record.weights(), W[1:].to(kept))
    assert (tmp_path / "r" / "weights.bin").stat().st_size == 3 * 26 * kept.itemsize


@pytest.mark.parametrize(
    ("every", "epoch", "better"),
    [(10, 100, 11), (6, 210, 11), (5, 5, 6), (15, 105, 16), (8, 42, 11)],
)
def test_a_stride_that_shares_a_divisor_with_the_epoch_warns(tmp_path, every, epoch, better):
    text = f"every = {every} and epoch_steps = {epoch} .*that sees all is {better}$"
    with pytest.warns(UserWarning, match=text) as seen:
        SketchRecorder(mlp(), 2, every=every, epoch_steps=epoch)
    with pytest.warns(UserWarning, match=text) as again:
        Recorder(mlp(), tmp_path / "r", every=every, epoch_steps=epoch).close()
    assert [warning.filename for warning in (*seen, *again)] == [__file__, __file__]


@pytest.mark.parametrize(("every", "epoch"), [(1, 100), (9, 100), (7, None), (3, 1)])
def test_a_coprime_stride_does_not(every, epoch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SketchRecorder(mlp(), 2, every=every, epoch_steps=epoch)


@pytest.mark.parametrize("lost", [1, 26 * 8, 26 * 8 + 3])
def test_a_record_cut_off_opens_and_resumes_after_its_last_whole_snapshot(tmp_path, lost):
    model, path = mlp(), tmp_path / "r"
    with Recorder(model, path, quantities=ALL, every=2, facts={"run": 1}) as recorder:
        W, _ = train(model, 12, recorder)
    full = path / "increments.bin"
    full.write_bytes(full.read_bytes()[:-lost])  # the others stay whole: what counts is common
    count = 5 if lost <= 26 * 8 else 4
    record = open_record(path)
    assert record.count == count
    assert torch.equal(record.weights(), W[2::2][:count])

    restored = mlp()
    V, H = train(restored, 2 * count)  # the checkpoint that goes with the last whole snapshot
    with Recorder(restored, path, quantities=ALL, every=2, resume=True) as recorder:
        assert (recorder.snapshots, recorder.steps) == (count, 2 * count)
        V2, H2 = train(restored, 6, recorder, seed=2)
    record = open_record(path)
    assert (record.count, record.facts) == (count + 3, {"run": 1})
    assert torch.equal(record.weights(), torch.cat([V[2::2], V2[2::2]]))
    increments = torch.cat([V.diff(dim=0)[1::2], V2.diff(dim=0)[1::2]])
    assert torch.equal(record.increments(), increments)
    assert torch.equal(record.gradients(), torch.cat([H[1::2], H2[1::2]]))


def test_resume_starts_a_record_where_there_is_none(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "weights.bin").touch()  # of a process that died between two files
    with Recorder(mlp(), tmp_path / "r", resume=True) as recorder:
        assert recorder.snapshots == 0
        recorder.step()
    assert open_record(tmp_path / "r").count == 1


KILLED = """
import sys, torch
from flatcl.fluctuations.record import Recorder
w = torch.nn.Linear(1000, 1, bias=False)
recorder = Recorder(w, sys.argv[1], quantities=("weights", "increments"))
for t in range(1, 10**9):
    with torch.no_grad():
        w.weight.fill_(t % 1000)
    recorder.step()
    if t == 250:
        print("going", flush=True)
"""


def test_a_process_killed_while_it_records_leaves_a_record(tmp_path):
    path = tmp_path / "r"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "going\n"
        time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    record = open_record(path)
    assert record.count >= 200  # flushed every 100
    expected = torch.arange(1, record.count + 1) % 1000
    assert torch.equal(record.weights(), expected[:, None].float().expand(-1, 1000))
    assert record.increments()[1:].unique().tolist() in ([1.0], [-999.0, 1.0])
    model = nn.Linear(1000, 1, bias=False)
    quantities = ("weights", "increments")
    with Recorder(model, path, quantities=quantities, resume=True) as recorder:
        recorder.step()
    assert open_record(path).count == record.count + 1


def test_a_running_record_can_be_read_within_seconds(tmp_path, monkeypatch):
    model = mlp()
    with Recorder(model, tmp_path / "r") as recorder:
        train(model, 99, recorder)
        assert open_record(tmp_path / "r").count < 99
        train(model, 1, recorder)
        assert open_record(tmp_path / "r").count == 100
        later = time.monotonic() + 2.0
        monkeypatch.setattr(time, "monotonic", lambda: later)
        train(model, 1, recorder)
        assert open_record(tmp_path / "r").count == 101


def test_rows_are_mapped_and_writing_to_them_changes_no_file(tmp_path):
    with Recorder(mlp(), tmp_path / "r") as recorder:
        recorder.step()
    rows = tmp_path / "r" / "weights.bin"
    whole = rows.read_bytes()
    weights = open_record(tmp_path / "r").weights()
    weights[0] = 7.0
    assert rows.read_bytes() == whole
    if sys.platform == "linux":
        with open("/proc/self/maps") as maps:
            assert str(rows) in maps.read()


def test_a_record_larger_than_memory_opens(tmp_path):
    model = mlp()
    with Recorder(model, tmp_path / "r") as recorder:
        train(model, 2, recorder)
    first = open_record(tmp_path / "r").weights().clone()
    count = 1 << 36
    try:
        os.truncate(tmp_path / "r" / "weights.bin", count * 26 * 8)  # 13 TiB, nearly all a hole
    except OSError:
        pytest.skip("the file system makes no such hole")
    record = open_record(tmp_path / "r")
    assert record.weights().shape == (count, 26)
    assert torch.equal(record.weights()[:2], first)
    assert record.block("2.bias")[-1].tolist() == [0.0, 0.0]
    assert torch.equal(next(record.chunks("weights", count // 4))[:2], first)


@pytest.mark.parametrize("quantity", ALL)
def test_a_sketch_is_the_principal_directions_of_the_record(tmp_path, quantity):
    model = mlp()
    with Recorder(model, tmp_path / "r", parameters="2.*", quantities=ALL, every=3) as recorder:
        sketch = SketchRecorder(model, 10, parameters="2.*", quantity=quantity, every=3)
        train(model, 60, recorder, sketch)  # 10 weights: the rank is at most k
    assert (sketch.snapshots, sketch.names) == (20, ("2.weight", "2.bias"))
    found = sketch.directions()
    record = open_record(tmp_path / "r")
    rows = {"weights": record.weights, "increments": record.increments}
    true = principal_directions(rows.get(quantity, record.gradients)(), 10)
    tolerance = 1e-10 * float(true.variances[0])
    torch.testing.assert_close(found.variances, true.variances, rtol=0.0, atol=tolerance)
    overlap = (found.directions[:4] * true.directions[:4]).sum(1)
    torch.testing.assert_close(overlap, torch.ones_like(overlap), rtol=0.0, atol=1e-9)
    torch.testing.assert_close(found.mean, true.mean, rtol=0.0, atol=1e-12)
    assert found.total == pytest.approx(true.total, rel=1e-10)
    assert found.error_bound < tolerance


def test_a_value_that_is_not_finite_is_named_and_nothing_of_its_step_kept(tmp_path):
    model = mlp()
    with Recorder(model, tmp_path / "r", quantities=ALL) as recorder:
        train(model, 2, recorder)
        model[2].bias.grad[1] = float("nan")
        with pytest.raises(NonFiniteError, match=r"gradients of 2.bias are not .*step 3"):
            recorder.step()
        train(model, 1, recorder)
    assert open_record(tmp_path / "r").increments().shape == (3, 26)
    sketch = SketchRecorder(model, 1)
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"weights of 0.weight are not finite at step 1"):
        sketch.step()


def test_a_parameter_replaced_is_followed_and_one_that_changed_refused(tmp_path):
    model = mlp()
    sketch = SketchRecorder(model, 2)
    with Recorder(model, tmp_path / "r") as recorder:
        model[2].bias = nn.Parameter(torch.full((2,), 3.0, dtype=torch.float64))
        recorder.step()
        model[2] = nn.Linear(4, 5)
        with pytest.raises(StateError, match=r"2.weight is gone or no longer \(2, 4\)"):
            recorder.step()
    assert open_record(tmp_path / "r").block("2.bias").tolist() == [[3.0, 3.0]]
    del model[2]
    with pytest.raises(StateError, match=r"2.weight is gone"):
        sketch.step()


def test_an_existing_record_is_neither_overwritten_nor_mixed(tmp_path):
    model, path = mlp(), tmp_path / "r"
    with Recorder(model, path, every=2) as recorder:
        train(model, 4, recorder)
    with pytest.raises(OptionError, match=r"holds a record: remove it, .* or resume=True"):
        Recorder(model, path, every=2)
    others = {
        "names": {"parameters": "2.*"},
        "quantities": {"quantities": ALL},
        "every": {"every": 3},
        "epoch_steps": {"epoch_steps": 7},
    }
    for field, change in others.items():
        with pytest.raises(OptionError, match=f"has {field} .*, not .*: use another folder"):
            Recorder(model, path, resume=True, **{"every": 2, **change})
    with pytest.raises(OptionError, match=r"has dtype torch.float64, not torch.float32"):
        Recorder(mlp(torch.float32), path, every=2, resume=True)
    wider = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with pytest.raises(OptionError, match=r"has shapes "):
        Recorder(wider, path, every=2, resume=True)
    assert open_record(path).count == 2
    (path / "record.json").unlink()
    with pytest.raises(OptionError, match="holds a record: remove"):
        Recorder(model, path)
    with pytest.raises(DataError, match=r"there is no .*record.json"):
        Recorder(model, path, resume=True)


def test_options_that_cannot_be_used_are_refused(tmp_path):
    model, path = mlp(), tmp_path / "r"
    for parameters, text in (
        ("layer*", r"'layer\*' matches no .*it has 0.weight, 0.bias, 2.weight, 2.bias"),
        (["2.*", "nothing"], "'nothing' matches no trainable"),
        (nn.Linear(2, 2), "the Linear given matches no trainable"),
        (model[1], "the Tanh given matches no trainable"),
        ([], "parameters is empty"),
        ([model[0].weight], "parameters has a Parameter; it takes patterns"),
    ):
        with pytest.raises(OptionError, match=text):
            Recorder(model, path, parameters=parameters)
    for options, text in (
        ({"quantities": ()}, r"quantities is \(\); it must be a tuple of weights"),
        ({"quantities": "weights"}, "quantities is 'weights'"),
        ({"quantities": ("weights", "steps")}, "steps"),
        ({"every": 0}, "every 0, epoch_steps None: both must be 1 or more"),
        ({"epoch_steps": 0}, "every 1, epoch_steps 0"),
        ({"facts": {"loss": float("nan")}}, "facts cannot be written as JSON"),
        ({"facts": {"w": torch.ones(1)}}, "facts cannot be written as JSON"),
    ):
        with pytest.raises(OptionError, match=text):
            Recorder(model, path, **options)
    with pytest.raises(OptionError, match="only real ones"):
        SketchRecorder(nn.Linear(2, 2, dtype=torch.complex64), 1)
    with pytest.raises(OptionError, match="k and block must be 1 or more"):
        SketchRecorder(model, 0)
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="file is a file; a record is a folder"):
        Recorder(model, tmp_path / "file")
    with Recorder(model, path, every=np.int64(1)) as recorder:  # the refusals left nothing behind
        recorder.step()
    recorder.close()  # twice is once
    with pytest.raises(StateError, match="is closed"):
        recorder.step()


def test_what_is_no_record_is_refused(tmp_path):
    path = tmp_path / "r"
    with pytest.raises(DataError, match=r"there is no .*record.json: pass the folder"):
        open_record(path)
    with Recorder(mlp(), path):
        pass
    with pytest.raises(DataError, match="holds no whole snapshot: train longer"):
        open_record(path).weights()
    with Recorder(mlp(), path, resume=True) as recorder:
        recorder.step()
    record = open_record(path)
    with pytest.raises(DataError, match=r"holds \('weights',\), not increments"):
        record.increments()
    with pytest.raises(OptionError, match=r"has no 'bias'; it has 0.weight"):
        record.block("bias")
    with pytest.raises(OptionError, match="rows is 0"):
        record.chunks("weights", 0)
    header = path / "record.json"
    good = json.loads(header.read_text())
    damaged = [
        header.read_text()[:40],
        "[]",
        "\xff",
        *(json.dumps({k: v for k, v in good.items() if k != lost}) for lost in good),
        json.dumps(good | {"dtype": "int8"}),
        json.dumps(good | {"shapes": good["shapes"][:2]}),
        json.dumps(good | {"quantities": []}),
        json.dumps(good | {"names": [], "shapes": []}),
    ]
    for text in damaged:
        header.write_bytes(text.encode("latin-1"))
        with pytest.raises(DataError, match=r"record.json is damaged .*restore it, or record anew"):
            open_record(path)
    header.write_text(json.dumps(good | {"schema": 2}))
    with pytest.raises(DataError, match="has schema 2, not 1: use the flatcl"):
        open_record(path)
    header.write_text(json.dumps(good))
    (path / "weights.bin").unlink()
    with pytest.raises(DataError, match=r"lacks weights.bin"):
        open_record(path)
