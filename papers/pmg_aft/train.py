"""Fine-tune every model of the reproduction.

    accelerate launch -m papers.pmg_aft.train --scale cpu

What exists under the same key is skipped, so an interrupted run continues. `--help` lists every option.
"""

if __name__ == "__main__":
    from shared.experiment.scripts import start

    start("pmg_aft", "train", __doc__)
