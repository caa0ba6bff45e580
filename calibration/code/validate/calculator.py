"""Evaluates arithmetic typed by people: 3(2 + x)^2, with variables, functions and useful errors.

Parsing is by precedence climbing: every operator has a binding power, and an operand is extended to
the right for as long as what follows binds more tightly than what stands before it.
"""

import math
import operator
from dataclasses import dataclass
from typing import Callable, Iterator, Mapping, Union


class FormulaError(ValueError):
    """A formula that means nothing, with the place where that became clear."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(f"{message} (at character {position + 1})")
        self.position = position


@dataclass(frozen=True)
class Number:
    value: float


@dataclass(frozen=True)
class Variable:
    name: str
    position: int


@dataclass(frozen=True)
class Operation:
    sign: str
    left: "Node"
    right: "Node"
    position: int


@dataclass(frozen=True)
class Call:
    name: str
    argument: "Node"
    position: int


Node = Union[Number, Variable, Operation, Call]

# Binding powers on the left and on the right. A higher one on the left makes an operator that is
# repeated group to the right: 2^3^2 is 2^(3^2).
_POWERS = {"+": (10, 11), "-": (10, 11), "*": (20, 21), "/": (20, 21), "^": (41, 40)}
_NEGATION = 30
_OPERATIONS: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "^": math.pow,
}
FUNCTIONS: Mapping[str, Callable[[float], float]] = {
    "sqrt": math.sqrt,
    "sin": math.sin,
    "cos": math.cos,
    "ln": math.log,
    "exp": math.exp,
    "abs": abs,
}
CONSTANTS = {"pi": math.pi, "e": math.e}


def scan(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield (kind, text, position); kinds are number, name, sign and end."""
    at = 0
    while at < len(text):
        char = text[at]
        start = at
        if char.isspace():
            at += 1
            continue
        if char.isdigit() or char == ".":
            while at < len(text) and (text[at].isdigit() or text[at] == "."):
                at += 1
            yield "number", text[start:at], start
        elif char.isalpha():
            while at < len(text) and text[at].isalnum():
                at += 1
            yield "name", text[start:at], start
        elif char in "+-*/^()":
            at += 1
            yield "sign", char, start
        else:
            raise FormulaError(f"unexpected {char!r}", at)
    yield "end", "", len(text)


class Parser:
    def __init__(self, text: str) -> None:
        self._tokens = list(scan(text))
        self._next = 0

    def parse(self) -> Node:
        node = self._expression(0)
        kind, text, position = self._peek()
        if kind != "end":
            raise FormulaError(f"did not expect {text!r} here", position)
        return node

    def _peek(self) -> tuple[str, str, int]:
        return self._tokens[self._next]

    def _take(self) -> tuple[str, str, int]:
        token = self._tokens[self._next]
        self._next += 1
        return token

    def _expression(self, floor: int) -> Node:
        left = self._operand()
        while True:
            kind, sign, position = self._peek()
            implied = kind in ("number", "name") or sign == "("
            if implied:
                sign = "*"
            if sign not in _POWERS or _POWERS[sign][0] < floor:
                return left
            if not implied:
                self._take()
            right = self._expression(_POWERS[sign][1])
            left = Operation(sign, left, right, position)

    def _operand(self) -> Node:
        kind, text, position = self._take()
        if kind == "number":
            try:
                return Number(float(text))
            except ValueError:
                raise FormulaError(f"{text!r} is not a number", position) from None
        if kind == "name":
            if text in FUNCTIONS and self._peek()[1] == "(":
                self._take()
                return Call(text, self._closed(position), position)
            return Variable(text, position)
        if text == "(":
            return self._closed(position)
        if text == "-":
            return Operation("*", Number(-1.0), self._expression(_NEGATION), position)
        raise FormulaError("something is missing", position)

    def _closed(self, opened: int) -> Node:
        node = self._expression(0)
        if self._take()[1] != ")":
            raise FormulaError("this bracket is never closed", opened)
        return node


def evaluate(node: Node, variables: Mapping[str, float]) -> float:
    """The value of a formula. Raises FormulaError for unknown names and undefined results."""
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Variable):
        known = {**CONSTANTS, **variables}
        if node.name not in known:
            raise FormulaError(f"unknown name {node.name!r}", node.position)
        return known[node.name]
    try:
        if isinstance(node, Call):
            return FUNCTIONS[node.name](evaluate(node.argument, variables))
        return _OPERATIONS[node.sign](evaluate(node.left, variables), evaluate(node.right, variables))
    except (ZeroDivisionError, OverflowError) as error:
        raise FormulaError(str(error), node.position) from None


def calculate(text: str, **variables: float) -> float:
    return evaluate(Parser(text).parse(), variables)
