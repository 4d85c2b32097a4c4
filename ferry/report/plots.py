"""Graphs as SVG for a page: colours are the page's CSS variables, texts are texts, and nothing is loaded."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from ferry.core import escaped, size
from ferry.pages import percent
from ferry.report.figures import HostLine, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 520, 230  # in units that are CSS pixels where the page has room for two graphs side by side
FONT = 12.5
BAR_HOSTS = 12
LABEL = 26  # characters of a host's name
# matplotlib knows no CSS variables: it draws in colours that nothing else has, which are replaced in its output.
_COLOURS = {
    "#010a01": "--text", "#010a02": "--muted", "#010a03": "--line", "#010a04": "--bad",
    "#010a05": "--series-1", "#010a06": "--series-2", "#010a07": "--series-3", "#010a08": "--series-4",
}  # fmt: skip
TEXT, MUTED, LINE, BAD, ROWS, BYTES, SECONDS, SIZES = _COLOURS
_STYLE: Any = {
    "svg.fonttype": "none",  # text as text, in the page's font
    "svg.hashsalt": "ferry", "text.parse_math": False,  # a host or a type may have a `$`
    "font.family": "sans-serif", "font.size": FONT, "text.color": TEXT, "axes.edgecolor": MUTED,
    "axes.labelcolor": TEXT, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT, "grid.color": LINE,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y",
    "axes.axisbelow": True, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "axes.titlesize": FONT, "axes.titleweight": "bold", "axes.titlelocation": "left",
}  # fmt: skip


class Plots:
    """The graphs of one page. Made by :func:`drawing`; each method returns an SVG element with a title."""

    def __init__(self) -> None:
        self._count = 0

    def rows_over_time(self, line: Timeline) -> str:
        """Rows per second, and those of them that failed."""
        figure, axes = _axes()
        edges = [line.at(bucket) for bucket in range(len(line.rows) + 1)]
        axes.stairs(_rates(line.rows, line), _numbers(edges), color=ROWS, fill=True, alpha=0.25)
        axes.stairs(_rates(line.rows, line), _numbers(edges), color=ROWS, baseline=None, label="all outcomes")
        if any(line.failed):
            axes.stairs(_rates(line.failed, line), _numbers(edges), color=BAD, fill=True, label="failed")
            _legend(axes, "lower right")
        axes.set_title("Rows per second")
        _time_axis(axes, line)
        return self._svg(figure, f"Rows per second of run {line.run_no}")

    def bytes_over_time(self, line: Timeline) -> str:
        """Bytes per second."""
        figure, axes = _axes()
        edges = _numbers([line.at(bucket) for bucket in range(len(line.bytes) + 1)])
        axes.stairs(_rates(line.bytes, line), edges, color=BYTES, fill=True, alpha=0.25)
        axes.stairs(_rates(line.bytes, line), edges, color=BYTES, baseline=None)
        axes.set_title("Bytes per second")
        axes.yaxis.set_major_formatter(lambda value, _: _round_size(value))
        _time_axis(axes, line)
        return self._svg(figure, f"Bytes per second of run {line.run_no}")

    def seconds_by_host(self, hosts: Sequence[HostLine]) -> str:
        """The median and the 95th percentile of the seconds per object, of the first hosts."""
        shown = [host for host in hosts if host.median_s is not None and host.p95_s is not None][:BAR_HOSTS]
        figure, axes = _axes(height=70 + 26 * len(shown))
        at = range(len(shown))
        median, high = [host.median_s or 0.0 for host in shown], [host.p95_s or 0.0 for host in shown]
        axes.hlines(at, median, high, color=SECONDS, linewidth=5, alpha=0.5)
        axes.plot(median, at, "o", color=SECONDS, label="median")
        axes.plot(high, at, "|", color=SECONDS, markersize=12, markeredgewidth=2, label="95% are faster")
        axes.set_yticks(list(at), [_label(host.host) for host in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
        _legend(axes, "lower left")
        return self._svg(figure, "Seconds per object by host: median and 95th percentile")

    def failed_by_host(self, hosts: Sequence[tuple[str, int, int]]) -> str:
        """Failed rows of the hosts that have the most, and their share: (host, failed, rows) each."""
        figure, axes = _axes(height=70 + 26 * len(hosts))
        at = list(range(len(hosts)))
        bars = axes.barh(at, [failed for _, failed, _ in hosts], color=BAD, height=0.6)
        axes.bar_label(bars, [f"{failed:,} ({percent(failed / rows)})" for _, failed, rows in hosts], padding=4)
        axes.set_yticks(at, [_label(host) for host, *_ in hosts])
        axes.set_ylim(len(hosts) - 0.5, -0.5)
        axes.margins(x=0.25)
        axes.set_title("Failed rows by host")
        axes.grid(visible=False)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        return self._svg(figure, "Failed rows by host")

    def sizes(self, bins: Sequence[tuple[int, int, int]]) -> str:
        """Objects by size, on a logarithmic axis."""
        figure, axes = _axes()
        edges = [*(low for low, _, _ in bins), bins[-1][1]]
        axes.stairs([count for *_, count in bins], edges, color=SIZES, fill=True)
        axes.set_xscale("log")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_title("Objects by size")
        axes.xaxis.set_major_formatter(lambda value, _: _round_size(value))
        axes.minorticks_off()
        _count_axis(axes)
        return self._svg(figure, "Objects by size")

    def delta_runs(self, runs: Sequence[tuple[int, dict[str, int]]]) -> str:
        """New, changed and failed rows of each delta run."""
        figure, axes = _axes()
        at = list(range(len(runs)))
        bottom = [0] * len(runs)
        for name, colour in (("new", ROWS), ("changed", SECONDS), ("failed", BAD)):
            values = [figures[name] for _, figures in runs]
            axes.bar(at, values, bottom=bottom, color=colour, label=name, width=0.7)
            bottom = [low + value for low, value in zip(bottom, values, strict=True)]
        step = max(1, len(runs) // 10)
        axes.set_xticks(at[::step], [f"run {number}" for number, _ in runs[::step]])
        _count_axis(axes)
        axes.margins(y=0.15)
        _legend(axes, "lower left")
        return self._svg(figure, "New, changed and failed rows of each delta run")

    def _svg(self, figure: Figure, title: str) -> str:
        self._count += 1
        text = io.StringIO()
        figure.savefig(text, format="svg")
        return _for_page(text.getvalue(), f"plot-{self._count}", escaped(title))


@contextlib.contextmanager
def drawing() -> Iterator[Plots]:
    """Provides the graphs, for the block. matplotlib and its settings are loaded here: it takes about a second.

    It keeps a list of fonts in a folder, the user's by default. The list is of the fonts that it brings along, in a
    folder that goes with the block: homes may be read-only, and a browser draws the texts with the page's font.
    """
    given = {name: os.environ.get(name) for name in ("MPLCONFIGDIR", "MPL_IGNORE_SYSTEM_FONTS")}
    with tempfile.TemporaryDirectory(prefix="ferry-plots-") as folder, warnings.catch_warnings():
        os.environ |= {"MPLCONFIGDIR": folder, "MPL_IGNORE_SYSTEM_FONTS": "1"}
        try:
            import matplotlib
            import matplotlib.figure

            # A name may have characters that its fonts lack; the browser's have them.
            warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
            with matplotlib.rc_context():
                matplotlib.rcdefaults()  # a user's matplotlibrc does not count
                matplotlib.rcParams.update(_STYLE)
                yield Plots()
        finally:
            for name, value in given.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _axes(height: int = HEIGHT) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
    return figure, figure.add_subplot()


def _rates(values: Sequence[int], line: Timeline) -> list[float]:
    return [value / line.width_s for value in values]


def _numbers(edges: Sequence[Any]) -> list[float]:
    """Returns times as seconds since the first one."""
    return [(edge - edges[0]).total_seconds() for edge in edges]


def _time_axis(axes: Axes, line: Timeline) -> None:
    """Labels the axis with times of day, and with dates where the run took longer than a day."""
    from matplotlib.ticker import FixedLocator

    span = line.width_s * len(line.rows)
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
    step = next((seconds for seconds in steps if span / seconds <= 4), span / 5)
    first = -line.start.timestamp() % step
    form = "%d %b %H:%M" if span > 86400 else "%H:%M" if step >= 60 else "%H:%M:%S"
    axes.xaxis.set_major_locator(
        FixedLocator([first + step * number for number in range(int((span - first) // step) + 1)])
    )
    axes.xaxis.set_major_formatter(lambda value, _: (line.start + timedelta(seconds=value)).strftime(form))
    axes.set_xlim(0, span)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)


def _legend(axes: Axes, corner: Literal["lower left", "lower right"]) -> None:
    """Puts the legend above the graph, where it covers nothing."""
    at = (float(corner == "lower right"), 1.0)
    axes.legend(frameon=False, loc=corner, bbox_to_anchor=at, ncols=3, borderaxespad=0, handlelength=1.2)


def _count_axis(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _label(host: str) -> str:
    """Returns a host as the label of a bar: its end names the site."""
    text = escaped(host) or "(without a host)"
    return text if len(text) <= LABEL else f"…{text[1 - LABEL :]}"


def _round_size(value: float) -> str:
    return size(value).replace(".0 ", " ").replace(" bytes", " B") if value else "0"


def _for_page(svg: str, name: str, title: str) -> str:
    """Returns matplotlib's SVG as an element of a page.

    It loses its prologue, its own style sheet, which would be the page's too, and its size. Its IDs get ``name`` in
    front, since a page has several graphs.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="(?=[^<>]*>)', f'id="{name}-', svg)  # in tags: a label may hold the same characters
    svg = svg.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {view[0]} role="img" aria-labelledby="{name}-title">'
    safe = title.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"<svg[^>]*>", lambda _: f'{head}<title id="{name}-title">{safe}</title>', svg, count=1).rstrip()
