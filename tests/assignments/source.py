"""Python text taken apart by its syntax tree: strip a function to its signature, or put a student's in its place.

A function is named as in "summed_loss" or "RMSNorm.forward": at a file's top level, or a method of a class there.
"""
import ast
import copy
from functools import lru_cache

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@lru_cache(maxsize=16)
def parse(name: str, source: bytes) -> ast.Module:
    """The syntax tree of a submitted file. Raises ValueError, in one sentence, where it is no Python."""
    if len(source) > 500_000:
        raise ValueError(f"{name} is longer than 500,000 bytes")
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"{name} is no Python: {error.msg}, line {error.lineno}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{name} is no Python: {str(error) or 'nested too deeply'}") from None


def find(tree: ast.Module, function: str):
    """(the list of statements that holds a function, its place there), or None. Of several the last counts."""
    *classes, name = function.split(".")
    body = tree.body
    for wanted in classes:
        found = [node for node in body if isinstance(node, ast.ClassDef) and node.name == wanted]
        if not found:
            return None
        body = found[-1].body
    places = [i for i, node in enumerate(body) if isinstance(node, FUNCTIONS) and node.name == name]
    return (body, places[-1]) if places else None


def strip(source: str, functions) -> str:
    """The text with the bodies of some functions stripped to docstring and `raise NotImplementedError`.

    Every other byte stays. Raises LookupError for a function that the text does not have.
    """
    lines, tree = source.splitlines(keepends=True), ast.parse(source)
    regions = []  # (first line, last line, indentation) of what goes, lines counted from 0
    for function in functions:
        if not (found := find(tree, function)):
            raise LookupError(f"there is no function {function} to strip")
        node = found[0][found[1]]
        first, end = node.body[0].lineno - 1, node.end_lineno
        if ast.get_docstring(node) is not None:
            first = node.body[0].end_lineno
        else:
            while lines[first - 1].strip().startswith("#"):  # a comment above the first statement
                first -= 1
        regions.append((first, end, node.body[0].col_offset))
    for first, end, indentation in sorted(regions, reverse=True):
        lines[first:end] = [" " * indentation + "raise NotImplementedError\n"]
    return "".join(lines)


def statements(tree: ast.Module) -> list:
    """The statements of a file's top level, where an import of several names counts as several imports."""
    found = []
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                found.append(copy.copy(node))
                found[-1].names = [alias]
        else:
            found.append(node)
    return found


def names_bound(statement) -> set[str]:
    """The names that a statement of a file's top level gives a meaning to."""
    if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        return {statement.name}
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).partition(".")[0] for alias in statement.names}
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)
                and isinstance(node.ctx, ast.Store)}
    return set()


def splice(clean: str, submitted: ast.Module, functions) -> str:
    """The clean file with some functions from a submission, and with the new names that these use (their helpers).

    Decorators stay the clean file's. A helper is a name, at the top level or in the function's class, that the clean
    file does not have. Raises LookupError for a function that the submission does not have.
    """
    if all(same(parse("", clean.encode()), submitted, function) for function in functions):
        return clean
    tree, offered = ast.parse(clean), statements(submitted)
    old = set().union(*map(names_bound, tree.body))
    for function in functions:
        body, place = find(tree, function)
        if not (found := find(submitted, function)):
            raise LookupError(f"there is no function {function} at its place")
        theirs, node, before = found[0], copy.copy(found[0][found[1]]), []
        node.decorator_list = body[place].decorator_list
        if body is not tree.body:  # helpers in the class
            known = {name for statement in body for name in names_bound(statement)}
            before = [other for other in theirs if isinstance(other, FUNCTIONS) and other.name not in known]
        body[place : place + 1] = [*before, node]
        used, helpers = [node, *before], []
        while used:  # what the helpers use, too
            names = {name.id for name in ast.walk(used.pop()) if isinstance(name, ast.Name)}
            new = [other for other in offered if names_bound(other) & names and not names_bound(other) & old
                   and other not in helpers]
            helpers += new
            used += new
        at = next(i for i, other in enumerate(tree.body) if function.split(".")[0] in names_bound(other))
        tree.body[at:at] = sorted(helpers, key=lambda helper: helper.lineno)
        old |= set().union(*map(names_bound, helpers))
    try:
        return ast.unparse(tree)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"it cannot be read: {error}") from None


def same(tree: ast.Module, other: ast.Module, function: str) -> bool:
    """Whether a function is the same in two files, but for comments and layout."""
    texts = [ast.dump(found[0][found[1]]) if (found := find(each, function)) else None for each in (tree, other)]
    return texts[0] == texts[1] and texts[0] is not None


def signature(tree: ast.Module, function: str) -> str | None:
    """The names of a function's parameters, in their order; None where there is no such function."""
    found = find(tree, function)
    if not found:
        return None
    arguments = found[0][found[1]].args
    named = [*arguments.posonlyargs, *arguments.args, *filter(None, [arguments.vararg]), *arguments.kwonlyargs]
    return ", ".join(argument.arg for argument in named)


def changed(clean: str, submitted: ast.Module, functions) -> list[str]:
    """The top-level names of the clean file that a submission changed or dropped, but for the bodies of `functions`."""
    trees = parse("", clean.encode()), submitted
    texts = []
    for tree in trees:
        mine = {id(found[0][found[1]]) for name in functions if (found := find(tree, name))}
        texts.append({name: dump(node, mine) for node in statements(tree) for name in names_bound(node)})
    return [name for name, text in texts[0].items() if texts[1].get(name) != text]


def dump(node, left_out: set[int]) -> str:
    """A statement as text that has the names alone of the functions that are left out."""
    if id(node) in left_out:
        return node.name
    if isinstance(node, ast.ClassDef):
        return "\n".join([node.name, *(dump(each, left_out) for each in node.body)])
    return ast.dump(node)
