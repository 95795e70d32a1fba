"""Fine-tune the robust encoders (TeCoA, FARE) that DiffCAP is compared with. DiffCAP itself trains nothing.

    accelerate launch -m papers.diffcap.train --scale cpu

What exists under the same key is skipped, so an interrupted run continues. `--help` lists every option.
"""

if __name__ == "__main__":
    from shared.experiment.scripts import start

    start("diffcap", "train", __doc__)
