"""Measure every number that a table or a claim of newpaper shows.

accelerate launch -m papers.newpaper.evaluate --scale cpu
"""

if __name__ == "__main__":
    from shared.experiment.scripts import start

    start("newpaper", "evaluate", __doc__)
