"""A plot of medians and ranges, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from attrs import frozen

__all__ = ["Bar", "Panel", "svg"]

_WIDTH, _LEFT, _RIGHT = 760, 190, 170
_BAR, _GAP, _HEAD = 22, 12, 46


@frozen
class Bar:
    """One bar: the median, and the lowest and the highest round."""

    name: str
    median: float
    low: float
    high: float
    shown: str


@frozen
class Panel:
    """Bars of one figure on a scale from 0."""

    title: str
    bars: Sequence[Bar]


def svg(panels: Sequence[Panel], caption: str) -> str:
    """The panels, one below the other."""
    parts: list[str] = []
    top = 8.0
    for panel in panels:
        parts.append(f'<text x="12" y="{top + 18:.0f}" class="title">{escape(panel.title)}</text>')
        top += _HEAD - 16
        scale = (_WIDTH - _LEFT - _RIGHT) / max(bar.high for bar in panel.bars)
        for number, bar in enumerate(panel.bars):
            middle = top + _BAR / 2
            parts.append(f'<text x="{_LEFT - 10}" y="{middle + 4:.1f}" class="name">{escape(bar.name)}</text>')
            shade = "ours" if number == 0 else "theirs"
            width = bar.median * scale
            parts.append(f'<rect x="{_LEFT}" y="{top:.1f}" width="{width:.1f}" height="{_BAR}" class="{shade}"/>')
            low, high = _LEFT + bar.low * scale, _LEFT + bar.high * scale
            parts.append(f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}" class="range"/>')
            parts.extend(f'<path d="M{end:.1f} {middle - 5:.1f}v10" class="range"/>' for end in (low, high))
            edge = max(high, _LEFT + width) + 10
            parts.append(f'<text x="{edge:.1f}" y="{middle + 4:.1f}" class="value">{escape(bar.shown)}</text>')
            top += _BAR + _GAP
        top += 14
    parts.append(f'<text x="12" y="{top + 4:.0f}" class="caption">{escape(caption)}</text>')
    height = top + 18
    style = (
        "text{font:13px system-ui,sans-serif;fill:#222}.title{font-weight:600}.name{text-anchor:end}"
        ".caption{font-size:11px;fill:#555}.ours{fill:#2a78a8}.theirs{fill:#b9bec4}.range{stroke:#222;fill:none}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" '
        f'height="{height:.0f}" role="img" aria-label="{escape(caption, quote=True)}">\n<style>{style}</style>\n'
        f'<rect width="{_WIDTH}" height="{height:.0f}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
