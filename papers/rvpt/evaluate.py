"""Measure everything that a table, figure or claim shows.

    accelerate launch -m papers.rvpt.evaluate --scale cpu

First what the gates read (every attack must take at little cost in clean accuracy, or no defence is measured), then
all else. What was measured under the same key is skipped, so an interrupted run continues. Options are those of
train.py.
"""

if __name__ == "__main__":
    from shared.experiment.scripts import start

    start("rvpt", "evaluate", __doc__)
