"""Claims and the known numbers: every claim of success has its control, and what is unknown stays unknown."""

from dataclasses import replace

from papers.roclip.config import PRESETS
from papers.roclip.paper import PAPER
from shared.claims.claims import UNKNOWN, load
from shared.claims.selection import matches
from tests.papers.ends import ROOT

CLAIMS = load(ROOT / "papers/roclip/claims.yaml")


def test_the_headline_measures_all_that_a_headline_claim_will_read():
    whole, part = PAPER.plan(PRESETS["cpu"]), PAPER.plan(replace(PRESETS["cpu"], headline=True))
    for claim in CLAIMS.claims:
        for selector in claim.selectors if claim.headline else ():
            read = {n.name for n in part if matches(selector, n.tags)}
            assert read == {n.name for n in whole if matches(selector, n.tags)}, claim.id


def test_a_mean_over_backdoors_is_over_those_that_the_gates_demand():
    for scale in ("cpu", "paper"):
        plan = PAPER.plan(PRESETS[scale])
        for claim in (c for c in CLAIMS.claims if scale in c.testable):
            for selector in (s for s in claim.selectors if isinstance(s.get("attack"), list)):
                read = {n.tags["attack"] for n in plan if matches(selector, n.tags)}
                assert read == set(selector["attack"]) == set(PRESETS[scale].gates.attacks), claim.id


def test_every_claim_of_success_has_its_control_with_the_same_augmentation():
    headline = [c for c in CLAIMS.claims if c.headline]
    assert {c.where for c in headline} == {"abstract", "ours"}
    of_abstract = [c for c in headline if c.where == "abstract" and c.minus and c.quantity["regime"] == "pretrain"]
    for claim in (c for c in of_abstract if c.minus.get("method") == "clip"):
        control = {**claim.minus, "method": "clip_aug"}
        assert any(c.quantity == claim.quantity and c.minus == control for c in headline), claim.id
    for regime in ("pretrain", "finetune"):
        for measure in ("psr", "bsr"):
            wanted = {"measure": measure, "regime": regime, "method": "clip_aug"}
            assert any(wanted.items() <= {**c.quantity, "attack": ""}.items() for c in headline)


def test_numbers_are_those_of_the_fact_sheet_and_unknown_ones_stay_unknown():
    value = {c.id: c.value for c in CLAIMS.claims}
    assert (value["abstract-pretrain-targets"], value["abstract-pretrain-backdoors"]) == (0, 0)
    assert value["abstract-finetune-targets"] == value["abstract-finetune-backdoors"] == (1 + 4) / 2
    assert (value["later-clip"], value["later-targets"], value["later-backdoors"], value["later-probe"]) == (
        93.75,
        12.5,
        0,
        10,
    )
    assert value["later-gain"] == 93.75 - 12.5
    assert value["strong-targets"] == 12.5
    unread = ("abstract-zero-shot", "abstract-probe", "abstract-finetune-accuracy", "strong-often", "strong-accuracy", "every-rarer",
              "safeclip-ahead")  # fmt: skip
    assert {value[name] for name in unread} == {UNKNOWN}
    assert all(c.value is None for c in CLAIMS.claims if c.where == "ours")
    cell = {t.id: t.cell for t in CLAIMS.reference_tables}
    assert cell["main"]("clip", "bsr") is None
    assert cell["main"]("released", "psr") == 12.5
    assert cell["par"]("RoCLIP", "BadNet, stripes") == 82.0
    assert cell["toxic-text"]("single target", "ToxicTextCLIP") == 70.83
    assert [cell["by-epoch"]("one-sided RoCLIP", e) for e in ("1", "2", "13", "14")] == [75, 0, 100, 0]


def test_the_readme_names_both_versions_and_has_its_claims():
    text = (ROOT / "papers/roclip/README.md").read_text()
    assert "## Gates" in text
    assert "<!-- from figures/roclip/claims.md -->" in text
    assert all(said in text for said in ("two-sided", "as released", "plain epoch"))
