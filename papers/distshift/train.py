"""Train what the configuration does not find elsewhere: victims, adversarially trained victims, denoisers (weights
`train`).

    accelerate launch -m papers.distshift.train --scale cpu

What exists under the same key is skipped, so an interrupted run continues. `--help` lists every option.
"""

if __name__ == "__main__":
    from shared.experiment.scripts import start

    start("distshift", "train", __doc__)
