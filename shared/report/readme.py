"""Put the claims tables that were drawn into the READMEs: `python -m shared.report.readme` (a test holds them against
each other).

A README has marked places, one line each before and after what is written between them:

    <!-- from figures/pmg_aft/claims.md -->
    …
    <!-- end -->
"""

import re
from pathlib import Path

from shared.errors import UserError, run_main
from shared.files import write_atomic

ROOT = Path(__file__).parents[2]
PLACE = re.compile(r"(<!-- from (\S+) -->\n).*?(<!-- end -->)", re.S)


def readmes() -> list[Path]:
    """The README at the top and those of the papers."""
    return [ROOT / "README.md", *sorted(ROOT.glob("papers/*/README.md"))]


def filled(text: str) -> str:
    """`text` with every marked place holding the file that it names, or saying that there is no record of this paper
    yet.

    Raises UserError for a file that is not there beside other figures of the paper.
    """

    def insert(found: re.Match) -> str:
        path = ROOT / found[2]
        if not path.parent.is_dir():
            return f"{found[1]}No record yet: `make reproduce-{path.parent.name}` measures it.\n{found[3]}"
        if not path.is_file():
            raise UserError(f"a README shows {found[2]}, which is not there: draw it first (make figures-<paper>).")
        return f"{found[1]}{path.read_text()}{found[3]}"

    return PLACE.sub(insert, text)


def main() -> None:
    for path in readmes():
        write_atomic(path, filled(path.read_text()))


if __name__ == "__main__":
    run_main(main)
