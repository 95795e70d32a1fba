import pytest
import torch

from papers.pmg_aft import bench
from shared.bench.harness import Options, run


@pytest.mark.parametrize("model", ["scenes-vit-s8", pytest.param("ViT-B-32", marks=pytest.mark.slow)])
def test_a_step_and_the_released_structure_compute_the_same(tmp_path, capsys, model):
    before = torch.get_num_threads()
    records = run([bench.cases], Options(quick=True, threads=1, only=model, out=tmp_path / "bench.json"))
    torch.set_num_threads(before)
    (record,) = records.values()
    assert record["kind"] == "time" and record["aim"] == 0.5
    assert not any("losses" in missed for missed in record["missed"])
    assert record["facts"]["ours"]["loss reached"] > 0
    assert "of the time" in capsys.readouterr().out
