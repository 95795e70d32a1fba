"""Every branch of a verdict, on measurements made so that the outcome is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from shared.claims.claims import Claim, ClaimsFile
from shared.claims.verdicts import FURTHER, by_chance, judge, shortfall
from shared.claims.wording import decimals, how_tested, number
from shared.errors import UserError
from shared.metrics.intervals import Estimate
from shared.report.claims_page import measured
from shared.report.data import Results

N = 400


def cell(method, share, seed=0, name="s1", unit="share", values=None, **tags):
    """A measurement whose first `share` of the examples is right: methods that differ are nested, so paired."""
    values = (np.arange(N) < round(share * N)).astype(float) if values is None else np.asarray(values, dtype=float)
    tags = {"method": method, "set": name, "seed": seed, **tags}
    slug = "-".join(map(str, (method, name, seed, *tags.values())))
    return SimpleNamespace(slug=slug, tags=tags, unit=unit, seeds=(seed,), values=values)


def results(*cells, scale="cpu", gates=(), planned=None):
    return Results("p", scale, cells, gates=gates, planned=planned)


def claim(predicate="greater", **fields):
    base = {
        "value": 5.0,
        "unit": "points",
        "quantity": {"method": "a"},
        "minus": {"method": "b"},
        "testable": ("cpu", "photos", "paper"),
        "why_not": "No GPU.",
    }
    return Claim(id="c", text="t", where="abstract", source="s", mark="S", predicate=predicate, **{**base, **fields})


def verdict(one, res):
    return judge(ClaimsFile(None, "p", "P", (one,)), res)[0]


UP, SAME, DOWN = (
    (cell("a", 0.55), cell("b", 0.50)),
    (cell("a", 0.50), cell("b", 0.50)),
    (cell("a", 0.45), cell("b", 0.50)),
)


@pytest.mark.parametrize(("cells", "status", "tone"), [
    (UP, "direction holds", "good"), (SAME, "inconclusive", "unsure"), (DOWN, "direction fails", "bad"),
])  # fmt: skip
@pytest.mark.parametrize(("scale", "at"), [("cpu", ""), ("photos", ""), ("evening", " at reduced budget")])
def test_direction_at_small_scales(cells, status, tone, scale, at):
    v = verdict(claim(), results(*cells, scale=scale))
    assert (v.status, v.tone) == (status + at if tone != "unsure" else status, tone)
    assert v.slugs == tuple(c.slug for c in cells)
    assert "reproduced" not in v.status


def test_an_evening_tests_what_the_paper_scale_does_but_no_number_of_its_budget():
    v = verdict(claim("within", tolerance=3), results(*UP, scale="evening"))
    assert (v.status, v.sentence) == ("not testable here", "The number is of the paper's budget.")
    v = verdict(claim(why_not={"evening": "One set."}), results(*UP, scale="evening"))
    assert (v.status, v.sentence) == ("not testable here", "One set.")
    v = verdict(claim(testable=("cpu", "photos"), why_not={"paper": "Drawn."}), results(*UP, scale="evening"))
    assert (v.status, v.sentence) == ("not testable here", "Drawn.")


def test_estimates_are_in_the_unit_of_the_claim():
    v = verdict(claim(), results(*UP))
    assert v.estimates[0].value == pytest.approx(5.0) and 2 < v.estimates[0].low < v.estimates[0].high < 8
    with pytest.raises(UserError, match="claim c is in 'points', but its measurements are in 's'"):
        verdict(claim(), results(*(cell(m, 0.5, unit="s") for m in "ab")))


@pytest.mark.parametrize(("cells", "fields", "status"), [
    (UP, {"tolerance": 3.0}, "reproduced"),
    (UP, {"value": 12.0, "tolerance": 3.0}, "differs"),  # the direction holds, the number does not
    (UP, {"value": 8.0, "tolerance": 3.0}, "inconclusive"),
    (UP, {}, "reproduced"),  # no tolerance stated: the interval must contain the number
    (UP, {"value": 9.0}, "differs"),
    (UP, {"value": "unknown"}, "direction holds"),
    (UP, {"value": None}, "reproduced"),  # a statement without a number
    (SAME, {}, "inconclusive"),
    (DOWN, {}, "differs"),
    (DOWN, {"value": "unknown"}, "differs"),
])  # fmt: skip
def test_paper_scale(cells, fields, status):
    v = verdict(claim(**fields), results(*cells, scale="paper"))
    assert v.status == status
    if fields.get("value") == "unknown" and cells is UP:
        assert "Nobody here has read" in v.sentence


def test_smoke_never_has_a_verdict():
    v = verdict(claim(), results(*UP, scale="smoke"))
    assert (v.status, v.tone, v.estimates) == ("no verdict (smoke)", "none", ())


def test_not_testable_here_says_why():
    v = verdict(claim(testable=("paper",), why_not="No GPU."), results(*UP))
    assert (v.status, v.sentence) == ("not testable here", "No GPU.")
    v = verdict(claim(testable=("paper",), why_not={"cpu": "Small.", "photos": "x"}), results(*UP))
    assert v.sentence == "Small."


def test_not_measured_says_what_to_run():
    v = verdict(claim(), results(UP[0]))
    assert v.status == "not measured" and "b" in v.sentence and "`make reproduce-p`" in v.sentence
    v = verdict(claim(headline=True), results(UP[0], scale="photos"))
    assert "`make headline-p SCALE=photos`" in v.sentence


def test_half_measured_is_not_measured():
    two = [cell(m, 0.5, name=s) for m in "ab" for s in ("s1", "s2")]
    assert verdict(claim(), results(*two[:-1])).status == "not measured"  # sides with different sets
    planned = {c.slug: c.tags for c in two}
    v = verdict(claim(), results(two[0], two[2], planned=planned))  # s2 planned on both sides, and absent
    assert v.status == "not measured" and two[1].slug in v.sentence
    seeds = [cell("a", 0.5, seed=s, name=n) for s, n in ((0, "s1"), (1, "s1"), (0, "s2"))] + [
        cell("b", 0.5),
        cell("b", 0.5, name="s2"),
    ]
    assert "set s2, seed 1" in verdict(claim(), results(*seeds)).sentence


def test_a_failed_gate_withholds_the_verdict_but_not_the_number():
    gates = [{"name": "base model", "value": 0.1, "threshold": 0.8, "sense": ">=", "passed": False, "detail": ""}]
    v = verdict(claim(), results(*UP, gates=gates))
    assert v.status == "gate failed: base model" and v.estimates[0].value == pytest.approx(5)


@pytest.mark.parametrize(("fields", "status"), [
    ({"predicate": "at_least", "threshold": 45}, "direction holds"),
    ({"predicate": "at_least", "threshold": 52}, "inconclusive"),
    ({"predicate": "at_least", "threshold": 70}, "direction fails"),
    ({"predicate": "at_most", "threshold": 70}, "direction holds"),
    ({"predicate": "at_most", "threshold": 56}, "inconclusive"),
    ({"predicate": "at_most", "threshold": 45}, "direction fails"),
    ({"predicate": "within", "value": 55, "tolerance": 6}, "direction holds"),
    ({"predicate": "within", "value": 51, "tolerance": 6}, "inconclusive"),
    ({"predicate": "within", "value": 30, "tolerance": 6}, "direction fails"),
])  # fmt: skip
def test_one_number_against_a_bar(fields, status):
    v = verdict(claim(minus=None, unit="%", **fields), results(*UP))
    assert v.status == status, v.sentence


def test_within_at_paper_scale():
    def at(value):
        return verdict(claim("within", minus=None, unit="%", value=value, tolerance=6), results(*UP, scale="paper"))

    assert at(55).status == "reproduced" and at(30).status == "differs" and at(51).status == "inconclusive"
    assert at("unknown").status == "not testable here" and "Nobody here has read" in at("unknown").sentence


@pytest.mark.parametrize(("cells", "tolerance", "status"), [
    (SAME, 2, "direction holds"), (UP, 2, "direction fails"), (UP, 5, "inconclusive"),
])  # fmt: skip
def test_equal_within(cells, tolerance, status):
    assert verdict(claim("equal_within", tolerance=tolerance), results(*cells)).status == status


@pytest.mark.parametrize(("shares", "order", "status"), [
    ((0.6, 0.5, 0.4), "decreasing", "direction holds"),
    ((0.6, 0.5, 0.5), "decreasing", "direction holds"),  # one step supports it, the other does not contradict it
    ((0.5, 0.5, 0.5), "decreasing", "inconclusive"),
    ((0.6, 0.4, 0.5), "decreasing", "direction fails"),
    ((0.6, 0.5, 0.4), "increasing", "direction fails"),
])  # fmt: skip
def test_monotone(shares, order, status):
    cells = [cell("a", share, eps=e) for e, share in enumerate(shares, 1)]
    one = claim("monotone", minus=None, value=None, sequence=({"eps": 1}, {"eps": 2}, {"eps": 3}), order=order)
    v = verdict(one, results(*cells))
    assert v.status == status and len(v.estimates) == 2
    assert v.estimates[0].value == pytest.approx(100 * (shares[1] - shares[0]))
    assert how_tested(one) == f"a; {order} along eps = 1, 2, 3"


def test_monotone_at_paper_scale_does_not_reproduce_a_number():
    cells = [cell("a", share, eps=e) for e, share in enumerate((0.6, 0.5), 1)]
    one = claim("monotone", minus=None, sequence=({"eps": 1}, {"eps": 2}), order="decreasing")
    assert verdict(one, results(*cells, scale="paper")).status == "direction holds"


def test_ratio():
    rng = np.random.default_rng(0)
    cells = [cell(m, 0, unit="s", values=t + 0.1 * rng.random(30)) for m, t in (("a", 3), ("b", 2))]
    one = claim(minus=None, ratio={"method": "b"}, unit="ratio", value=1.5, tolerance=0.1)
    v = verdict(one, results(*cells))
    assert v.status == "direction holds" and v.estimates[0].value == pytest.approx(1.5, abs=0.03)
    assert verdict(one, results(*cells, scale="paper")).status == "reproduced"
    low = claim("at_most", minus=None, ratio={"method": "b"}, unit="ratio", threshold=1.2)
    assert verdict(low, results(*cells)).status == "direction fails"
    nothing = verdict(low, results(cells[0], cell("b", 0, unit="s", values=np.zeros(30))))
    assert nothing.status == "inconclusive" and not nothing.estimates and "no ratio" in nothing.sentence


def test_seeds_pair_and_a_single_seed_serves_all():
    cells = [cell("a", 0.55 + 0.005 * s, seed=s) for s in range(3)] + [cell("b", 0.5)]
    v = verdict(claim(), results(*cells))
    assert v.status == "direction holds" and v.estimates[0].seeds == 3
    cells = [cell("a", 0.55, seed=s) for s in (0, 1, 2)] + [cell("b", 0.5, seed=s) for s in (1, 2, 3)]
    assert verdict(claim(), results(*cells)).estimates[0].seeds == 2  # the seeds both have


def test_different_sets_compare_unpaired():
    cells = [cell("a", 0.7, name="seen", role="seen"), cell("a", 0.4, name="new", role="zero_shot")]
    v = verdict(claim(quantity={"method": "a", "role": "seen"}, minus={"role": "zero_shot"}), results(*cells))
    assert v.status == "direction holds" and v.estimates[0].n == 2 * N


def test_a_loose_selector_is_an_error_that_names_the_missing_tag():
    cells = [cell("a", 0.5, group="main"), cell("a", 0.5, group="sweep"), cell("b", 0.5)]
    with pytest.raises(UserError, match="name the tag group too"):
        verdict(claim(), results(*cells))


def test_how_tested_in_words():
    one = claim(quantity={"method": "a", "attack": "pgd10", "eps": 1})
    assert how_tested(one) == "a − b; pgd10, eps 1; above 0"
    assert how_tested(claim("at_most", minus=None, threshold=5, unit="%")) == "a; at most 5 %"
    assert how_tested(claim(how="by hand")) == "by hand"


def test_numbers_for_people():
    assert [number(x, 1) for x in (1234.54, -1.5, -1e-17, 99.96, float("inf"))] == [
        "1234.5",
        "−1.5",
        "0.0",
        "100.0",
        "∞",
    ]
    assert [number(x, 2, plus=True) for x in (1.5, -1.5, 1e-17)] == ["+1.50", "−1.50", "0.00"]
    assert [decimals(x, "s") for x in (123.0, 1.23, 0.0123, 0)] == [0, 2, 4, 2] and decimals(123.0, "points") == 2


@pytest.mark.parametrize(("shares", "status", "said"), [
    ((0.6, 0.5, 0.4), "direction holds", "Clearly above all 2 rivals."),
    ((0.5, 0.5, 0.4), "inconclusive", "Clearly above 1 of 2 rivals; not above r1."),
    ((0.5, 0.6, 0.4), "direction fails", "Clearly above 1 of 2 rivals; not above r1."),
    ((0.5, 0.6, 0.7), "direction fails", "Clearly above 0 of 2 rivals; not above r1, r2."),
])  # fmt: skip
def test_exceeds_all(shares, status, said):
    one = claim("exceeds_all", minus=None, value="unknown", rivals=({"method": "r1"}, {"method": "r2"}))
    v = verdict(one, results(*(cell(m, share) for m, share in zip(("a", "r1", "r2"), shares, strict=True))))
    assert (v.status, v.sentence) == (status, said) and len(v.slugs) == 3
    assert how_tested(one) == "a; above each of r1, r2"
    value, behind = measured(v)  # the strongest rival is the one that is shown
    assert value.startswith(number(100 * (shares[0] - max(shares[1:])), 2, plus=True))
    assert ("over r2" if shares[2] > shares[1] else "over r1") in behind


def test_exceeds_all_needs_every_rival_measured():
    one = claim("exceeds_all", minus=None, rivals=({"method": "r1"}, {"method": "r2"}))
    v = verdict(one, results(cell("a", 0.6), cell("r1", 0.5)))
    assert v.status == "not measured" and "r2" in v.sentence


def outcomes(gained, lost, n=1000):
    """Verdicts on "a beats b" and "b beats a" where `gained` examples only a has right, and `lost` only b."""
    a = [1] * gained + [0] * lost + [1] * (n - gained - lost)
    b = [0] * gained + [1] * lost + [1] * (n - gained - lost)
    cells = [cell("a", 0, values=a), cell("b", 0, values=b)]
    return [verdict(claim(quantity={"method": x}, minus={"method": y}), results(*cells)) for x, y in ("ab", "ba")]


def test_one_example_decides_nothing_and_both_directions_are_alike():
    for gained in range(3):
        assert [v.status for v in outcomes(gained, 0)] == ["inconclusive"] * 2
    for gained, lost in ((10, 0), (30, 9), (200, 130)):
        there, back = outcomes(gained, lost)
        assert (there.status, back.status) == ("direction holds", "direction fails") and there.p == pytest.approx(
            back.p, rel=1e-6
        )


@pytest.mark.parametrize("noise", [-1e-15, 0.0, 1e-15])
def test_an_end_at_the_bar_decides_nothing(noise):
    e = Estimate(0.3, 0.1 + 0.2 + noise - 0.2, 0.5, 100)
    from shared.claims import verdicts

    for predicate, bar in (("at_least", 0.1), ("at_least", 0.5), ("at_most", 0.1), ("at_most", 0.5)):
        assert verdicts._test_bar(claim(predicate, minus=None, threshold=bar), e).holds is None
    assert verdicts._test_near(claim("equal_within", tolerance=0.1), e).holds is None


def test_within_is_two_one_sided_tests():
    cells = (cell("a", 0.505), cell("b", 0.5))
    e = verdict(claim("equal_within", tolerance=9), results(*cells)).estimates[0]
    assert e.interval(0.9)[1] < e.high
    between = (e.interval(0.9)[1] + e.high) / 2  # the 90 % interval is inside, the 95 % interval is not
    v = verdict(claim("equal_within", tolerance=between), results(*cells))
    assert v.status == "direction holds" and 0.025 < v.p < 0.05
    assert verdict(claim("equal_within", tolerance=0.99 * e.interval(0.9)[1]), results(*cells)).status == "inconclusive"


def test_a_declared_equivalence_decides_what_the_direction_leaves_open():
    v = verdict(claim(equivalence=2), results(*SAME))
    assert (
        (v.status, v.tone) == ("no difference", "bad")
        and "No difference of 2 points or more" in v.sentence
        and v.p < 0.05
    )
    assert verdict(claim(equivalence=0.1), results(*SAME)).status == "inconclusive"
    assert verdict(claim(equivalence=9), results(*UP)).status == "direction holds"  # a direction that is clear stays


def test_the_first_look_that_decides_counts():
    """The planned run, then twice the pictures, then further seeds."""

    def looked(path, *more):
        return Results("p", "cpu", [cell("a", 0.51), cell("b", 0.50)], paths={"c": path}, more=more)

    def wide(share, seed=0, n=2 * N):
        return cell("a", 0, seed, values=np.arange(n) < round(share * n))

    first = verdict(claim(), looked([]))
    assert (first.status, first.look, first.looks) == ("inconclusive", 1, 4)
    assert first.estimate.half_width > verdict(claim(), results(cell("a", 0.51), cell("b", 0.50))).estimate.half_width
    rival = cell("b", 0, values=np.arange(2 * N) < N)
    up, down = (1, 0, wide(0.55)), (1, 1, wide(0.40, seed=1))
    second = verdict(claim(), looked(["pictures"], up, (1, 0, rival)))
    assert (second.status, second.look, second.estimate.n) == ("direction holds", 2, 2 * N)
    assert "decided at look 2 of 4" in measured(second)[1]
    later = verdict(claim(), looked(["pictures", "seeds"], up, (1, 0, rival), down))
    assert (later.status, later.look, later.estimate.seeds) == ("direction holds", 2, 1)
    open_ = verdict(claim(), looked(["pictures", "seeds"], (1, 0, wide(0.505)), (1, 0, rival), (1, 1, wide(0.5, 1))))
    assert (open_.status, open_.look, open_.estimate.seeds) == ("inconclusive", 3, 2)
    assert "open at look 3 of 4" in measured(open_)[1]


def test_each_reading_has_a_verdict_and_the_first_counts():
    readings = {"as_written": {"method": "a"}, "as_released": {"method": "r"}}
    v = verdict(claim(readings=readings), results(*DOWN, cell("r", 0.55)))
    assert v.status == "direction fails" and [one.status for one in v.readings.values()] == [
        v.status,
        "direction holds",
    ]
    assert v.sentence.endswith("Depends on the reading (as written: direction fails, as released: direction holds).")
    assert "Depends" not in verdict(claim(readings=readings), results(*DOWN, cell("r", 0.4))).sentence
    partly = verdict(claim(readings=readings), results(*DOWN))  # the headline may leave one out
    assert partly.status == "direction fails" and partly.readings["as_released"].status == "not measured"
    assert "Depends" not in partly.sentence


def test_what_could_have_been_seen_and_what_a_headline_falls_short_of():
    thin = [cell(m, 0, values=np.arange(40) < k) for m, k in (("a", 20), ("b", 18))]
    v = verdict(claim(headline=True), results(*thin))
    assert v.seen.endswith(" points") and float(v.seen.split()[0]) == pytest.approx(
        v.estimate.half_width * (1 + 0.8416 / 1.96), abs=0.01
    )
    assert v.short_of == "n < 96, one seed" and "1 headline claims rest on fewer than 96" in by_chance([v])
    assert v.seen.replace(" ", "\u00a0") in measured(v)[1] and "too little for a headline" in measured(v)[1]
    assert verdict(claim(), results(*thin)).short_of == ""
    assert [shortfall(*x) for x in ((96, 3), (95, 3), (500, 2))] == ["", "n < 96", "2 seeds"]
    times = [cell(m, 0, unit="s", values=t + 0.1 * np.arange(30) / 30) for m, t in (("a", 3), ("b", 2))]
    one = claim(minus=None, ratio={"method": "b"}, unit="ratio", value=1.5)
    assert 1 < float(verdict(one, results(*times)).seen.rstrip("×")) < 1.1


@pytest.mark.parametrize("fields", [
    {}, {"equivalence": 3}, {"predicate": "exceeds_all", "minus": None, "value": "unknown", "rivals": ({"method": "b"}, {"method": "c"})},
    {"predicate": "at_most", "minus": None, "unit": "%", "threshold": 45},
])  # fmt: skip
def test_an_open_claim_needs_as_many_times_its_examples_as_decide_it(fields):
    """The same examples over again, so that the estimate stays: as many as `needs` says decide it, half of them do not."""
    one, seen = claim(**fields), set()
    rng = np.random.default_rng(0)
    c = rng.random(120) < 0.3
    for _ in range(12):
        a, b = rng.random((2, 120)) < 0.42
        found = {
            k: verdict(one, results(*(cell(m, 0, values=np.tile(v, k)) for m, v in (("a", a), ("b", b), ("c", c)))))
            for k in (1, *FURTHER)
        }
        decided = [k for k, v in found.items() if v.decided]
        if 1 in decided:
            assert found[1].needs is None
            continue
        least = min(decided, default=32)
        seen.add(found[1].needs)
        assert (found[1].needs or 32) in (least, least / 2, least * 2)  # not quite √k at these sizes
    assert len(seen) >= 3


@pytest.mark.parametrize(("shares", "status"), [
    ((0.5, 0.5, 0.4), "no difference"),  # none is ahead, and one is as good
    ((0.5, 0.5, 0.52), "inconclusive"),  # one may be ahead by δ
    ((0.5, 0.48, 0.46), "direction holds"),
])  # fmt: skip
def test_equivalence_to_the_strongest_rival(shares, status):
    rivals = ({"method": "r1"}, {"method": "r2"})
    one = claim("exceeds_all", minus=None, value="unknown", rivals=rivals, equivalence=2)
    cells = [cell(m, 0, values=np.roll(np.arange(N) < round(s * N), 40 * (m == "r2" and s > 0.5)))
             for m, s in zip(("a", "r1", "r2"), shares, strict=True)]  # fmt: skip
    v = verdict(one, results(*cells))
    assert v.status == status, v.sentence
    assert status != "no difference" or (v.p <= 0.05 and "No difference of 2 points or more" in v.sentence)


def test_several_steps_are_corrected_for_their_number():
    values = [np.arange(N) < 200, (np.arange(N) < 200) | (np.arange(N) >= N - 5)]  # 5 of 400 more: p = 0.025
    for steps, status in ((2, "direction holds"), (4, "inconclusive")):
        cells = [cell("a", 0, eps=e, values=values[e == steps]) for e in range(1, steps + 1)]
        one = claim("monotone", minus=None, sequence=tuple({"eps": e} for e in range(1, steps + 1)), order="increasing")
        assert verdict(one, results(*cells)).status == status


def test_a_verdict_and_its_p_say_the_same():
    for share in np.linspace(0.4, 0.6, 41):
        for one in (
            claim(),
            claim("equal_within", tolerance=4),
            claim(margin=2),
            claim("at_most", minus=None, unit="%", threshold=50),
            claim("exceeds_all", minus=None, rivals=({"method": "b"}, {"method": "c"})),
        ):
            v = verdict(one, results(cell("a", share), cell("b", 0.5), cell("c", 0.45)))
            assert (v.status != "inconclusive") == (v.p <= 0.05), (one.predicate, share, v.p)


def test_what_survives_among_many():
    from scipy.stats import false_discovery_control

    cells = [cell("b", 0, values=np.zeros(N))]
    cells += [cell(f"a{k}", 0, values=np.arange(N) < k) for k in range(12)]
    claims = [claim(quantity={"method": f"a{k}"}).model_copy(update={"id": f"c{k}"}) for k in range(12)]
    verdicts = judge(ClaimsFile(None, "p", "P", tuple(claims)), results(*cells))
    theirs = false_discovery_control([v.p for v in verdicts]) <= 0.05
    assert [v.survives for v in verdicts] == list(theirs) and 0 < sum(theirs) < sum(
        v.status == "direction holds" for v in verdicts
    )
    assert by_chance(verdicts).startswith("12 claims tested at 95 % each: up to 0.6 wrong verdicts")
    assert by_chance(judge(ClaimsFile(None, "p", "P", tuple(claims)), results(*cells, scale="smoke"))) == ""
