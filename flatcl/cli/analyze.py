"""``flatcl analyze``: the fluctuations of SGD in a trained network, and what they prove."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatcl.analysis_options import AnalyzeOptions
from flatcl.cli.arguments import add_options, chosen_of
from flatcl.errors import OptionError
from flatcl.options import option_fields, shown, unusable

if TYPE_CHECKING:
    from flatcl.analysis import Analysis

_OUT = "flatcl-out/analyze"


def add_parser(commands: Any) -> None:
    """Add the subcommand and its options, one for each field of ``AnalyzeOptions``.

    Args:
        commands: what ``ArgumentParser.add_subparsers`` returned.
    """
    parser = commands.add_parser(
        "analyze",
        help="measure the fluctuations of SGD and their relation to flatness",
        description="Trains a network to the stop rule of Feng & Tu (2021), records its weights "
        "step by step, and measures principal directions, variances, flatness, noise and "
        "curvature, with the null controls; writes analysis.json, points.json, arrays and "
        "analysis.png. Started again with the same options and --out, it goes on from what it has.",
        argument_default=argparse.SUPPRESS,
    )
    add_options(parser, AnalyzeOptions, out=_OUT)
    parser.add_argument(
        "--record",
        metavar="DIR",
        help="analyse this record, made with flatcl.fluctuations.Recorder, instead: spectrum, "
        "drift and memory; flatness needs the network, in Python",
    )
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Return the exit code of ``flatcl analyze``.

    Args:
        parsed: the command line.

    Returns:
        0.

    Raises:
        OptionError: the record's name is none, or options of a training stand beside it.
    """
    chosen = chosen_of(parsed, AnalyzeOptions, out=_OUT)
    record, out, options = getattr(parsed, "record", None), chosen.out, chosen.options
    if record is not None:
        idle = [name for name in ("config", *_of_training()) if hasattr(parsed, name)]
        if idle:
            flags = ", ".join(f"--{_of_training().get(name, name)}" for name in idle)
            raise OptionError(f"{flags} beside --record: it is trained already, leave that away")
        reason = unusable(record)
        if reason is not None:
            raise OptionError(f"record is {shown(record)}: {reason}, give a folder")
        from flatcl.analysis_record import analyze_record

        summary, text = analyze_record(record, out)
    else:
        from flatcl.analysis import analyze

        chosen.say(options.headline())
        found = analyze(options, out, chosen.say)
        draw(found, out / "analysis.png")
        summary, text = found.summary, f"{options.headline()}\n\n{found.relation}\n"
    if chosen.json:
        print(json.dumps(summary, indent=2))
    else:
        print(f"{text}\nnumbers and figures in {out}")
    return 0


def _of_training() -> dict[str, str]:
    """Return the flags of the options, by field."""
    return {
        item.name: ("no-" if item.default is True else "") + item.name.replace("_", "-")
        for item in option_fields(AnalyzeOptions)
    }


def draw(found: Analysis, path: Path) -> None:
    """Write the figure of an analysis.

    Args:
        found: the analysis.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    from flatcl import fluctuation_plots as plots
    from flatcl.io import write_bytes
    from flatcl.plots import png

    arrays, config = found.arrays, found.summary["config"]
    pca = arrays["pca"]
    whole = "hessian" in arrays
    figure = Figure(figsize=(16, 7.2) if whole else (12.5, 3.6), layout="constrained")
    panels = list(figure.subplots(2, 4).flat) if whole else list(figure.subplots(1, 3))
    plots.plot_spectrum(pca["spectrum"], panels[0])
    plots.plot_trajectory(pca["scores"], panels[1], planes=(0, 1))
    pairs = {"SGD, principal directions": (pca["width"], pca["variances"])}
    if whole:
        names = {"hessian": "SGD, Hessian", "walk": "null: no force", "langevin": "Langevin"}
        pairs |= {
            label: (arrays[part]["width"], arrays[part]["variances"])
            for part, label in names.items()
        }
    plots.plot_relation(pairs, panels[2])
    if whole:
        hessian, shown, stages = arrays["hessian"], arrays["profiles"], arrays["stages"]
        labels = [f"Hessian {int(i) + 1}" for i in shown["chosen"]]
        loss = float(shown["centre"][0])
        plots.plot_trajectory(pca["scores"], panels[3], planes=(1, 2))
        plots.plot_profiles(shown["offsets"], shown["losses"], panels[4], loss=loss, labels=labels)
        noise = {
            "Hessian": (hessian["curvature"], hessian["noise"]),
            "principal": (pca["curvature"], arrays["noise"]["c"]),
        }
        plots.plot_noise(noise, panels[5])
        times = {
            "Hessian": (hessian["curvature"], hessian["tau"]),
            "principal": (pca["curvature"], pca["tau"]),
        }
        window = found.summary["n_snapshots"]
        plots.plot_times(times, panels[6], lr=config["lr"], window=window)
        if len(stages["loss"]) > 1:
            plots.plot_annealing(stages["loss"], stages["temperature"], stages["width"], panels[7])
        else:
            panels[7].set_axis_off()
    write_bytes(path, png(figure, dpi=130))
