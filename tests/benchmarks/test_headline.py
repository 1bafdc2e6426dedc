"""The lab's headline: each section's own verdicts, and what is to be known of the figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lab_runs import PROTOCOLS, run, runs

from benchmarks.against import against_rivals
from benchmarks.collected import Collected
from benchmarks.headline import absent, entries, headline_table, headline_view, legend
from benchmarks.noise import noise_sentence, twin_costs
from benchmarks.outcomes import Search

NAME = "split-mnist-domain"
LDC = [0.85, 0.851, 0.852, 0.851, 0.85]


def of(method, by, regime="tuned", protocol=NAME, wobble=0.001):
    accs = [acc + by + wobble * (-1) ** place for place, acc in enumerate(LDC)]
    return runs(method, accs, regime=regime, protocol=protocol)


def row(outcomes, searches=(), about=PROTOCOLS) -> dict[str, str]:
    collected = Collected(outcomes)
    view = headline_view(collected, about, searches)
    lines = headline_table(view, legend(collected, about)).splitlines()
    found = next(line for line in lines if about[NAME].title in line)
    heads, cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[0], found))
    return dict(zip(heads, cells, strict=True))


def made():
    return [
        *of("ldc", 0.0, "default", wobble=0.0), *of("ldc", 0.02), *of("naive", -0.3),
        *of("ewc", -0.05), *of("mas", 0.0), *of("joint", 0.05), *of("er", 0.01),
        *of("naive+r", -0.02), *of("lwf+r", -0.01),
    ]  # fmt: skip


def test_ties_and_rivals_above_are_marked():
    marked = entries(Collected(made()))[NAME]
    assert [e.versus.verdict if e and e.versus else None for e in marked] == [
        "below", "below", "tie", "below", "above", None, None, "above",
    ]  # fmt: skip
    found = row(made())
    assert found["best other without data"].endswith("(mas) =")
    assert found["best with LDC's rehearsal"].endswith("(lwf+r)")
    assert found["ER"].endswith("↑")
    assert found["LDC, default"] == "**85.1 ± 0.1**"
    assert found["LDC, tuned"].startswith("87.1")
    assert found["gap closed"] == "50 %"
    assert found["by the best other"] == "50 %"


def test_the_verdict_is_the_sections_however_many_protocols_there_are():
    # beside the like ties of three more protocols it would be one of them
    outcomes = [one for one in made() if one.method != "mas"] + of("mas", 0.0016)
    for name in ("split-mnist-class", "rotated-mnist-5", "permuted-mnist-10"):
        outcomes += [replace(one, protocol=name) for one in made()]
    collected = Collected(outcomes)
    shown = entries(collected)[NAME][2]
    section = {entry.method: test for entry, test in against_rivals(collected, NAME)}["mas"]
    assert section.p is not None
    assert section.verdict == "above"
    assert section.p * 4 > 0.05
    assert shown is not None
    assert shown.versus == section


def test_divergence_regime_edge_and_strange_data_are_told():
    outcomes = [one for one in made() if one.method != "ewc" or one.seed != 3]
    outcomes += [run("ewc", 3, 0.1, status="diverged", protocol=NAME)]
    outcomes += of("mas", 0.004, "default")
    search = Search(NAME, "naive", [], {"lr": 0.05}, ("lr",))
    found = row(outcomes, [search])
    assert "(ewc, 1 of 5 diverged)" in found["best EWC"]
    assert "(naive, edge)" in found["best Naive"]
    assert "(mas, default)" in found["best other without data"]
    # a search of its own chose nothing where another protocol's did; and only the tuned has edges
    elsewhere = {NAME: replace(PROTOCOLS[NAME], settings_of="q", data="cifar100")}
    found = row(outcomes, [search, Search("q", "mas", [], {"lr": 0.05}, ("lr",))], elsewhere)
    assert "(naive)" in found["best Naive"]
    assert "(mas, default)" in found["best other without data"]
    assert found["protocol"].endswith(" †")
    found = row(outcomes, [Search("q", "joint", [], {"lr": 0.05}, ("lr",))], elsewhere)
    assert "(edge)" in found["Joint"]
    assert not row(outcomes, (), {NAME: replace(PROTOCOLS[NAME], data="mnist")})[
        "protocol"
    ].endswith("†")


def test_joint_is_of_the_regime_that_came_out_higher():
    assert "(default)" in row([*made(), *of("joint", 0.06, "default")])["Joint"]


def test_what_was_not_run_is_named_by_protocol():
    outcomes = [*made(), *of("gpm", 0.0), *of("si-stock", 0.0)]
    others = ("naive", "ewc", "ldc", "joint", "gpm-first")
    for name in ("permuted-mnist-10", "rotated-mnist-5"):
        outcomes += [one for method in others for one in of(method, 0.0, "default", name)]
    about = {**PROTOCOLS, NAME: replace(PROTOCOLS[NAME], methods=["ogd", "er-50", "mas+r"])}
    assert absent(Collected(outcomes), about) == (
        "The columns choose among unequal sets of methods. Not run on Permuted MNIST, 10 tasks; "
        "Rotated MNIST, 5 tasks: mas, ogd, er. Not run on Split MNIST, domain-incremental: ogd."
    )
    assert absent(Collected(made()), PROTOCOLS) == ""


def test_the_noise_of_costs_is_what_naives_own_steps_read():
    outcomes = [run("naive", 0, 0.5, seconds=10), run("naive-tuned", 0, 0.5, seconds=8)]
    outcomes += [run("naive", 0, 0.5, seconds=10, protocol="q")]
    outcomes += [run("naive-tuned", 0, 0.5, seconds=11, protocol="q", regime="default")]
    outcomes += [run("naive", 0, 0.5, protocol="r")]
    collected = Collected(outcomes)
    assert twin_costs(collected) == pytest.approx({"p": 0.8, "q": 1.1})
    assert "reads 0.80 here and 0.80 to 1.10 over the protocols" in noise_sentence(collected, "p")
    assert "reads 0.80 to 1.10 over the protocols" in noise_sentence(collected, "r")
    assert noise_sentence(Collected(outcomes[:1]), "p") == ""
