"""The analysis end to end, small: what it writes, that it goes on, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from flatcl.analysis import analyze
from flatcl.analysis_kept import load_arrays
from flatcl.analysis_options import AnalyzeOptions
from flatcl.analysis_task import load_task, make_network, surface_at
from flatcl.cli.analyze import draw
from flatcl.errors import DataError, NonFiniteError, OptionError
from flatcl.fluctuations import VarianceFlatness, fluctuation_dissipation, open_record
from flatcl.plain_network import descend_
from flatcl.seeds import derive_seed
from flatcl.trajectory import batches, epoch_steps, record, train
from flatcl.versions import versions

SMALL: dict[str, Any] = {
    "hidden": (12, 12),
    "train_size": 300,
    "max_epochs": 12,
    "steps": 800,
    "subset": 200,
    "directions": 20,
    "spacing": 4,
    "jobs": 1,
}
KEYS = {
    "psi", "psi_ci95", "psi_fit_range", "psi_hessian", "psi_random_walk", "psi_langevin", "gamma",
    "variance_fraction_pc2_35", "cos_p1_mean_weights", "noise_curvature_exponent",
    "flatness_censored", "stationarity", "n_snapshots", "train_loss", "config", "versions",
    "commit",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("analysis")
    analyze(AnalyzeOptions(**SMALL), out)
    return out


def test_everything_is_written_and_agrees(made: Path) -> None:
    summary = json.loads((made / "analysis.json").read_text())
    assert set(summary) >= KEYS
    relation = VarianceFlatness.from_dict(summary["relation"])
    assert summary["psi"] == relation.rows["pca"].psi
    assert summary["psi_fit_range"] == [5, 4 * relation.rows["pca"].directions + 1]
    assert summary["n_snapshots"] == 800
    assert set(relation.rows) >= {"hessian", "walk", "langevin", "random_basis", "replacement"}
    points = json.loads((made / "points.json").read_text())
    pca = load_arrays(made / "arrays" / "pca.npz")
    assert points["pca"]["variances"] == pca["variances"].tolist()
    assert "directions" not in points["pca"]
    snapshots = open_record(made / "shuffle").weights()
    theta = (snapshots - snapshots.mean(0)) @ pca["directions"].T
    torch.testing.assert_close(theta.var(0, unbiased=False), pca["variances"])


def test_the_langevin_control_has_the_sign_of_equilibrium(made: Path) -> None:
    assert json.loads((made / "analysis.json").read_text())["psi_langevin"] < -1


def test_the_window_mean_is_where_the_loss_is_looked_at(made: Path) -> None:
    options = AnalyzeOptions(**SMALL)
    task = load_task(options)
    trained = train(task, options, made / "train.pt", lambda line: None)
    window = record(trained, task, options, made / "shuffle", "shuffle")
    torch.testing.assert_close(
        window.mean[1].flatten(), window.window.weights().mean(0), rtol=1e-12, atol=1e-12
    )
    start = list(trained.network.parameters())[1].detach().double().flatten()
    first = window.window.weights()[0]
    assert float((first - start).abs().max()) < 0.1 * float(start.abs().max())


def test_the_fluctuation_dissipation_ratio_is_that_of_its_definition(made: Path) -> None:
    """From the steps made again, by the function that is held against SGD on a quadratic."""
    options = AnalyzeOptions(**SMALL)
    task = load_task(options)
    trained = train(task, options, made / "train.pt", lambda line: None)
    kept = record(trained, task, options, made / "shuffle", "shuffle")
    weights = [w.detach().double() for w in trained.network.parameters()]
    seed = derive_seed(options.seed, "record", "shuffle")
    stream = batches(task, options, "shuffle", torch.Generator().manual_seed(seed))
    before, slopes = [], []
    for _ in range(kept.window.count):
        before.append(weights[1].flatten().clone())
        chosen = next(stream)
        gradients = descend_(weights, task.x[chosen].double(), task.y[chosen], options.lr)[1]
        slopes.append(gradients[1].flatten())
    w, g = torch.stack(before), torch.stack(slopes)
    torch.testing.assert_close(weights[1].flatten(), kept.window.weights()[-1])
    squares = g.square().sum(1)
    expected = fluctuation_dissipation(w - w[0], g, squares, lr=options.lr)
    assert kept.fluctuation_dissipation == pytest.approx(expected, rel=1e-9)
    summary = json.loads((made / "analysis.json").read_text())
    assert summary["fluctuation_dissipation"] == pytest.approx(expected, rel=1e-9)


def test_a_network_with_dead_units_is_analysed_and_drawn(tmp_path: Path) -> None:
    """Of 4 × 4 weights half never move; they have no memory, and no say in the noise's law."""
    small = {**SMALL, "hidden": (4, 4), "max_epochs": 200, "steps": 400, "subset": 100}
    found = analyze(AnalyzeOptions(**{**small, "directions": 10, "spacing": 1}), tmp_path)
    part, flat = found.arrays["hessian"], found.summary["noise_curvature_flat"]
    assert flat == found.relation.rows["hessian"].flat >= 4
    still = part["variances"] == 0
    assert int(still.sum()) >= 4
    assert part["tau"].isnan().equal(still)
    assert part["stationarity"].isnan().equal(still)
    assert 0.1 < found.summary["noise_curvature_exponent"] < 3
    assert math.isfinite(found.summary["stationarity"])
    assert f"{flat} of 16 Hessian directions" in found.summary["verdict"]
    assert found.arrays["stages"]["width"].shape[1] == 15  # Lanczos finds no more of 16
    draw(found, tmp_path / "analysis.png")
    assert (tmp_path / "analysis.png").read_bytes().startswith(b"\x89PNG")


def test_noise_is_of_the_sampling_that_is_asked_for(tmp_path: Path) -> None:
    options = AnalyzeOptions(**SMALL, panel=False, sampling="replacement")
    found = analyze(options, tmp_path)
    task = load_task(options)
    trained = train(task, options, tmp_path / "train.pt", lambda line: None)
    window = record(trained, task, options, tmp_path / "replacement", "replacement")
    whole, rows = surface_at(window.mean, task, options), found.arrays["pca"]["directions"]
    slopes = whole.sample_slopes(whole.reference, rows)
    torch.testing.assert_close(found.arrays["noise"]["c"], slopes.var(1, unbiased=False) / 50)


def test_a_spacing_beyond_the_window_is_refused_before_the_training(tmp_path: Path) -> None:
    """The part of one half-window has half of its snapshots."""
    small = {**SMALL, "hidden": (22, 22), "steps": 100, "directions": 10}
    for spacing, panel in ((49, True), (60, True), (60, False)):
        options = AnalyzeOptions(**{**small, "spacing": spacing, "panel": panel, "max_epochs": 1})
        out = tmp_path / f"{spacing}-{panel}"
        if panel:
            with pytest.raises(OptionError, match=f"spacing is {spacing}: 50 .* give 48 at most"):
                analyze(options, out)
            assert not (out / "train.pt").exists()
        else:
            analyze(options, out)
    analyze(AnalyzeOptions(**{**small, "spacing": 48, "max_epochs": 1}), tmp_path / "last")


def test_what_other_code_or_other_versions_made_is_not_told_as_one_s_own(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "options.json").write_bytes((made / "options.json").read_bytes())
    monkeypatch.setattr("flatcl.analysis_kept.versions", lambda: {**versions(), "torch": "0.4"})
    with pytest.raises(OptionError, match=r"holds an analysis with another torch: .*another --out"):
        analyze(AnalyzeOptions(**SMALL), folder)
    monkeypatch.setattr("flatcl.analysis_kept.versions", versions)
    monkeypatch.setattr("flatcl.analysis_kept.code_of", lambda _: "other")
    with pytest.raises(OptionError, match="holds an analysis with another code of flatcl: "):
        analyze(AnalyzeOptions(**SMALL), folder)


def test_it_goes_on_from_what_it_has(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without some parts the others are kept, and the result is the same to the bit."""
    before = (made / "analysis.json").read_bytes()
    kept = (made / "arrays" / "hessian.npz").stat().st_mtime_ns
    for name in ("walk", "pca", "noise"):
        (made / "arrays" / f"{name}.npz").unlink()
    said: list[str] = []
    analyze(AnalyzeOptions(**SMALL), made, said.append)
    assert (made / "analysis.json").read_bytes() == before
    assert (made / "arrays" / "hessian.npz").stat().st_mtime_ns == kept
    measured = [line for line in said if line.startswith("measuring")]
    assert measured == ["measuring: walk", "measuring: pca", "measuring: noise"]


def test_killed_at_any_moment_it_ends_the_same(made: Path, tmp_path: Path) -> None:
    """SIGKILL after growing delays, then once more to the end."""
    code = (
        "import sys; from flatcl.analysis import analyze; "
        "from flatcl.analysis_options import AnalyzeOptions; "
        f"analyze(AnalyzeOptions(**{SMALL!r}), sys.argv[1])"
    )
    for delay in (2.5, 4.5):
        run = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)])
        time.sleep(delay)
        run.send_signal(signal.SIGKILL)
        run.wait()
    analyze(AnalyzeOptions(**SMALL), tmp_path)
    assert (tmp_path / "analysis.json").read_bytes() == (made / "analysis.json").read_bytes()


def test_training_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    options = AnalyzeOptions(**{**SMALL, "max_epochs": 6})
    task = load_task(options)
    whole = train(task, options, tmp_path / "whole.pt", lambda line: None)
    half = AnalyzeOptions(**{**SMALL, "max_epochs": 3})
    train(task, half, tmp_path / "half.pt", lambda line: None)
    state = torch.load(tmp_path / "half.pt", weights_only=True)
    state["end"] = None
    torch.save(state, tmp_path / "half.pt")
    rest = train(task, options, tmp_path / "half.pt", lambda line: None)
    for a, b in zip(whole.network.parameters(), rest.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert rest.loss == whole.loss
    assert rest.epochs == 6


def test_the_stop_rule_is_the_loss_over_all_images(tmp_path: Path) -> None:
    options = AnalyzeOptions(**{**SMALL, "loss": 0.5, "accuracy": 0.5, "max_epochs": 200})
    task = load_task(options)
    found = train(task, options, tmp_path / "train.pt", lambda line: None)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(found.network(task.x), task.y)
    assert found.reached
    assert found.loss == pytest.approx(float(loss), rel=1e-5)
    assert found.loss < 0.5
    assert found.epochs < 200


def test_batches_deal_every_image_once_an_epoch_or_independently() -> None:
    options = AnalyzeOptions(**SMALL)
    task = load_task(options)
    M = epoch_steps(task, options)
    stream = batches(task, options, "shuffle", torch.Generator().manual_seed(0))
    epochs = [torch.cat([next(stream) for _ in range(M)]) for _ in range(2)]
    assert all(len(set(epoch.tolist())) == 300 for epoch in epochs)
    assert not torch.equal(*epochs)
    stream = batches(task, options, "replacement", torch.Generator().manual_seed(0))
    assert len(set(torch.cat([next(stream) for _ in range(M)]).tolist())) < 300


def test_without_its_panel_only_the_relation_is_made(tmp_path: Path) -> None:
    found = analyze(AnalyzeOptions(**SMALL, panel=False), tmp_path)
    assert list(found.relation.rows) == ["pca"]
    assert not (tmp_path / "replacement").exists()
    assert found.summary["psi_hessian"] is None
    assert math.isfinite(found.summary["noise_curvature_exponent"])


def test_a_layer_of_few_weights_has_no_law_but_a_result(tmp_path: Path) -> None:
    small = {**SMALL, "hidden": (6, 5), "directions": 10, "spacing": 2, "panel": False}
    summary = analyze(AnalyzeOptions(**small), tmp_path).summary
    assert summary["gamma"] is None
    assert summary["variance_fraction_pc2_35"] is None
    assert summary["psi"] is not None


def test_seeds_differ_and_repeat() -> None:
    task = load_task(AnalyzeOptions(**SMALL))
    nets = [make_network(task, AnalyzeOptions(**SMALL, seed=seed)) for seed in (0, 0, 1)]
    first = [next(net.parameters()) for net in nets]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_refusals(made: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"analysis with another lr, seed.*another --out"):
        analyze(AnalyzeOptions(**SMALL, seed=1, lr=0.2), made)
    with pytest.raises(NonFiniteError, match="lower it"):
        analyze(AnalyzeOptions(**SMALL, lr=1e6), tmp_path / "a")
    with pytest.raises(DataError, match="no two batches"):
        analyze(AnalyzeOptions(**SMALL, batch_size=200), tmp_path / "b")
    (tmp_path / "bad.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="remove it"):
        load_arrays(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": 0.0}, "lr is"),
        ({"lr": math.nan}, "lr is"),
        ({"batch_size": 0}, "batch-size is 0"),
        ({"steps": 50}, "ten times as many"),
        ({"hidden": (50,)}, "two whole numbers"),
        ({"hidden": (8, 9)}, "spacing is 10: 8 directions so far apart need more"),
        ({"sampling": "sometimes"}, "shuffle, replacement"),
        ({"directions": 3}, "directions is 3"),
        ({"data": ""}, "give a name"),
        ({"seed": 4611686018427387904}, "seed is 4611686018427387904: give .* 1000000000000000 or"),
        ({"loss": 0.0}, "loss is 0.0: give a number above 0"),
        ({"accuracy": 1.0}, "accuracy is 1.0: give a share below 1"),
        ({"accuracy": 99}, "accuracy is 99.0: give a share below 1"),
    ],
)
def test_options_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        AnalyzeOptions(**given)


def test_more_jobs_give_the_same_numbers(made: Path, tmp_path: Path) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    analyze(AnalyzeOptions(**{**SMALL, "jobs": 2}), tmp_path)
    first, second = (json.loads((p / "analysis.json").read_text()) for p in (made, tmp_path))
    assert first["relation"] == second["relation"]


def test_a_step_by_hand_is_the_one_of_autograd() -> None:
    generator = torch.Generator().manual_seed(4)
    widths = (7, 6, 5, 3)
    weights = [
        torch.randn(b, a, generator=generator, dtype=torch.float64).requires_grad_()
        for a, b in pairwise(widths)
    ]
    x = torch.randn(9, 7, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (9,), generator=generator)
    h = x
    for w in weights[:-1]:
        h = torch.relu(h @ w.T)
    expected = torch.nn.functional.cross_entropy(h @ weights[-1].T, y)
    slopes = torch.autograd.grad(expected, weights)
    after = [(w - 0.3 * g).detach() for w, g in zip(weights, slopes, strict=True)]
    loss, gradients = descend_(weights, x, y, 0.3)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients, list(slopes), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close([w.detach() for w in weights], after, rtol=1e-12, atol=1e-14)


def test_a_step_with_dropout_and_decay_is_autograd_s() -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = [(6, 5), (7, 6), (3, 7)]
    weights = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (8,), generator=generator)
    keep = torch.full((8, 6), 0.7, dtype=torch.float64).bernoulli_(generator=generator) / 0.7
    free = [w.clone().requires_grad_() for w in weights]
    hidden = (x @ free[0].T).relu() * keep
    loss = torch.nn.functional.cross_entropy((hidden @ free[1].T).relu() @ free[2].T, y)
    decay = sum(w.square().sum() for w in free) * 0.2 / 2
    steps = torch.autograd.grad(loss + decay, free)
    expected = [w - 0.3 * g for w, g in zip(weights, steps, strict=True)]
    found, _ = descend_(weights, x, y, 0.3, keep=keep, decay=0.2)
    assert float(found) == pytest.approx(loss.item(), abs=1e-12)
    for mine, theirs in zip(weights, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)
