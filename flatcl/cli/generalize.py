"""``flatcl generalize``: what decides generalisation, direction by direction."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from flatcl.cli.arguments import add_options, read_config
from flatcl.generalize_options import GeneralizeOptions

_OUT = "flatcl-out/generalize"
_OWN: dict[str, Any] = {"out": _OUT, "config": None, "json": False, "quiet": False}


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


def run(chosen: argparse.Namespace) -> int:
    """Return the exit code of ``flatcl generalize``.

    Args:
        chosen: the parsed command line.

    Returns:
        0, or 1 if a training run diverged.
    """
    given = {name: value for name, value in vars(chosen).items() if name not in {"run", "command"}}
    own = {name: given.pop(name, default) for name, default in _OWN.items()}
    out = Path(own["out"])
    settings = {} if own["config"] is None else read_config(own["config"], GeneralizeOptions)
    options = GeneralizeOptions(**(settings | given))

    def say(line: str) -> None:
        if not own["quiet"]:
            print(line, file=sys.stderr, flush=True)

    from flatcl.duality_plots import plot_study
    from flatcl.generalize import generalize
    from flatcl.io import write_bytes
    from flatcl.plots import png

    say(options.headline())
    study = generalize(options, out, say)
    if study.rows:
        write_bytes(out / "generalize.png", png(plot_study(study.rows, study.records), dpi=110))
    if own["json"]:
        summary = json.loads((out / "generalize.json").read_text(encoding="utf-8"))
        print(json.dumps(summary, indent=2))
    else:
        print(f"{options.headline()}\n\n{study}\n\nnumbers and figures in {out}")
    return 0 if all(row["status"] == "done" for row in study.rows) else 1
