"""Ways to damage files, seeded, for tests of what reads or refuses whatever comes."""

VALUES = (
    None,
    True,
    -1,
    0,
    1,
    7,
    2**31,
    2**63,
    10**12,
    10**400,
    1.5,
    float("inf"),
    "",
    "x",
    "../x",
    [],
    [[]],
    {},
    [1] * 9,
)


def damage(content: bytes, generator) -> bytes:
    """The bytes with a few changes of one kind."""
    content = bytearray(content)
    kind, count = generator.integers(6), int(generator.integers(1, 9))
    places = generator.integers(0, max(1, len(content)), count) // generator.choice([1, 1, 8])  # headers more often
    for place in places.tolist():
        if kind == 0:
            content[place : place + 1] = generator.bytes(1)
        elif kind == 1:
            content[place : place + 4] = int(generator.choice([0, 1, 2**31 - 1, 2**32 - 1])).to_bytes(4, "big")
        elif kind == 2:
            del content[place : place + int(generator.integers(1, 40))]
        elif kind == 3:
            content[place:place] = generator.bytes(int(generator.integers(1, 40)))
        elif kind == 4:
            content[place : place + 1] = bytes([content[place] ^ 1 << int(generator.integers(8))] if content else b"")
        else:
            del content[int(generator.integers(len(content) + 1)) :]
            break
    return bytes(content)


def damage_json(value, generator):
    """A document in which one value, at any depth, is another one or gone."""
    if isinstance(value, (dict, list)) and value and generator.random() < 0.8:
        key = (
            list(value)[int(generator.integers(len(value)))]
            if isinstance(value, dict)
            else int(generator.integers(len(value)))
        )
        value = value.copy()
        if generator.random() < 0.2:
            value.pop(key)
        else:
            value[key] = damage_json(value[key], generator)
        return value
    return VALUES[int(generator.integers(len(VALUES)))]
