"""The end of an error message about a name that does not exist: the nearest one that does, or all of them."""

import re
from collections.abc import Iterable

_NEAR = 0.5  # of difflib's similarity from 0 to 1


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean 'product'?` if a name in `known` is near `word`, else `choose one of product, vector`.

    A name is near if its letters are similar, or if `word` is one of its parts: `hr` is near `tiny-hr`. Upper and lower
    case make no difference. The list has the order of `known`.
    """
    import difflib  # only mistakes need it

    names = {name.lower(): name for name in known}
    word = str(word).lower()
    near = difflib.get_close_matches(word, names, n=1, cutoff=_NEAR)
    near = near or [name for name in names if word in re.split(r"[-_]", name)]
    if near:
        return f"did you mean {names[near[0]]!r}?"
    return f"choose one of {', '.join(names.values())}"
