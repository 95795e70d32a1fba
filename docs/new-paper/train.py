"""Make what newpaper trains (nothing yet), after a look at its claims.

accelerate launch -m papers.newpaper.train --scale cpu
"""

if __name__ == "__main__":
    from shared.experiment.scripts import start

    start("newpaper", "train", __doc__)
