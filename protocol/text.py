"""What a peer says, made fit to be shown, logged and stored: `cleaned`, used where its words come in.

A reason, a name or a type of array may be of any length, and may hold characters that move a terminal's cursor, end a
line of a log or turn the direction of what follows. None of them goes further than the file in which it was read.
"""

from typing import Final

LONGEST: Final = 300
"""Characters of a reason that are kept."""
LONGEST_NAME: Final = 64
"""Characters of a name that are kept."""


def cleaned(text: str, most: int = LONGEST) -> str:
    """A text of at most ``most`` printable characters.

    What cannot be printed is written as Python escapes it; a text that is then too long ends in an ellipsis.
    """
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
