"""`Pieces`: the text of tokens that come one after the other."""

from collections.abc import Callable, Sequence

KEPT = 8
"""The number of tokens that are decoded again with the next one."""


class Pieces:
    """What each token adds to a text; never a part of a character.

    The pieces together are the text of all tokens, if later tokens do not change the text of
    earlier ones. Only the last tokens are decoded with each new one, so that a token of a long text
    takes no longer.

    Args:
        decode: the text of tokens, with U+FFFD in place of a character that is not complete.

    >>> pieces = Pieces(lambda tokens: bytes(tokens).decode(errors="replace"))
    >>> [pieces.added(token) for token in "aé".encode()], pieces.rest()
    (['a', '', 'é'], '')
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._shown = ""  # of the text of these tokens

    def added(self, token: int) -> str:
        """The characters that are complete with this token."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        piece = self._new(text.rstrip("\ufffd"))
        if len(self._tokens) >= 2 * KEPT and text == self._shown:
            last = self._tokens[-KEPT:]
            # not where the last tokens alone have another text: they may begin within a character
            end = self._decode(last)
            if end and "\ufffd" not in end and text.endswith(end):
                self._tokens, self._shown = last, end
        return piece

    def rest(self) -> str:
        """What is left at the end of the text: a character that is not complete."""
        return self._new(self._decode(self._tokens)) if self._tokens else ""

    def _new(self, text: str) -> str:
        piece = text[len(self._shown) :]
        self._shown += piece
        return piece
