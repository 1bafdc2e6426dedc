"""``flatcl analyze``: train, record, measure, judge; every part is kept as soon as it is made.

``OUT/train.pt`` → ``OUT/shuffle/`` and ``OUT/replacement/`` (records) → ``OUT/arrays/*.npz`` (parts
of the study) → ``OUT/points.json`` and ``OUT/analysis.json``. Each is whole or absent, and what is
there is not made again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from joblib import Parallel, delayed

from flatcl.analysis_kept import claim, load_arrays, save_arrays
from flatcl.analysis_options import AnalyzeOptions
from flatcl.analysis_summary import facts_of, points_of, summary_of
from flatcl.analysis_task import Task, load_task, surface_at
from flatcl.errors import DataError
from flatcl.fluctuations.along import Part
from flatcl.fluctuations.annealing import annealing
from flatcl.fluctuations.flatness import profile
from flatcl.fluctuations.relation import VarianceFlatness
from flatcl.fluctuations.study import Study
from flatcl.fluctuations.surface import LossSurface
from flatcl.io import write_json
from flatcl.seeds import derive_seed
from flatcl.trajectory import Recorded, Say, Trained, epoch_steps, record, train, window_steps

_STAGE_SAMPLES, _STAGE_DIRECTIONS = 2000, 20
_TOGETHER = 10  # parts of the larger wave: more processes would have nothing to do
_SHOWN = 5  # loss profiles drawn, of the Hessian's directions


@dataclass(frozen=True)
class Analysis:
    """All that was found.

    Attributes:
        relation: the variance–flatness relation with its controls.
        summary: the content of ``analysis.json``.
        arrays: name → arrays, as in ``OUT/arrays``.
    """

    relation: VarianceFlatness
    summary: dict[str, Any]
    arrays: dict[str, Part]


def analyze(options: AnalyzeOptions, out: str | Path, say: Say = lambda line: None) -> Analysis:
    """Return the analysis of a network trained to the stop rule, made as far as it is missing.

    A folder that holds the analysis of other options is refused with an OptionError.

    Args:
        options: what to train and how to look at it.
        out: folder of all that is kept.
        say: told of progress, a line each.

    Returns:
        The analysis; ``analysis.json`` and arrays are in the folder.
    """
    folder = Path(out)
    claim(folder, options)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of more cores, parts make better use than steps this small
    try:
        return _analyzed(options, folder, say)
    finally:
        torch.set_num_threads(threads)


def _analyzed(options: AnalyzeOptions, folder: Path, say: Say) -> Analysis:
    most = min(options.jobs or os.cpu_count() or 1, _TOGETHER)
    workers = Thread(target=_start, args=(most,))
    if most > 1 and not (folder / "analysis.json").exists():
        workers.start()
    task = load_task(options)
    window_steps(task, options)  # refuses what would fail after the training
    trained = train(task, options, folder / "train.pt", say)
    bench = _Bench(options, folder, task, trained, say)
    if workers.ident is not None:
        workers.join()
    for names in bench.waves():
        missing = [name for name in names if not (folder / "arrays" / f"{name}.npz").exists()]
        jobs = min(len(missing), most)
        if jobs <= 1:
            for name in missing:
                say(f"measuring: {name}")
                bench.make(name)
            continue
        say(f"measuring: {', '.join(missing)}")
        work = Parallel(n_jobs=jobs, return_as="generator_unordered")
        for name in work(delayed(_make)(options, folder, name) for name in missing):
            say(f"measured: {name}")
    for name in (name for names in bench.waves() for name in names):
        bench.make(name)  # opened, where a worker has made it
    rows = bench.study.rows(panel=options.panel)
    facts = facts_of(
        bench.study,
        bench.keep("run", lambda: _run_facts(bench)),
        trained,
        epoch_steps=epoch_steps(task, options),
        options=options,
    )
    relation = VarianceFlatness({row.name: row for row in rows}, facts)
    summary = summary_of(relation, options)
    write_json(folder / "points.json", points_of(bench.kept))
    write_json(folder / "analysis.json", summary)
    return Analysis(relation, summary, bench.kept)


class _Bench:
    """Records and parts of one analysis, each made or opened when it is first asked for."""

    def __init__(
        self, options: AnalyzeOptions, folder: Path, task: Task, trained: Trained, say: Say
    ) -> None:
        self.options, self.folder, self.task, self.trained = options, folder, task, trained
        self.say = say
        self.kept: dict[str, Part] = {}
        self.window, surface, self.whole = self._window(options.sampling)
        self.study = Study(
            self.window.window.weights(),
            surface,
            self.whole,
            options.lr,
            options.batch_size,
            directions=options.directions,
            spacing=options.spacing,
            sampling=options.sampling,
            seed=options.seed,
            keep=self.keep,
        )
        if options.panel and options.sampling == "shuffle":
            twin, around, _ = self._window("replacement")
            self.study.twin = (twin.window.weights(), around)

    def waves(self) -> tuple[tuple[str, ...], ...]:
        # Longest first; a later wave looks at an earlier one's parts.
        if not self.options.panel:
            return ("pca", "run"), ("noise",)
        twin = ("twin_principal",) if self.study.twin else ()
        first = ("langevin", "hessian", "walk", "pca", *twin, "detrended", "split")
        second = ("twin_hessian",) if self.study.twin else ()
        return (*first, "stages", "random_basis", "run"), (*second, "noise", "profiles")

    def make(self, name: str) -> None:
        """Make one part, or find it kept."""
        study = self.study
        own = {
            "noise": study.noise,
            "run": lambda: self.keep(name, lambda: _run_facts(self)),
            "stages": lambda: self.keep(name, lambda: _stages(self)),
            "profiles": lambda: self.keep(name, lambda: _profiles(study)),
            "pca": study.principal,
        }
        found = own[name] if name in own else getattr(study, name)
        found()

    def keep(self, name: str, make: Callable[[], Part]) -> Part:
        if name not in self.kept:
            path = self.folder / "arrays" / f"{name}.npz"
            if path.exists():
                try:
                    self.kept[name] = load_arrays(path)
                except DataError as error:
                    self.say(str(error))
            if name not in self.kept:
                save_arrays(path, make())
                self.kept[name] = load_arrays(path)
        return self.kept[name]

    def _window(self, sampling: str) -> tuple[Recorded, LossSurface, LossSurface]:
        # A record, and the loss around its mean weights: of a fixed subset, and of all images.
        self.say(f"recording: {sampling}")
        options, task = self.options, self.task
        found = record(self.trained, task, options, self.folder / sampling, sampling)
        whole = surface_at(found.mean, task, options)
        generator = torch.Generator().manual_seed(derive_seed(options.seed, "subset"))
        return found, whole.subset(min(options.subset, len(whole) // 2), generator), whole


def _start(jobs: int) -> None:
    # While the network trains on one core, others can import what they will need. All of it: what
    # a worker's memory grows by after its first call, loky takes for a leak from 300 MB on.
    with suppress(BaseException):  # the measuring meets it again; an interrupt is told by the main
        Parallel(n_jobs=jobs)(delayed(_ready)() for _ in range(jobs))


def _ready() -> None:
    torch.set_num_threads(1)


def _make(options: AnalyzeOptions, folder: Path, name: str) -> str:
    torch.set_num_threads(1)
    task = load_task(options)
    trained = train(task, options, folder / "train.pt", lambda line: None)
    _Bench(options, folder, task, trained, lambda line: None).make(name)
    return name


def _run_facts(bench: _Bench) -> Part:
    """Return losses around the window, and its fluctuation–dissipation ratio."""
    whole, weights = bench.whole, bench.window.window.weights()
    last = whole.flatten({next(iter(whole.shapes)): weights[-1]})
    centre, error = whole.loss_with_error(whole.reference)
    return {
        "fluctuation_dissipation": torch.tensor(
            bench.window.fluctuation_dissipation, dtype=torch.float64
        ),
        "loss_at_mean": torch.tensor([centre, error], dtype=torch.float64),
        "loss_at_last_block": whole.losses(last[None]),
    }


def _profiles(study: Study) -> Part:
    """Return loss profiles along some Hessian directions, half as far again as their crossings."""
    part = study.hessian()
    steps = torch.linspace(-1.5, 1.5, 41, dtype=torch.float64)
    reached = (~part["width"].isnan()).nonzero()[:, 0]
    chosen = (
        reached[torch.linspace(0, len(reached) - 1, _SHOWN).long()] if len(reached) else reached
    )
    offsets, losses = [], []
    for i in chosen.tolist():
        span = steps * part["width"][i] / 2
        offsets.append(span)
        losses.append(profile(study.surface, part["directions"][i : i + 1], span)[0])
    empty = torch.zeros(0, len(steps), dtype=torch.float64)
    return {
        "chosen": chosen,
        "offsets": torch.stack(offsets) if offsets else empty,
        "losses": torch.stack(losses) if losses else empty,
        "centre": part["loss"],
    }


def _stages(bench: _Bench) -> Part:
    """Return temperature and flatness at falling losses of the training."""
    options, surfaces = bench.options, []
    last = [w.detach() for w in bench.trained.network.parameters()]
    for weights in [*(weights for _, weights in bench.trained.stages), last]:
        generator = torch.Generator().manual_seed(derive_seed(options.seed, "stages"))
        whole = surface_at(weights, bench.task, options)
        surfaces.append(whole.subset(min(_STAGE_SAMPLES, len(whole) // 2), generator))
    found = annealing(
        surfaces,
        k=min(_STAGE_DIRECTIONS, surfaces[0].size - 1),
        lr=options.lr,
        batch_size=options.batch_size,
        sampling=options.sampling,
        seed=options.seed,
    )
    return {
        "loss": torch.tensor([stage.loss for stage in found], dtype=torch.float64),
        "curvature": torch.stack([stage.curvature for stage in found]),
        "temperature": torch.stack([stage.temperature for stage in found]),
        "width": torch.stack([stage.width for stage in found]),
    }
