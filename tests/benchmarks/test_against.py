"""LDC against tuned rivals, in words; and the size at which replay overtakes it."""

from __future__ import annotations

import pytest
from lab_runs import run, runs

from benchmarks.against import against_rivals, verdict
from benchmarks.collected import Collected
from benchmarks.figure_replay import by_buffer, overtakes, replay_against_memory
from benchmarks.figure_style import Styles
from benchmarks.statistics import Estimate, Paired

LDC = [0.90, 0.91, 0.92, 0.91, 0.90]


def shifted(by: float) -> list[float]:
    return [acc + by + 0.001 * (-1) ** place for place, acc in enumerate(LDC)]


def held(collected: Collected) -> dict[str, Paired]:
    return {entry.method: test for entry, test in against_rivals(collected, "p")}


def test_every_method_without_data_is_held_against_ldc_as_it_comes():
    outcomes = runs("ldc", LDC, regime="default")
    outcomes += runs("ldc", shifted(0.05))  # tuned: no rival of its own
    outcomes += [*runs("ewc", shifted(-0.2)), *runs("owm", shifted(-0.1))]
    outcomes += [*runs("er", shifted(0.05)), *runs("joint", shifted(0.06))]
    outcomes += runs("mas", shifted(0.0), regime="default")
    found = held(Collected(outcomes))
    assert list(found) == ["mas", "owm", "ewc"]
    assert [test.verdict for test in found.values()] == ["tie", "below", "below"]
    said = verdict(Collected(outcomes), "p")
    assert said[0] == (
        "LDC at its defaults is significantly above 2 of 3 methods that keep no data; the nearest "
        "of them is owm (−10.0 ± 0.1 points). Run tuned and at their own defaults, to enter as "
        "they came out higher: 0 of the 3; at their defaults alone: mas; tuned alone: owm, ewc."
    )
    assert said[1].startswith("mas ties with LDC (")
    assert "none of these methods rehearses" in said[2]
    assert said[3].startswith("**er is above LDC** (+5.0 ± 0.1 points, p < 0.001, 3 kB held, LDC 3")
    assert len(said) == 4  # of joint nothing is said


def test_it_is_told_which_methods_had_a_second_regime_to_come_out_higher_in():
    outcomes = [*runs("ldc", LDC, regime="default"), *runs("ewc", shifted(-0.2))]
    outcomes += runs("ewc", shifted(-0.3), regime="default")
    said = verdict(Collected(outcomes), "p")[0]
    assert said.endswith(
        " Each was run tuned and at its own defaults, and enters as it came out higher."
    )
    outcomes += [*runs("owm", shifted(-0.1)), *runs("mas", shifted(-0.1), regime="default")]
    said = verdict(Collected(outcomes), "p")[0]
    assert said.endswith(" higher: 1 of the 3; at their defaults alone: mas; tuned alone: owm.")


def test_a_method_that_tuning_misled_is_taken_as_it_comes():
    outcomes = runs("ldc", LDC, regime="default")
    outcomes += [*runs("gpm", shifted(-0.3)), *runs("gpm", shifted(-0.1), regime="default")]
    broken = [run("si", seed, 0.99, regime="default", status="diverged") for seed in range(4)]
    outcomes += [*broken, run("si", 4, 0.99, regime="default"), *runs("si", shifted(-0.4))]
    collected = Collected(outcomes)
    assert collected.higher("p", "gpm") == "default"
    assert collected.higher("p", "si") == "tuned"  # of the other regime one run of five is left
    assert collected.higher("p", "owm") is None
    found = held(collected)
    assert found["gpm"].difference.mean == pytest.approx(-10, abs=0.1)
    assert found["si"].difference.mean == pytest.approx(-40, abs=0.1)


def test_where_it_is_not_above_the_parts_of_the_difference_are_told():
    outcomes = runs("ldc", LDC, regime="default")
    outcomes += [run("owm", seed, acc, learned=0.99) for seed, acc in enumerate(shifted(0.01))]
    outcomes += runs("ewc", LDC)
    said = verdict(Collected(outcomes), "p")
    # learned .99 against .97; of a difference of one point, keeping takes one away
    assert said[0].startswith("**owm is above LDC** (+1.0 ± 0.1 points, p < 0.001): ")
    assert "+2.0 ± 0.0 points in what is learned" in said[0]
    assert "−1.0 ± 0.1 points in what is kept" in said[0]
    assert said[1].startswith("ewc ties with LDC (+0.0 ± 0.0 points, p 1.00)")
    assert "tuned alike" not in "".join(said)
    outcomes += runs("ldc", shifted(0.05))  # its rate and strength chosen as the rivals'
    outcomes += runs("mas", shifted(0.02), regime="default")
    mas, owm, ewc, _ = verdict(Collected(outcomes), "p")
    assert owm.endswith(" Beside LDC tuned alike (lr 0.05): −4.0 ± 0.0 points.")
    assert ewc.endswith(" Beside LDC tuned alike (lr 0.05): −5.0 ± 0.1 points.")
    assert mas.startswith("**mas is above LDC**")
    assert "alike" not in mas  # as it comes, beside which LDC as it comes stands


def test_methods_that_are_given_its_rehearsal_are_a_family_of_their_own():
    outcomes = [*runs("ldc", LDC, regime="default"), *runs("gpm", shifted(-0.2))]
    outcomes += [*runs("gpm+r", shifted(0.01)), *runs("ewc+r", shifted(-0.1))]
    alone, apart, given, above = verdict(Collected(outcomes), "p")
    assert "Of methods that keep no data, gpm alone was run: LDC" in alone
    assert "is significantly above it (−20.0 ± 0.1 points)" in alone
    assert "none of these methods rehearses" in apart
    assert "above 1 of 2 methods that keep no data and are given its rehearsal; the" in given
    assert "nearest of them is ewc+r" in given
    assert above.startswith("**gpm+r is above LDC** (+1.0 ± 0.1 points")


def test_its_rehearsal_alone_is_told_to_be_that():
    outcomes = [*runs("ldc", LDC, regime="default"), *runs("naive+r", shifted(-0.2))]
    given, what = verdict(Collected(outcomes), "p")
    assert "are given its rehearsal, naive+r alone was run" in given
    assert what == "naive+r is LDC without its constraint."


def test_nothing_is_said_of_what_was_not_run():
    assert verdict(Collected(runs("ldc", LDC, regime="default")), "p") == []
    assert verdict(Collected(runs("ewc", LDC)), "p") == []
    few = [*runs("ldc", LDC[:1], regime="default"), *runs("ewc", LDC[:1])]
    assert verdict(Collected(few), "p")[0] == "Too few seeds to test: ewc."


def test_replay_overtakes_between_two_sizes():
    curve = {size: Estimate(acc, 1.0, 3) for size, acc in ((10, 50.0), (100, 70.0), (1000, 90.0))}
    assert overtakes(curve, 80.0) == pytest.approx(100 * 10**0.5)
    assert overtakes(curve, 70.0) == pytest.approx(100)
    assert overtakes(curve, 40.0) == 10
    assert overtakes(curve, 95.0) is None


def test_the_curves_are_those_of_the_buffers_by_size():
    outcomes = runs("ldc", [0.85, 0.85], regime="default")
    for size, acc in ((1000, 0.9), (50, 0.6), (200, 0.8)):
        outcomes += runs(f"er-{size}", [acc, acc], regime="default")
        outcomes += runs(f"ldc-er-{size}", [0.9, 0.9], regime="default")
    outcomes += runs("er", [0.7, 0.7], regime="default")  # at LDC's bytes: no size of its own
    collected = Collected(outcomes)
    alone = by_buffer(collected, "p", "default", with_ldc=False)
    assert {size: one.mean for size, one in alone.items()} == pytest.approx(
        {50: 60.0, 200: 80.0, 1000: 90.0}
    )
    styles = Styles([outcome.method for outcome in outcomes])
    figure = replay_against_memory(collected, "p", "default", styles)
    assert figure is not None
    figure.canvas.draw()
    (axes,) = figure.axes
    assert list(axes.get_xticks()) == [50, 200, 1000]
    assert [text.get_text() for text in axes.texts] == ["447 images"]
    assert replay_against_memory(collected, "p", "tuned", styles) is None
