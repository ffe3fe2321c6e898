"""Views of tokens: which of them count in the loss, in colour where a browser shows it, in brackets elsewhere."""

import html

from utils.plotting import BLUE, GREY, ORANGE


class TokensView:
    """What `tokens_view` returns: coloured HTML in a notebook, plain text in a log."""

    def __init__(self, pieces, marked, legend):
        self.pieces, self.marked, self.legend = pieces, marked, legend

    def __repr__(self):
        """All tokens in a line, those that are marked in [brackets]."""
        shown = (f"[{piece}]" if mark else piece for piece, mark in zip(self.pieces, self.marked, strict=True))
        counts = f"[{self.legend[0]}]: {sum(self.marked)}, {self.legend[1]}: {self.marked.count(False)}"
        return f"{'·'.join(shown)}\n{counts}"

    def _repr_html_(self):
        style = "border-radius: 3px; padding: 1px 3px; margin: 1px; display: inline-block; font-family: monospace;"
        looks = {True: f"background: {BLUE}; color: white;", False: f"border: 1px solid {GREY}; color: {GREY};"}

        def box(text, mark):
            return f'<span style="{style} {looks[mark]}">{html.escape(text)}</span>'

        shown = "".join(box(piece, mark) for piece, mark in zip(self.pieces, self.marked, strict=True))
        counts = self.marked.count(True), self.marked.count(False)
        parts = zip(self.legend, counts, (True, False), strict=True)
        key = " ".join(box(f"{name}: {n}", mark) for name, n, mark in parts)
        return f'<div style="line-height: 1.9">{shown}</div><div style="border-left: 3px solid {ORANGE}">{key}</div>'


def tokens_view(tokenizer, ids, marked, legend=("in the loss", "not in the loss")):
    """A view of token `ids` (n integers) in which `marked` (n booleans) ones stand out by more than their colour.

    A space is shown as "_" and a line break as "↵", so that no token is invisible; special tokens are shown as well.
    """
    pieces = [tokenizer.decode([number]).replace(" ", "_").replace("\n", "↵") for number in ids]
    return TokensView(pieces, [bool(mark) for mark in marked], legend)
