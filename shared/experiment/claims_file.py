"""Reading claims.yaml strictly: every mistake is one sentence that names the file and the claim. The format stands in `claims`."""

import dataclasses
from pathlib import Path

import yaml

from shared.errors import UserError
from shared.experiment.claims import MARKS, PREDICATES, SCALES, UNKNOWN, WHERE, Claim, ClaimsFile, ReferenceTable


def read(path: Path) -> ClaimsFile:
    """Read and check a claims file. Raises UserError naming the file and, where there is one, the claim."""
    try:
        raw = yaml.load(path.read_text(), Loader=_StrictLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no claims file here") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    top = _checked(raw, f"{path}", required={"paper", "title", "claims"}, optional={"reference_tables"})
    claims, tables = top["claims"] or [], top.get("reference_tables") or []
    if not isinstance(claims, list) or not isinstance(tables, list):
        raise UserError(f"{path}: `claims` and `reference_tables` must be lists")
    file = ClaimsFile(path, str(top["paper"]), str(top["title"]), tuple(_claim(c, i, path) for i, c in enumerate(claims)),
                      tuple(_reference(t, i, path) for i, t in enumerate(tables)))  # fmt: skip
    ids = [entry.id for entry in (*file.claims, *file.reference_tables)]
    for id in ids:
        if ids.count(id) > 1:
            raise UserError(f"{path}: claim {id}: the id occurs {ids.count(id)} times; ids must be unique")
    return file


def _claim(raw: object, position: int, path: Path) -> Claim:
    where = _where(raw, position, path, "claim")
    names = {f.name for f in dataclasses.fields(Claim)}
    required = {f.name for f in dataclasses.fields(Claim) if f.default is dataclasses.MISSING}
    entry = _checked(raw, where, required, names - required)
    fail = _failer(where)
    _check_shared(entry, fail)
    value = entry["value"]
    entry["value"] = None if value == "none" else value
    if not (value in (UNKNOWN, "none") or _is_number(value)):
        fail(f"`value` must be a number, `unknown` or `none`, not {value!r}")
    if entry["mark"] == "U" and _is_number(value):
        fail("mark U says that nobody has read the number, so `value` must be `unknown`")
    _check_predicate(entry, fail)
    testable = entry["testable"]
    if not isinstance(testable, list) or not set(testable) <= set(SCALES):
        fail(f"`testable` must be a list of {', '.join(SCALES)}, not {testable!r}")
    why = entry.get("why_not") or ""
    untested = [scale for scale in SCALES if scale not in testable]
    missing = [scale for scale in untested if not (why if isinstance(why, str) else why.get(scale))]
    if missing:
        fail(f"not testable at {', '.join(missing)}, so `why_not` must say why")
    entry.update(testable=tuple(testable), sequence=tuple(entry.get("sequence") or ()), rivals=tuple(entry.get("rivals") or ()), why_not=why)
    return Claim(**entry)


def _check_predicate(entry: dict, fail) -> None:
    predicate = entry["predicate"]
    if predicate not in PREDICATES:
        fail(f"unknown predicate {predicate!r}; known: {', '.join(PREDICATES)}")
    needs = {"at_least": "threshold", "at_most": "threshold", "within": "tolerance", "equal_within": "tolerance", "monotone": "order"}
    if predicate in needs and entry.get(needs[predicate]) is None:
        fail(f"predicate {predicate} needs `{needs[predicate]}`")
    for name in ("margin", "threshold", "tolerance"):
        if entry.get(name) is not None and not _is_number(entry[name]):
            fail(f"`{name}` must be a number, not {entry[name]!r}")
    for name in ("minus", "ratio"):
        if entry.get(name) is not None:
            _check_selector(entry[name], name, fail)
    if entry.get("minus") is not None and entry.get("ratio") is not None:
        fail("`minus` and `ratio` exclude each other")
    if predicate == "greater" and entry.get("minus") is None and entry.get("ratio") is None:
        fail("predicate greater needs `minus` or `ratio`; to compare with a number use at_least")
    if predicate == "equal_within" and entry.get("minus") is None:
        fail("predicate equal_within needs `minus`")
    if predicate == "within" and entry["value"] is None:
        fail("predicate within compares with the paper's number, so `value` must be a number or `unknown`")
    if (predicate == "monotone") != bool(entry.get("sequence")):
        fail("`sequence` belongs to predicate monotone, and monotone needs it")
    if (predicate == "exceeds_all") != bool(entry.get("rivals")):
        fail("`rivals` belongs to predicate exceeds_all, and exceeds_all needs it")
    if predicate == "exceeds_all":
        if not isinstance(entry["rivals"], list) or any(entry.get(name) is not None for name in ("minus", "ratio")):
            fail("`rivals` must be a list of selectors, without `minus` or `ratio` beside it")
        for rival in entry["rivals"]:
            _check_selector(rival, "rivals", fail)
    if predicate == "monotone":
        if entry["order"] not in ("increasing", "decreasing"):
            fail(f"`order` must be increasing or decreasing, not {entry['order']!r}")
        if not isinstance(entry["sequence"], list) or len(entry["sequence"]) < 2:
            fail("`sequence` must be a list of at least two selectors")
        for step in entry["sequence"]:
            _check_selector(step, "sequence", fail)


def _reference(raw: object, position: int, path: Path) -> ReferenceTable:
    where = _where(raw, position, path, "reference table")
    names = {f.name for f in dataclasses.fields(ReferenceTable)}
    entry = _checked(raw, where, names - {"mean"}, {"mean"})
    fail = _failer(where)
    _check_shared(entry, fail)
    columns, rows, mean = entry["columns"], entry["rows"], entry.get("mean") or {}
    if not isinstance(columns, list) or not isinstance(rows, dict) or not isinstance(mean, dict):
        fail("`columns` must be a list, `rows` (and `mean`) mappings of row names")
    for row, numbers in rows.items():
        if not isinstance(numbers, list) or len(numbers) != len(columns):
            fail(f"row {row} must list {len(columns)} numbers, one per column")
        if not all(n == UNKNOWN or _is_number(n) for n in numbers):
            fail(f"row {row} must hold numbers or `unknown`")
    if not set(mean) <= set(rows) or not all(_is_number(n) for n in mean.values()):
        fail("`mean` must give numbers for rows of the table")
    if not _is_number(entry["tolerance"]):
        fail("`tolerance` must be a number")
    numbers = {row: tuple(None if n == UNKNOWN else float(n) for n in cells) for row, cells in rows.items()}
    return ReferenceTable(**{**entry, "columns": tuple(columns), "rows": numbers, "mean": mean})


def _check_shared(entry: dict, fail) -> None:
    if entry["where"] not in WHERE:
        fail(f"`where` must be one of {', '.join(WHERE)}, not {entry['where']!r}")
    if entry["mark"] not in MARKS:
        fail(f"`mark` must be one of {', '.join(MARKS)}, not {entry['mark']!r}")
    _check_selector(entry["quantity"], "quantity", fail)


def _check_selector(selector: object, name: str, fail) -> None:
    if not isinstance(selector, dict):
        fail(f"`{name}` must hold selectors such as {{method: tecoa}}, not {selector!r}")
    for tag, wanted in selector.items():
        if isinstance(wanted, dict) and set(wanted) != {"not"}:
            fail(f"`{name}`: tag {tag} must be a value, a list or {{not: …}}, not {wanted!r}")


def _checked(raw: object, where: str, required: set[str], optional: set[str]) -> dict:
    if not isinstance(raw, dict):
        raise UserError(f"{where}: must be a mapping, not {type(raw).__name__}")
    unknown = sorted(set(map(str, raw)) - required - optional)
    if unknown:
        raise UserError(f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(required | optional))}")
    missing = sorted(required - set(raw))
    if missing:
        raise UserError(f"{where}: missing {', '.join(missing)}")
    return dict(raw)


def _where(raw: object, position: int, path: Path, noun: str) -> str:
    return f"{path}: {noun} {raw['id'] if isinstance(raw, dict) and 'id' in raw else f'number {position + 1}'}"


def _failer(where: str):
    def fail(problem: str):
        raise UserError(f"{where}: {problem}")

    return fail


def _is_number(x: object) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key written twice, where the plain loader would silently keep the last."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is written twice", node.start_mark)
    return dict(zip(keys, [loader.construct_object(value, deep=True) for _, value in node.value], strict=True))


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
