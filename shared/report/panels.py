"""Panels of the page: gates, sanity checks of the attacks, and what is behind the numbers."""

from collections import Counter

from markupsafe import Markup

from shared.report.data import Results
from shared.report.rendering import render

_SHOWN = 12  # failures listed one by one


def html_gates(results: Results) -> Markup:
    """What had to be true before any verdict may be given, and whether it was."""
    note = "" if results.gates else "This run has no gates."
    if results.failed_gates():
        note = "A gate failed, so verdicts are withheld."
    elif not all(g["passed"] for g in results.gates):
        note = "What has failed a gate of its own is shown apart and is in no claim."
    return render("gates", gates=results.gates, note=note)


def sanity_outcomes(sanity: dict) -> dict[str, tuple[bool | None, str]]:
    """Check name -> (passed, or None for not applicable; detail), from what `Measurement.sanity` holds.

    Understood: `{name: bool}`, `{name: {"passed": bool, "detail": str}}`, and either (or a list of the latter with
    "name") under "checks"; an overall `"passed"` beside the checks is not one of them.
    """
    checks = sanity.get("checks", sanity)
    if isinstance(checks, list):
        checks = {check["name"]: check for check in checks}
    out = {}
    for name, check in checks.items():
        if name == "passed":
            continue
        if isinstance(check, dict) and "passed" in check:
            out[name] = (check["passed"], str(check.get("detail") or ""))
        elif check is None or isinstance(check, bool):
            out[name] = (check, "")
    return out


def html_sanity(results: Results) -> Markup:
    """Each check of the attacks: how many robust cells passed, and those that did not (cells of one model that say the
    same, together)."""
    robust = [
        m
        for m in results.measurements
        if m.tags.get("kind") in ("accuracy", "score") and m.tags.get("attack", "clean") != "clean"
    ]
    passed, ran, failures = Counter(), Counter(), {}
    for m in results.measurements:
        for name, (ok, detail) in sanity_outcomes(m.sanity or {}).items():
            if ok is not None:
                ran[name] += 1
                passed[name] += bool(ok)
                if not ok:
                    model = (m.tags.get("method", m.slug), m.tags.get("seed"))
                    failures.setdefault((name, detail, model), []).append(m.slug)
    without = sum(not m.sanity for m in robust)
    note = (
        f"{without} of {len(robust)} robust cells carry no sanity check."
        if without
        else f"All {len(robust)} robust cells are checked."
    )
    listed = [(name, _cells(model, slugs), detail) for (name, detail, model), slugs in failures.items()]
    return render("sanity", ran=ran, right=passed, failures=listed, most=_SHOWN, note=note)


def _cells(model: tuple, slugs: list[str]) -> str:
    method, seed = model
    if len(slugs) == 1:
        return slugs[0]
    return f"{len(slugs)} cells of {method}" + (f", seed {seed}" if seed is not None else "")


def provenance_line(results: Results) -> str:
    """In words: how many measurements, how many are missing, seeds, commit, machine, time."""
    seeds = sorted({seed for m in results.measurements for seed in m.seeds})
    seconds = sum(m.seconds or 0 for m in results.measurements)
    parts = [
        f"{len(results.measurements)} measurements",
        f"seeds {', '.join(map(str, seeds)) or 'none'}",
        f"{_time(seconds)} of measuring",
    ]
    for name in ("commit", "machine"):
        values = list(dict.fromkeys(_flat(m.provenance[name]) for m in results.measurements if m.provenance.get(name)))
        if values:
            parts.append(f"{name} {values[0]}" + (f" and {len(values) - 1} more" if values[1:] else ""))
    line = "; ".join(parts) + "."
    if results.missing:
        line += f" {len(results.missing)} planned measurements are missing: run the experiment again to complete them."
    return line


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return str(value)[:12] if len(str(value)) == 40 else str(value)  # a commit needs no more to be found


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
