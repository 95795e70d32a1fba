"""Which scales a paper has, read off its source text: to import a configuration takes torch and seconds."""

import ast
from pathlib import Path

from shared.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SCALES = ("smoke", "cpu", "photos", "evening", "paper")


def scales(paper: str, papers: Path = ROOT / "papers") -> tuple[str, ...]:
    """The keys of PRESETS in papers/<paper>/config.py; all scales where these are not written there as a dictionary,
    none where that is no Python (yet)."""
    config = papers / paper / "config.py"
    try:
        body = ast.parse(config.read_text(encoding="utf-8")).body if config.is_file() else []
    except SyntaxError:
        return ()
    for statement in body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            if [getattr(target, "id", None) for target in statement.targets] == ["PRESETS"]:
                return tuple(ast.literal_eval(key) for key in statement.value.keys)
    return SCALES


def papers_with(scale: str, papers: Path = ROOT / "papers") -> list[str]:
    """The papers that have this scale."""
    return sorted(path.parent.name for path in papers.glob("*/train.py") if scale in scales(path.parent.name, papers))


def check_scale(paper: str, scale: str, papers: Path = ROOT / "papers") -> None:
    """Raise `UserError` where a paper has no such scale."""
    there = scales(paper, papers)
    if scale not in there:
        raise UserError(
            f"{paper} has no SCALE={scale}; it has {', '.join(there) or 'none that can be read: mend its config.py'}."
        )


def refuse_unreadable(papers: Path = ROOT / "papers") -> None:
    """Raise `UserError` where a paper was left out by mistake; the others are through by then."""
    if lost := sorted(path.parent.name for path in papers.glob("*/train.py") if not scales(path.parent.name, papers)):
        raise UserError(f"all is done but for {', '.join(lost)}, whose config.py cannot be read: mend it.")
