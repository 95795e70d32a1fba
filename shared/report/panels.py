"""Panels of the page: gates, sanity checks of the attacks, and what is behind the numbers."""

from collections import Counter
from html import escape

_SHOWN = 12  # failures listed one by one


def html_gates(results) -> str:
    """What had to be true before any verdict may be given, and whether it was."""
    if not results.gates:
        return "<p class='notes'>This run has no gates.</p>"
    rows = "".join(
        f"<tr><td class='what'>{escape(g['name'])}<small>{escape(str(g.get('detail') or ''))}</small></td>"
        f"<td data-label='measured'>{_short(g['value'])}</td><td data-label='needed'>{escape(g['sense'])} {_short(g['threshold'])}</td>"
        f"<td data-label='outcome'>{_outcome(g['passed'])}</td></tr>"
        for g in results.gates
    )
    note = ""
    if results.failed_gates():
        note = "<p class='notes'>A gate failed, so verdicts are withheld.</p>"
    elif not all(g["passed"] for g in results.gates):
        note = "<p class='notes'>What has failed a gate of its own is shown apart and is in no claim.</p>"
    head = "<thead><tr><th>gate</th><th>measured</th><th>needed</th><th>outcome</th></tr></thead>"
    return f"<table class='claims gates'>{head}<tbody>{rows}</tbody></table>{note}"


def sanity_outcomes(sanity: dict) -> dict[str, tuple[bool | None, str]]:
    """Check name -> (passed, or None for not applicable; detail), from what `Measurement.sanity` holds.

    Understood: `{name: bool}`, `{name: {"passed": bool, "detail": str}}`, and either (or a list of the latter with "name") under "checks";
    an overall `"passed"` beside the checks is not one of them.
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


def html_sanity(results) -> str:
    """Each check of the attacks: how many robust cells passed, and those that did not (cells of one model that say the same, together)."""
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
    rows = "".join(
        f"<tr><td class='what'>{escape(name)}</td><td data-label='passed'>{passed[name]} of {ran[name]}</td>"
        f"<td data-label='outcome'>{_outcome(passed[name] == ran[name])}</td></tr>"
        for name in sorted(ran)
    )
    head = "<thead><tr><th>check of the attack</th><th>cells that passed</th><th>outcome</th></tr></thead>"
    table = f"<table class='claims gates'>{head}<tbody>{rows}</tbody></table>" if rows else ""
    listed = "".join(_failure(*key, slugs) for key, slugs in list(failures.items())[:_SHOWN])
    if len(failures) > _SHOWN:
        listed += f"<li>and {len(failures) - _SHOWN} more</li>"
    listed = f"<ul class='failures'>{listed}</ul>" if listed else ""
    return f"{table}{listed}<p class='notes'>{note}</p>"


def _failure(name: str, detail: str, model: tuple, slugs: list[str]) -> str:
    method, seed = model
    cells = (
        f"{len(slugs)} cells of {method}" + (f", seed {seed}" if seed is not None else "") if slugs[1:] else slugs[0]
    )
    return (
        f"<li><b>{escape(name)}</b> in <code>{escape(cells)}</code>"
        + (f": {escape(detail)}" if detail else "")
        + "</li>"
    )


def html_provenance(results) -> str:
    """One paragraph: how many measurements, how many are missing, seeds, commit, machine, time."""
    return f"<p class='notes'>{escape(provenance_line(results))}</p>"


def provenance_line(results) -> str:
    """The same in words."""
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


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _outcome(ok: bool) -> str:
    return f"<span class='badge {'good' if ok else 'bad'}'>{'passed' if ok else 'failed'}</span>"
