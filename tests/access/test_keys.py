"""A key works only as a whole and only while it is valid, and its secret is never shown again."""

from __future__ import annotations

import base64
import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.access.keys import KeyLimits, KeyRing, key_from_config, new_key, rotated
from mcpmeter.errors import ConfigInvalid, NotAuthenticated

STRONG = "pk-7Rq2vX9bLw4TnZ8mKs1HdJ6yCf3Ga5Ue"


def test_a_new_key_hides_about_256_random_bits():
    secret, key = new_key("notebook", "research", 5)
    assert secret.startswith("mk_")
    hidden = secret[len(key.prefix) :]
    assert len(hidden) * 6 >= 250
    assert len(base64.urlsafe_b64decode(secret[3:])) * 8 >= 256
    assert key.prefix == secret[:9]
    assert (key.name, key.team, key.created_at_ns, key.revoked_at_ns) == ("notebook", "research", 5, None)
    assert key.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert secret[9:] not in repr(key)


def test_each_secret_identifies_its_own_key():
    made = [new_key(f"n{place}", "t", 1) for place in range(20)]
    ring = KeyRing(key for _, key in made)
    assert [ring.identify(secret) for secret, _ in made] == [key for _, key in made]
    assert ring.teams == {"t"}
    assert not ring.empty


@pytest.mark.parametrize("secret", [None, ""])
def test_a_missing_key_has_its_own_message(secret):
    with pytest.raises(NotAuthenticated, match="No API key was sent"):
        KeyRing([new_key("n", "t", 1)[1]]).identify(secret)


@given(st.text(st.characters(), max_size=60))
def test_any_other_text_is_refused_and_never_quoted(sent):
    secret, key = new_key("n", "t", 1)
    ring = KeyRing([key])
    for wrong in (sent, secret[:-1], secret + sent + "x", secret[:20], key.sha256, key.id, secret.upper(), "\ud800"):
        with pytest.raises(NotAuthenticated) as refused:
            ring.identify(wrong)
        assert len(wrong) < 8 or wrong not in str(refused.value)


def test_a_revoked_key_is_refused():
    secret, key = new_key("n", "t", 1)
    with pytest.raises(NotAuthenticated, match="revoked"):
        KeyRing([msgspec.structs.replace(key, revoked_at_ns=2)]).identify(secret)


def test_a_ring_of_revoked_keys_is_not_empty():
    assert KeyRing([]).empty
    assert not KeyRing([msgspec.structs.replace(new_key("n", "t", 1)[1], revoked_at_ns=2)]).empty


def test_keys_that_clash_are_refused():
    first = key_from_config(name="a", team="t", secret=STRONG)
    with pytest.raises(ConfigInvalid, match=r"'a' .*'b'"):
        KeyRing([first, key_from_config(name="b", team="t", secret=STRONG)])
    with pytest.raises(ConfigInvalid, match="'a'"):
        KeyRing([first, key_from_config(name="a", team="t", secret=STRONG[::-1])])
    assert KeyRing([first, first]).identify(STRONG) == first


def test_a_key_is_the_same_by_secret_and_by_hash():
    by_secret = key_from_config(name="a", team="t", secret=STRONG)
    by_hash = key_from_config(name="a", team="t", sha256=hashlib.sha256(STRONG.encode()).hexdigest().upper())
    assert by_hash == msgspec.structs.replace(by_secret, prefix="")
    assert KeyRing([by_hash]).identify(STRONG).team == "t"


def test_a_configured_key_keeps_its_id_when_its_secret_changes():
    first = key_from_config(name="a", team="t", secret=STRONG)
    assert key_from_config(name="a", team="t", secret=STRONG[::-1]).id == first.id
    assert key_from_config(name="a", team="u", secret=STRONG).id != first.id


def test_new_secrets_are_strong_enough_for_configuration():
    for _ in range(500):
        secret, key = new_key("n", "t", 1)
        assert key_from_config(name="n", team="t", secret=secret).sha256 == key.sha256


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        ("", "shorter than 32"),
        (STRONG[:31], "shorter than 32"),
        ("changeme-changeme-changeme-changeme", "example"),
        ("sk-1234567890abcdefghijklmnopqrstuvwx", "example"),
        ("Your-API-key-goes-here-0a9b8c7d6e5f4", "example"),
        ("a" * 64, "too few different"),
        ("7Rq2vX9bLw4TnZ8mKs1HdJ6yCf3Ga5Ue\n", "header cannot carry"),
        ("7Rq2vX9bLw4TnZ8m Ks1HdJ6yCf3Ga5Ue", "header cannot carry"),
        ("7Rq2vX9bLw4TnZ8mKs1HdJ6yCf3Ga5Ué", "header cannot carry"),
    ],
)
def test_weak_secrets_are_refused_and_not_quoted(secret, why):
    with pytest.raises(ConfigInvalid, match=why) as refused:
        key_from_config(name="backend", team="t", secret=secret)
    assert "'backend'" in str(refused.value)
    assert not secret or secret not in str(refused.value)


@pytest.mark.parametrize("given_", [{}, {"secret": STRONG, "sha256": "0" * 64}, {"sha256": "abc"}, {"sha256": ""}])
def test_a_configured_key_needs_one_usable_secret_or_hash(given_):
    with pytest.raises(ConfigInvalid):
        key_from_config(name="a", team="t", **given_)


@pytest.mark.parametrize("name", ["", " ", "-a", "a\n", "\ud800", "x" * 65, "a\x1b[31m", "équipe"])
def test_names_unsafe_for_labels_or_terminals_are_refused(name):
    for arguments in ((name, "t"), ("n", name)):
        with pytest.raises(ConfigInvalid) as refused:
            new_key(*arguments, 1)
        assert str(refused.value).isascii()
        assert str(refused.value).isprintable()


def test_a_key_is_refused_from_its_expiry_on():
    secret, key = new_key("n", "t", 1, KeyLimits(expires_at_ns=100))
    ring = KeyRing([key])
    assert ring.identify(secret, 99) == key
    with pytest.raises(NotAuthenticated, match="has expired"):
        ring.identify(secret, 100)


def test_a_rotated_key_accepts_both_secrets_for_the_grace():
    before, key = new_key("n", "t", 1)
    after, turned = rotated(key, 1000, grace_ns=50)
    assert (turned.id, turned.name, turned.created_at_ns) == (key.id, key.name, key.created_at_ns)
    assert turned.prefix == after[: len(turned.prefix)]
    ring = KeyRing([turned])
    assert ring.identify(after, 1049) == turned
    assert ring.identify(before, 1049) == turned
    assert ring.identify(after, 1050) == turned
    with pytest.raises(NotAuthenticated, match="not known"):
        ring.identify(before, 1050)


def test_a_rotation_without_grace_ends_the_old_secret():
    before, key = new_key("n", "t", 1)
    _, turned = rotated(key, 1000)
    with pytest.raises(NotAuthenticated):
        KeyRing([turned]).identify(before, 1000)


def test_a_revoked_key_is_refused_by_either_secret():
    before, key = new_key("n", "t", 1)
    after, turned = rotated(key, 1000, grace_ns=10**6)
    revoked = msgspec.structs.replace(turned, revoked_at_ns=1001)
    for secret in (before, after):
        with pytest.raises(NotAuthenticated):
            KeyRing([revoked]).identify(secret, 1002)
    with pytest.raises(ConfigInvalid, match="was revoked"):
        rotated(revoked, 1003)


@pytest.mark.parametrize(
    "limits",
    [
        KeyLimits(requests_per_minute=0),
        KeyLimits(tokens_per_minute=-1),
        KeyLimits(tokens_per_minute=10**13),
        KeyLimits(expires_at_ns=1),
        KeyLimits(project="a\nb"),
    ],
)
def test_invalid_limits_are_refused(limits):
    with pytest.raises(ConfigInvalid):
        new_key("n", "t", 5, limits)
