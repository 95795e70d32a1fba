"""Optimise patches, poison CLIPs, hold them against the gates, and train the defences.

    accelerate launch -m papers.rvpt.train --scale cpu

The gates stand between attackers and defenders: no defence of a model means anything whose attack does not take, or
costs clean accuracy. What exists under the same key is skipped, and an interrupted training continues. `--help` lists
every option.
"""

if __name__ == "__main__":
    from shared.experiment.scripts import start

    start("rvpt", "train", __doc__)
