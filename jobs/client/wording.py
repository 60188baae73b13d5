"""How numbers are said."""


def many(count: int, what: str) -> str:
    """A number of things: 1 pair, 1,000 pairs."""
    return f"1 {what}" if count == 1 else f"{count:,} {what}s"
