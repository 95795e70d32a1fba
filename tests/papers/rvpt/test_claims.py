"""Claims and the numbers of the paper: what is claimed is measured with equal pictures, what is printed is what the paper prints."""

from dataclasses import replace

import numpy as np
import pytest

from papers.rvpt.config import PRESETS
from papers.rvpt.paper import PAPER
from papers.rvpt.tables import FURTHER, SIX, THREE
from shared.claims.claims import load
from shared.claims.selection import matches
from tests.papers.ends import ROOT

CLAIMS = load(ROOT / "papers/rvpt/claims.yaml")
PLANS = {
    (scale, headline): PAPER.plan(replace(PRESETS[scale], headline=headline))
    for scale in ("cpu", "paper")
    for headline in (False, True)
}


def found(selector, scale, headline=False) -> list:
    return [n for n in PLANS[scale, headline] if matches(selector, n.tags)]


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_a_claim_is_of_equal_seeds_and_of_every_attack_that_it_names(scale):
    for claim in (claim for claim in CLAIMS.claims if scale in claim.testable):
        for selector in claim.selectors:
            matched = [n.tags for n in found(selector, scale, claim.headline)]
            seeds = {s: frozenset(t["seed"] for t in matched if t["set"] == s) for s in {t["set"] for t in matched}}
            assert len(set(seeds.values())) == 1, (claim.id, selector)
            named = selector.get("attack")
            assert not isinstance(named, list) or {t["attack"] for t in matched} == set(named), (claim.id, selector)


def test_the_headline_measures_all_that_a_headline_claim_will_read():
    for claim in (claim for claim in CLAIMS.claims if claim.headline and "cpu" in claim.testable):
        for selector in claim.selectors:
            assert {n.name for n in found(selector, "cpu", True)} == {n.name for n in found(selector, "cpu")}, claim.id


def test_both_sides_of_a_difference_are_of_the_same_pictures_or_of_none_in_common():
    for claim in CLAIMS.claims:
        if "cpu" in claim.testable and claim.ratio is None:
            sides = [{n.tags["set"] for n in found(s, "cpu")} for s in claim.selectors]
            assert all(sides[0] == other or not sides[0] & other for other in sides[1:]), claim.id


def test_every_table_of_the_paper_is_there():
    for number in range(1, 13):
        assert any(t.id == f"t{number}" or t.id.startswith(f"t{number}-") for t in CLAIMS.reference_tables), number
    assert sum(n is not None for t in CLAIMS.reference_tables for row in t.rows.values() for n in row) == 351


def test_a_printed_number_has_one_place_among_the_measurements():
    for claim in (claim for table in CLAIMS.reference_tables for claim in table.claims()):
        matched = [n.tags for n in found(claim.quantity, "paper")]
        assert len({t["set"] for t in matched}) == 1 and len({t["seed"] for t in matched}) == len(matched), claim.id


def test_numbers_are_those_of_the_fact_sheet():
    cell = {t.id: t.cell for t in CLAIMS.reference_tables}
    assert (cell["t1-asr"]("cleanclip", "badclip"), cell["t1-asr"]("rvpt", "badclip")) == (89.70, 2.76)
    assert cell["t1-asr"]("linear_probe", "trojvqa") is None and cell["t1-ca"]("none", "issba") == 61.72
    assert (cell["t2-caltech101-ca"]("rvpt", "blended"), cell["t2-oxfordpets-asr"]("linear_probe", "badnet")) == (
        94.34,
        16.05,
    )
    assert (cell["t3-ta"]("clean", "blended"), cell["t3-ta"]("cleanclip", "badclip")) == (54.16, 4.25)
    assert (cell["t4-without-asr"]("badclip", "main"), cell["t4-without-ca"]("wanet", "third")) == (3.39, 86.17)
    assert (
        cell["t5-oxfordpets-rvpt-asr"]("rvpt", "wanet"),
        cell["t5-caltech101-cleanclip-asr"]("cleanclip", "badnet"),
    ) == (2.49, 36.87)
    assert (cell["t6-imagenet-a-asr"]("rvpt", "badclip"), cell["t6-imagenet-sketch-ca"]("cleanclip", "blended")) == (
        12.84,
        34.82,
    )
    assert (cell["t7-retrieval-rank-ratio"]("rvpt", "rank_ratio"), cell["t7-caption-bleu"]("vpt", "bleu")) == (
        82.12,
        4.64,
    )
    assert (cell["t8"]("infonce_fr", "asr"), cell["t8"]("full_fr", "ca")) == (18.23, 59.22)
    assert cell["t9-cleanclip-main-seconds"]("cleanclip", "seconds") == 3 * 3600 + 53 * 60 + 2
    assert (cell["t10-asr"]("1", "badclip"), cell["t10-ca"]("0", "badnet")) == (3.78, 62.28)
    assert (cell["t11-vit-l14-asr"]("linear_probe", "badnet"), cell["t11-vit-b16-ca"]("rvpt", "badclip")) == (
        23.48,
        68.42,
    )
    assert cell["t12"]("words", "robust") == 13.97


def test_derived_values_follow_from_the_printed_cells():
    cell = {t.id: t.cell for t in CLAIMS.reference_tables}

    def difference(table, a, b, attacks):
        return np.mean([cell[table](a, x) - cell[table](b, x) for x in attacks])

    expected = {
        "abstract-badclip": difference("t1-asr", "cleanclip", "rvpt", ["badclip"]),
        "abstract-ahead-probe": difference("t1-asr", "linear_probe", "rvpt", THREE),
        "abstract-ahead-cleanclip": difference("t1-asr", "cleanclip", "rvpt", THREE),
        "abstract-clean-kept": difference("t1-ca", "rvpt", "none", THREE),
        "t1-wanet": difference("t1-asr", "cleanclip", "rvpt", ["wanet"]),
        "t1-probe-holds": np.mean([cell["t1-asr"]("linear_probe", a) for a in SIX[:4]]),
        "t2-third-cleanclip": difference("t2-oxfordpets-asr", "cleanclip", "rvpt", FURTHER),
        "t3-restored": difference("t3-ta", "rvpt", "clean", THREE),
        "t6-shift2": difference("t6-imagenet-a-asr", "cleanclip", "rvpt", THREE),
        "t11-third": difference("t11-vit-l14-asr", "linear_probe", "rvpt", THREE),
        "t10-1-asr": np.mean([cell["t10-asr"]("1", a) - cell["t1-asr"]("rvpt", a) for a in THREE]),
        "t9-time": 13982 / 2705,
        "t4-second": np.mean([cell["t4-without-asr"](a, "second") - cell["t4-with-asr"](a, "second") for a in FURTHER]),
        "abstract-generalises": np.mean(
            [cell["t2-caltech101-asr"]("cleanclip", a) - cell["t5-caltech101-rvpt-asr"]("rvpt", a) for a in FURTHER]
        ),
    }
    for id, value in expected.items():
        assert CLAIMS.claim(id).value == pytest.approx(value, rel=2e-3, abs=1e-3), id
