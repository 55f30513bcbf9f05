"""The small changes that are tried: cosmic-ray's operators, less those that cannot say anything about a test.

Of cosmic-ray's 213 operators these are left out: those that put one variable into another's place (experimental there), and of
the many ways to replace an arithmetic or comparing operator all but the nearest (``<`` becomes ``<=`` or ``>=``, and not ``is``):
a far one is noticed wherever the line runs. Of one place one change is drawn, so that ``a + b`` counts once. Nothing is changed
in annotations, in the text of errors, and in what only guards against our own mistakes (``zip(…, strict=True)``).
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import get_operator
from parso.python.tree import Keyword

NEAREST = {
    "BinaryOperator": ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul",
                       "BitOr_BitAnd", "BitAnd_BitOr", "LShift_RShift", "RShift_LShift"),
    "ComparisonOperator": ("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt",
                           "Is_IsNot", "IsNot_Is"),
    "UnaryOperator": ("Delete_USub", "Delete_Not", "Delete_Invert"),
}  # fmt: skip
SINGLE = (
    "AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak", "ExceptionReplacer", "NumberReplacer", "RemoveDecorator", "ZeroIterationForLoop",
)  # fmt: skip

# What guards against our own mistakes, and no input can set off.
GUARDS = {"strict", "frozen", "stacklevel"}
# Where a star or a slash is an operator, and no mark of a signature or of unpacking.
ARITHMETIC = {"arith_expr", "term", "power", "expr", "and_expr", "xor_expr", "shift_expr"}
# What is said to a person; its arguments are text.
SAID = {"UserError", "Problem", "Note", "print", "warn", "debug", "info", "warning", "error", "exception"}


class DropCall(Operator):
    """Leaves out a call whose result nobody takes, such as ``lock.release()``."""

    def mutation_positions(self, node: Any) -> Any:
        """As cosmic-ray asks: where in the node the change can be made."""
        if node.type == "simple_stmt":
            call = node.children[0]
            if call.type in {"atom_expr", "power"} and call.children[-1].get_first_leaf().value == "(":
                yield call.start_pos, call.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """As cosmic-ray asks: the node with the change made."""
        call = node.children[0]
        node.children[0] = Keyword("pass", call.start_pos, prefix=call.get_first_leaf().prefix)
        return node

    @classmethod
    def examples(cls) -> Any:
        """As cosmic-ray asks."""
        return (Example("lock.release()\n", "pass\n"),)


OPERATORS: dict[str, type[Operator]] = {
    **{f"Replace{kind}_{name}": get_operator(f"core/Replace{kind}_{name}") for kind, names in NEAREST.items() for name in names},
    **{name: get_operator(f"core/{name}") for name in SINGLE},
    "DropCall": DropCall,
}


@dataclass(frozen=True)
class Change:
    """One small change of one module."""

    path: str
    """Of the module, from the root of the tree."""
    line: int
    column: int
    operator: str
    occurrence: int
    """Which of the places where the operator can change the module."""
    lines: tuple[int, int]
    """First and last line of the statement (of its head, where it has a body): what runs when the change is reached."""

    def applied(self, source: str) -> str:
        """The module with the change made.

        Raises:
            ValueError: the source has no such place.
        """
        changed = mutate_code(source, OPERATORS[self.operator](), self.occurrence)
        if changed is None:
            raise ValueError(f"{self.path} has no place {self.occurrence} for {self.operator}")
        return changed


def changes_of(path: str, source: str) -> list[list[Change]]:
    """All changes of a module, those of one place together, in the order of the text."""
    places: dict[tuple[int, int], list[Change]] = defaultdict(list)
    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in OPERATORS.items():
        made: Any = operator()
        positions = ((node, start) for node in nodes for start, _ in made.mutation_positions(node))
        for occurrence, (node, (line, column)) in enumerate(positions):
            leaf = node.get_leaf_for_position((line, column), include_prefixes=True) if hasattr(node, "children") else node
            change = Change(path, line, column, name, occurrence, _statement(leaf))
            if not _says_nothing(leaf, name) and (name != "ExceptionReplacer" or _can_be_made(change, source)):
                places[line, column].append(change)
    return [places[place] for place in sorted(places)]


def sample(room: Path, modules: str, left_out: Sequence[str], root: Path, size: int, seed: int) -> list[Change]:
    """Changes of a room's modules (those that a pattern names, less others), one a place, drawn without replacement.

    The same seed and text give the same ones.
    """
    places = []
    chosen = set(room.rglob(modules)) - {module for pattern in left_out for module in room.glob(pattern)}
    for module in sorted(chosen):
        places += changes_of(module.relative_to(root).as_posix(), module.read_text(encoding="utf-8"))
    draw = random.Random(seed)
    return [draw.choice(place) for place in draw.sample(places, min(size, len(places)))]


def _says_nothing(leaf: Any, operator: str) -> bool:
    """Whether the place is in an annotation or in what an error says, or the change is another spelling."""
    if "BinaryOperator" in operator and leaf.parent.type not in ARITHMETIC:
        return True
    if leaf.parent.type == "argument" and leaf.parent.children[0].value in GUARDS:
        return True
    if leaf.parent.type == "if_stmt" and getattr(leaf, "value", "") == "TYPE_CHECKING":
        return True  # for type checkers alone
    node = leaf
    while (parent := node.parent) is not None:
        if parent.type in {"annassign", "tfpdef"} and node is parent.children[1 if parent.type == "annassign" else 2]:
            return True
        if parent.type == "funcdef" and parent.annotation is node:
            return True
        if parent.type in {"atom_expr", "power", "decorator"} and node.type == "trailer" and node.children[0] == "(":
            called = [child.value for child in ast_nodes(parent) if child.type == "name" and child.start_pos < node.start_pos]
            if called and called[-1] in SAID:
                return True
            # ``isinstance(value, int | float)``
            if called and called[-1] in {"isinstance", "cast"} and "Bit" in operator:
                return True
        if parent.type == "raise_stmt":
            return True
        node = parent
    return False


def _can_be_made(change: Change, source: str) -> bool:
    """cosmic-ray replaces plain names of exceptions alone, and fails at ``struct.error``."""
    try:
        change.applied(source)
    except AttributeError:
        return False
    return True


def _statement(leaf: Any) -> tuple[int, int]:
    node = leaf
    while node.parent is not None and node.parent.type not in {"suite", "file_input"}:
        node = node.parent
    body = next((child for child in getattr(node, "children", ()) if child.type == "suite"), None)
    first, last = node.start_pos[0], node.end_pos[0]
    if node.type in {"simple_stmt"}:
        # Its last child is the end of the line, which stands on the next.
        last = node.children[0].end_pos[0]
    return (first, last) if body is None else (first, max(leaf.start_pos[0], body.start_pos[0]))
