"""The directive ``phases``: what the tables in `aiopool.phases` say, as a picture and as a table.

``{phases} Worker`` shows `WorkerPhase` and ``WORKER_MOVES``: nobody has to keep the page up with the code.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from aiopool import phases

Moves = Mapping[enum.Enum, AbstractSet[enum.Enum]]

STEP, MARGIN, HALF_BOX, HEIGHT = 108, 52, 43, 13
"""Between the middles of two phases; before the first; and half of the box around its name, each way."""

RISE = 19
"""How much higher an arc is for each phase that it leaps over."""


class Phases(SphinxDirective):
    """Shows the phases of a worker or of the pool, and the moves between them."""

    required_arguments = 1
    has_content = False

    def run(self) -> list[nodes.Node]:
        """Return the picture and the table."""
        (who,) = self.arguments
        kind: type[enum.Enum] = getattr(phases, f"{who}Phase")
        moves: Moves = getattr(phases, f"{who.upper()}_MOVES")
        analyzer = ModuleAnalyzer.for_module(phases.__name__)
        analyzer.analyze()
        meanings = {name: " ".join(doc) for (owner, name), doc in analyzer.attr_docs.items() if owner == kind.__name__}
        self.env.note_dependency(phases.__file__)
        picture = nodes.raw("", f"<figure>{''.join(picture_of(list(kind), moves))}</figure>", format="html")
        return [picture, table_of(list(kind), moves, meanings)]


def table_of(kinds: list[enum.Enum], moves: Moves, meanings: Mapping[str, str]) -> nodes.table:
    """Return a table with a row for each phase: its name, what it means, and what may come next."""
    body = nodes.tbody()
    body += [
        row_of(
            nodes.literal("", phase.value),
            nodes.Text(meanings.get(phase.name, "").strip()),
            nodes.Text(", ".join(other.value for other in kinds if other in moves[phase]) or "nothing: it is the end"),
        )
        for phase in kinds
    ]
    head = nodes.thead("", row_of(nodes.Text("phase"), nodes.Text("meaning"), nodes.Text("what may be next")))
    columns = [nodes.colspec(colwidth=width) for width in (15, 45, 40)]
    return nodes.table("", nodes.tgroup("", *columns, head, body, cols=len(columns)))


def row_of(*cells: nodes.Node) -> nodes.row:
    """Return a row of a table."""
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells))


def picture_of(kinds: list[enum.Enum], moves: Moves) -> Iterator[str]:
    """Yield an SVG: the phases in a row, moves to the right as arcs above it, and those back as arcs below it."""
    place = {phase: MARGIN + STEP * number for number, phase in enumerate(kinds)}
    leaps = [(place[phase], place[other]) for phase in kinds for other in kinds if other in moves[phase]]
    above = max(height_of(end - begin) for begin, end in leaps if end > begin) + HEIGHT + 6
    below = max((height_of(begin - end) for begin, end in leaps if end < begin), default=0) + HEIGHT + 6
    width = 2 * MARGIN + STEP * (len(kinds) - 1)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {-above} {width} {above + below}" width="100%" role="img"'
        ' aria-label="the moves of the table below" font-family="sans-serif" font-size="13" fill="currentColor">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z"/></marker></defs>'
    )
    for begin, end in leaps:
        yield arc(begin, end)
    for phase, middle in place.items():
        yield (
            f'<rect x="{middle - HALF_BOX}" y="{-HEIGHT}" width="{2 * HALF_BOX}" height="{2 * HEIGHT}" rx="6"'
            ' fill="none" stroke="currentColor"/>'
            f'<text x="{middle}" y="4" text-anchor="middle">{phase.value}</text>'
        )
    yield "</svg>"


def arc(begin: int, end: int) -> str:
    """Return an arrow from one phase to another."""
    side = 1 if end > begin else -1
    leave, arrive = begin + side * 14, end - side * (6 + 24 * STEP // abs(end - begin))  # those from afar come last
    base, top = -side * HEIGHT, -side * (HEIGHT + height_of(abs(end - begin)) * 4 // 3)
    return (
        f'<path d="M{leave},{base} C{leave},{top} {arrive},{top} {arrive},{base}" fill="none" stroke="currentColor"'
        ' stroke-opacity="0.55" marker-end="url(#tip)"/>'
    )


def height_of(distance: int) -> int:
    """Return how high an arc over this distance rises."""
    return RISE * distance // STEP + 6


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive."""
    app.add_directive("phases", Phases)
    return {"parallel_read_safe": True}
