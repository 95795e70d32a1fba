import torch

from papers.roclip import bench
from shared.bench.harness import Options, run


def test_both_versions_and_the_plain_loop_are_timed(tmp_path, capsys):
    before = torch.get_num_threads()
    records = run([bench.cases], Options(quick=True, threads=1, out=tmp_path / "bench.json"))
    torch.set_num_threads(before)
    assert [(r["kind"], r["aim"]) for r in records.values()] == [("time", 1.05), ("time", 1.05), ("speed-up", 1.0)]
    assert not any("losses" in missed for record in records.values() for missed in record["missed"])
    assert "plain CLIP with the same augmentation" in capsys.readouterr().out
