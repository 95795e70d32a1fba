"""The claims file: what is read, and every way of getting it wrong."""

import copy
from pathlib import Path

import pytest
import yaml

from shared.claims.claims import load
from shared.claims.selection import matches
from shared.errors import UserError

CLAIM = {
    "id": "gain", "text": "A beats B.", "where": "abstract", "source": "abstract", "mark": "S", "value": 4.99, "unit": "points",
    "quantity": {"method": "a", "attack": "pgd10", "group": "main"}, "minus": {"method": "b"}, "predicate": "greater", "tolerance": 1.5,
    "testable": ["cpu", "photos", "paper"],
}  # fmt: skip
TABLE = {
    "id": "known", "title": "PGD", "where": "third-party", "source": "a table", "mark": "S2", "unit": "%", "row_tag": "method",
    "column_tag": "set", "columns": ["x", "y"], "rows": {"a": [1, 2.5], "b": [3, "unknown"]}, "mean": {"a": 1.75},
    "quantity": {"attack": "pgd100"}, "tolerance": 1.0, "why_not": "Other pictures.",
}  # fmt: skip


def read(tmp_path, claims=(), tables=(), **top):
    path = tmp_path / "claims.yaml"
    path.write_text(
        yaml.safe_dump(
            {"paper": "p", "title": "P", "claims": list(claims), "reference_tables": list(tables), **top},
            sort_keys=False,
        )
    )
    return load(path)


def changed(base, **changes):
    out = copy.deepcopy(base)
    for key, value in changes.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = value
    return out


def test_a_good_file(tmp_path):
    file = read(tmp_path, [changed(CLAIM, headline=True)], [TABLE])
    claim = file.claim("gain")
    assert claim.headline and claim.value == 4.99 and claim.testable == ("cpu", "photos", "paper")
    assert claim.selectors == (CLAIM["quantity"], {"method": "b", "attack": "pgd10", "group": "main"})
    assert (file.paper, file.title) == ("p", "P")
    with pytest.raises(UserError, match="no entry 'gone'"):
        file.claim("gone")


def test_the_example_in_the_docstring_is_valid(tmp_path):
    import textwrap

    from shared.claims import claims

    example = claims.__doc__.split("\n\n")[1]
    path = tmp_path / "claims.yaml"
    path.write_text(textwrap.dedent(example))
    file = load(path)
    assert file.claims[0].id == "abstract-robust" and file.reference("tga-pgd100").cell("tecoa", "cifar10") is None


@pytest.mark.parametrize(("changes", "message"), [
    ({"txt": "x"}, "unknown key txt"),
    ({"text": None}, "missing text"),
    ({"testable": None}, "missing testable"),
    ({"predicate": "bigger"}, "unknown predicate 'bigger'"),
    ({"where": "somewhere"}, "`where` must be one of"),
    ({"mark": "X"}, "`mark` must be one of"),
    ({"mark": "U"}, "so `value` must be `unknown`"),
    ({"value": "about 5"}, "must be a number, `unknown` or `none`"),
    ({"value": True}, "must be a number"),
    ({"rivals": [{"method": "b"}]}, "`rivals` belongs to predicate exceeds_all"),
    ({"predicate": "exceeds_all"}, "`rivals` belongs to predicate exceeds_all"),
    ({"predicate": "exceeds_all", "rivals": [{"method": "b"}]}, "without `minus` or `ratio`"),
    ({"minus": None}, "greater needs `minus` or `ratio`"),
    ({"ratio": {"method": "b"}}, "exclude each other"),
    ({"minus": "b"}, "`minus` must hold selectors"),
    ({"quantity": {"set": {"no": "x"}}}, "tag set must be a value"),
    ({"predicate": "at_least"}, "at_least needs `threshold`"),
    ({"predicate": "at_most", "threshold": "low"}, "`threshold` must be a number"),
    ({"predicate": "within", "tolerance": None}, "within needs `tolerance`"),
    ({"predicate": "within", "value": "none"}, "compares with the paper's number"),
    ({"predicate": "equal_within", "minus": None}, "equal_within needs `minus`"),
    ({"predicate": "monotone", "order": "increasing"}, "`sequence` belongs to predicate monotone"),
    ({"predicate": "monotone", "order": "up", "sequence": [{"e": 1}, {"e": 2}]}, "increasing or decreasing"),
    ({"predicate": "monotone", "order": "increasing", "sequence": [{"e": 1}]}, "at least two"),
    ({"sequence": [{"e": 1}, {"e": 2}]}, "`sequence` belongs to"),
    ({"testable": ["paper"]}, "not testable at cpu, photos"),
    ({"testable": ["paper"], "why_not": {"cpu": "small"}}, "not testable at photos,"),
    ({"testable": ["laptop"]}, "`testable` must be a list"),
    ({"value": float("nan")}, "must be a number, `unknown` or `none`"),
    ({"tolerance": float("inf")}, "`tolerance` must be a finite number"),
    ({"predicate": "at_least", "minus": None, "threshold": float("nan")}, "`threshold` must be a finite number"),
    ({"margin": -1.0}, "`margin` must be a number that is not below 0"),
    ({"tolerance": -1.0}, "`tolerance` must be a number that is not below 0"),
    ({"predicate": "equal_within", "margin": 2.0}, "`margin` belongs to predicates greater and exceeds_all"),
    ({"equivalence": 0}, "`equivalence` must be above 0"),
    ({"predicate": "equal_within", "equivalence": 2.0}, "`equivalence` belongs to predicates greater and exceeds_all"),
    ({"quantity": {"eps": float("nan")}}, "tag eps must be finite"),
    ({"quantity": {"eps": {"not": [0, float("inf")]}}}, "tag eps must be finite"),
    ({"headline": "perhaps"}, "`headline` must be true or false"),
    ({"text": 5}, "`text` must be a text"),
    ({"rivals": "b"}, "`rivals` must be a list"),
])  # fmt: skip
def test_mistakes_in_a_claim_name_file_and_claim(tmp_path, changes, message):
    with pytest.raises(UserError, match=r"claims\.yaml: claim gain: ") as caught:
        read(tmp_path, [changed(CLAIM, **changes)])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("changes", "message"), [
    ({"rows": {"a": [1]}}, "row a must list 2 numbers"),
    ({"rows": {"a": [1, "?"]}}, "numbers or `unknown`"),
    ({"mean": {"c": 1}}, "`mean` must give numbers for rows"),
    ({"tolerance": "small"}, "`tolerance` must be a number"),
    ({"columns": "x"}, "must be a list"),
    ({"why_not": None}, "missing why_not"),
    ({"mean": {"a": float("inf")}}, "`mean` must be a finite number"),
    ({"rows": {"a": [1, float("nan")]}}, "numbers or `unknown`"),
])  # fmt: skip
def test_mistakes_in_a_reference_table(tmp_path, changes, message):
    with pytest.raises(UserError, match="reference table known: ") as caught:
        read(tmp_path, tables=[changed(TABLE, **changes)])
    assert message in str(caught.value)


def test_mistakes_of_the_file(tmp_path):
    with pytest.raises(UserError, match="claim gain: the id occurs 2 times"):
        read(tmp_path, [CLAIM, CLAIM])
    with pytest.raises(UserError, match="occurs 2 times"):
        read(tmp_path, [CLAIM], [changed(TABLE, id="gain")])
    with pytest.raises(UserError, match="unknown key extra"):
        read(tmp_path, extra=1)
    with pytest.raises(UserError, match="claim number 1: missing"):
        read(tmp_path, [{"text": "x"}])
    with pytest.raises(UserError, match="must be a mapping"):
        read(tmp_path, ["x"])
    with pytest.raises(UserError, match="no claims file"):
        load(tmp_path / "none.yaml")
    path = tmp_path / "claims.yaml"
    for text, message in (
        ("paper: [", "not valid YAML"),
        ("paper: p\npaper: q\n", "'paper' is written twice"),
        ("", "must be a mapping"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load(path)


def test_reference_cells(tmp_path):
    table = read(tmp_path, tables=[TABLE]).reference("known")
    assert table.cell("a", "y") == 2.5 and table.cell("b", "y") is None
    with pytest.raises(UserError, match=r"no cell \(c, x\)"):
        table.cell("c", "x")
    claims = {c.id: c for c in table.claims()}
    assert list(claims) == ["known/a/x", "known/a/y", "known/a/mean", "known/b/x"]  # the unknown cell makes no claim
    assert claims["known/a/x"].quantity == {"attack": "pgd100", "method": "a", "set": "x"}
    assert claims["known/a/mean"].quantity["set"] == ["x", "y"] and claims["known/a/mean"].value == 1.75
    assert all(c.predicate == "within" and c.testable == ("paper",) and c.tolerance == 1.0 for c in claims.values())


@pytest.mark.parametrize(("selector", "tags", "fits"), [
    ({}, {"a": 1}, True),
    ({"a": 1}, {"a": 1.0}, True),
    ({"eps": "2/255"}, {"eps": 2 / 255}, True),
    ({"eps": 0.0078431373}, {"eps": 2 / 255}, True),
    ({"eps": "2/255"}, {"eps": 3 / 255}, False),
    ({"a": ["x", "y"]}, {"a": "y"}, True),
    ({"a": {"not": ["x", "y"]}}, {"a": "y"}, False),
    ({"a": {"not": "x"}}, {}, True),
    ({"a": "x"}, {}, False),
    ({"a": 1}, {"a": True}, True),
    ({"a": 0}, {"a": None}, False),
    ({"e": lambda e: e > 2}, {"e": 3}, True),
    ({"e": lambda e: e > 2}, {}, False),
    ({"seed": 1}, {"seed": "1"}, True),
])  # fmt: skip
def test_matches(selector, tags, fits):
    assert matches(selector, tags) is fits


def test_a_group_gives_its_defaults(tmp_path):
    whole = [changed(CLAIM, headline=True), changed(CLAIM, id="other", minus={"method": "c"}, mark="I")]
    defaults = {k: v for k, v in CLAIM.items() if k not in ("id", "minus", "quantity")} | {
        "quantity": {"attack": "clean", "group": "main"}
    }
    short = [
        {"id": "gain", "headline": True, "minus": {"method": "b"}},
        {"id": "other", "minus": {"method": "c"}, "mark": "I"},
    ]
    short = [{**entry, "quantity": {"method": "a", "attack": "pgd10"}} for entry in short]
    tables = [{"defaults": {"where": TABLE["where"]}, "claims": [changed(TABLE, where=None)]}]
    assert read(tmp_path, [{"defaults": defaults, "claims": short}], tables) == read(tmp_path, whole, [TABLE])
    for wrong in ({"defaults": {}}, {"defaults": [], "claims": []}, {"defaults": {}, "claims": [], "more": 1}):
        with pytest.raises(UserError, match="a group of claims must be `defaults`"):
            read(tmp_path, [wrong])
    with pytest.raises(UserError, match="claim gain: predicate greater needs"):
        read(tmp_path, [{"defaults": defaults, "claims": [{"id": "gain"}]}])


def test_a_selector_that_fits_nothing_in_the_plan_is_refused(tmp_path):
    far = changed(CLAIM, id="far", testable=["paper"], why_not="Large.", quantity={"method": "z"})
    file = read(tmp_path, [changed(CLAIM, headline=True), far])
    a, b = ({"method": m, "attack": "pgd10", "group": "main", "seed": 0} for m in "ab")
    file.check_plan("cpu", [a, b])
    with pytest.raises(
        UserError,
        match=r"nothing that is measured at scale cpu fits claim gain: \{method: b, attack: pgd10, group: main\}",
    ):
        file.check_plan("cpu", [a])
    with pytest.raises(UserError, match="scale paper fits claim far"):
        file.check_plan("paper", [a, b])
    file.check_plan("paper", [a, b], headline=True)


def test_readings_replace_tags_wherever_the_first_stands(tmp_path):
    readings = {"as_written": {"method": "b"}, "as_released": {"method": "r", "version": 2}}
    file = read(tmp_path, [changed(CLAIM, readings=readings)])
    written, released = file.claim("gain").variants.values()
    assert written == file.claim("gain") and released.minus == readings["as_released"]
    assert released.selectors == (CLAIM["quantity"], {**CLAIM["quantity"], **readings["as_released"]})
    with pytest.raises(UserError, match="method: r"):
        file.check_plan("cpu", [{**CLAIM["quantity"], "method": m} for m in "ab"])
    rivals = changed(CLAIM, minus=None, predicate="exceeds_all", rivals=[{"method": "b"}, {"method": "c"}])
    assert [
        one.rivals for one in read(tmp_path, [changed(rivals, readings=readings)]).claim("gain").variants.values()
    ] == [({"method": "b"}, {"method": "c"}), ({"method": "r", "version": 2}, {"method": "c"})]
    for wrong, message in (
        ({"as_written": {"method": "b"}}, "at least two"),
        ({"x": {"method": "z"}, "y": {"method": "b"}}, "must name the tags of the first"),
        ({"x": {"method": "b"}, "y": {"method": "b"}}, "must name the tags of the first"),
        ({"x": "b", "y": {}}, "readings"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path, [changed(CLAIM, readings=wrong)])


def test_the_first_margin_that_fits_is_that_of_a_claim(tmp_path):
    claims = [
        CLAIM,
        changed(CLAIM, id="own", equivalence=0.5),
        changed(CLAIM, id="seconds", unit="s"),
        changed(CLAIM, id="bar", predicate="at_least", threshold=3),
        changed(CLAIM, id="clean", quantity={"method": "a", "attack": "clean"}),
    ]
    margins = [
        {"unit": "points", "quantity": {"attack": ["pgd10", "pgd20"]}, "delta": 2.5, "why": "half of 5"},
        {"unit": "points", "delta": 4, "why": "half of 8"},
    ]
    file = read(tmp_path, claims, equivalence=margins)
    assert [claim.equivalence for claim in file.claims] == [2.5, 0.5, None, None, 4]
    for wrong in ({"delta": 0}, {"why": ""}, {"delta": None}, {"kind": "x"}):
        with pytest.raises(UserError, match="equivalence number 1: "):
            read(tmp_path, claims, equivalence=[changed(margins[0], **wrong)])


@pytest.mark.parametrize("path", sorted(Path("papers").glob("*/claims.yaml")), ids=lambda path: path.parent.name)
def test_no_margin_is_wider_than_half_of_the_smallest_difference_that_is_printed(path):
    file = load(path)
    printed: dict[object, list[float]] = {}
    for claim in file.claims:
        if claim.equivalence and isinstance(claim.value, float) and abs(claim.value) >= (claim.tolerance or 0):
            of = next(m for m in file.margins if m.unit == claim.unit and matches(m.quantity, claim.quantity))
            printed.setdefault((of.unit, str(of.quantity), of.delta), []).append(abs(claim.value))
    assert file.margins
    for (_, _, delta), values in printed.items():
        assert delta <= min(values) / 2 + 1e-9
