# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""What a report consists of, and its two forms: Markdown and one self-contained HTML file."""

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True)
class Entry:
    """A table's entry.

    Args:
        text: What it says.
        best: Whether it is the best of those it competes with.
    """

    text: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A table's row.

    Args:
        heading: What the row is about.
        entries: One for each further column.
        mark: A reservation about the whole row, shown beside its heading.
        note: Stands in the place of the entries where there are none.
    """

    heading: str
    entries: list[Entry] = field(default_factory=list)
    mark: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        caption: What it shows, and how to read it.
        columns: Heads of the columns, that of the rows' headings first.
        rows: Rows, each with one entry less than there are columns.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class Figure:
    """A figure in a file.

    Args:
        path: PNG file, below the folder of the report.
        alt: What it shows, for those who cannot see it.
        caption: How to read it.
    """

    kind: ClassVar[str] = "figure"
    path: Path
    alt: str
    caption: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Listing:
    """Text as a machine wrote it.

    Args:
        title: What it is.
        text: Text whose lines are kept.
        folded: Whether a reader has to open it.
    """

    kind: ClassVar[str] = "listing"
    title: str
    text: str
    folded: bool = True


@dataclass(frozen=True)
class Tile:
    """A picture of the gallery.

    Args:
        jpeg: Contents of a JPEG file.
        heading: Whose it is.
        caption: What was made of it.
    """

    jpeg: bytes
    heading: str
    caption: str


@dataclass(frozen=True)
class Strip:
    """One test image through every model.

    Args:
        title: Which image it is, and why it is shown.
        tiles: The image, then a picture for each model.
    """

    title: str
    tiles: list[Tile]


@dataclass(frozen=True)
class Gallery:
    """Test images through every model; in the HTML file only.

    Args:
        caption: How to read it.
        strips: One for each image.
    """

    kind: ClassVar[str] = "gallery"
    caption: str
    strips: list[Strip]


Block = Table | Figure | Text | Listing | Gallery


@dataclass(frozen=True)
class Section:
    """A section.

    Args:
        title: Its heading.
        blocks: What it consists of.
        level: 1 for a section, 2 for one within the section before it.
    """

    title: str
    blocks: list[Block]
    level: int = 1

    @property
    def anchor(self) -> str:
        """Name for links to it."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def render(template: str, title: str, sections: list[Section], out: Path) -> str:
    """Return a report as text.

    Args:
        template: ``"report.html"`` or ``"report.md"``.
        title: Heading of the whole.
        sections: Its sections.
        out: Folder that the report will lie in. The Markdown form links to figures relative to it, the HTML form holds
            them.
    """
    environment = Environment(
        loader=PackageLoader("anomalib_dskd.benchmark"),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "base64": lambda content: base64.b64encode(content).decode(),
        "markdown": _markdown,
        "relative": lambda path: path.relative_to(out).as_posix(),
    }
    return environment.get_template(template).render(title=title, sections=sections)


def _markdown(text: str) -> str:
    """Return text that means in a line of Markdown what it says."""
    return re.sub(r"([\\|*`<])", r"\\\1", " ".join(text.split()))
