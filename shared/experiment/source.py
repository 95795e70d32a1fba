"""The source that a class or a function runs, as part of the identity of what it makes.

`of(Tuned)` hashes the definition of `Tuned` and, over and over, every definition of the project that one of these uses by its name: base classes,
functions, constants, in whichever module they stand and also where they are imported inside a function. Comments, docstrings, formatting and type
annotations do not count, nor does what a module holds beside these definitions: a new class in a file makes nothing stale that does not use it.

Not seen, so raise a step's `version` for it: a name that is put together at run time (`getattr(module, name)`, `import_module(name)`), the sources
of installed packages, and files that are no Python. Methods are seen with their class, so a class counts whole. What only passes things on
(`PLUMBING`) does not count.
"""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from shared.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PLUMBING = (
    *(
        f"shared.experiment.{name}"
        for name in ("source", "step", "lab", "paper", "scripts", "store", "scale", "provenance")
    ),
    "shared.report",
    "shared.errors",
    "shared.files",
    "shared.lifeline",
    "shared.options",
)


@cache
def of(thing: type | Callable) -> str:
    """sha256 over the definition of a class or function and all that it uses."""
    return hashlib.sha256(repr(sorted(used_by(thing).items())).encode()).hexdigest()


def used_by(thing: type | Callable) -> dict[tuple[str, str], str]:
    """(module, name) -> hash, of the definition of a class or function and of all that it uses."""
    out: dict[tuple[str, str], str] = {}
    todo = [(thing.__module__, thing.__qualname__.partition(".")[0])]
    while todo:
        at = todo.pop()
        module = None if at in out or at[0].startswith(PLUMBING) else read(at[0])
        if module is None:
            continue
        names = (
            list(module.own) if at[1] == "*" else [at[1]]
        )  # "*": a module as an object, used in a way that cannot be followed
        found = [module.definition(name) for name in names]
        out[at] = "".join(text for text, _ in found)
        todo += [_target(*use) for _, uses in found for use in uses]
    return out


def _target(module: str, name: str, rest: str) -> tuple[str, str]:
    """Where `from module import name` (or `import module`, with name "") leads to, when `rest` is then asked of it."""
    outer = read(module)
    if name and outer is not None and (name in outer.own or name in outer.imported):
        return module, name
    whole = f"{module}.{name}" if name else module
    inner = read(whole)
    if inner is None:
        return module, name
    head, _, more = rest.partition(".")
    if (
        head and head not in inner.own and head not in inner.imported and read(f"{whole}.{head}") is not None
    ):  # a module inside it
        return _target(whole, head, more)
    return whole, head or "*"


class Module:
    """The definitions and imports of a module, read and not run."""

    def __init__(self, name: str, path: Path):
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError as error:
            raise UserError(
                f"{path} is no Python in line {error.lineno}: mend it, since what it says is part of what is measured."
            ) from error
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.name = name
        self.own = {bound: node for node in tree.body for bound in _bound(node)}
        self.imported: dict[str, list[tuple[str, str]]] = {}  # two functions may import different things by one name
        for node in ast.walk(tree):
            for local, whence in _imports(node, package):
                self.imported.setdefault(local, []).append(whence)
        self._definitions: dict[str, tuple[str, tuple[Use, ...]]] = {}

    def definition(self, name: str) -> tuple[str, tuple["Use", ...]]:
        """The hash of its text and what it uses; of a name that the module hands on, nothing and what that is."""
        if name not in self._definitions:
            self._definitions[name] = self._define(name)
        return self._definitions[name]

    def _define(self, name: str) -> tuple[str, tuple["Use", ...]]:
        node = self.own.get(name)
        if node is None:
            return "", tuple((*whence, "") for whence in self.imported.get(name, ()))
        bare = _Bare().visit(node)
        uses = set()
        for used in _names(bare):
            head, _, rest = used.partition(".")
            if head in self.own and self.own[head] is not node:
                uses.add((self.name, head, ""))
            elif head in self.imported and head not in self.own:
                uses |= {(*whence, rest) for whence in self.imported[head]}
        return hashlib.sha256(ast.dump(bare).encode()).hexdigest(), tuple(sorted(uses))


Use = tuple[str, str, str]
"""module, name, and what is asked of that."""


@cache
def read(module: str) -> Module | None:
    """A module of the project or a file of the user's own; None for a module that is installed, or is none."""
    path = file_of(module)
    return None if path is None else Module(module, path)


def file_of(module: str) -> Path | None:
    """The source of a module that is not installed: of the project, or a file of the user's own."""
    loaded, base = getattr(sys.modules.get(module), "__file__", None), ROOT.joinpath(*module.split("."))
    there = [Path(loaded)] if loaded else [base.with_suffix(".py"), base / "__init__.py"]
    return next((p for p in there if p.suffix == ".py" and p.is_file() and not _installed(p)), None)


def _installed(path: Path) -> bool:
    """Whether it belongs to another package. The project's own counts when it is installed, too."""
    if any(path.resolve().is_relative_to(ROOT / room) for room in ("shared", "papers")):
        return False
    return (
        "site-packages" in path.parts
        or "dist-packages" in path.parts
        or path.is_relative_to(sysconfig.get_path("stdlib"))
    )


def _bound(node: ast.stmt) -> Iterator[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif not isinstance(node, ast.Import | ast.ImportFrom):
        yield from (n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))


def _imports(node: ast.AST, package: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """local name -> (module, name) of an import; name is "" where the module itself is meant."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield (
                (alias.asname, (alias.name, ""))
                if alias.asname
                else (alias.name.partition(".")[0], (alias.name.partition(".")[0], ""))
            )
    elif isinstance(node, ast.ImportFrom):
        parts = package.split(".")
        base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
        where = ".".join(filter(None, (base, node.module)))
        for alias in node.names:
            yield alias.asname or alias.name, (where, alias.name)


class _Bare(ast.NodeTransformer):
    """Takes out what changes nothing: docstrings and annotations."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        node.annotation = ast.Constant("ClassVar" in ast.unparse(node.annotation))
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        return self._body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        return self._body(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def _body(self, node: ast.FunctionDef | ast.ClassDef) -> ast.FunctionDef | ast.ClassDef:
        self.generic_visit(node)
        node.body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
        return node


def _names(node: ast.AST) -> Iterator[str]:
    """The names that are read, with the attributes asked of them: `a`, `a.b.c`."""
    if isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Load):
            yield node.id
        return
    asked, at = [], node
    while isinstance(at, ast.Attribute):
        asked.append(at.attr)
        at = at.value
    if asked and isinstance(at, ast.Name):
        yield ".".join([at.id, *reversed(asked)])
        return
    for child in ast.iter_child_nodes(node):
        yield from _names(child)
