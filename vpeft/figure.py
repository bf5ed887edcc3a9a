"""The picture of where a method attaches: one pre-norm block between image and head."""

from __future__ import annotations

from html import escape

from vpeft.where import CHANGED, LEARNS, PLACES, READ, REPLACED, Line

_COLOURS = {CHANGED: "#f6b26b", REPLACED: "#f6b26b", READ: "#9fc5e8", LEARNS: "#a9d18e"}
# Boxes and points, from left to right: x, y and width; points have no width.
_Y, _TALL = 118, 34
_AT: dict[str, tuple[int, int, int]] = {
    "pixels": (16, _Y, 56),
    "patch_embed": (84, _Y, 80),
    "tokens_in": (188, _Y, 0),
    "norm1": (214, _Y, 52),
    "attn_in": (282, _Y, 0),
    "q": (300, _Y - 30, 30),
    "k": (300, _Y, 30),
    "v": (300, _Y + 30, 30),
    "attention": (348, _Y, 72),
    "proj": (438, _Y, 44),
    "attn_out": (499, _Y, 0),
    "norm2": (548, _Y, 52),
    "mlp_in": (616, _Y, 0),
    "fc1": (634, _Y, 38),
    "fc2": (732, _Y, 38),
    "mlp_out": (787, _Y, 0),
    "tokens_out": (846, _Y, 0),
    "leaving": (880, _Y, 0),
    "norm": (896, _Y, 50),
    "pool": (962, _Y, 44),
    "features": (1022, _Y, 0),
    "head": (1040, _Y, 48),
}
_PLUS = (523, 811)
_ACT = (688, 30)
_FRAME = (172, 862)
_WIDTH = 1104


def draw(title: str, found: list[Line]) -> str:
    """An SVG of one block between image and head, with what is touched in colour and numbered."""
    height = 232 + 20 * max(len(found), 1)
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        'font-size="13" fill="#222">',
        f"<title>Where {escape(title)} attaches</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<rect x="{_FRAME[0]}" y="24" width="{_FRAME[1] - _FRAME[0]}" height="164" rx="8" fill="#f7f7f7" '
        'stroke="#999" stroke-dasharray="5 4"/>',
        f'<text x="{_FRAME[0] + 8}" y="42" fill="#666">one block of L</text>',
        f'<path d="M 72 {_Y} H {_AT["head"][0]}" stroke="#555" fill="none"/>',
        *(
            f'<path d="M {x} {_Y} C {x + 20} 20 {plus - 20} 20 {plus} {_Y - 9}" stroke="#555" fill="none"/>'
            for x, plus in zip((200, 534), _PLUS, strict=True)
        ),
        f'<path d="M 282 {_Y} L 300 {_Y - 30} M 282 {_Y} L 300 {_Y + 30} M 330 {_Y - 30} L 348 {_Y - 8} '
        f'M 330 {_Y + 30} L 348 {_Y + 8}" stroke="#555" fill="none"/>',
    ]
    how: dict[str, str] = {}
    numbers: dict[str, list[int]] = {}
    for number, line in enumerate(found, start=1):
        for place in line.places:
            numbers.setdefault(place, []).append(number)
            if how.get(place) not in (CHANGED, REPLACED):
                how[place] = line.how
    svg += [_box("act", _ACT[0], _Y, _ACT[1], "white"), *(_plus(x) for x in _PLUS)]
    for place, (x, y, width) in _AT.items():
        colour = _COLOURS[how[place]] if place in how else "#fde9d3" if place == "head" else "white"
        svg.append(_box(PLACES.get(place, place), x, y, width, colour) if width else _point(x, y, colour, place in how))
        if place in numbers:
            svg.append(_badge(x + width - 2 if width else x, y - (_TALL // 2 if width else 17), numbers[place]))
    for number, line in enumerate(found, start=1):
        y = 212 + 20 * number
        svg.append(f'<rect x="16" y="{y - 11}" width="12" height="12" fill="{_COLOURS[line.how]}" stroke="#555"/>')
        svg.append(f'<text x="36" y="{y}">{number}  {escape(str(line))}</text>')
    if not found:
        svg.append('<text x="16" y="232">nothing in the backbone is touched</text>')
    svg.append(
        '<text x="16" y="212" fill="#666">orange: the method acts here; blue: it only reads; green: the '
        "backbone's own parameters learn; pale: the head, which always learns</text>"
    )
    return "\n".join([*svg, "</svg>", ""])


def _box(label: str, x: int, y: int, width: int, colour: str) -> str:
    words = label.split()
    tops = [y + 4] if len(words) == 1 else [y - 3, y + 11]
    tall = 26 if width == 30 and label in "qkv" else _TALL
    texts = "".join(
        f'<text x="{x + width / 2:g}" y="{top}" text-anchor="middle">{word}</text>'
        for word, top in zip(words, tops, strict=True)
    )
    frame = f'x="{x}" y="{y - tall // 2}" width="{width}" height="{tall}" rx="4"'
    return f'<rect {frame} fill="{colour}" stroke="#333"/>{texts}'


def _point(x: int, y: int, colour: str, touched: bool) -> str:
    return f'<circle cx="{x}" cy="{y}" r="{8 if touched else 3}" fill="{colour}" stroke="#333"/>'


def _plus(x: int) -> str:
    return (
        f'<circle cx="{x}" cy="{_Y}" r="9" fill="white" stroke="#333"/>'
        f'<path d="M {x - 5} {_Y} H {x + 5} M {x} {_Y - 5} V {_Y + 5}" stroke="#333"/>'
    )


def _badge(x: int, y: int, numbers: list[int]) -> str:
    text = ",".join(map(str, numbers))
    return (
        f'<rect x="{x - 4 - 4 * len(text)}" y="{y - 8}" width="{8 + 8 * len(text)}" height="16" rx="8" fill="#333"/>'
        f'<text x="{x}" y="{y + 4}" text-anchor="middle" font-size="11" fill="white">{text}</text>'
    )
