"""Charts as SVG: bars, curves with bands, points, heat maps. A chart is the text of a file, opaque and 700 wide.

SVG is text: the same numbers give the same bytes on every machine. Values over several bases are given as a list; the
chart shows their mean and standard deviation.
"""
import math
import statistics
from dataclasses import dataclass, field
from html import escape

BLUE, ORANGE, GREEN, PINK, SKY, RED, BLACK = (  # Okabe and Ito's, which the colour-blind tell apart
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
COLORS = [BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK]
INK, GREY, PALE = "#222222", "#767676", "#dddddd"
WIDTH, LETTER = 700, 7  # a letter of the system's font is at most about 7 wide


def svg(height: float, title: str, parts: list[str]) -> str:
    """A figure on an opaque ground, so that it reads on a dark page, too."""
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {short(height)}" '
            f'font-family="system-ui, sans-serif" font-size="13" fill="{INK}">\n<title>{escape(title)}</title>\n'
            + "\n".join([rect(0, 0, WIDTH, height, "#ffffff"), *parts]) + "\n</svg>\n")


def short(x: float) -> str:
    return f"{x:.1f}".removesuffix(".0")


def rect(x, y, width, height, color) -> str:
    return f'<rect x="{short(x)}" y="{short(y)}" width="{short(width)}" height="{short(height)}" fill="{color}"/>'


def line(points, color, width=1.0, dashes="") -> str:
    path = " ".join(f"{short(x)},{short(y)}" for x, y in points)
    return (f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{short(width)}"'
            + f' stroke-dasharray="{dashes}"' * bool(dashes) + "/>")


def dot(x, y, color, radius=3.0) -> str:
    return f'<circle cx="{short(x)}" cy="{short(y)}" r="{short(radius)}" fill="{color}"/>'


def text(x, y, words: str, color=INK, anchor="start", more="") -> str:
    return (f'<text x="{short(x)}" y="{short(y)}" fill="{color}" text-anchor="{anchor}"{" " * bool(more)}{more}>'
            f"{escape(words)}</text>")


def heading(words: str) -> str:
    return text(14, 22, words, more='font-weight="600"')


def spread(values) -> tuple[float, float, float]:
    """(mean, mean - standard deviation, mean + standard deviation)."""
    mean = statistics.mean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return mean, mean - deviation, mean + deviation


def legend(x, y, named: list[tuple[str, str]], right=WIDTH - 14) -> tuple[list[str], float]:
    """(parts, the y below them) of words with their colours, on as many lines as they need."""
    parts, left = [], x
    for words, color in named:
        width = 30 + LETTER * len(words)
        if x + width > right and x > left:
            x, y = left, y + 18
        parts += [rect(x, y, 10, 10, color), text(x + 14, y + 9, words)]
        x += width
    return parts, y + 18


def bars(title: str, series: list[tuple[str, str]], rows: list[tuple[str, list]], limit: float = 100,
         mark: float | None = None) -> str:
    """Horizontal bars. series: [(words, colour)]. rows: [(words, [values of each series])], where a series that has
    none in a row has an empty list. limit: the largest value of the axis. mark: where a dashed line stands."""
    left = 30 + LETTER * max(len(words) for words, _ in rows)
    right, thick = WIDTH - 46, 13
    parts, top = legend(left, 34, series) if len(series) > 1 else ([], 34)
    high = thick * len(series) + 10
    bottom = top + 6 + high * len(rows)

    def x(value):
        return left + (right - left) * min(max(value / limit, 0), 1)

    for tick in ticks(0, limit):
        parts += [line([(x(tick), top), (x(tick), bottom)], PALE),
                  text(x(tick), bottom + 17, f"{tick:g}", GREY, "middle")]
    if mark is not None:
        parts.append(line([(x(mark), top), (x(mark), bottom)], INK, dashes="4 3"))
    for i, (words, values) in enumerate(rows):
        y = top + 6 + i * high
        parts.append(text(left - 8, y + high / 2, words, anchor="end"))
        for (_, color), of_bases in zip(series, values):
            if of_bases:
                mean, low, up = spread(of_bases)
                parts.append(rect(left, y, x(mean) - left, thick - 1, color))
                if up > low:
                    parts.append(line([(x(low), y + thick / 2), (x(up), y + thick / 2)], INK, 1.5))
                parts.append(text(x(up) + 5, y + thick - 2, f"{mean:.1f}"))
            y += thick
    return svg(bottom + 28, title, [heading(title), *parts])


@dataclass
class Panel:
    """One system of axes. groups: [(words, colour, [(x, y or a list of y over bases)])].

    joined: draw curves, with a band of one standard deviation, and not points alone. log: the logarithm of x.
    x_marks: {x: words} in place of numbers.
    """

    title: str
    groups: list
    x_label: str = ""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] = (0, 100)
    joined: bool = True
    log: bool = False
    x_marks: dict[float, str] = field(default_factory=dict)


def plot(title: str, panels: list[Panel]) -> str:
    """Panels, two in a row, each with its axes and its legend."""
    gap, edge, columns, high = 56, 44, 2, 170
    wide = (WIDTH - edge - 20 - gap) / columns
    parts, top, below = [heading(title)], 64, 64
    for i, panel in enumerate(panels):
        if i % columns == 0:
            top = below + 10 * bool(i)
        drawn, bottom = axes(panel, edge + i % columns * (wide + gap), top, wide, high)
        parts, below = parts + drawn, max(below, bottom + 24)
    return svg(below - 20, title, parts)


def axes(panel: Panel, left: float, top: float, wide: float, high: float) -> tuple[list[str], float]:
    """(parts, the y below them) of one panel."""
    scale = math.log if panel.log else float
    xs = [x for _, _, points in panel.groups for x, _ in points]
    first, last = panel.x_range or (min(xs), max(xs))
    low, up = panel.y_range

    def at(x, y):
        y = min(max(y, low), up)
        return (left + wide * (scale(x) - scale(first)) / ((scale(last) - scale(first)) or 1),
                top + high * (up - y) / (up - low))

    parts = [text(left, top - 8, panel.title, more='font-weight="600"')]
    for tick in ticks(low, up):
        y = at(first, tick)[1]
        parts += [line([(left, y), (left + wide, y)], PALE), text(left - 6, y + 4, f"{tick:g}", GREY, "end")]
    marks = panel.x_marks or {x: f"{x:g}" for x in (sorted(set(xs)) if panel.log else ticks(first, last))}
    end = 0.0
    for x, words in marks.items():
        place = at(x, low)[0]
        half = LETTER * len(words) / 2
        if place - half > end:  # leave out what would stand on its neighbour
            parts.append(text(place, top + high + 17, words, GREY, "middle"))
            end = place + half + 4
    parts.append(text(left + wide, top + high + 33, panel.x_label, GREY, "end"))
    for _, color, points in panel.groups:
        ys = [(x, *spread(y if isinstance(y, list) else [y])) for x, y in points]
        if panel.joined:
            if any(b > a for _, _, a, b in ys):
                outline = [at(x, a) for x, _, a, _ in ys] + [at(x, b) for x, _, _, b in reversed(ys)]
                path = " ".join(f"{short(x)},{short(y)}" for x, y in outline)
                parts.append(f'<polygon points="{path}" fill="{color}" fill-opacity="0.15"/>')
            parts.append(line([at(x, mean) for x, mean, _, _ in ys], color, 2))
        else:
            parts += [line([at(x, a), at(x, b)], color) for x, _, a, b in ys if b > a]
        parts += [dot(*at(x, mean), color, 3 if panel.joined else 2.2) for x, mean, _, _ in ys]
    named = [(words, color) for words, color, _ in panel.groups if words]
    drawn, bottom = legend(left, top + high + 41, named, left + wide + 20)
    return parts + drawn, bottom


def points(rows: list[dict], x: str, y: str, **wanted) -> list[tuple]:
    """(row[x], row[y]) of the rows that have the wanted values, for a group of a panel."""
    return [(row[x], row[y]) for row in rows if wanted.items() <= row.items()]


def grouped(rows: list[dict], key: str, column: str = "grade") -> list[tuple]:
    """(a value of row[key], [row[column] of the rows that have it]) in order, for the rows of `bars`."""
    values = {}
    for row in rows:
        values.setdefault(row[key], []).append(row[column])
    return list(values.items())


def ticks(low: float, up: float) -> list[float]:
    """About five round numbers from low to up; where they are equal, that one."""
    if low == up:
        return [low]
    step = 10 ** math.floor(math.log10((up - low) / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if factor * step * 5 >= up - low)
    return [round(i * step, 6) for i in range(math.ceil(low / step - 1e-9), math.floor(up / step + 1e-9) + 1)]


def heat(title: str, rows: list[str], columns: list[str], values: list[list[float]], of_rows: str = "",
         of_columns: str = "") -> str:
    """A table of cells from 0 (white) to 100 (blue), each with its value. of_rows, of_columns: what they are."""
    left, high = 30 + LETTER * max(map(len, [*rows, of_rows])), 24
    wide = (WIDTH - 14 - left) / len(columns)
    crowded = any(LETTER * len(words) > wide for words in columns)  # then every second one stands higher
    top = 76 + 16 * crowded
    parts = [heading(title), text(left - 8, top - 10, of_rows, GREY, "end"),
             text(WIDTH - 14, 48, of_columns, GREY, "end")]
    for j, words in enumerate(columns):
        parts.append(text(left + (j + 0.5) * wide, top - 10 - 16 * (crowded and j % 2), words, anchor="middle"))
    for i, words in enumerate(rows):
        y = top + i * high
        parts.append(text(left - 8, y + 16, words, anchor="end"))
        for j, value in enumerate(values[i]):
            share = value / 100
            color = "#" + "".join(f"{round(255 + (end - 255) * share):02x}" for end in (0x00, 0x72, 0xB2))
            parts += [rect(left + j * wide, y, wide - 2, high - 2, color),
                      text(left + (j + 0.5) * wide - 1, y + 15.5, f"{value:.0f}", "#ffffff" if share > 0.55 else INK,
                           "middle")]
    return svg(top + high * len(rows) + 12, title, parts)
