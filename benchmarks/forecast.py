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
from flatcl.core.growth import INPUTS
from flatcl.data import load_images
from flatcl.forecast_plots import plot_forecast
from flatcl.io import write_bytes, write_json
from flatcl.models import make_model
from flatcl.plots import png
from flatcl.streams import StreamOptions, make_stream
from flatcl.tables import markdown_table
from flatcl.versions import versions

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "forecast"
STREAMS = ("permuted-mnist", "rotated-mnist", "split-mnist-domain", "split-mnist-class")
STRENGTHS = (3.5, 0.3)
WITNESSES = 512
REHEARSED = {"alone": 0, "rehearsed": None}  # pseudo_inputs
CHOSEN, FRESH = 0, 1  # the seed that the form was chosen on, and one that it was not
MOMENTS = (0.1, 0.3)  # of a task; and its end
KINDS = ("witnesses", "quadratic")
TEXT = """# A forecast of forgetting

Made by `python -m benchmarks.forecast`: MNIST, 784-100-100, five tasks of 6000 images, SGD at 0.05,
strengths {strengths}, with the constraint alone (`pseudo_inputs=0`) and with rehearsal as in the
defaults; {runs} runs, {seconds:.0f} s together on one core.
The form of the forecast and the limits of its warnings were chosen on seed {chosen} of these same
streams; the tables are of seed {fresh}, which had no part in that.
At {moments} and at the end of each task every earlier task gives one pair of numbers: the predicted
rise of its loss since it was learned, made without its data, and the rise on its test images. Raw
figures: `results/forecast/`.

Measured are the rise of the cross-entropy (CE) and the divergence KL(outputs then ‖ outputs now),
what the rise would be if the network's outputs then were the truth. CE falls, and its rise may be
negative, where a later task also teaches the earlier ones: no forecast without labels knows that,
and the row *measured KL* says how well one could rank the rises of CE that knew KL itself. ρ is
Spearman's, *ratio* the median of predicted to measured KL, *within 2* and *within 4* the shares of
pairs right to such a factor.

*witnesses* asks the network at {witnesses} pseudo-inputs (`witnesses={witnesses}`, constant in
tasks; `flatcl.core.witnesses`), *quadratic* is what the defaults keep: energy of the merged
constraint times the growth measured on the present task's inputs. A pair is *warned* of where the
forecast in question flags it (`Forecast.reasons`).

{sections}

## Each stream, witnesses, warned or not

{streams}

{verdict}

With rehearsal most rises of CE that are left are small or negative, and ρ against CE says more of
what later tasks teach the earlier ones than of the forecast: *measured KL* ranks them no better.
Where the rehearsal's own inputs, which are Gaussian too, have kept the loss down, witnesses are too
low; there the constraint disagrees, and the warning is raised.

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


def run(stream_name: str, strength: float, seed: int, pseudo_inputs: int | None) -> dict[str, Any]:
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
        model,
        optimizer,
        options=LDCOptions(strength=strength, witnesses=WITNESSES, pseudo_inputs=pseudo_inputs),
    )
    tests = [
        e.dataset.batch(torch.arange(len(e.dataset)))[:2] for e in stream.benchmark.test_stream
    ]
    learned: list[Tensor] = []
    rows: list[dict[str, Any]] = []

    def look(task: int, moment: float, inputs: list[Tensor] | None) -> None:
        found = landscape.forecast(inputs)
        kept = landscape.history
        landscape.history = replace(kept, witnesses=[])
        without = landscape.forecast(inputs)
        landscape.history = kept
        with landscape.evaluating():
            for earlier, then in enumerate(learned):
                x, y = tests[earlier]
                rows.append(
                    {
                        "task": task,
                        "moment": moment,
                        "earlier": earlier,
                        "witnesses": found.rises[earlier],
                        "witnesses_doubt": found.reasons[earlier],
                        "quadratic": without.rises[earlier],
                        "quadratic_doubt": without.reasons[earlier],
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
                (F.cross_entropy(model(x), y) + landscape.rehearsal()).backward()
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
        "rehearsed": pseudo_inputs is None,
        "seconds": time.process_time() - started,
        "versions": dict(versions()),
        "rows": rows,
    }


def _cases() -> list[tuple[tuple[str, float, int, int | None], Path]]:
    return [
        ((name, strength, seed, number), RESULTS / f"{name}-{strength:g}-{seed}-{how}.json")
        for seed in (CHOSEN, FRESH)
        for how, number in REHEARSED.items()
        for name in STREAMS
        for strength in STRENGTHS
    ]


def recorded() -> list[dict[str, Any]]:
    """Return the runs made so far, in the order of the table."""
    return [json.loads(file.read_text(encoding="utf-8")) for _, file in _cases() if file.exists()]


def fill() -> None:
    """Make the runs that are missing."""
    for case, file in _cases():
        if not file.exists():
            write_json(file, run(*case))
            print(f"{file.stem}: done", flush=True)


def _pairs(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = ("stream", "strength", "rehearsed")
    return [r | {key: run[key] for key in kept} for run in runs for r in run["rows"]]


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


def _lines(rows: list[dict[str, Any]], *, warned: bool) -> list[list[str]]:
    """Return a line a forecast and, under that of the witnesses, what knowing KL would be worth."""
    lines = []
    for kind in KINDS:
        chosen = [r for r in rows if bool(r[f"{kind}_doubt"]) == warned]
        lines.append(_line(kind, chosen, kind))
        if kind == "witnesses" and len(chosen) > 2:
            lines.append([*_line("measured KL, same pairs", chosen, "kl")[:3], *["–"] * 4])
    return lines


def _section(title: str, rows: list[dict[str, Any]]) -> str:
    falls = sum(r["ce"] <= 0 for r in rows) / len(rows)
    quiet, warned = (markdown_table(HEADER, _lines(rows, warned=w)) for w in (False, True))
    return (
        f"## {title}\n\nIn {100 * falls:.0f} % of the {len(rows)} pairs CE fell.\n\n"
        f"### Where no warning was raised\n\n{quiet}\n\n### Where one was\n\n{warned}"
    )


def _verdict(title: str, rows: list[dict[str, Any]]) -> str:
    """Say which of the aims are met, from the table's own figures."""
    _, _, ce, kl, ratio, *_ = _lines(rows, warned=False)[0]
    said = [
        f"{what} {'met' if good else 'missed'}"
        for what, good in (
            ("ρ of 0.9 against CE", float(ce) >= 0.9),
            ("against KL", float(kl) >= 0.9),
            ("a median ratio to KL within a factor of 2", 0.5 <= float(ratio) <= 2),
        )
    ]
    return f"- *{title}*: {', '.join(said)}."


HEADER = ["forecast", "pairs", "ρ, CE", "ρ, KL", "ratio", "within 2", "within 4"]
TITLES = {False: "The constraint alone", True: "With rehearsal, as in the defaults"}


def render() -> None:
    """Write the tables and the figure."""
    runs = recorded()
    pairs = _pairs([r for r in runs if r["seed"] == FRESH])
    before = _pairs([r for r in runs if r["seed"] == CHOSEN])
    of = {title: [r for r in pairs if r["rehearsed"] == how] for how, title in TITLES.items()}
    first = {title: [r for r in before if r["rehearsed"] == how] for how, title in TITLES.items()}
    streams = [
        _line(
            f"{stream}, {strength:g}{', rehearsed' if how else ''}",
            [
                r
                for r in pairs
                if (r["stream"], r["strength"], r["rehearsed"]) == (stream, strength, how)
            ],
            "witnesses",
        )
        for how in TITLES
        for stream in STREAMS
        for strength in STRENGTHS
    ]
    text = TEXT.format(
        strengths=" and ".join(f"{g:g}" for g in STRENGTHS),
        runs=len(runs),
        seconds=sum(run["seconds"] for run in runs),
        moments=" and ".join(f"{100 * m:.0f} %" for m in MOMENTS),
        witnesses=WITNESSES,
        sections="\n\n".join(_section(title, rows) for title, rows in of.items()),
        streams=markdown_table(["stream, strength", *HEADER[1:]], streams),
        verdict="Aims, by witnesses, where no warning was raised.\n\n"
        + "\n".join(_verdict(title, rows) for title, rows in of.items()),
        first=markdown_table(
            HEADER,
            [
                [f"{line[0]}, {title[0].lower()}{title[1:]}", *line[1:]]
                for title, rows in first.items()
                for line in _lines(rows, warned=False)
            ],
        ),
        chosen=CHOSEN,
        fresh=FRESH,
    )
    write_bytes(HERE / "FORECAST.md", text.encode())
    axes = plot_forecast(
        [
            {
                "predicted": r["witnesses"],
                "measured": r["kl"],
                "group": r["stream"],
                "trusted": not r["witnesses_doubt"],
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
