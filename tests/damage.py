"""Changes of a file's bytes, as disks and transfers make them."""

from hypothesis import strategies as st


def changed(data: bytes, draw: st.DataObject) -> bytes:
    """One flipped bit, another byte, bytes cut off, added or left out."""
    kind, at = draw.draw(st.sampled_from("fbcai")), draw.draw(st.integers(0, len(data) - 1))
    if kind == "f":
        return data[:at] + bytes([data[at] ^ 1 << draw.draw(st.integers(0, 7))]) + data[at + 1 :]
    if kind == "b":
        return data[:at] + bytes([(data[at] + draw.draw(st.integers(1, 255))) % 256]) + data[at + 1 :]
    if kind == "c":
        return data[:at]
    return data[:at] + draw.draw(st.binary(min_size=1, max_size=9)) + data[at:] if kind == "a" else data[:at] + data[at + 1 :]
