"""The forecast of forgetting against what the earlier tasks' test data say.

``python -m benchmarks.forecast`` trains five tasks of each stream at two strengths and two seeds,
and at three moments of each task takes the forecast and measures the rise of every earlier task's
loss since it was learned. Finished runs in ``benchmarks/results/forecast/`` are not repeated.
Writes
``benchmarks/FORECAST.md`` and ``docs/forecast.png``; ``--render`` makes them from the results.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.streams import stream_options
from flatcl import Landscape, LDCOptions
from flatcl.core.forecast import TRUSTED_GROWTH as TRUSTED
from flatcl.core.growth import INPUTS
from flatcl.data import load_images
from flatcl.forecast_plots import plot_forecast
from flatcl.io import write_bytes, write_json
from flatcl.models import make_model
from flatcl.plots import png
from flatcl.records import versions
from flatcl.streams import StreamOptions, make_stream
from flatcl.tables import markdown_table

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "forecast"
STREAMS = ("permuted-mnist", "rotated-mnist", "split-mnist-domain", "split-mnist-class")
STRENGTHS = (3.5, 0.3)
CHOSEN, FRESH = 0, 1  # the seed that the form was chosen on, and one that it was not
MOMENTS = (0.1, 0.3)  # of a task; and its end
KINDS = {
    "own": "per task",
    "shared": "merged",
    "quadratic": "per task, energy alone",
}
TEXT = """# A forecast of forgetting

Made by `python -m benchmarks.forecast`: MNIST, 784-100-100, five tasks of 6000 images, SGD at 0.05,
strengths {strengths}, no rehearsal, else the default options; {runs} runs, {seconds:.0f} s together
on one core.
The form of the forecast, among about ten that were tried, and the limit of its warning were chosen
on seed {chosen} of these same streams; the tables are of seed {fresh}, which had no part in that.
At {moments} and at the end of each task every earlier task gives one pair of numbers: the predicted
rise of its loss since it was learned, made without its data, and the rise on its test images. Raw
figures: `results/forecast/`.

Measured are the rise of the cross-entropy (CE) and the divergence KL(outputs then ‖ outputs now),
what the rise would be if the network's outputs then were the truth. CE falls, and its rise may be
negative, where a later task also teaches the earlier ones. ρ is Spearman's, *ratio* the median of
predicted to measured KL, *within 2* and *within 4* the shares of pairs right to such a factor.

*per task* uses each task's own constraint (`per_task=True`), *merged* what the defaults keep,
*energy alone* is per task without the growth that is measured on the present task's inputs. A pair
is *warned* if that growth exceeded {trusted:g} on its way, by the forecast in question.

The ratio is to KL alone: rises of CE are near 0 or negative in a part of the pairs, where the
forecast, which knows no benefit, stays above 0.

## Where no warning was raised

{quiet}

## Where one was

{warned}

**The warning does not tell good forecasts from bad ones.** It tells where the energy alone fails;
with the growth in it the forecast is there as good as elsewhere, and where no warning is raised the
energy alone does as well. What the warning misses is a scale that differs between streams, see the
ratios below: too low for rotated tasks, too high for permuted ones. It is what ρ over all streams
suffers from. Its cause was not isolated.

## Each stream, merged, warned or not

{streams}

{verdict}

## Seed {chosen}, on which the form was chosen, where no warning was raised

{first}

![predicted against measured](../docs/forecast.png)
"""


@torch.no_grad()
def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    outputs: Tensor = model(x)
    return outputs


def _rise(then: Tensor, now: Tensor, y: Tensor) -> dict[str, float]:
    a, b = F.log_softmax(then, 1), F.log_softmax(now, 1)
    return {
        "ce": float(F.nll_loss(b, y) - F.nll_loss(a, y)),
        "kl": float(F.kl_div(b, a, log_target=True, reduction="batchmean")),
    }


def run(stream_name: str, strength: float, seed: int) -> dict[str, Any]:
    """Return the raw figures of one stream at one strength and seed."""
    started = time.process_time()
    options = stream_options(stream_name, "sgd")
    stream = make_stream(
        load_images(options.data),
        StreamOptions(
            scenario=options.scenario,  # type: ignore[arg-type]  # checked by CompareOptions
            tasks=options.tasks,
            train_size=options.train_size,
        ),
        seed=seed,
    )
    model = make_model(stream.input_shape, stream.n_outputs, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr)
    landscape = Landscape(
        model, optimizer, options=LDCOptions(strength=strength, per_task=True, pseudo_inputs=0)
    )
    tests = [
        e.dataset.batch(torch.arange(len(e.dataset)))[:2] for e in stream.benchmark.test_stream
    ]
    learned: list[Tensor] = []
    rows: list[dict[str, Any]] = []

    def look(task: int, moment: float, inputs: list[Tensor] | None) -> None:
        found = landscape.forecast(inputs)
        whole = landscape.history
        landscape.history = replace(whole, own=[], growths=[])
        merged = landscape.forecast(inputs)
        landscape.history = whole
        with landscape.evaluating():
            alone = [float(landscape._present().energy(own)) for own in landscape.history.own]
            for earlier, then in enumerate(learned):
                x, y = tests[earlier]
                rows.append(
                    {
                        "task": task,
                        "moment": moment,
                        "earlier": earlier,
                        "own": found.rises[earlier],
                        "shared": merged.rises[earlier],
                        "quadratic": alone[earlier],
                        "own_growth": found.growths[earlier],
                        "shared_growth": merged.growths[earlier],
                        **_rise(then, _outputs(model, x), y),
                    }
                )

    for task, experience in enumerate(stream.benchmark.train_stream):
        data = experience.dataset
        probe = data.batch(torch.randperm(len(data), generator=torch.Generator().manual_seed(task)))
        feed = data.feed(options.batch_size, shuffle=True)
        steps = options.epochs * len(feed)
        moments = {round(m * steps): m for m in MOMENTS}
        landscape.begin_task()
        step = 0
        for _ in range(options.epochs):
            for x, y, _label in feed:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                landscape.step()
                step += 1
                if step in moments:
                    look(task, moments[step], [probe[0][:INPUTS]])
        landscape.end_task([probe[0]])
        look(task, 1.0, None)
        learned.append(_outputs(model, tests[task][0]))
    return {
        "stream": stream_name,
        "strength": strength,
        "seed": seed,
        "seconds": time.process_time() - started,
        "versions": dict(versions()),
        "rows": rows,
    }


def _cases() -> list[tuple[str, float, int, Path]]:
    return [
        (name, strength, seed, RESULTS / f"{name}-{strength:g}-{seed}.json")
        for seed in (CHOSEN, FRESH)
        for name in STREAMS
        for strength in STRENGTHS
    ]


def recorded() -> list[dict[str, Any]]:
    """Return the runs made so far, in the order of the table."""
    return [json.loads(file.read_text(encoding="utf-8")) for *_, file in _cases() if file.exists()]


def fill() -> None:
    """Make the runs that are missing."""
    for name, strength, seed, file in _cases():
        if not file.exists():
            write_json(file, run(name, strength, seed))
            print(f"{name}, strength {strength:g}, seed {seed}: done", flush=True)


def _pairs(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        r | {"stream": run["stream"], "strength": run["strength"]}
        for run in runs
        for r in run["rows"]
    ]


def _warned(row: dict[str, Any], kind: str) -> bool:
    growth = row["shared_growth" if kind == "shared" else "own_growth"]
    return bool(growth > TRUSTED)


def _line(name: str, rows: list[dict[str, Any]], kind: str) -> list[str]:
    if len(rows) < 3:
        return [name, str(len(rows)), *["–"] * 5]
    predicted, kl = [r[kind] for r in rows], [r["kl"] for r in rows]
    ratios = [p / k for p, k in zip(predicted, kl, strict=True)]

    def within(factor: float) -> str:
        return f"{100 * sum(1 / factor <= q <= factor for q in ratios) / len(ratios):.0f} %"

    return [
        name,
        str(len(rows)),
        f"{spearmanr(predicted, [r['ce'] for r in rows])[0]:.2f}",
        f"{spearmanr(predicted, kl)[0]:.2f}",
        f"{median(ratios):.2f}",
        within(2),
        within(4),
    ]


def _verdict(quiet: list[list[str]]) -> str:
    """Say which of the aims are met, from the table's own figures."""
    lines = []
    for name, _, ce, kl, ratio, *_ in quiet[:2]:
        said = [
            f"{what} {'met' if good else 'missed'}"
            for what, good in (
                ("ρ of 0.9 against CE", float(ce) >= 0.9),
                ("against KL", float(kl) >= 0.9),
                ("a median ratio to KL within a factor of 2", 0.5 <= float(ratio) <= 2),
            )
        ]
        lines.append(f"*{name}*: {', '.join(said)}.")
    return "Aims where no warning was raised.\n\n- " + "\n- ".join(lines)


HEADER = ["forecast", "pairs", "ρ, CE", "ρ, KL", "ratio", "within 2", "within 4"]


def render() -> None:
    """Write the tables and the figure."""
    runs = recorded()
    pairs = _pairs([r for r in runs if r["seed"] == FRESH])
    before = _pairs([r for r in runs if r["seed"] == CHOSEN])
    quiet, warned = [], []
    for kind, name in KINDS.items():
        quiet.append(_line(name, [r for r in pairs if not _warned(r, kind)], kind))
        warned.append(_line(name, [r for r in pairs if _warned(r, kind)], kind))
    streams = [
        _line(
            f"{stream}, {strength:g}",
            [r for r in pairs if (r["stream"], r["strength"]) == (stream, strength)],
            "shared",
        )
        for stream in STREAMS
        for strength in STRENGTHS
    ]
    text = TEXT.format(
        strengths=" and ".join(f"{g:g}" for g in STRENGTHS),
        runs=len(runs),
        seconds=sum(run["seconds"] for run in runs),
        moments=" and ".join(f"{100 * m:.0f} %" for m in MOMENTS),
        trusted=TRUSTED,
        quiet=markdown_table(HEADER, quiet),
        warned=markdown_table(HEADER, warned),
        streams=markdown_table(["stream, strength", *HEADER[1:]], streams),
        verdict=_verdict(quiet),
        first=markdown_table(
            HEADER,
            [_line(n, [r for r in before if not _warned(r, k)], k) for k, n in KINDS.items()],
        ),
        chosen=CHOSEN,
        fresh=FRESH,
    )
    write_bytes(HERE / "FORECAST.md", text.encode())
    axes = plot_forecast(
        [
            {
                "predicted": r["shared"],
                "measured": r["kl"],
                "group": r["stream"],
                "trusted": not _warned(r, "shared"),
            }
            for r in pairs
        ]
    )
    axes.set_ylabel("measured KL(then ‖ now) on test images (nats)")
    write_bytes(HERE.parent / "docs" / "forecast.png", png(axes.figure))  # type: ignore[arg-type]


def main() -> None:
    """Run what is missing, then render."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--render", action="store_true", help="only render, run nothing")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if not chosen.render:
        fill()
    render()


if __name__ == "__main__":
    main()
