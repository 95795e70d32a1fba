"""The benchmark runs, prints every case and counts right. No test judges a speed."""

import json

import pytest
import torch
import torch.nn.functional as F

from shared.bench import apgd, contrastive, inputs, pgd
from shared.bench.harness import Options, keep, lines, run
from shared.bench.timing import Case, Outcome, Spread, counted, measure
from shared.errors import UserError


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_case_of_the_small_model_is_printed_and_kept(tmp_path, capsys):
    out = tmp_path / "bench.json"
    state = torch.get_rng_state()
    records = run(
        [pgd.cases, apgd.cases, contrastive.cases], Options(quick=True, threads=1, only="scenes-vit-s8", out=out)
    )
    assert torch.equal(state, torch.get_rng_state())
    printed = capsys.readouterr().out
    assert len(records) == 5 and not out.exists()
    kept = json.loads((tmp_path / "bench-quick.json").read_text())
    for name, record in kept.items():
        assert f"{name}\n  against {record['against']}" in printed
        assert record["ratio"]["low"] <= record["ratio"]["median"] <= record["ratio"]["high"]
        assert 0 < record["share_ours"]["median"] < 1 and 0 < record["share_reference"]["median"] < 1
        assert record["threads"] == 1 and record["provenance"]["versions"]["torch"]
        assert not any("losses" in missed for missed in record["missed"])  # both sides compute the same
    assert [name.split(",")[0] for name in records] == ["PGD-2"] * 2 + ["APGD-CE + APGD-T"] * 2 + ["contrastive"]


@pytest.mark.slow
def test_noise_and_pictures_are_the_same_on_both_sides(tmp_path):
    records = run([inputs.cases], Options(quick=True, threads=1, out=tmp_path / "bench.json"))
    assert len(records) == 4 and not any(record["missed"] for record in records.values())


@pytest.mark.slow
def test_every_case_of_the_large_model(tmp_path):
    records = run(
        [pgd.cases, apgd.cases, contrastive.cases],
        Options(quick=True, threads=1, only="ViT-B-32", out=tmp_path / "bench.json"),
    )
    assert len(records) == 2
    assert not any("losses" in missed for record in records.values() for missed in record["missed"])


def test_full_cases_have_the_aims_of_the_project():
    names = list(pgd.cases(False)) + list(apgd.cases(False)) + list(contrastive.cases(False))
    assert any("PGD-10, scenes-vit-s8" in n for n in names) and any("ViT-B-32" in n for n in names) and len(names) == 7


def test_operations_are_counted():
    a, b, x = torch.randn(5, 7), torch.randn(7, 11), torch.randn(5, 11)
    assert counted(lambda: a @ b)[1] == 2 * 5 * 7 * 11
    assert counted(lambda: x.clone().addmm_(a, b))[1] == 2 * 5 * 7 * 11
    q = torch.randn(2, 3, 5, 8, requires_grad=True)
    forward = 2 * 2 * 3 * 5 * 5 * 8 * 2
    assert counted(lambda: F.scaled_dot_product_attention(q, q, q))[1] == forward
    assert counted(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward())[1] >= 3 * forward

    def gradient():
        w = a.clone().requires_grad_()
        return torch.autograd.grad((w @ b).sum(), w)

    assert counted(gradient)[1] == 2 * 2 * 5 * 7 * 11


def test_the_peak_is_what_tensors_hold_at_once():
    def twice(keep):
        first = torch.ones(1000)
        second = first + 1
        if not keep:
            del first
        return second * 2

    assert counted(lambda: twice(True))[2] == 3 * 4000
    assert counted(lambda: twice(False))[2] == 2 * 4000
    assert counted(lambda: torch.ones(1000).view(10, 100)[:5])[2] == 4000  # a view holds nothing of its own


def test_repetitions_take_turns_and_facts_are_means():
    calls = []

    def side(name, values):
        values = iter(values)
        return lambda: calls.append(name) or next(values)

    case = Case(
        "nothing", side("a", [1.0, 2.0, 3.0]), side("b", [5.0, 5.0, 8.0]), lambda r: {"value": r}, repetitions=2
    )
    outcome = measure(case)
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert outcome.facts_ours == {"value": 2.0} and outcome.facts_reference == {"value": 6.0}


def outcome(ratio, share=0.5, peaks=(8, 8), facts=({}, {}), **case):
    spread = Spread.of([ratio])
    case = Case("x", None, None, None, **case)
    return Outcome(case, spread, spread, spread, spread, Spread.of([share]), spread, *peaks, *facts)


@pytest.mark.parametrize(("given", "missed"), [
    (outcome(1.5, aim=1.4), 0), (outcome(1.3, aim=1.4), 1), (outcome(0.4, aim=0.5, kind="time"), 0), (outcome(0.6, aim=0.5, kind="time"), 1),
    (outcome(1.5, aim=1.4, share_aim=0.6), 1), (outcome(1.5, 0.7, aim=1.4, share_aim=0.6), 0),
    (outcome(1.5, peaks=(9, 8), aim=1.4, less_memory=True), 1), (outcome(1.5, aim=1.4, less_memory=True), 0),
    (outcome(1.5, facts=({"v": 1}, {"v": 2}), aim=1.4, agree=lambda a, b: "they differ" if a != b else None), 1),
])  # fmt: skip
def test_aims(given, missed):
    assert len(given.missed()) == missed
    assert lines("case", given)[-1].startswith("  MISSED" if missed else "  met")


def test_other_results_stay_and_a_damaged_file_is_replaced(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text("{ damaged")
    keep({"a": {"x": 1}}, path)
    keep({"b": {"x": 2}}, path)
    assert json.loads(path.read_text()) == {"a": {"x": 1}, "b": {"x": 2}}


def test_bad_options(tmp_path, capsys):
    with pytest.raises(UserError, match="threads"):
        run([contrastive.cases], Options(threads=-1))
    assert run([contrastive.cases], Options(only="no such case", out=tmp_path / "b.json")) == {}
    assert "there are: contrastive" in capsys.readouterr().out and not list(tmp_path.iterdir())
