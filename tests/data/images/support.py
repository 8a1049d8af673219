"""Image files that Pillow cannot write: color profiles, and PNGs with 16 bits per color or chunks of any kind."""

import struct
import zlib

import numpy as np


def icc_profile(primaries, curve=(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)):
    """A profile of RGB with these columns of red, green and blue (XYZ, D50); its curve is that of sRGB, or `(gamma,)`."""
    numbers = lambda values: b"".join(struct.pack(">i", round(value * 65536)) for value in values)  # noqa: E731
    tags = [(b"wtpt", b"XYZ " + bytes(4) + numbers((0.9642, 1.0, 0.8249)))]
    for letter, column in zip(b"rgb", primaries, strict=True):
        tags.append((bytes([letter]) + b"XYZ", b"XYZ " + bytes(4) + numbers(column)))
        tags.append(
            (
                bytes([letter]) + b"TRC",
                b"para" + bytes(4) + struct.pack(">HH", 3 * (len(curve) > 1), 0) + numbers(curve),
            )
        )
    table, content, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags:
        table += name + struct.pack(">II", start + len(content), len(data))
        content += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(content), bytes(4), 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + numbers((0.9642, 1.0, 0.8249))
    return head.ljust(128, b"\0") + table + content


_P3 = [(0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)]
DISPLAY_P3 = icc_profile(_P3)  # (200, 60, 40) is (217, 42, 23) in sRGB
P3_GAMMA_22 = icc_profile(_P3, (2.2,))  # (200, 60, 40) is (219, 37, 13) in sRGB


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, *chunks, bits=16):
    """PNG of integers `(H, W, channels)`, with more chunks `(kind, data)` before the pixels."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    else:
        places = np.arange(bits)[::-1]
        rows = [np.packbits((row.reshape(-1, 1) >> places & 1).astype(np.uint8)).tobytes() for row in values]
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
