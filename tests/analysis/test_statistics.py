"""Known answers, SciPy and statsmodels called directly, and simulations of coverage and of false positives."""

import gc
import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from analysis import statistics as st
from analysis.statistics.pooled import _bootstrap_weights

SEVEN = ["a-x", "a-y", "b-x", "c-x", "c-z", "d-z", "e-z"]  # a and c teach twice


def frame(values, protocol="last"):
    """The tidy frame of {(pair, method): values by seed}; a value is None where the run is missing."""
    rows = [
        (pair, method, seed, f"{pair}'s teacher", protocol, value)
        for (pair, method), runs in values.items()
        for seed, value in enumerate(runs)
        if value is not None
    ]
    return pd.DataFrame(rows, columns=["pair", "method", "seed", "teacher", "protocol", "value"])


def random_frame(pairs, methods, seeds, *, spread=0.0, noise=0.25, seed=0):
    """No method is better than another; `spread` is the deviation of a method's effect from pair to pair."""
    draw = np.random.default_rng(seed)
    return frame(
        {(p, m): 70 + draw.normal(0, spread) + draw.normal(0, noise, seeds) for p in pairs for m in methods},
    )


def test_cells_by_hand():
    runs = {("a-x", "kd"): [1.0, 2.0, 6.0], ("a-x", "dkd"): [5.0], ("b-x", "kd"): [70.1, 70.1, 70.1]}
    table = st.cells(pd.concat([frame(runs), frame({("a-x", "kd"): [3.0, 4.0]}, "best")])).set_index(
        ["pair", "method", "protocol"]
    )
    row = table.loc["a-x", "kd", "last"]
    assert (row["n"], row["mean"], row["sd"]) == (3, 3.0, pytest.approx(math.sqrt(7)))
    half = 4.302653 * math.sqrt(7 / 3)  # t(0.975, 2) from the tables
    assert (row["low"], row["high"]) == pytest.approx((3 - half, 3 + half), rel=1e-6)
    assert table.loc["a-x", "kd", "best"][["n", "mean"]].tolist() == [2, 3.5]
    assert table.loc["a-x", "dkd", "last"][["n", "mean"]].tolist() == [1, 5.0]
    assert table.loc["a-x", "dkd", "last"][["sd", "low", "high"]].isna().all()
    assert table.loc["b-x", "kd", "last"]["sd"] == 0 and table.loc["b-x", "kd", "last"][["low", "high"]].isna().all()


def test_comparisons_are_scipys_and_statsmodels_own():
    tidy = random_frame(SEVEN, ["kd", "dkd", "edkd"], 4, spread=0.5)
    tidy = tidy.drop(tidy.index[[3, 20, 21, 22]])  # some runs are missing
    rows = st.comparisons(tidy, "last")
    assert len(rows) == 21 and list(rows["pair"][:7]) == SEVEN
    for row in rows.to_dict("records"):
        a, b = (
            tidy[(tidy["pair"] == row["pair"]) & (tidy["method"] == row[side])].set_index("seed")["value"]
            for side in ("first", "second")
        )
        both = sorted(set(a.index) & set(b.index))
        assert (row["n"], row["seeds"]) == (len(both), " ".join(map(str, both)))
        assert row["difference"] == pytest.approx(np.mean(a[both] - b[both]), abs=1e-12)
        if row["n"] > 1:
            direct = stats.ttest_rel(a[both], b[both])
            interval = direct.confidence_interval(0.95)
            assert (row["p"], row["low"], row["high"]) == pytest.approx((direct.pvalue, *interval), rel=1e-9)
            assert row["sd"] == pytest.approx(np.std(a[both] - b[both], ddof=1))
        else:
            assert all(math.isnan(row[name]) for name in ("sd", "low", "high", "p", "p_holm"))
    assert set(rows["n"]) == {1, 3, 4}
    tested = rows[rows["p"].notna()]
    np.testing.assert_allclose(tested["p_holm"], multipletests(tested["p"], method="holm")[1])
    one = st.comparisons(tidy, "last", [("edkd", "kd")])  # a smaller family, the other direction
    whole = rows[(rows["first"] == "kd") & (rows["second"] == "edkd")]
    np.testing.assert_allclose(one["difference"], -whole["difference"])
    np.testing.assert_allclose(one["p_holm"].dropna(), multipletests(whole["p"].dropna(), method="holm")[1])


def test_only_runs_of_one_seed_and_teacher_are_compared():
    tidy = frame({("a-x", "kd"): [70.0, 71.0, None, 50.0], ("a-x", "dkd"): [71.5, 71.5, 99.0, 71.0]})
    other = tidy.assign(teacher=tidy["teacher"].where((tidy["seed"] != 3) | (tidy["method"] == "kd"), "another"))
    row = st.comparisons(other, "last", [("dkd", "kd"), ("dkd", "unknown")]).iloc[0]
    assert (row["n"], row["difference"], row["seeds"]) == (2, 1.0, "0 1")
    assert st.comparisons(other, "best").empty and pooled(other, "best", "dkd", "kd").pairs == 0


def test_equal_differences_permit_no_p():
    tidy = frame({("a-x", "kd"): [70.12, 71.3, 69.9], ("a-x", "dkd"): [70.24, 71.42, 70.02]})  # equal but for rounding
    row = st.comparisons(tidy, "last", [("dkd", "kd")]).iloc[0]
    assert row["difference"] == pytest.approx(0.12) and row["sd"] == 0
    assert row[["low", "high", "p", "p_holm"]].isna().all()
    assert "The same value in every run" in st.permits(st.comparisons(tidy, "last"))[0]


def pooled(tidy, protocol, first, second):
    runs = tidy[tidy["method"].isin([first, second])]
    return st.over_pairs(runs, protocol, [(first, second)])[0]


def test_pooled_by_hand():
    gaps = {
        "a-x": [1.0, 1.2],
        "a-y": [0.4],
        "b-x": [-0.3],
        "c-x": [0.0],
        "c-z": [-1.0, 0.6],
        "d-z": [0.3],
        "e-z": [0.2],
    }
    tidy = frame(
        {(pair, "kd"): [70.0] * len(runs) for pair, runs in gaps.items()}
        | {(pair, "dkd"): [70 + gap for gap in runs] for pair, runs in gaps.items()}
    )
    result = pooled(tidy, "last", "dkd", "kd")
    means = [1.1, 0.4, -0.3, 0.0, -0.2, 0.3, 0.2]
    assert result.pairs == 7 and result.mean == pytest.approx(np.mean(means))
    assert (result.wins, result.ties, result.losses) == (3, 3, 1)  # a-x's interval of two runs includes 0
    assert result.improvement == pytest.approx((1 + 1 + 0 + 0.5 + 0.5 + 1 + 1) / 7)
    back = pooled(tidy, "last", "kd", "dkd")
    assert (back.improvement, back.wins, back.losses) == (pytest.approx(1 - result.improvement), 1, 3)
    # Six signed ranks: |−0.3| and 0.3 share 3.5, as |−0.2| and 0.2 share 1.5; the sum of the negative ones is 5.
    assert result.p_wilcoxon == back.p_wilcoxon == stats.wilcoxon([6, -5, 4, 3, 2, 1], method="exact").pvalue
    few = pooled(tidy[tidy["pair"].isin(SEVEN[:4])], "last", "dkd", "kd")
    assert few.pairs == 4 and math.isnan(few.low) and math.isnan(few.high) and few.mean == pytest.approx(0.3)


def test_wilcoxon_over_seven_pairs_ends_at_0_0156():
    tidy = frame({(p, m): [70 + 0.1 * i * (m == "dkd")] for i, p in enumerate(SEVEN, 1) for m in ("kd", "dkd")})
    assert pooled(tidy, "last", "dkd", "kd").p_wilcoxon == 2 / 2**7 == 0.015625
    assert pooled(tidy[tidy["pair"].isin(SEVEN[:2])], "last", "dkd", "kd").p_wilcoxon == 0.5
    assert math.isnan(pooled(tidy[tidy["pair"] == "a-x"], "last", "dkd", "kd").p_wilcoxon), "one pair has no ranks"


def test_the_bootstrap_draws_pairs_and_then_runs():
    """The weights against a plain loop: equal moments of the resampled mean; and drawn again, they are the same."""
    draw = np.random.default_rng(1)
    runs = [draw.normal(k, 1 + k, n) for k, n in enumerate((4, 2, 1, 3, 4))]
    fast = _bootstrap_weights((4, 2, 1, 3, 4)) @ np.concatenate(runs)
    slow = [
        np.mean([draw.choice(runs[k], len(runs[k])).mean() for k in draw.integers(5, size=5)]) for _ in range(10_000)
    ]
    assert np.mean(fast) == pytest.approx(np.mean(slow), abs=4 * np.std(slow) / 100)
    np.testing.assert_allclose(np.quantile(fast, [0.05, 0.95]), np.quantile(slow, [0.05, 0.95]), atol=0.1)
    tidy = random_frame(SEVEN, ["kd", "dkd"], 3)
    one = pooled(tidy, "last", "kd", "dkd")
    _bootstrap_weights.cache_clear()
    assert pooled(tidy, "last", "kd", "dkd") == one


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_power(n):
    smallest = st.detectable(n, 0.3)
    critical, centre = stats.t.isf(0.025, n - 1), smallest / 0.3 * math.sqrt(n)
    assert stats.nct.sf(critical, n - 1, centre) == pytest.approx(0.8, abs=1e-4)
    if n > 2:
        assert TTestPower().power(smallest / 0.3, n, 0.05) == pytest.approx(0.8, abs=1e-4)  # with both tails
    assert st.needed(smallest * 1.001, 0.3) == st.needed(-smallest * 1.001, 0.3) == n
    assert st.needed(smallest * 0.99, 0.3) == n + 1


def test_power_by_known_numbers_and_where_it_cannot_be_said():
    assert st.needed(0.5, 1.0) == 34 and st.needed(1.0, 1.0) == 10  # as in the tables of Cohen and G*Power
    assert st.needed(100.0, 0.1) == 2
    assert st.needed(0.0, 1.0) is st.needed(0.5, 0.0) is st.needed(0.5, math.nan) is None
    assert all(math.isnan(st.detectable(n, sd)) for n, sd in ((1, 0.3), (3, 0.0), (3, math.nan)))


def test_what_n_permits():
    alone = st.permits(st.comparisons(random_frame(SEVEN, ["kd", "dkd"], 1), "last"))
    assert alone[0].startswith("One run per method (n = 1), for 7 of 7 differences, shows no spread")
    assert alone[1].startswith("4 of 7 pairs share a teacher")
    assert alone[2] == "Over 7 pairs a two-sided Wilcoxon test cannot give p below 0.0156."
    assert len(alone) == 3
    tidy = frame({("a-x", "kd"): [70.0, 70.0, 70.0], ("a-x", "dkd"): [70.1, 70.2, 70.3]})
    assert st.permits(st.comparisons(tidy, "last", [("dkd", "kd")])) == [
        "With n = 3 and a standard deviation of the differences of 0.10 points, a paired t-test at the 5 % level, "
        "before Holm's correction, detects a difference of 0.33 points with 80 % power; 0.3 points would need n = 4. "
        "So few runs give this standard deviation only roughly."
    ]
    five = st.permits(st.comparisons(random_frame(["a-x", "b-x", "c-x", "d-x", "e-x"], ["kd", "dkd"], 2), "last"))
    assert five[-1].endswith("cannot give p below 0.0625, so it cannot reach 5 %.") and len(five) == 2


def test_the_typical_standard_deviation_is_a_root_mean_square():
    gaps = {"a-x": [0.1, 0.3], "b-x": [0.0, 1.0]}  # standard deviations of 0.1 and 0.5 times √2
    tidy = frame(
        {(p, "kd"): [70.0] * 2 for p in gaps} | {(p, "dkd"): [70 + gap for gap in runs] for p, runs in gaps.items()}
    )
    said = st.permits(st.comparisons(tidy, "last", [("dkd", "kd")]))[0]
    assert "a typical standard deviation of the differences of 0.51 points (root mean square of 2)," in said
    assert said.endswith("only roughly.")
    many = random_frame([f"t{i}-s{i}" for i in range(4)], ["kd", "dkd"], 2)
    assert not st.permits(st.comparisons(many, "last"))[0].endswith("only roughly."), "four pairs of two runs know more"


def test_the_choice_by_the_test_set_is_said_of_what_is_compared():
    tidy = random_frame(SEVEN, ["kd", "dkd"], 2).assign(protocol="best")
    assert st.permits(st.comparisons(tidy, "best"), "best")[-1].startswith("The test set chose the epochs")
    assert not any("chose" in each for each in st.permits(st.comparisons(tidy, "best"), "selected"))
    assert st.permits(st.comparisons(tidy, "best", [("kd", "at")]), "best") == []


def verdict(tidy, ours, baselines):
    contrasts = [(ours, name) for name in baselines]
    over = dict(zip(baselines, st.over_pairs(tidy, "last", contrasts)))
    return st.verdict(ours, over, st.comparisons(tidy, "last", contrasts))


def lifted(lift, pairs=SEVEN, seeds=3, noise=0.05):
    """A run of every method in `lift` for each seed, better by so many points."""
    tidy = random_frame(pairs, list(lift), seeds, noise=noise)
    return tidy.assign(value=tidy["value"] + tidy["method"].map(lift))


def test_verdict_follows_from_the_numbers():
    tidy = lifted({"kd": 0.5, "dkd": 0.0, "edkd": 1.0, "at": 3.0})
    worse, mixed, single = verdict(tidy, "edkd", ["kd", "dkd", "at"])
    assert worse.startswith("The strongest of 3 baselines on the same pairs is at: edkd − at is −2.0")
    assert "not corrected for choosing the strongest of 3; win/tie/loss 0/0/7), so edkd is worse on average." in worse
    assert re.fullmatch(
        r"On average over pairs, edkd is better than kd \(\+0\.\d\d\) and dkd \(\+[01]\.\d\d\); "
        r"not corrected for the number of baselines\.",
        mixed,
    )
    assert single.startswith("On single pairs, significant at the 5 % level") and "of 21 comparisons, " in single
    assert verdict(tidy, "edkd", ["kd"])[0].endswith(", so edkd is better on average.")
    level = lifted({"kd": 0.0, "edkd": 0.0})
    assert "no difference is shown" in verdict(level, "edkd", ["kd"])[0]
    few = verdict(tidy[tidy["pair"].isin(SEVEN[:3])], "edkd", ["kd"])
    assert "fewer than 5 pairs permit no interval over pairs" in few[0] and "better" not in few[0]
    one = verdict(tidy[tidy["pair"] == "a-x"], "edkd", ["kd"])
    assert "on a-x (95 % interval" in one[0] and "; n = 3)." in one[0]


def test_a_stronger_baseline_on_fewer_pairs_is_said_with_its_difference():
    tidy = lifted({"kd": 0.0, "dkd": 2.0, "edkd": 1.0, "sp": 9.0})
    tidy = tidy[~((tidy["method"] == "dkd") & (tidy["pair"] == "a-x"))]
    tidy.loc[tidy["method"] == "sp", "teacher"] = "another"
    first, others, apart, _ = verdict(tidy, "edkd", ["kd", "dkd", "sp"])
    assert first.startswith("edkd − kd is +1.") and first.endswith("better on average.")
    assert re.search(r"edkd is worse than dkd \(−[01]\.\d\d over 6 pairs\);", others)
    assert apart == "Not compared, for want of a common seed, teacher and kind of epoch: sp."
    assert verdict(tidy, "edkd", ["sp"])[0].endswith("nothing is compared.")


def test_of_equal_sets_of_pairs_that_of_more_baselines_counts():
    tidy = lifted({"kd": 0.0, "dkd": 2.0, "at": 3.0, "edkd": 1.0})
    early = tidy["pair"].isin(SEVEN[:3])
    tidy = tidy[(tidy["method"] == "edkd") | (early == (tidy["method"] == "kd"))]
    tidy = tidy[(tidy["method"] != "at") | ~tidy["pair"].isin(SEVEN[6:])]
    tidy = tidy[(tidy["method"] != "dkd") | ~tidy["pair"].isin(SEVEN[6:])]
    first, others, _ = verdict(tidy, "edkd", ["kd", "dkd", "at"])
    assert first.startswith("The strongest of 2 baselines on the same pairs is at: edkd − at is −")
    assert re.fullmatch(r"Without a conclusion on average: kd \(\+.* over 3 pairs\) and dkd \(−.{4}\)\.", others)


def test_a_conclusion_needs_five_pairs_of_more_than_one_run():
    tidy = lifted({"kd": 0.0, "edkd": 5.0}, noise=0.01)

    def single(count):
        return tidy[~(tidy["pair"].isin(SEVEN[:count]) & (tidy["seed"] > 0) & (tidy["method"] == "kd"))]

    first, second = verdict(single(2), "edkd", ["kd"])
    assert "; win/tie/loss 7/0/0, 2 by sign alone), so edkd is better on average." in first
    assert second.endswith(": 5 of 5 comparisons, 5 in favour of edkd and 0 against it.")
    assert verdict(single(3), "edkd", ["kd"])[0].endswith(
        "fewer than 5 of these pairs have more than one run per method, which permits no conclusion on average."
    )
    (said,) = verdict(single(7), "edkd", ["kd"])
    assert "win/tie/loss 7/0/0, by sign alone): fewer than 5 of" in said and "better" not in said
    (one,) = verdict(single(1)[single(1)["pair"] == "a-x"], "edkd", ["kd"])
    assert one.endswith("points on a-x (n = 1): one run per method permits no conclusion.")


def test_a_baseline_of_one_run_does_not_take_the_first_sentence():
    tidy = frame(
        {("a-x", "kd"): [72.0, 74.0, 76.5], ("a-x", "dkd"): [71.0], ("a-x", "edkd"): [70.0, 75.0, 80.0]},
    )
    first, others, _ = verdict(tidy, "edkd", ["kd", "dkd"])
    assert first.startswith("edkd − kd is +0.83 points on a-x (95 % interval ")
    assert others == "Without a conclusion on average: dkd (−1.00)."


def test_differences_without_a_spread_go_by_their_sign():
    tidy = frame({(pair, m): [70.0 + (m == "dkd")] * 2 for pair in SEVEN for m in ("kd", "dkd")})
    assert "win/tie/loss 7/0/0, by sign alone)" in verdict(tidy, "dkd", ["kd"])[0]
    said = st.permits(st.comparisons(tidy, "last", [("dkd", "kd")]))[0]
    assert said.startswith("The same value in every run, for 7 of 7 differences, is no spread either")


def test_many_baselines_are_counted():
    others = [f"m{i}" for i in range(9)]
    tidy = lifted({**dict.fromkeys(others, 0.0), "edkd": 5.0}, seeds=2, noise=0.01)
    assert "On average over pairs, edkd is better than 8 baselines;" in verdict(tidy, "edkd", others)[1]


def test_intervals_cover_and_tests_are_wrong_as_often_as_they_say():
    pairs = [f"t{i}-s" for i in range(2000)]
    tidy = random_frame(pairs, ["kd", "dkd"], 3)
    cells = st.cells(tidy)
    assert ((cells["low"] <= 70) & (cells["high"] >= 70)).mean() == pytest.approx(0.95, abs=0.015)
    rows = st.comparisons(tidy, "last")
    assert ((rows["low"] <= 0) & (rows["high"] >= 0)).mean() == pytest.approx(0.95, abs=0.015)
    assert (rows["p"] < 0.05).mean() == pytest.approx(0.05, abs=0.015)


def test_holm_holds_the_error_of_the_family(monkeypatch):
    """Without correction, some of fourteen comparisons is significant in nearly every second family."""
    monkeypatch.setattr(gc, "collect", lambda: 0)  # multipletests calls it, which takes 0.1 s and more each time
    tidy = random_frame([f"{p}{i}" for i in range(100) for p in SEVEN], ["ours", "kd", "dkd"], 3)
    families = [part for _, part in tidy.groupby(tidy["pair"].str[3:], sort=False)]
    found = [st.comparisons(part, "last", [("ours", "kd"), ("ours", "dkd")]) for part in families]
    assert np.mean([(rows["p"] < 0.05).any() for rows in found]) > 0.3
    assert np.mean([(rows["p_holm"] < 0.05).any() for rows in found]) < 0.1


@pytest.mark.parametrize("spread", [0.0, 0.4])
def test_the_interval_over_pairs_covers(spread):
    """Also where methods differ from pair to pair; where they do not, it is wider than it need be."""
    found = []
    for seed in range(120):
        tidy = random_frame(SEVEN, ["kd", "dkd"], 3, spread=spread, noise=0.2, seed=seed)
        found.append(pooled(tidy, "last", "dkd", "kd"))
    assert np.mean([result.low <= 0 <= result.high for result in found]) > 0.9
    assert np.mean([result.p_wilcoxon < 0.05 for result in found]) < 0.11
    assert np.mean([result.improvement for result in found]) == pytest.approx(0.5, abs=0.05)


def test_a_thousand_runs():
    methods = [f"m{i}" for i in range(20)]
    tidy = random_frame([f"t{i}-s{i}" for i in range(13)], methods, 4)
    tidy = pd.concat([tidy.assign(protocol=protocol) for protocol in ("last", "best", "selected")])
    assert len(st.cells(tidy)) == 780 and len(st.comparisons(tidy, "last")) == 13 * 190
    assert len(st.over_pairs(tidy, "last", list(itertools.combinations(methods, 2)))) == 190
