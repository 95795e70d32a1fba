"""Measure the shared core's speeds: `python -m shared.bench [--quick] [--threads N] [--only TEXT] [--out FILE]`."""

from shared.bench import apgd, contrastive, inputs, pgd
from shared.bench.harness import Options, run
from shared.errors import run_main


def main() -> None:
    import tyro

    run([pgd.cases, apgd.cases, contrastive.cases, inputs.cases], tyro.cli(Options, description=__doc__))


if __name__ == "__main__":
    run_main(main)
