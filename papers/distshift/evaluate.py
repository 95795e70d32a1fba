"""Measure every number that a table, a figure or a claim shows.

    accelerate launch -m papers.distshift.evaluate --scale cpu

What exists under the same key is skipped, so an interrupted run continues. `--help` lists every option.
"""

if __name__ == "__main__":
    from shared.experiment.scripts import start

    start("distshift", "evaluate", __doc__)
