"""What is shown of a judgement, and the files for others: page, tables, a JSON entry; two judgements side by side."""

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from shared.errors import UserError
from shared.experiment.paper import Grid
from shared.files import write_atomic, write_json
from shared.judge import verdict as rule
from shared.judge.options import Compare, Config
from shared.judge.verdict import Verdict, judge, percent
from shared.metrics.intervals import Estimate, mean, paired_difference
from shared.options import show_eps
from shared.report.data import Results
from shared.report.page import wrap
from shared.report.panels import provenance_line
from shared.report.plots import Panel, zoom
from shared.report.rendering import render
from shared.report.table_text import html, markdown, write_table
from shared.report.tables import Table

BADGES = {"stands": "good", "broken": "bad", "not believed": "bad", "no verdict": "none"}
COLUMNS = {"accuracy (%)": "mean", "right every time (%)": "all", "undefended model (%)": "bare"}
AGAIN = {
    "the same pictures": "same",
    "in batches of another size": "batches",
    "rounded to 8 bits (PNG)": "rounded",
}
STANDARD_BUDGET = {"steps": 100, "targets": 9, "queries": 5000}
CHECKED = {"pgd": "PGD", "cascade": "cascade", "bpda": "BPDA"}  # by sanity checks
WORST = "worst case of each picture"
SHOWN = 4  # pictures on the page
EXAMPLES = "examples.json"
KEPT = "kept"  # folder of what a run leaves, below its --out


def rows(c: Config, random: bool) -> dict[str, str]:
    """Attack -> what it is, as the table says it."""
    noise = f", EOT {c.eot}" if random else ""
    apgd = f"APGD-CE, APGD-T, FAB-T, Square ({c.steps} steps, {c.targets} targets, {c.queries} queries)"
    out = {
        "clean": "no attack",
        "pgd": f"PGD-{c.steps}{noise}",
        "cascade": f"APGD-CE, APGD-DLR ({c.steps} steps{noise})" if random else apgd,
    }
    if c.defence != "none":
        out["bpda"] = f"BPDA, APGD-{c.steps}{noise}"
        out["transfer"] = "transfer: the cascade on the undefended model"
    return {**out, **{f"own{k}": spec for k, spec in enumerate(c.attack)}, "worst": WORST}


def grids(attacks: Mapping[str, str], seed: int) -> list[Grid]:
    """What is measured: every attack in every way of judging, and the strongest pictures again."""

    def of(named: Mapping[str, str], judged: Mapping[str, str]) -> Grid:
        by_label = {attack: {"attack": attack} for attack in named}
        return Grid(by_label, {label: {"judged": how} for label, how in judged.items()}, {"kind": "accuracy"}, (seed,))

    return [of(attacks, COLUMNS), of({"worst": WORST}, AGAIN)]


class Judged:
    """A folder that `judge` has written. Raises UserError where there is none, and where it has not come to its end."""

    def __init__(self, folder: Path):
        self.folder = folder = Path(folder)
        try:
            self.results = Results.load(folder, KEPT, "judge")
        except UserError:
            raise UserError(f"{folder} is no folder that judge has written: name its --out.") from None
        if self.results.missing:
            raise UserError(
                f"{folder} lacks {len(self.results.missing)} measurements: run judge again with its options."
            )
        self.facts = self.results.config
        self.attacks = dict(self.facts["attacks"])
        self.numbers = {(m.tags["attack"], m.tags["judged"]): m for m in self.results.measurements}

    @property
    def verdict(self) -> Verdict:
        """By the declared rule."""
        return judge(self.numbers, len(self.facts["names"]), self.facts["random"])

    @property
    def title(self) -> str:
        """What was judged."""
        return self.facts["model"] + ("" if self.facts["defence"] == "none" else f" behind {self.facts['defence']}")

    def tables(self) -> dict[str, Table]:
        """By the name of their files."""
        f = self.facts
        columns = {c: how for c, how in COLUMNS.items() if any((a, how) in self.numbers for a in self.attacks)}
        cells = [
            (label, [self._cell(attack, how) for how in columns.values()]) for attack, label in self.attacks.items()
        ]
        notes = ["An attack's figure is its own; the worst case takes for each picture the attack that leaves least."]
        if f["random"]:
            notes.append(f"Something is random: each picture is shown {f['repeats']} times.")
        where = f"Accuracy under attack; {f['norm']}, ε = {show_eps(f['eps'])}, {f['n']} pictures of {f['data']}."
        again = [(label, [self._cell("worst", how)]) for label, how in AGAIN.items()]
        checks = {
            f"{label}: {name}": v
            for attack, label in CHECKED.items()
            if attack in self.attacks
            for name, v in (self.numbers[attack, "mean"].sanity or {}).items()
            if name != "passed"
        }
        sanity = [
            (name, ["passed" if v["passed"] else "failed", f"{v['value']:.3g}", f"{v['threshold']:.3g}", v["detail"]])
            for name, v in checks.items()
        ]
        return {
            "accuracy": Table(list(columns), cells, where, notes),
            "again": Table(["accuracy (%)"], again, "The strongest pictures, shown again as they are stored."),
            "sanity": Table(["outcome", "value", "at most", "what"], sanity, "Sanity checks of the attacks."),
        }

    def _cell(self, attack: str, how: str) -> Estimate | None:
        return mean([self.numbers[attack, how].values], share=True) if (attack, how) in self.numbers else None

    def write(self) -> str:
        """Page, tables and the JSON entry; what to say on the screen."""
        verdict, f, tables = self.verdict, self.facts, self.tables()
        cautions = "".join(f"<p class='absent'>{escape(caution)}</p>" for caution in f["cautions"])
        badge = f"<span class='badge {BADGES[verdict.status]}'>{verdict.status}</span>"
        options = "".join(f"{k} = {v}\n" for k, v in f.items() if k not in ("names", "attacks", "cautions", "pictures"))
        folded = {"The rule of the verdict": rule.__doc__, "All options": options}
        body = ["<h2>Verdict</h2>", f"<p>{badge} {escape(verdict.words)}</p>{cautions}", "<h2>Measured</h2>"]
        body += [_shown(self.folder, name, table) for name, table in tables.items()]
        panels = [Panel(**one) for one in json.loads((self.folder / KEPT / "judge" / EXAMPLES).read_text())]
        if panels:
            body += ["<h2>Pictures</h2>", strip(panels)]
        body += [f"<details><summary>{k}</summary><pre>{escape(v)}</pre></details>" for k, v in folded.items()]
        body.append(f"<p class='notes'>{escape(provenance_line(self.results))}</p>")
        about = f"{f['n']} pictures of {f['data']}, {f['norm']} ball of {show_eps(f['eps'])}"
        write_atomic(self.folder / "page.html", wrap("\n".join(body), self.title, about))
        write_json(self.folder / "model_info.json", self.entry())
        said = [markdown(tables["accuracy"]), verdict.words, *f["cautions"], f"page     {self.folder / 'page.html'}"]
        return "\n".join(said)

    def entry(self) -> dict:
        """What is measured, in the shape of RobustBench's model info. "autoattack_acc" is of the cascade where it has
        the budget of AutoAttack's `standard`; the worst case of all attacks stands under "external"."""
        f, verdict = self.facts, self.verdict
        whole = not f["random"] and all(f[name] >= least for name, least in STANDARD_BUDGET.items())
        cascade = f"{100 * self.numbers['cascade', 'mean'].value:.2f}"
        return {
            "link": None,
            "name": self.title,
            "authors": None,
            "additional_data": None,
            "number_forward_passes": f["repeats"] if f["random"] else 1,
            "dataset": f["data"],
            "venue": None,
            "architecture": f["model"],
            "eps": show_eps(f["eps"]),
            "clean_acc": f"{100 * self.numbers['clean', 'mean'].value:.2f}",
            "reported": None,
            "autoattack_acc": cascade if whole else None,
            "external": f"{100 * verdict.robust.value:.2f}",
            "unreliable": verdict.status in ("no verdict", "not believed"),
            "footnote": f"{verdict.words} Attacks: {'; '.join(self.attacks.values())}.",
        }


def strip(panels: list[Panel]) -> str:
    """Pictures with what the model says of them."""
    caption = "As they are, under the attack that is strongest for each, and the change, its largest at full contrast."
    return render("figure", stem="examples", caption=caption, panels=panels, zoom=zoom(panels), links={})


def _shown(folder: Path, name: str, table: Table) -> str:
    """A table on the page, and as files beside it."""
    write_table(table, folder / name)
    return html(table, {"CSV": f"{name}.csv", "LaTeX": f"{name}.tex", "Markdown": f"{name}.md"})


def compare(options: Compare) -> str:
    """Paired differences A − B under each attack that both have; what to say on the screen.

    Raises UserError unless both are of the same pictures and the same ball, and for an `out` that is one of them.
    """
    if os.path.realpath(options.out) in map(os.path.realpath, (options.a, options.b)):
        raise UserError(
            f"--out {options.out} is one of the two that are compared, and has a page of its own: name another."
        )
    a, b = Judged(options.a), Judged(options.b)
    out = Path(options.out)
    for name in ("pictures", "norm", "eps"):
        if a.facts[name] != b.facts[name]:
            raise UserError(
                f"{options.a} and {options.b} are of different {name}: judge both on the same, then compare."
            )

    def pair(attack: str) -> Sequence[Estimate]:
        left, right = (x.numbers[attack, "mean"].values for x in (a, b))
        return mean([left], True), mean([right], True), paired_difference([left], [right], True)

    both = [k for k in a.attacks if k in b.attacks and (k[:3] != "own" or a.attacks[k] == b.attacks[k])]
    shared = {a.attacks[attack]: pair(attack) for attack in both}
    caption = f"A: {a.title}. B: {b.title}. Percent, and points, picture by picture."
    table = Table(["A", "B", "A − B"], list(shared.items()), caption)
    d = shared[WORST][2]
    sense = "no difference is shown" if d.low <= 0 <= d.high else "A is better" if d.low > 0 else "B is better"
    words = (
        f"Worst case: {sense}, A − B = {percent(d).replace('%', 'points')}. A: {a.verdict.words} B: {b.verdict.words}"
    )
    body = f"<h2>Verdict</h2><p>{escape(words)}</p>{_shown(out, 'compare', table)}"
    write_atomic(out / "page.html", wrap(body, "Side by side", caption))
    return f"{markdown(table)}\n{words}\npage     {out / 'page.html'}"
