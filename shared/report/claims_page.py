"""The claims table as HTML, as terminal text and as Markdown, and the reference tables below it."""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

from markupsafe import Markup

from shared.claims.claims import UNKNOWN, Claim, ClaimsFile, ReferenceTable
from shared.claims.verdicts import EQUIVALENT, Verdict, by_chance, judge
from shared.claims.wording import decimals, how_tested, number, show, with_unit, words
from shared.report.data import Results
from shared.report.plots import plot
from shared.report.rendering import Links, render
from shared.report.table_text import escape_markdown

_NB = "\u00a0"  # a blank that does not break
ORDER = ("reproduced", "direction holds", "direction holds at reduced budget", "differs", "direction fails",
         "direction fails at reduced budget", EQUIVALENT, "inconclusive", "gate failed", "no verdict (smoke)",
         "not measured", "not testable here")  # fmt: skip
_INDENT = 19  # of the terminal table: the longest common status and a blank
MARK_WORDS = {
    "S": "seen in the paper or its code",
    "S2": "secondary source",
    "M": "measured by us",
    "I": "inferred",
    "L": "low-trust source",
    "D": "derived",
    "U": "not read by anybody here",
}
SCALE_WORDS = {
    "smoke": "smoke: a few generated images and a few steps; it only shows that the code runs, so there are no verdicts.",
    "cpu": "cpu: small models in a generated world. A verdict here speaks of the direction of a claim, never of the paper's own numbers.",
    "photos": "photos: small models on real photographs. A verdict speaks of the direction of a claim, never of the paper's own numbers.",
    "evening": "evening: published models and public data with small budgets. A verdict speaks of the direction of a "
    "claim at a reduced budget, never of the paper's own numbers.",
    "paper": "paper: the paper's own models, data and budgets.",
}


def paper_value(claim: Claim) -> str:
    """The paper's number with its unit; "unknown" where nobody here has read it, a dash where the statement has
    none."""
    if claim.value is None:
        return "–"
    if claim.value == UNKNOWN:
        return "unknown"
    return with_unit(f"{claim.value:g}".replace("-", "−"), claim.unit)


def measured(verdict: Verdict) -> tuple[str, str]:
    """(the estimate, its interval and what is behind it); for a sequence, its steps. "would show", "open up to":
    `Verdict.seen`, `Verdict.needs`."""
    claim, estimates, e = verdict.claim, verdict.estimates, verdict.estimate
    if e is None:
        return "–", ""
    n = f"{e.n:,}".replace(",", _NB)
    behind = f"n{_NB}={_NB}{n}, {e.seeds}{_NB}seed{'s' if e.seeds > 1 else ''}"
    if verdict.looks > 1:
        behind += f"; {'decided' if verdict.decided else 'open'} at look {verdict.look} of {verdict.looks}"
    if verdict.seen:
        behind += f"; would show {verdict.seen.replace(' ', _NB)}"
    if verdict.needs:
        behind += f"; open{_NB}up{_NB}to{_NB}×{verdict.needs}"
    if verdict.short_of:
        behind += f"; too little for a headline: {verdict.short_of.replace(' ', _NB)}"
    if claim.sequence:
        digits = decimals(max(abs(e.value) for e in estimates), claim.unit)
        steps = ", ".join(number(e.value, digits, plus=True) for e in estimates)
        return with_unit(steps, claim.unit), f"step by step; {behind}"
    if claim.rivals:  # the difference to the strongest rival
        value, interval = show(e, claim)
        return value, f"{interval} over {words(claim.rivals[estimates.index(e)])}; {behind}"
    value, interval = show(e, claim)
    return value, f"{interval}; {behind}"


def source(claim: Claim) -> str:
    """Where the claim stands, said once."""
    return claim.source if claim.where in claim.source.lower() else f"{claim.where}; {claim.source}"


def html_claims(
    verdicts: Sequence[tuple[str, Verdict]],
    code: Callable[[Sequence[str]], Links] = lambda slugs: {},
    pages: Mapping[str, str] | None = None,
) -> Markup:
    """Verdicts, each with its paper, as a table with what filters its rows; the badge says the status in words and
    colour.

    code: measurements -> links to the source of what measured them. pages: of several papers, their pages by name ("":
    there is none).
    """
    found = [verdict for _, verdict in verdicts]
    return render(
        "claims",
        verdicts=verdicts,
        code=code,
        pages=pages,
        papers=list(pages or ()),
        statuses=statuses(map(short, found)),
        by_chance="" if pages else by_chance(found),
        marks=MARK_WORDS,
        used={verdict.claim.mark for verdict in found},
        **{f.__name__: f for f in (how_tested, marked, measured, named, paper_value, plot, short, source)},
    )


def short(verdict: Verdict) -> str:
    """The status without the names of gates."""
    return verdict.status.partition(":")[0]


def statuses(found: Iterable[str]) -> list[str]:
    """Each of these once, in the order in which they are listed everywhere."""
    there = set(found)
    return [status for status in ORDER if status in there]


def named(verdict: Verdict) -> list[tuple[str, Verdict]]:
    """The verdict under each reading with its name in words; [] where the claim has only one."""
    return [(name.replace("_", " "), v) for name, v in verdict.readings.items()]


def marked(verdict: Verdict) -> str:
    """The status, with ° where it survives among all of its paper (`by_chance` explains the sign)."""
    return f"{verdict.status} °" if verdict.survives else verdict.status


def text_claims(verdicts: Sequence[Verdict], width: int = 100) -> str:
    """The claims for a terminal: status, claim, then the paper's number and ours, and why there is no clear verdict."""
    lines = []
    for v in verdicts:
        status = f"{marked(v).upper():<{_INDENT - 1}} "
        lines += textwrap.wrap(status + v.claim.text, width, subsequent_indent=" " * _INDENT, break_on_hyphens=False)
        more = [f"paper {paper_value(v.claim)} [{v.claim.mark}] · measured {' '.join(measured(v))}".rstrip()]
        if (
            v.tone in ("unsure", "none") and v.status != "no verdict (smoke)"
        ):  # which the line on the scale says once for all
            more.append(v.sentence)
        more += [f"{name}: {one.status} · measured {' '.join(measured(one))}" for name, one in named(v)[1:]]
        for text in more:
            lines += textwrap.wrap(
                text, width, initial_indent=" " * _INDENT, subsequent_indent=" " * _INDENT, break_on_hyphens=False
            )
    lines += textwrap.wrap(by_chance(verdicts), width)
    return "\n".join(lines)


def markdown_claims(verdicts: Sequence[Verdict]) -> str:
    """The claims as a pipe table, for a README."""
    lines = ["| claim | paper | measured, 95 % interval | verdict |", "|---|---|---|---|"]
    for v in verdicts:
        cells = (v.claim.text, f"{paper_value(v.claim)} [{v.claim.mark}]", " ".join(measured(v)).rstrip())
        others = "".join(f"; {name}: {one.status}" for name, one in named(v)[1:])
        lines.append(f"| {' | '.join(map(escape_markdown, cells))} | **{escape_markdown(marked(v))}**{others} |")
    return "\n".join([*lines, *(["", chance] if (chance := by_chance(verdicts)) else [])]) + "\n"


def html_reference(file: ClaimsFile, table: ReferenceTable, results: Results) -> Markup:
    """Known numbers, compactly: at paper scale each with what was measured and a coloured mark, elsewhere in a fold
    with the reason."""
    verdicts = {v.claim.id: v for v in judge(file, results, table.claims())}
    tested = any(v.estimates for v in verdicts.values())
    columns = [*table.columns, *(["mean"] if table.mean else [])]
    rows = {
        row: dict(zip(columns, [*numbers, table.mean.get(row)], strict=False)) for row, numbers in table.rows.items()
    }
    counts = _counts(verdicts.values()) if tested else f"not testable here: {table.why_not}"
    return render("reference", table=table, verdicts=verdicts, tested=tested, columns=columns, rows=rows, counts=counts)


def text_references(file: ClaimsFile, results) -> str:
    """One line per reference table: how its cells fared."""
    lines = [f"{t.id}: {_counts(judge(file, results, t.claims()))}" for t in file.reference_tables]
    return "\n".join(lines)


def _counts(verdicts) -> str:
    statuses = [v.status for v in verdicts]
    return ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses)) or "no cells"
