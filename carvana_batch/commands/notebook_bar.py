"""A progress bar in the output of a notebook's cell."""

from __future__ import annotations

import html
import sys
from typing import Any


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook (Jupyter, VS Code, Colab)."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    kind = type(shell)
    return kind.__name__ == "ZMQInteractiveShell" or kind.__module__.startswith("google.colab")


class NotebookBar:
    """A bar that needs no widgets: an HTML element that is replaced, and stays in the saved notebook.

    Args:
        total: what stands for all of the bar.
    """

    def __init__(self, total: int) -> None:
        from IPython.display import display

        self.total = total
        self._handle: Any = display(self._draw(0, ""), display_id=True)

    def update(self, completed: int, words: str) -> None:
        """Draw the bar again, with words beside it."""
        self._handle.update(self._draw(completed, words))

    def _draw(self, completed: int, words: str) -> Any:
        from IPython.display import HTML

        bar = f'<progress value="{completed}" max="{self.total}" style="width:20em"></progress>'
        return HTML(f"{bar} {completed:,}/{self.total:,} {html.escape(words)}")
