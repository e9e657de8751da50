"""UCXL addresses: every part within its alphabet, and nothing else."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.core.ucxl import UcxlAddress, parse_ucxl
from tests.properties import many

NAMES = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=12)
TEMPORALS = st.sampled_from(["*^", "*~"]) | st.builds(
    "{}{}".format, st.sampled_from(["*~", "~~", "^^"]), st.integers(0, 10**6)
)
PATHS = st.text(string.ascii_letters + string.digits + "_-/.", max_size=20)


@many
@given(st.builds(UcxlAddress, NAMES, NAMES, NAMES, NAMES, TEMPORALS, PATHS))
def test_an_address_written_is_read_as_it_was(address: UcxlAddress) -> None:
    assert parse_ucxl(str(address)) == address


@many
@given(st.text(max_size=60) | st.from_regex(r"ucxl://.{0,8}:.{0,8}@.{0,8}:.{0,8}/.{0,4}/.{0,8}"))
def test_any_text_is_an_address_that_stays_the_same_or_is_refused(text: str) -> None:
    try:
        address = parse_ucxl(text)
    except ValueError:
        return
    assert str(address) in (text, f"{text}/")


def test_each_part_has_its_name() -> None:
    assert parse_ucxl("ucxl://agent-1:tpm@chorus:DEV_7/~~3/docs/x.md") == UcxlAddress(
        "agent-1", "tpm", "chorus", "DEV_7", "~~3", "docs/x.md"
    )


@pytest.mark.parametrize(
    "text",
    [
        "ucxl://a:b@c:d/*^~/x",
        "ucxl://a:b@c:d/^^/x",
        "ucxl://a:b@c:d/~~-1/x",
        "ucxl://a:b@c:d/*^3/x",
        "ucxl://a:b@c:d/~~٣/x",
        "ucxl://a:b@c:d/*~٣/x",
        "ucxl://a:b@c:d",
        "ucxl://a:b@c:d/x",
        "ucxl://a:b:e@c:d/*^/",
        "ucxl://a:b@c@d/*^/",
        "ucxl://:b@c:d/*^/",
        "ucxl://a.x:b@c:d/*^/",
        "ucxl://a:b@c:d/*^/x?y",
        "ucxl://a:b@c:d/*^/ü",
        "ucxl://a:b@c:d/*^/x\n",
        " ucxl://a:b@c:d/*^/x",
        "UCXL://a:b@c:d/*^/x",
    ],
)
def test_what_is_out_of_an_alphabet_or_out_of_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="ucxl://agent:role@project:task"):
        parse_ucxl(text)
