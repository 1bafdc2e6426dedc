"""The lab's statistics against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from lab_runs import PROTOCOLS, run, runs

from benchmarks.collected import Collected
from benchmarks.contenders import best
from benchmarks.families import family, in_order, information
from benchmarks.gap import Gap, gap_closed, gaps, mean_sentence, mean_share
from benchmarks.outcomes import Outcome, Regime
from benchmarks.statistics import (
    Estimate,
    corrected,
    estimate,
    holm,
    intransigence,
    paired,
    table,
)
from benchmarks.summary import summarize
from flatcl.core import gaussians
from flatcl.core.options import LDCOptions
from flatcl.errors import DataError


def by_method(outcomes, regime="tuned"):
    return {line.method: line for line in table(Collected(outcomes), "p", regime)}


def test_t_interval_by_hand():
    # mean 4, s² = (4 + 0 + 4) / 2 = 4, t(2, .975) = 4.30265: half = 4.30265·2/√3
    found = estimate([2.0, None, 4.0, 6.0])
    assert found is not None
    assert (found.mean, found.n) == (4.0, 3)
    assert found.half == pytest.approx(4.968275, abs=1e-5)
    assert estimate([3.0]) == Estimate(3.0, None, 1)
    assert estimate([None]) is None


def test_holm_by_hand():
    # 4·.01, 3·.02, 2·.04, 1·.2 in ascending order; .08 stays above .06, and none exceeds 1
    assert holm([0.04, 0.01, 0.2, 0.02]) == pytest.approx([0.08, 0.04, 0.2, 0.06])
    assert holm([0.03, 0.02, 0.025]) == pytest.approx([0.06, 0.06, 0.06])  # never falls again
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_paired_t_by_hand_and_only_on_seeds_that_both_have():
    found = paired({0: 1.0, 1: 2.0, 3: 6.0, 9: 100.0}, {0: 0.0, 1: 0.0, 3: 3.0, 5: -100.0})
    assert found is not None
    # differences 1, 2, 3: mean 2, s/√3 = 1/√3, t = 2√3; with two degrees of freedom
    # P(|T| > t) = 1 - t/√(2 + t²)
    t = 2 * math.sqrt(3)
    assert found.difference.mean == pytest.approx(2.0)
    assert found.difference.n == 3
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert found.p_wilcoxon == pytest.approx(0.25)  # 2/2³: all three of one sign
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_pairs_that_cannot_be_tested():
    one = paired({0: 1.0}, {0: 0.0})
    assert one is not None
    assert (one.p, one.difference.half, one.verdict) == (None, None, "untested")
    same = paired(dict.fromkeys(range(4), 5.0), dict.fromkeys(range(4), 5.0))
    assert same is not None
    assert same.p == 1.0
    shifted = paired(dict.fromkeys(range(4), 6.0), dict.fromkeys(range(4), 5.0))
    assert shifted is not None
    assert shifted.p == pytest.approx(2 / 2**4)  # no spread for a t test: the signs alone


def test_the_family_is_the_table_and_untested_pairs_are_not_of_it():
    tests = [paired({0: a, 1: b}, {0: 0.0, 1: 0.0}) for a, b in ((1.0, 2.0), (5.0, 5.1))]
    single = paired({0: 1.0}, {0: 0.0})
    found = corrected([tests[0], None, single, tests[1]])
    assert found[1] is None
    assert found[2] is not None
    assert found[2].p_holm is None
    ps = [t.p for t in tests if t is not None and t.p is not None]
    assert [f.p_holm for f in found if f is not None and f.p_holm] == pytest.approx(
        [max(ps[0], 2 * ps[1]), 2 * ps[1]]
    )


def test_a_correction_can_make_a_tie():
    near = paired({0: -1.0, 1: -1.1, 2: -1.2}, dict.fromkeys(range(3), 0.0))  # t = 19.05
    assert near is not None
    assert near.p == pytest.approx(0.00274, abs=1e-5)
    for crowd, verdict in ((1, "below"), (18, "below"), (19, "tie")):
        assert {c.verdict for c in corrected([near] * crowd) if c is not None} == {verdict}


def test_scores_of_one_run_by_hand():
    matrix: list[list[float] | None] = [[0.9, 0.1, 0.1], [0.95, 0.8, 0.2], [0.5, 0.7, 0.9]]
    made = replace(run("ewc", 0, 0.5), accuracy=matrix)
    joint = replace(run("joint", 0, 0.9), accuracy=[None, None, [1.0, 0.9, 0.95]])
    found = by_method([made, joint])
    ewc = found["ewc"]
    assert ewc.acc is not None
    assert ewc.acc.mean == pytest.approx(70.0)
    assert ewc.bwt is not None
    assert ewc.bwt.mean == pytest.approx((-40 - 10) / 2)
    assert ewc.forgetting is not None
    assert ewc.forgetting.mean == pytest.approx((45 + 10) / 2)  # from .95, not from .9
    assert ewc.learning is not None
    assert ewc.learning.mean == pytest.approx(260 / 3)
    assert ewc.intransigence is not None
    assert ewc.intransigence.mean == pytest.approx((10 + 10 + 5) / 3)
    assert ewc.seconds is not None
    assert ewc.seconds.mean == pytest.approx(10.0)
    assert ewc.bytes_held == (1000, 3000)
    assert found["joint"].bwt is None
    assert found["joint"].intransigence is None


def test_intransigence_takes_joint_of_the_same_seed_and_refuses_other_tasks():
    outcomes = [*runs("ewc", [0.8, 0.8]), run("joint", 1, 0.99)]
    ewc = by_method(outcomes)["ewc"]
    assert ewc.intransigence == Estimate(pytest.approx(2.0), None, 1)
    with pytest.raises(DataError, match="differ in their tasks"):
        intransigence(run("ewc", 0, 0.8), run("joint", 0, 0.9, tasks=4))


def test_diverged_runs_are_counted_and_not_averaged():
    outcomes = [*runs("ldc", [0.9, 0.91, 0.92]), *runs("ewc", [0.8, 0.81])]
    outcomes.append(run("ewc", 2, 0.1, status="diverged"))
    outcomes += [run("si", s, 0.1, status="diverged") for s in range(3)]
    found = by_method(outcomes)
    ewc, si = found["ewc"], found["si"]
    assert (ewc.n_seeds, ewc.n_diverged) == (2, 1)
    assert ewc.acc is not None
    assert ewc.acc.mean == pytest.approx(80.5)
    assert ewc.versus is not None
    assert ewc.versus.difference.n == 2
    assert ewc.versus.difference.mean == pytest.approx(-10.0)
    assert (si.n_seeds, si.n_diverged, si.acc, si.versus) == (0, 3, None, None)


def test_the_reference_is_ldc_of_the_table_else_of_the_other_regime():
    outcomes = [*runs("ldc", [0.9, 0.92], regime="default"), *runs("ewc", [0.8, 0.81])]
    ewc = by_method(outcomes)["ewc"]
    assert ewc.reference == "default"
    assert by_method(outcomes, "default")["ldc"].versus is None
    both = by_method([*outcomes, *runs("ldc", [0.95, 0.96])])
    assert both["ewc"].reference == "tuned"
    assert both["ewc"].versus is not None
    assert both["ewc"].versus.difference.mean == pytest.approx(-15.0)
    assert both["ldc"].versus is None


def test_wilcoxon_that_does_not_bear_out_a_difference_is_told():
    ldc = dict.fromkeys(range(8), 0.0)
    clear = corrected([paired({s: 1.0 + 0.1 * s for s in range(8)}, ldc)])[0]
    assert clear is not None
    assert not clear.doubtful
    assert clear.p_wilcoxon == pytest.approx(2 / 2**8)
    doubtful = replace(clear, p_wilcoxon=0.2)
    assert doubtful.doubtful
    assert not replace(doubtful, difference=Estimate(1.0, 0.1, 5)).doubtful  # 5 pairs never could


def test_runs_of_one_place_must_be_one_a_seed_and_of_one_setting():
    with pytest.raises(DataError, match="two runs of seed 0"):
        Collected([run("ewc", 0, 0.8), run("ewc", 0, 0.9)])
    with pytest.raises(DataError, match="unlike settings"):
        Collected([run("ewc", 0, 0.8), run("ewc", 1, 0.9, settings={"lr": 0.1})])


def triple(ewc, ldc, joint, seeds=(0, 1, 2), protocol="p") -> list[Outcome]:
    """Runs whose ACC is given up to a shift that all methods of a seed share."""
    shifts = [0.001 * s for s in seeds]
    level: list[Outcome] = []
    for name, acc in (("ewc", ewc), ("ldc", ldc), ("joint", joint)):
        regime: Regime = "default" if name == "ldc" else "tuned"
        for seed, shift in zip(seeds, shifts, strict=True):
            wide = shift * {"joint": 1.1, "ewc": 0.9, "ldc": 1.0}[name]
            level.append(run(name, seed, acc + wide, protocol=protocol, regime=regime))
    return level


@pytest.mark.parametrize(
    ("ewc", "ldc", "joint", "share"),
    [
        (0.80, 0.89, 0.90, 0.9),
        (0.80, 0.92, 0.90, 1.2),  # above joint: told as it is
        (0.80, 0.78, 0.90, -0.2),  # under EWC: told as it is
    ],
)
def test_gap_closed_by_hand(ewc, ldc, joint, share):
    gap = gap_closed(Collected(triple(ewc, ldc, joint)), "p")
    assert gap is not None
    assert gap.base == "ewc"
    assert gap.width.mean == pytest.approx(100 * (joint - ewc), abs=0.03)
    assert gap.share == pytest.approx(share, abs=0.01)


def test_the_gap_begins_at_naive_where_that_is_above_every_ewc():
    level = triple(0.70, 0.89, 0.90)
    naive = [replace(one, method="naive-tuned") for one in triple(0.80, 0.0, 0.0)[:3]]
    gap = gap_closed(Collected([*level, *naive]), "p")
    assert gap is not None
    assert gap.base == "naive-tuned"
    assert gap.share == pytest.approx(0.9, abs=0.01)
    assert gap_closed(Collected([*naive, *level[3:]]), "p") is None  # no EWC, no gap to it
    broken = [replace(one, status="diverged") for one in level[:3]]
    untuned = [replace(one, regime="default") for one in level[:3]]
    assert gap_closed(Collected([*naive, *level[3:], *broken, *untuned]), "p") is None


def test_the_best_others_share_of_the_gap_and_joint_of_its_higher_regime():
    outcomes = [*triple(0.80, 0.85, 0.90), *runs("gpm", [0.84, 0.84 + 0.0009, 0.84 + 0.0018])]
    gap = gap_closed(Collected(outcomes), "p")
    assert gap is not None
    assert (gap.other, gap.other_share) == ("gpm", pytest.approx(0.4, abs=0.01))
    assert "50 %" in mean_sentence([gap])
    assert mean_sentence([gap]).endswith("; of the best other, counted alike: 40 %.")
    outcomes += runs("joint", [1.0, 1.0, 1.0], regime="default")
    gap = gap_closed(Collected(outcomes), "p")
    assert gap is not None
    assert gap.share == pytest.approx(0.25, abs=0.01)
    assert gap.other_share == pytest.approx(0.2, abs=0.01)


def test_there_is_no_gap_where_joint_is_not_above_ewc():
    gap = gap_closed(Collected(triple(0.9, 0.95, 0.89)), "p")
    assert gap is not None
    assert gap.share is None
    noisy = [*runs("ewc", [0.5, 0.9]), *runs("joint", [0.9, 0.6]), *runs("ldc", [0.9, 0.9])]
    noisy += runs("ldc", [0.9, 0.9], regime="default")
    gap = gap_closed(Collected(noisy), "p")  # gaps of 40 and -30 points: mean 5, interval ± 445
    assert gap is not None
    assert gap.share is None
    assert gap_closed(Collected(runs("ewc", [0.5])), "p") is None


def test_the_mean_of_shares_is_geometric_capped_and_hides_no_zero():
    def of(*shares: float | None) -> list[Gap]:
        return [Gap("p", "ewc", Estimate(10.0, 1.0, 3), share) for share in shares]

    assert mean_share(of(0.4, 0.9)) == pytest.approx(0.6)
    assert mean_share(of(0.25, 4.0)) == pytest.approx(0.5)  # 4 enters as 1
    assert mean_share(of(0.9, -0.1)) == 0.0
    assert mean_share(of(0.5, None)) == pytest.approx(0.5)
    assert mean_share(of(None)) is None


def test_class_incremental_protocols_do_not_enter_the_mean_gap():
    names = ["split-mnist-class", "split-mnist-domain"]
    found = gaps(
        Collected([r for n in names for r in triple(0.8, 0.85, 0.9, protocol=n)]), PROTOCOLS
    )
    assert [gap.protocol for gap in found] == ["split-mnist-domain"]


def test_the_best_ewc_is_the_highest_variant_that_mostly_finished():
    outcomes = [*runs("ewc", [0.8, 0.82, 0.84]), *runs("ewc-online", [0.85, 0.85, 0.88])]
    outcomes += [run("ewc-exact", 0, 0.99)]
    outcomes += [run("ewc-exact", s, 0.1, status="diverged") for s in (1, 2)]
    found = best(Collected(outcomes), "p", ("ewc",))
    assert found is not None
    assert (found.method, found.regime) == ("ewc-online", "tuned")
    assert found.acc.mean == pytest.approx(86.0)
    outcomes += runs("ewc", [0.95, 0.95, 0.95], regime="default")
    found = best(Collected(outcomes), "p", ("ewc",))
    assert found is not None
    assert (found.method, found.regime) == ("ewc", "default")
    assert best(Collected(outcomes), "p", ("projection",)) is None


def test_families_put_names_in_order_and_strange_names_never_become_the_best():
    shuffled = ["joint", "ldc", "er", "x", "si", "ewc-online", "trgp", "gpm", "ewc", "naive"]
    assert in_order(shuffled) == [
        "naive", "ewc", "ewc-online", "si", "gpm", "er", "trgp", "x", "ldc", "joint",
    ]  # fmt: skip
    assert family("ewc-kfac") == "ewc"
    assert family("ewcx") == "other"
    assert family("trgp") == "other"  # published figures alone


def test_what_a_method_uses_or_departs_in_is_told_of_every_row_of_it():
    assert information("owm") == []
    for row in ("si", "si-stock", "si+r"):
        assert any("0.001" in told for told in information(row)), row
    for row in ("mas", "mas+r"):
        assert any("weight ½" in told for told in information(row)), row
    assert any("unrepaired" in told for told in information("si-stock"))
    for row in ("er", "er-50", "agem", "ldc-er-50"):
        assert any("keeps samples" in told and "uint8" in told for told in information(row)), row
    rank, draws = gaussians.RANK, LDCOptions().use_pseudo_inputs
    for row in ("ldc", "ldc-er-50"):
        own = information(row)[0]
        assert f"mean and {rank} principal directions" in own
        assert f"{draws} a step" in own
    assert information("ldc-published") == []


def test_cost_is_that_of_the_fastest_run_of_either_regime():
    outcomes = [run("ewc", seed, 0.8, seconds=20 + seed) for seed in range(2)]
    outcomes += [run("ewc", 0, 0.7, seconds=12, regime="default")]
    outcomes += [run("ewc", 2, 0.7, seconds=1, regime="default", status="diverged")]
    outcomes += [run("naive", 0, 0.5, seconds=6), run("naive", 1, 0.5, seconds=4)]
    ewc = by_method(outcomes)["ewc"]
    assert ewc.times_naive == pytest.approx(12 / 4)
    assert ewc.seconds is not None
    assert ewc.seconds.mean == pytest.approx(20.5)


def test_cost_compares_runs_on_one_kind_of_machine():
    outcomes = [run("naive", 0, 0.5, seconds=4), run("naive", 1, 0.5, seconds=9, machine="slow")]
    outcomes += [run("ewc", 0, 0.8, seconds=20), run("ewc", 1, 0.8, seconds=10, machine="slow")]
    outcomes += [run("si", 0, 0.8, seconds=27, machine="slow")]
    outcomes += [run("mas", 0, 0.8, seconds=6, machine="other")]
    lines = by_method(outcomes)
    assert lines["ewc"].times_naive == pytest.approx(20 / 4)  # where Naive was fastest
    assert lines["si"].times_naive == pytest.approx(27 / 9)
    assert lines["mas"].times_naive is None


def test_summary_has_percent_with_intervals_and_what_was_chosen():
    outcomes = [*runs("ldc", [0.9, 0.92, 0.94]), *runs("ewc", [0.8, 0.81, 0.84])]
    outcomes += [run("ewc", 3, 0.1, status="diverged")]
    ewc = summarize(outcomes)["p"]["tuned"]["ewc"]
    assert ewc["acc_mean"] == pytest.approx(81.6667, abs=1e-4)
    assert ewc["acc_ci95"] == pytest.approx(4.30265 * math.sqrt(13 / 3) / math.sqrt(3), abs=1e-3)
    assert (ewc["n_seeds"], ewc["n_diverged"]) == (3, 1)
    assert ewc["chosen"] == {"lr": 0.05}
    assert ewc["bytes_held"] == 3000
    assert ewc["intransigence_mean"] is None
    less = ewc["less_ldc"]
    assert isinstance(less, dict)
    assert less["mean"] == pytest.approx(-10.3333, abs=1e-4)
    assert less["verdict"] == "below"
