"""Poison the pairs, train plain CLIPs on them, hold those against the gates, and train the defences.

    accelerate launch -m papers.roclip.train --scale cpu

A poison that plain CLIP does not learn, without and with augmentation, shows nothing about a defence: everything stops
there. With several processes each takes whole trainings, so the weights do not depend on their number; with --together
(paper scale) all of them share every batch. What exists under the same key is skipped, and an interrupted training
continues. `--help` lists every option.
"""

if __name__ == "__main__":
    from shared.experiment.scripts import start

    start("roclip", "train", __doc__)
