"""Patterns of policies: text in which ``*`` stands for any characters and ``?`` for one.

Matching is a search for one piece between two ``*`` after the other, never again for an earlier one, so that its time
is bounded by the product of the two lengths whatever the pattern is.  In policies of version 2012-10-17,
``${key}`` stands for what the request has under a condition key, and ``${*}``, ``${?}``, ``${$}`` for the characters
themselves (IAM user guide, "Policy variables").
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

_VARIABLE = re.compile(r"\$\{([^{}]*)\}")
_MANY, _ONE = object(), object()
#: what a request has under the condition keys, by their names as :func:`folded` gives them
Values = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Variable:
    key: str


@dataclass(frozen=True)
class Pattern:
    """A compiled pattern."""

    tokens: tuple[object, ...]

    @property
    def is_fixed(self) -> bool:
        """Whether it matches only one text."""
        return all(isinstance(token, str) for token in self.tokens)

    @property
    def variables(self) -> frozenset[str]:
        """The condition keys that it names."""
        return frozenset(token.key for token in self.tokens if isinstance(token, _Variable))

    @cached_property
    def _exact(self) -> "_Pieces":
        return _Pieces(self.tokens, False)

    @cached_property
    def _folded(self) -> "_Pieces":
        return _Pieces(self.tokens, True)

    def matches(self, text: str, values: Values, fold: bool = False) -> bool:
        """Whether it stands for a text.

        :param values: for the variables; a pattern with one that has not exactly one value matches nothing
        :param fold: cases do not matter
        """
        if not self.variables:
            return (self._folded if fold else self._exact).match(text)
        tokens: list[object] = []
        for token in self.tokens:
            if isinstance(token, _Variable):
                found = values.get(token.key, ())
                if len(found) != 1:
                    return False
                tokens += found[0]
            else:
                tokens.append(token)
        return _Pieces(tokens, fold).match(text)


class _Pieces:
    """What is between the ``*`` of a pattern.

    Each piece is taken where it is found first after the one before it: what a later place would leave to the rest,
    the first leaves as well.
    """

    def __init__(self, tokens: Iterable[object], fold: bool):
        self._fold = fold
        pieces: list[list[object]] = [[]]
        for token in tokens:
            if token is _MANY:
                pieces.append([])
            else:
                pieces[-1].append(token.lower() if fold and isinstance(token, str) else token)
        self._sizes = [sum(len(t) if isinstance(t, str) else 1 for t in piece) for piece in pieces]
        self._pieces = [re.compile("".join("." if t is _ONE else re.escape(str(t)) for t in piece), re.DOTALL)
                        if _ONE in piece else "".join(map(str, piece)) for piece in pieces]

    def match(self, text: str) -> bool:
        """Whether they are in a text."""
        if self._fold:
            text = text.lower()
        if len(self._pieces) == 1:
            return len(text) == self._sizes[0] and self._find(0, text, 0, len(text)) == 0
        end = len(text) - self._sizes[-1]
        if sum(self._sizes) > len(text) or self._find(0, text, 0, self._sizes[0]) != 0:
            return False
        at = self._sizes[0]
        for number in range(1, len(self._pieces) - 1):
            found = self._find(number, text, at, end)
            if found < 0:
                return False
            at = found + self._sizes[number]
        return at <= end and self._find(len(self._pieces) - 1, text, end, len(text)) == end

    def _find(self, number: int, text: str, start: int, end: int) -> int:
        """Where a piece is first, -1 if nowhere."""
        piece = self._pieces[number]
        if isinstance(piece, str):
            return text.find(piece, start, end)
        found = piece.search(text, start, end)
        return found.start() if found else -1


def folded(key: str) -> str:
    """A condition key as its values are found: in lower case but for what follows a slash, the key of a tag."""
    name, slash, tag = key.partition("/")
    return name.lower() + slash + tag


def compiled(text: str, wild: bool = True, variables: bool = False) -> Pattern:
    """Compile a pattern.

    :param wild: ``*`` and ``?`` are special
    :param variables: so is ``${...}``
    """
    tokens: list[object] = []
    at = 0
    for found in _VARIABLE.finditer(text) if variables else ():
        tokens += _tokens(text[at:found.start()], wild)
        name = found[1].strip()
        tokens.append(name if name in ("*", "?", "$") else _Variable(folded(name)))
        at = found.end()
    tokens += _tokens(text[at:], wild)
    return Pattern(tuple(tokens))


def _tokens(text: str, wild: bool) -> list[object]:
    """One token for each character; several ``*`` in a row are one."""
    tokens: list[object] = []
    for character in text:
        if wild and character == "*":
            if not tokens or tokens[-1] is not _MANY:
                tokens.append(_MANY)
        else:
            tokens.append(_ONE if wild and character == "?" else character)
    return tokens
