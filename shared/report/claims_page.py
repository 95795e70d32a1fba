"""The claims table as HTML, as terminal text and as Markdown, and the reference tables below it."""

import re
import textwrap
from collections.abc import Sequence
from html import escape

from shared.claims.claims import UNKNOWN, Claim, ClaimsFile, ReferenceTable
from shared.claims.verdicts import Verdict, by_chance, judge
from shared.claims.wording import decimals, how_tested, number, show, with_unit, words
from shared.report.table_text import escape_markdown

_NB = "\u00a0"  # a blank that does not break
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
    "paper": "paper: the paper's own models, data and budgets.",
}


def paper_value(claim: Claim) -> str:
    """The paper's number with its unit; "unknown" where nobody here has read it, a dash where the statement has none."""
    if claim.value is None:
        return "–"
    if claim.value == UNKNOWN:
        return "unknown"
    return with_unit(f"{claim.value:g}".replace("-", "−"), claim.unit)


def measured(verdict: Verdict) -> tuple[str, str]:
    """(the estimate, its interval and what is behind it); for a sequence, its steps. "would show": `Verdict.seen`."""
    claim, estimates, e = verdict.claim, verdict.estimates, verdict.estimate
    if e is None:
        return "–", ""
    n = f"{e.n:,}".replace(",", _NB)
    behind = f"n{_NB}={_NB}{n}, {e.seeds}{_NB}seed{'s' if e.seeds > 1 else ''}"
    if verdict.looks > 1:
        behind += f"; {'decided' if verdict.decided else 'open'} at look {verdict.look} of {verdict.looks}"
    if verdict.seen:
        behind += f"; would show {verdict.seen.replace(' ', _NB)}"
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


def html_claims(verdicts: Sequence[Verdict], heading: str = "") -> str:
    """The claims as a table which turns into cards on a narrow screen; the badge says the status in words and in colour."""
    rows = ""
    for v in verdicts:
        c = v.claim
        star = "<span class='star'>headline</span> " if c.headline else ""
        stands = f"<small>{escape(source(c))} · <code>{escape(c.id)}</code></small>"
        mark = f"<abbr title='{escape(MARK_WORDS[c.mark])}'>[{escape(c.mark)}]</abbr>"
        rows += (
            f"<tr id='claim-{escape(c.id)}'><td class='what'>{star}{escape(c.text)}{stands}</td>"
            f"<td data-label='paper'><span class='value'>{escape(paper_value(c))}</span> {mark}</td>"
            f"{outcome(v)}"
            f"<td data-label='how tested' class='how'><small>{escape(how_tested(c))}</small></td></tr>\n"
        )
    head = "<thead><tr><th>claim</th><th>paper</th><th>measured [95 % interval]</th><th>verdict</th><th>how tested</th></tr></thead>"
    top = f"<p class='lead'>{escape(heading)}</p>" if heading else ""
    return f"{top}<table class='claims'>{head}<tbody>\n{rows}</tbody></table>{_marks_line(verdicts)}"


def outcome(verdict: Verdict) -> str:
    """The two cells that say what was measured and what follows, under each reading if there are several."""
    readings = [(f"<small>{escape(name)}</small>", v) for name, v in named(verdict)] or [("", verdict)]
    values = ((name, *measured(v)) for name, v in readings)
    found = "".join(
        f"{name}<span class='value'>{escape(value)}</span><small>{escape(behind)}</small>"
        for name, value, behind in values
    )
    badges = "".join(f"{name}{badge(v)}" for name, v in readings)
    sentence = f"<small>{_code(verdict.sentence)}</small>"
    return f"<td data-label='measured'>{found}</td><td data-label='verdict'>{badges}{sentence}</td>"


def named(verdict: Verdict) -> list[tuple[str, Verdict]]:
    """The verdict under each reading with its name in words; [] where the claim has only one."""
    return [(name.replace("_", " "), v) for name, v in verdict.readings.items()]


def badge(verdict: Verdict) -> str:
    """A coloured badge that also says its status in words."""
    return f"<span class='badge {verdict.tone}'>{escape(marked(verdict))}</span>"


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


def html_reference(file: ClaimsFile, table: ReferenceTable, results) -> str:
    """Known numbers, compactly: at paper scale each with what was measured and a coloured mark, elsewhere in a fold with the reason."""
    verdicts = {v.claim.id: v for v in judge(file, results, table.claims())}
    tested = any(v.estimates for v in verdicts.values())
    columns = [*table.columns, *(["mean"] if table.mean else [])]
    head = "".join(f"<th>{escape(name)}</th>" for name in (table.row_tag, *columns))
    body = ""
    for row, numbers in table.rows.items():
        cells = dict(zip(table.columns, numbers, strict=True)) | {"mean": table.mean.get(row)}
        body += f"<tr><th>{escape(row)}</th>"
        body += "".join(_reference_cell(cells[c], verdicts.get(f"{table.id}/{row}/{c}")) for c in columns) + "</tr>\n"
    counts = _counts(verdicts.values()) if tested else f"not testable here: {table.why_not}"
    legend = (
        f"Theirs, below it ours; an interval within ±{table.tolerance:g} {table.unit} is a match." if tested else ""
    )
    numbers = f"<div class='scroll'><table class='numbers'><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>"
    note = (
        f"<p class='notes'>{escape(table.where)}; {escape(table.source)} [{escape(table.mark)}]. {escape(legend)}</p>"
    )
    summary = f"<summary>{escape(table.title)} ({escape(table.unit)}) <small>{escape(counts)}</small></summary>"
    unfolded = " open='open'" if tested else ""
    return f"<details{unfolded}>{summary}{numbers}{note}</details>"


def text_references(file: ClaimsFile, results) -> str:
    """One line per reference table: how its cells fared."""
    lines = [f"{t.id}: {_counts(judge(file, results, t.claims()))}" for t in file.reference_tables]
    return "\n".join(lines)


def _code(sentence: str) -> str:
    """Escaped, with `commands` set as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(sentence))


def _reference_cell(value: float | None, verdict: Verdict | None) -> str:
    if value is None:
        return "<td>unknown</td>"
    if verdict is None or not verdict.estimates:
        return f"<td>{value:g}</td>"
    e = verdict.estimates[0]
    title = escape(f"{verdict.status}: {verdict.sentence}")
    return f"<td class='{verdict.tone}' title='{title}'>{value:g}<small>{e.value:.1f} {_sign(verdict)}</small></td>"


def _sign(verdict: Verdict) -> str:
    return {"good": "✓", "bad": "✗"}.get(verdict.tone, "?")


def _counts(verdicts) -> str:
    statuses = [v.status for v in verdicts]
    return ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses)) or "no cells"


def _marks_line(verdicts: Sequence[Verdict]) -> str:
    used = [mark for mark in MARK_WORDS if any(v.claim.mark == mark for v in verdicts)]
    return f"<p class='notes'>{by_chance(verdicts)} Where the paper's numbers come from: {'; '.join(f'[{m}] {MARK_WORDS[m]}' for m in used)}.</p>"
