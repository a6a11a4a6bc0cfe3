"""Reads the classes, functions and codes that a module's annotations declare, without importing it."""

from __future__ import annotations

import ast
from pathlib import Path


class Stub:
    """The declarations of one file."""

    def __init__(self, path: Path, *, aliases_of: Stub | None = None) -> None:
        """Reads `path`. Type aliases may also be declared in the stub ``aliases_of``."""
        module = ast.parse(path.read_text())
        self._module = module
        self._classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
        self._functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
        self._aliases: dict[str, ast.expr] = {} if aliases_of is None else dict(aliases_of._aliases)
        for node in module.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self._aliases[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                self._aliases[node.target.id] = node.value

    def attributes(self, class_name: str) -> dict[str, ast.expr]:
        """The properties of a class, with their return types."""
        assert class_name in self._classes, f"there is no class {class_name}"
        return {
            node.name: node.returns
            for node in self._classes[class_name].body
            if isinstance(node, ast.FunctionDef) and node.returns is not None and _is_property(node)
        }

    def members(self, class_name: str) -> set[str] | None:
        """The properties and methods of a class, or `None` if there is no such class."""
        if class_name not in self._classes:
            return None
        return {node.name for node in self._classes[class_name].body if isinstance(node, ast.FunctionDef)}

    def class_in(self, annotation: ast.expr) -> str | None:
        """The class of this file that an annotation names, also within ``list[...]`` or ``... | None``."""
        names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)} & set(self._classes)
        assert len(names) <= 1, names
        return next(iter(names), None)

    def codes_in(self, annotation: ast.expr) -> set[str]:
        """The texts of every ``Literal`` in an annotation, including those that it names by a type alias."""
        codes: set[str] = set()
        for node in ast.walk(annotation):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value).rpartition(".")[2] == "Literal":
                codes |= {
                    item.value
                    for item in ast.walk(node.slice)
                    if isinstance(item, ast.Constant) and isinstance(item.value, str)
                }
            elif isinstance(node, ast.Name) and node.id in self._aliases:
                codes |= self.codes_in(self._aliases[node.id])
        return codes

    def codes_of_alias(self, name: str) -> set[str]:
        """The texts of the type alias `name`."""
        return self.codes_in(ast.Name(name))

    def arguments(self, function: str) -> dict[str, tuple[ast.expr | None, str | None]]:
        """The arguments of ``function`` or ``Class.function``, with their annotations and defaults."""
        class_name, _, name = function.rpartition(".")
        body = self._classes[class_name].body if class_name else self._module.body
        (node,) = (item for item in body if isinstance(item, ast.FunctionDef) and item.name == name)
        positional, found = [*node.args.posonlyargs, *node.args.args], {}
        defaults = [None] * (len(positional) - len(node.args.defaults)) + node.args.defaults
        for argument, default in [
            *zip(positional, defaults),
            *zip(node.args.kwonlyargs, node.args.kw_defaults),
        ]:
            if argument.arg not in ("self", "cls"):
                text = None if default is None else ast.unparse(default)
                found[argument.arg] = (argument.annotation, text)
        return found

    def codes_of_name(self, name: str) -> set[str]:
        """The codes of every argument, property and attribute of this file that is called `name`."""
        codes: set[str] = set()
        for node in ast.walk(self._module):
            if isinstance(node, ast.arg) and node.arg == name and node.annotation is not None:
                codes |= self.codes_in(node.annotation)
            elif isinstance(node, ast.FunctionDef) and node.name == name and node.returns is not None:
                codes |= self.codes_in(node.returns)
            elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) in (name, f"self.{name}"):
                codes |= self.codes_in(node.annotation)
        return codes


def _is_property(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator) == "property" for decorator in function.decorator_list)
