"""The source that a class or a function runs, as part of the identity of what it makes.

`of(Tuned)` hashes the definition of `Tuned` and, over and over, every definition of the project that one of these uses
by its name: base classes, functions, constants, in whichever module they stand and also where they are imported inside
a function. Comments, docstrings, formatting and type annotations do not count, nor does what a module holds beside
these definitions: a new class in a file makes nothing stale that does not use it.

Not seen, so raise a step's `version` for it: a name that is put together at run time (`getattr(module, name)`,
`import_module(name)`), the sources of installed packages, and files that are no Python. Methods are seen with their
class, so a class counts whole. What only passes things on (`PLUMBING`) does not count.
"""

import ast
import contextlib
import hashlib
import importlib
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from shared.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
OURS = ("shared", "papers", "vlm_robust")
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
    return whole(used_by(thing))


def whole(used: dict[tuple[str, str], str]) -> str:
    """One hash of several."""
    return hashlib.sha256(repr(sorted(used.items())).encode()).hexdigest()


def used_by(thing: type | Callable) -> dict[tuple[str, str], str]:
    """(module, name) -> hash, of the definition of a class or function and of all that it uses."""
    return used(thing.__module__, thing.__qualname__.partition(".")[0])


def used(module_name: str, name: str) -> dict[tuple[str, str], str]:
    """The same for a name of a module, whatever it stands for."""
    out: dict[tuple[str, str], str] = {}
    todo = [(module_name, name)]
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
    """The definitions and imports of a module, read and not run. text: what it says; package: where imports begin."""

    def __init__(self, name: str, text: bytes, tree: ast.Module, package: str):
        self.name, self.text = name, text
        self.own: dict[str, list[ast.stmt]] = {}  # all that makes a name what it is, one after another
        for node in tree.body:
            if _ours(name):  # the last statement that binds a name, as when the record was measured
                self.own |= {bound: [node] for bound in _bound(node)}
                continue
            for bound in {*_bound(node), *_changed(node)}:
                self.own.setdefault(bound, []).append(node)
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
        nodes = self.own.get(name, [])
        bare = [_Bare().visit(node) for node in nodes]
        uses = set() if nodes else {(*whence, "") for whence in self.imported.get(name, ())}
        for node in bare:
            for asked in _names(node):
                head, _, rest = asked.partition(".")
                if head in self.own and self.own[head] != nodes:
                    uses.add((self.name, head, ""))
                elif head in self.imported and head not in self.own:
                    uses |= {(*whence, rest) for whence in self.imported[head]}
        text = "".join(map(ast.dump, bare))
        if not _ours(self.name):  # which of an installed package's names it is
            text += repr(sorted(uses))
        return hashlib.sha256(text.encode()).hexdigest() if text else "", tuple(sorted(uses))


Use = tuple[str, str, str]
"""module, name, and what is asked of that."""


def read(module: str) -> Module | None:
    """A module of the project, a file of the user's own or the cells of a notebook; None for one that is installed, or
    is none."""
    if module not in _read or module == CELLS:
        path = file_of(module)
        cells = vars(sys.modules[CELLS]).get("In", ()) if path is None and module == CELLS else ()
        _read[module] = _parse(module, path) if path else _cells(cells) if cells else None
    return _read[module]


CELLS = "__main__"
_read: dict[str, Module | None] = {}


def _parse(name: str, path: Path) -> Module:
    text = path.read_bytes()
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise UserError(
            f"{path} is no Python in line {error.lineno}: mend it, since what it says is part of what is measured."
        ) from error
    return Module(name, text, tree, name if path.name == "__init__.py" else name.rpartition(".")[0])


def _cells(cells: Sequence[str]) -> Module:
    """What IPython has run, in that order; a cell that is no Python has defined nothing."""
    tree = ast.Module([], [])
    for cell in cells:
        with contextlib.suppress(SyntaxError):
            tree.body += ast.parse(cell).body
    return Module(CELLS, b"", tree, "")


def renew() -> None:
    """Forget the user's modules once one of their files says something else than when it was read: they are imported
    anew, as a notebook's kernel would not."""
    theirs = {name: module for name, module in _read.items() if name != CELLS and not _ours(name)}
    files = {name: file_of(name) for name, module in theirs.items() if module}
    stale = any(path is None or path.read_bytes() != theirs[name].text for name, path in files.items())
    for name, module in theirs.items():
        if module is None or stale:
            del _read[name]
        if module and stale:
            sys.modules.pop(name, None)
    if stale:
        of.cache_clear()
    importlib.invalidate_caches()


def file_of(module: str) -> Path | None:
    """The source of a module that is not installed: of the project, or a file of the user's own."""
    loaded, base = getattr(sys.modules.get(module), "__file__", None), ROOT.joinpath(*module.split("."))
    there = [Path(loaded)] if loaded else [base.with_suffix(".py"), base / "__init__.py"]
    return next((p for p in there if p.suffix == ".py" and p.is_file() and not _installed(p)), None)


def _ours(module: str) -> bool:
    return module.partition(".")[0] in OURS


def _installed(path: Path) -> bool:
    """Whether it belongs to another package. The project's own counts when it is installed, too."""
    if any(path.resolve().is_relative_to(ROOT / room) for room in OURS):
        return False
    return (
        "site-packages" in path.parts
        or "dist-packages" in path.parts
        or path.is_relative_to(sysconfig.get_path("stdlib"))
    )


def _bound(node: ast.stmt) -> Iterator[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, DEFINITIONS):
        yield node.name
    elif not isinstance(node, ast.Import | ast.ImportFrom):
        yield from (n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))


def _changed(node: ast.stmt) -> Iterator[str]:
    """The names whose objects it changes, net.fc = …, net.eval(), and what it defines on a condition."""
    if not isinstance(node, DEFINITIONS) and not _is_main(node):
        for n in ast.walk(node):
            if isinstance(n, DEFINITIONS):
                yield n.name
            elif isinstance(n, ast.Attribute | ast.Subscript) and isinstance(n.ctx, ast.Store):
                yield from _root(n)
            elif isinstance(n, ast.Expr) and isinstance(n.value, ast.Call):
                yield from _root(n.value.func)


DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _root(node: ast.AST) -> Iterator[str]:
    """net of net.fc.weight[0]; nothing of a plain name."""
    at = node
    while isinstance(at, ast.Attribute | ast.Subscript | ast.Call):
        at = at.func if isinstance(at, ast.Call) else at.value
    if isinstance(at, ast.Name) and at is not node:
        yield at.id


def _is_main(node: ast.stmt) -> bool:
    """if __name__ == "__main__": what it does is not done when the module is imported."""
    return isinstance(node, ast.If) and "__name__" in {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}


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


def _names(node: ast.AST, hidden: frozenset[str] = frozenset()) -> Iterator[str]:
    """The names that are read, with the attributes asked of them: `a`, `a.b.c`; not those that a function around them
    has bound itself (`hidden`)."""
    asked, at = [], node
    while isinstance(at, ast.Attribute):
        asked.append(at.attr)
        at = at.value
    if isinstance(at, ast.Name):
        if isinstance(at.ctx, ast.Load) and at.id not in hidden:
            yield ".".join([at.id, *reversed(asked)])
        return
    hidden |= _bound_inside(node)
    for child in ast.iter_child_nodes(node):
        yield from _names(child, hidden)


_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_COMPREHENSION = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def _bound_inside(node: ast.AST) -> set[str]:
    """The names that a function or comprehension binds for itself; none of another node, nor one that is also read
    where that is entered (`def f(n=n)`): what is in doubt counts as used."""
    if isinstance(node, _FUNCTION):
        body, args = node.body if isinstance(node.body, list) else [node.body], node.args
        taken = filter(None, (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg))
        inside = {arg.arg for arg in taken} | set(_stored(body))
        inside -= {name for x in ast.walk(node) if isinstance(x, ast.Global) for name in x.names}
        before = [*args.defaults, *filter(None, args.kw_defaults), *getattr(node, "decorator_list", ())]
    elif isinstance(node, _COMPREHENSION):
        inside = set(_stored(generator.target for generator in node.generators))
        before = [generator.iter for generator in node.generators]
    else:
        return set()
    return inside - {name.partition(".")[0] for part in before for name in _names(part)}


def _stored(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The names that statements of one function bind, but for those of functions inside and imports."""
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif not isinstance(node, _FUNCTION | _COMPREHENSION | ast.ClassDef):
            yield from _stored(ast.iter_child_nodes(node))
