"""Numbers as people read them, one function for each kind of quantity."""

from __future__ import annotations

__all__ = ["format_bytes", "format_count", "format_macs", "format_share"]

_STEPS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def format_count(value: float) -> str:
    """A count with four significant digits and an SI prefix.

    >>> format_count(11_689_512), format_count(512)
    ('11.69 M', '512')
    """
    for prefix, step in _STEPS:
        if abs(value) >= step:
            return f"{value / step:.4g} {prefix}"
    return f"{value:g}"


def format_macs(macs: float) -> str:
    """MACs with the FLOPs they stand for (1 MAC = 2 FLOPs).

    >>> format_macs(1.5e9)
    '1.5 GMACs (3 GFLOPs)'
    """
    return f"{_unit(macs)}MACs ({_unit(2 * macs)}FLOPs)"


def _unit(value: float) -> str:
    text = format_count(value)
    return text if " " in text else text + " "


def format_bytes(size: float) -> str:
    """A size in powers of 1000.

    >>> format_bytes(46_800_000), format_bytes(12)
    ('46.8 MB', '12 B')
    """
    return f"{_unit(size)}B"


def format_share(part: float, whole: float) -> str:
    """`part` as a share of `whole`; a dash where there is nothing to share.

    >>> format_share(1, 4), format_share(0, 0)
    ('25.0 %', '-')
    """
    return f"{100 * part / whole:.1f} %" if whole else "-"
