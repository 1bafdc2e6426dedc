"""``flatcl generalize``: what decides generalisation, direction by direction."""

from __future__ import annotations

import argparse
from typing import Any

from flatcl.cli.arguments import add_options, chosen_of
from flatcl.generalize_options import GeneralizeOptions

_OUT = "flatcl-out/generalize"


def add_parser(commands: Any) -> None:
    """Add the subcommand and its options, one for each field of ``GeneralizeOptions``.

    Args:
        commands: what ``ArgumentParser.add_subparsers`` returned.
    """
    parser = commands.add_parser(
        "generalize",
        help="show which knob of training acts through sharpness, which through size",
        description="Trains small networks with one knob turned at a time, splits the gap between "
        "test and training loss into sharpness and size along the directions of a layer's weights "
        "by the activity-weight duality (Feng, Zhang & Tu 2023), and writes generalize.jsonl, "
        "generalize.json, generalize.png. Started again with the same --out, it goes on from what "
        "it has.",
        argument_default=argparse.SUPPRESS,
    )
    add_options(parser, GeneralizeOptions, out=_OUT)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Return the exit code of ``flatcl generalize``.

    Args:
        parsed: the command line.

    Returns:
        0, or 1 if a training run diverged.
    """
    chosen = chosen_of(parsed, GeneralizeOptions, out=_OUT)

    from flatcl.duality_plots import plot_study
    from flatcl.generalize import generalize
    from flatcl.io import write_bytes
    from flatcl.plots import png

    headline, out = chosen.options.headline(), chosen.out
    chosen.say(headline)
    study = generalize(chosen.options, out, chosen.say)
    if study.rows:
        write_bytes(out / "generalize.png", png(plot_study(study.rows, study.records), dpi=110))
    if chosen.json:
        print((out / "generalize.json").read_text(encoding="utf-8"), end="")
    else:
        print(f"{headline}\n\n{study}\n\nnumbers and figures in {out}")
    return 0 if all(row["status"] == "done" for row in study.rows) else 1
