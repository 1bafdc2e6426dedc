"""What may be typed, or written into a file, where an option is wanted: plausible and hostile."""

from __future__ import annotations

import datetime
import math
from typing import Any

from hypothesis import strategies as st

from flatcl.options import Options, option_fields

HOSTILE = (
    "", " ", "0", "-0", "-1", "1", "2", "3.5", "1e3", "-1e-9", "1e999", "nan", "-nan", "inf",
    "-inf",
    "9" * 25, "9" * 400, "9" * 5000, "1" + "0" * 400, "1_000", "٣", "0x10", "1,2", "1,", ",", ",,",
    "1,,2", "-1,4", "8,8", "8,8,8", "1e3,4", "nan,1", "true", "False", "None", "null", "all", "--",
    "-", "-h", "a\nb", "a\tb", "a\r\nb", "\x00", "\x1b[31m", "é", "日本", "🙂", "\udcff", "%", "%s",
    "%(prog)s", "{}", "{0}", "$x$", "$x^{$", "a'b", 'a"b', "../..", "/dev/null", "x.npz", "digits",
    "[1]", "{a=1}", "power:2", "power:-1", "power:nan", "naive,ewc", "naive,naive", "joint",
    "cuda:9", "cuda:99999999999",
)  # fmt: skip
"""Words that have broken one parser or another."""


def words() -> st.SearchStrategy[str]:
    """Any word of a command line."""
    return st.one_of(
        st.sampled_from(HOSTILE),
        st.integers().map(str),
        st.floats().map(str),
        st.text(max_size=12),
        st.lists(st.integers(-3, 300), max_size=4).map(lambda n: ",".join(map(str, n))),
    )


def lines_of(options: type[Options]) -> st.SearchStrategy[list[str]]:
    """Words after the command's name: its own flags mostly, with words that may or may not fit."""
    fields = option_fields(options)
    flags = [f"--{f.name.replace('_', '-')}" for f in fields if not isinstance(f.default, bool)]
    switches = ["--json", "--quiet", "--no-bias", "--no-panel", "--rehearsal", "--no-centre"]
    fitting = [
        st.tuples(st.just(f"--{f.name.replace('_', '-')}"), st.sampled_from(f.metadata["choices"]))
        for f in fields
        if f.metadata["choices"]
    ]
    fitting += [
        st.tuples(st.just(f"--{f.name.replace('_', '-')}"), st.integers(1, 40).map(str))
        for f in fields
        if f.metadata["parse"] in (int, float)
    ]
    pair = st.one_of(
        st.one_of(fitting),
        st.tuples(st.sampled_from([*flags, "--out", "--record"]), words()),
        st.tuples(st.sampled_from(flags), words()).map(lambda p: (f"{p[0]}={p[1]}",)),
        st.tuples(st.sampled_from(switches)),
        st.tuples(words()),
    )
    return st.lists(pair, max_size=4).map(lambda pairs: [word for pair in pairs for word in pair])


def values() -> st.SearchStrategy[Any]:
    """Any value that a caller in Python may pass."""
    plain = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 300),
        st.integers(),
        st.sampled_from([10**30, -(10**30), 10**400, 16**6000]),
        st.sampled_from([math.nan, math.inf, -math.inf, 5e-324]),
        st.floats(),
        st.sampled_from(HOSTILE),
        st.text(max_size=8),
        st.binary(max_size=3),
        st.complex_numbers(max_magnitude=3),
    )  # fmt: skip
    return st.one_of(
        plain,
        st.lists(plain, max_size=3),
        st.lists(plain, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), plain, max_size=2),
        st.lists(st.lists(plain, max_size=2), max_size=2),
    )


def toml_values() -> st.SearchStrategy[str]:
    """The right-hand side of a line of TOML; some are none."""
    plain = st.one_of(
        st.integers(-3, 300).map(str),
        st.integers().map(str),
        st.floats().map(repr),
        st.sampled_from(["true", "false", "1e999", "1" + "0" * 400, "9" * 5000, "0x" + "f" * 6000]),
        st.sampled_from(HOSTILE).filter(str.isprintable).map(quoted),
        st.just(datetime.date(2021, 2, 28).isoformat()),
        st.just("07:32:00"),
    )  # fmt: skip
    return st.one_of(
        plain,
        st.lists(plain, max_size=3).map(lambda parts: f"[{', '.join(parts)}]"),
        st.lists(plain, max_size=2).map(lambda parts: f"[[{', '.join(parts)}]]"),
        plain.map(lambda part: f"{{ a = {part} }}"),
        st.sampled_from(["", "[", "=", "nan", "[" * 3000, "'é", "\\"]),
    )


def quoted(text: str) -> str:
    """A string of TOML."""
    return "'" + text.replace("'", "") + "'"


def files_of(options: type[Options]) -> st.SearchStrategy[bytes]:
    """The content of a configuration file: lines by the command's own names mostly."""
    names = [f.name for f in option_fields(options)]
    keys = st.one_of(
        st.sampled_from([*names, *(name.replace("_", "-") for name in names)]),
        st.sampled_from(["", "out", "é", "a.b", "[table]", "'hidden'"]),
    )
    text = st.lists(st.tuples(keys, toml_values()).map(" = ".join), max_size=3).map("\n".join)
    whole = text.map(lambda t: t.encode("utf-8", "surrogatepass"))
    return st.one_of(whole, whole, st.binary(max_size=20), st.just(b"lr = 0.1 # \xff"))
