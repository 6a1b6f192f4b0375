"""A body of ``POST /predict`` with all values that a model uses, one with as few as it needs, and those to refuse."""

GOOD = [1000.0 + row for row in range(251)]
SHORT = GOOD[-20:]


def with_value(text):
    return ('{"values": [' + ", ".join(["100.0"] * 19 + [text]) + "]}").encode()


BAD_BODIES = {
    "too few values": b'{"values": [1.0, 2.0]}',
    "no values": b'{"values": []}',
    "NaN": with_value("NaN"),
    "Infinity": with_value("Infinity"),
    "minus infinity": with_value("-Infinity"),
    "a number beyond all floats": with_value("1e999"),
    "an integer beyond all floats": with_value("1" + "0" * 400),
    "a string": with_value('"100.0"'),
    "a boolean": with_value("true"),
    "null": with_value("null"),
    "a nested list": with_value("[100.0]"),
    "an object": with_value("{}"),
    "a zero price": with_value("0"),
    "a negative price": with_value("-5.0"),
    "values is null": b'{"values": null}',
    "values is a string": b'{"values": "1 2 3"}',
    "values is an object": b'{"values": {"0": 1}}',
    "no such field": b'{"prices": [1.0]}',
    "a bare list": b"[1.0, 2.0]",
    "a bare number": b"1",
    "null itself": b"null",
    "nothing": b"",
    "not JSON": b"values=1,2,3",
    "half a JSON document": b'{"values": [1.0, 2.0',
    "bytes that are no text": b"\xff\xfe\x00{",
    "deep nesting": b'{"values": ' + b"[" * 5000,
}
