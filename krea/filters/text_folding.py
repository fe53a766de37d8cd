"""The letters of a prompt as its text encoders, and its readers, see them: without weights, styles and look-alikes.

ComfyUI takes weights out of a prompt, and the tokenizers of T5 and CLIP read a fullwidth or mathematical letter as that
letter and skip what is invisible; a word list must do the same. The folded text is for lists alone: it is no prompt.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from string import ascii_lowercase
from typing import NamedTuple

# Letters of other scripts, and rare Latin ones, that look like the key (compare unicode.org/reports/tr39). A small one
# stands for its capital, too, unless that looks different. Greek nu is n, and not v, since it hides more words as n.
_LOOK_ALIKES = {
    "a": "\u0430\u03b1\u0251\u1d00\u2c65\ua4ee\u13aa",
    "b": "\u0432\u044c\u03b2\u0299\u0253\u0185\ua4d0\u13cf\u13f4",
    "c": "\u0441\u03c2\u1d04\ua4da\u13df",
    "d": "\u0501\u0434\u0256\u0257\u1d05\u0111\ua4d2\ua4d3\u13a0",
    "e": "\u0435\u0454\u03b5\u025b\u01dd\u0259\u1d07\u212e\ua4f0\u13ac",
    "f": "\u0493\u0192\ua730\ua4dd\u0584",
    "g": "\u050d\u0261\u0262\u0260\u0581\ua4d6\u13c0",
    "h": "\u043d\u04bb\u0397\u029c\u0127\u0570\ua4e7\u13bb",
    "i": "\u0456\u03b9\u0131\u026a\u0269\u0582\ua4f2\u13a5",
    "j": "\u0458\u0575\u029d\u1d0a\ua4d9\u13ab",
    "k": "\u043a\u03ba\u1d0b\u0199\ua4d7\u13e6",
    "l": "\u04cf\u0142\u029f\u026d\u019a\u056c\ua4e1\u13de",
    "m": "\u043c\u039c\u1d0d\u0271\ua4df\u13b7",
    "n": "\u043f\u03b7\u03bd\u0418\u0274\u0272\u014b\u019e\u0273\u0578\u057c\u0572\ua4e0",
    "o": "\u043e\u03bf\u03c3\u0275\u00f8\u1d0f\u0585\ua4f3",
    "p": "\u0440\u03c1\u1d18\u01a5\ua4d1\u13e2",
    "q": "\u051b\u02a0\u0566",
    "r": "\u0433\u0280\u027e\u027c\ua4e3\u13a1\u13d2",
    "s": "\u0455\ua731\u0282\ua4e2\u13d5\u13da\u054f",
    "t": "\u0442\u03c4\u1d1b\u01ad\u0288\u0167\ua4d4\u13a2",
    "u": "\u0438\u03c5\u1d1c\u0289\u028a\u057d\ua4f4\u222a",
    "v": "\u0475\u1d20\u028b\ua4e6\u13d9",
    "w": "\u0448\u03c9\u051d\u1d21\u0561\ua4ea\u13b3",
    "x": "\u0445\u03c7\ua4eb",
    "y": "\u0443\u03b3\u04af\u03a5\u028f\u01b4\ua4ec",
    "z": "\u1d22\u03b6\u0290\u01b6\ua4dc\u13c3",
}
_LETTERS = {other: letter for letter, others in _LOOK_ALIKES.items() for other in others}
# Letters in black circles and squares and regional indicators, which no compatibility mapping knows.
_FLAG_LETTERS = range(0x1F1E6, 0x1F200)
for _first in (0x1F150, 0x1F170, _FLAG_LETTERS[0]):
    _LETTERS.update((chr(_first + index), letter) for index, letter in enumerate(ascii_lowercase))

_BLANKS = "\u0640\u115f\u1160\u2800"  # tatweel, hangul fillers (the others become these) and the empty braille cell
_BACKWARDS = re.compile("\u202e([^\u202c\n]*)")  # a right-to-left override, up to its end or the end of the line
_SIGNS = re.compile("Lx+[LOS]|[OS]x+L|LLO|LOL|OLL|LS|SL|SS")  # of disguise, in what `_kind` says of each character


class Normalised(NamedTuple):
    """A text with its letters folded to plain small ones.

    disguised: a Latin word holds letters of another script, styled letters or invisible characters, or text runs
        backwards. Accents, capitals, ligatures, flags and words wholly in another script or width are ordinary.
    """

    text: str
    disguised: bool


def normalise(text: str) -> Normalised:
    """The letters that a prompt comes down to, in time proportional to its length.

    What a right-to-left override shows backwards is in the result both ways.
    """
    text = without_weights(text)
    kinds = text.translate(_Each(_kind))
    disguised = "\u202e" in text or any(kind in kinds for kind in "OSx") and bool(_SIGNS.search(kinds))
    text = _BACKWARDS.sub(lambda run: f"{run[1]} {run[1][::-1]} ", text)
    return Normalised(text.translate(_Each(_fold)), disguised)


def without_weights(text: str) -> str:
    r"""What ComfyUI hands to the tokenizers, in one piece: "a (red:1.3) \(small\) fox" becomes "a red (small) fox".

    The same as token_weights between escape_important and unescape_important in comfy/sd1_clip.py of ComfyUI 0.30.0,
    but in linear time and to any depth. There, a closing bracket too many makes text of one later opening bracket, and
    a bracket that stays open makes text of all that follows it, unless that ends with a closing one: then they pair.
    """
    text = text.replace(r"\)", "\0\1").replace(r"\(", "\0\2")
    brackets = [match.start() for match in re.finditer("[()]", text)]
    before = {after: place for place, after in pairwise(brackets)}
    partner: dict[int, int] = {}  # of a closing bracket
    still_open: deque[int] = deque()
    surplus = 0
    for place in brackets:
        if text[place] == ")" and still_open:
            partner[place] = still_open.pop()
        elif text[place] == ")":
            surplus += 1
        elif surplus:
            surplus -= 1
        else:
            still_open.append(place)

    removed = []  # (first, end) of each bracket that is none of the text, with the weight before it
    end = len(text)
    while still_open and text[end - 1] == ")":
        still_open.append(partner.pop(end - 1))
        first, last = still_open.popleft(), end - 1
        end = _weight_start(text, first, before[last], last)
        removed += [(first, first + 1), (end, last + 1)]
    for last, first in partner.items():
        if not still_open or first < still_open[0]:
            removed += [(first, first + 1), (_weight_start(text, first, before[last], last), last + 1)]

    starts = [0, *(end for _, end in sorted(removed))]
    ends = [*(first for first, _ in sorted(removed)), len(text)]
    parts = (text[start:end] for start, end in zip(starts, ends, strict=True))
    return "".join(part.replace("\0\1", ")").replace("\0\2", "(") for part in parts)


def _weight_start(text: str, first: int, before: int, last: int) -> int:
    """Where a pair of brackets ends its text: at a colon with a number behind it, else at the closing bracket.

    before: the bracket before the closing one. A number holds none, so no earlier colon can be the weight's.
    """
    colon = text.rfind(":", before, last)
    if colon > first + 1:
        try:
            float(text[colon + 1 : last])
            return colon
        except ValueError:
            pass
    return last


class _Each:
    """A table for str.translate that asks a function, so that no table of all characters is made."""

    def __init__(self, function: Callable[[int], str]):
        self.function = function

    def __getitem__(self, code: int) -> str:
        return self.function(code)


@lru_cache(4096)
def _fold(code: int) -> str:
    """What one character becomes. Each on its own: to normalise a long run of marks takes the square of its length."""
    character = chr(code)
    parts = [part for part in unicodedata.normalize("NFKD", character) if not _is_invisible(part)]
    letters = "".join(_LETTERS.get(part) or _LETTERS.get(part.casefold(), part.casefold()) for part in parts)
    is_abbreviation = unicodedata.category(character) == "So" and sum(map(str.isalpha, letters)) > 1
    return " " if is_abbreviation or character in "\u00aa\u00ba" else letters  # of "Krea™" and "Nº" the word is left


def _is_invisible(character: str) -> bool:
    """Marks count as well: what is left of a letter without them is its base."""
    category = unicodedata.category(character)
    return category in ("Mn", "Me") or category[0] == "C" and character not in "\t\n\r" or character in _BLANKS


@lru_cache(4096)
def _kind(code: int) -> str:
    """L for a Latin letter, O for one that folds to it from another script or width, S for one that is styled, x for
    what folds to nothing, nothing for an accent, and a space for the rest."""
    character, letter = chr(code), _fold(code)
    if not letter:
        return "" if unicodedata.combining(character) else "x"
    base = unicodedata.normalize("NFD", character)[0]
    if unicodedata.name(base, "").startswith("LATIN"):
        return "L"
    style = unicodedata.decomposition(character).partition(" ")[0]
    if letter not in ascii_lowercase or code in _FLAG_LETTERS or style in ("<super>", "<sub>"):
        return " "
    return "S" if style in ("<font>", "<circle>", "<square>") or unicodedata.category(base) == "So" else "O"
