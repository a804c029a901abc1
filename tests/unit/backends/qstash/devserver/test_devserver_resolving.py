"""Deliveries for public hosts that go to local addresses."""

from __future__ import annotations

import pytest

from queuebridge.backends.qstash.devserver import Resolution, ServerSettings
from queuebridge.backends.qstash.devserver.resolving import Resolver
from queuebridge.errors import ConfigurationError


def place(url: str, *resolutions: str) -> tuple[str, str] | None:
    return Resolver(Resolution.parse(text) for text in resolutions).place_of(url)


@pytest.mark.parametrize(
    ("url", "local", "host"),
    [
        ("https://api.example.com/a//b%2Fc?x=1&y=%20", "http://127.0.0.1:3000/a//b%2Fc?x=1&y=%20", "api.example.com"),
        ("https://api.example.com", "http://127.0.0.1:3000/", "api.example.com"),
        ("https://API.example.com./x", "http://127.0.0.1:3000/x", "API.example.com."),
        ("http://api.example.com:8443/x", "http://127.0.0.1:3000/x", "api.example.com:8443"),
        ("https://user:pw@api.example.com/x", "http://user:pw@127.0.0.1:3000/x", "api.example.com"),
    ],
)
def test_scheme_host_and_port_are_replaced_and_the_rest_kept(url: str, local: str, host: str) -> None:
    assert place(url, "api.example.com=http://127.0.0.1:3000") == (local, host)


def test_path_of_the_local_url_goes_before_the_path() -> None:
    found = place("https://a.example/hook?x=1", "a.example=http://localhost:3000/base/")

    assert found == ("http://localhost:3000/base/hook?x=1", "a.example")


@pytest.mark.parametrize("url", ["https://other.example/x", "https://sub.a.example/x", "https://a.example.evil/x"])
def test_other_hosts_are_left_alone(url: str) -> None:
    assert place(url, "a.example=http://localhost:1") is None


@pytest.mark.parametrize(
    ("url", "port"),
    [("https://a.example/x", 2), ("https://a.example:443/", 2), ("http://a.example/x", 1), ("http://a.example:81/", 1)],
)
def test_host_with_a_port_means_that_port_and_goes_first(url: str, port: int) -> None:
    found = place(url, "a.example=http://localhost:1", "a.example:443=http://localhost:2")

    assert found is not None
    assert found[0].startswith(f"http://localhost:{port}/")


def test_host_with_a_port_alone_leaves_other_ports() -> None:
    assert place("http://a.example/x", "a.example:8080=http://localhost:1") is None


def test_host_outside_ascii_is_the_same_in_both_spellings() -> None:
    assert place("https://xn--bcher-kva.example/x", "bücher.example=http://localhost:1") is not None
    assert place("https://bücher.example/x", "xn--bcher-kva.example=http://localhost:1") is not None


def test_address_of_version_6_stands_in_brackets() -> None:
    assert place("http://[2001:db8::1]:80/x", "[2001:db8::1]:80=http://[::1]:3000") == (
        "http://[::1]:3000/x",
        "[2001:db8::1]:80",
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("api.example.com", "no '='"),
        ("=http://localhost:1", "host before '=' is missing"),
        ("https://a.example=http://localhost:1", "without scheme and path"),
        ("a b=http://localhost:1", "'a b' is no host"),
        ("a.example:=http://localhost:1", "'a.example:' is no host"),
        ("a.example:port=http://localhost:1", "Port could not be cast"),
        ("a.example:70000=http://localhost:1", "Port out of range"),
        ("a.example?x=http://localhost:1", "is no host"),
        ("a.example=", "URL after '=' is missing"),
        ("a.example=localhost:3000", "must begin with http:// or https://"),
        ("a.example=ftp://localhost", "must begin with http:// or https://"),
        ("a.example=http://", "the URL has no host"),
        ("a.example=http://localhost:99999", "Port out of range"),
        ("a.example=http://localhost/?x=1", "no query, fragment or space"),
        ("a.example=http://localhost/a b", "no query, fragment or space"),
    ],
)
def test_malformed_value_is_refused_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Resolution.parse(text)

    assert problem in str(caught.value)
    assert text in str(caught.value)


@pytest.mark.parametrize("text", ["a.example=http://u:s3cret@localhost", "u:s3cret@a.example=http://localhost"])
def test_password_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ConfigurationError, match="user or password") as caught:
        Resolution.parse(text)

    assert "s3cret" not in str(caught.value)


def test_host_given_twice_is_refused_where_it_is_set() -> None:
    twice = tuple(Resolution.parse(text) for text in ("a.example=http://localhost:1", "A.example=http://localhost:2"))

    with pytest.raises(ConfigurationError, match=r"a\.example is given twice"):
        ServerSettings(resolve=twice)
