"""Figures."""

import io

from matplotlib.figure import Figure


class Chart(Figure):
    """A matplotlib figure that a notebook shows by itself: outside pyplot nothing is kept open or shown twice."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
