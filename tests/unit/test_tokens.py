"""Tokens as values, and the front end's copy of the book with its clock (S7, S9, S10)."""

import json
from typing import Any

import pytest
from tornado.httputil import HTTPHeaders

from sirepo_jobs import tokens
from sirepo_jobs.errors import BadInput, Unauthorized, Unavailable
from sirepo_jobs.frontend.auth import MAX_AGE_SECS, Proxy, TokenCopy, Tokens
from sirepo_jobs.tokens import Role, Scope, TokenOrder, TokenRow

DAY = 86_400_000_000


def a_token(seed: int = 1, at: int = 0, **order: Any) -> tuple[str, TokenRow]:
    checked = tokens.check_order(TokenOrder(**({"user": "ann"} | order)))
    return tokens.make(checked, by="root", at=at, randomness=bytes([seed]) * tokens.RANDOM_BYTES)


class Times:
    def __init__(self) -> None:
        self.secs = 1000.0

    def __call__(self) -> float:
        return self.secs


@pytest.fixture
def clock() -> Times:
    return Times()


@pytest.fixture
def copy(clock: Times) -> TokenCopy:
    return TokenCopy(clock, clock)


def find(copy: TokenCopy, text: str) -> Any:
    return Tokens(copy).find(f"Bearer {text}")


def test_nothing_of_the_secret_is_kept() -> None:
    text, row = a_token()
    assert tokens.id_of(text) == row.token == "01" * 6
    assert row.digest == tokens.digest_of(text)
    assert text.split("_", 2)[2] not in repr(row)
    assert row.expires_at == 30 * DAY


def test_a_role_bounds_the_scopes() -> None:
    assert set(a_token(role=Role.READ_ONLY)[1].scopes) == {"jobs:read", "files:read"}
    assert "admin" not in a_token()[1].scopes
    assert a_token(scopes=[Scope.JOBS_READ])[1].scopes == ["jobs:read"]
    for role, scope in (
        (Role.USER, Scope.ADMIN),
        (Role.READ_ONLY, Scope.JOBS_SUBMIT),
        (Role.ADMIN, Scope.SELF),
    ):
        with pytest.raises(BadInput, match="cannot have"):
            a_token(role=role, scopes=[scope])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"user": "../x"}, "no name of a user"),
        ({"user": ""}, "no name of a user"),
        ({}, "required field `user`"),
        ({"user": "ann", "rule": "admin"}, "unknown field `rule`"),
        ({"user": "ann", "role": "root"}, "role"),
        ({"user": "ann", "expires_in": "2y"}, "duration"),
        ({"user": "ann", "expires_in": "400d"}, "366d"),
        ({"user": "ann", "expires_in": 0}, "366d"),
        ({"user": "ann", "name": "a\nb"}, "printable"),
        ([], "JSON object"),
        (b"{", "not JSON"),
    ],
)
def test_orders_that_cannot_be_meant(body: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        tokens.parse_order(body if isinstance(body, bytes) else json.dumps(body).encode())


def test_an_order_in_peoples_units() -> None:
    order = tokens.parse_order(b'{"user":"ann@lab.example","expires_in":"12h","name":null}')
    assert (order.expires_in, order.role, order.name) == (43200.0, "user", "")


def test_a_token_opens_until_it_expires(copy: TokenCopy, clock: Times) -> None:
    text, row = a_token(expires_in=60.0, at=1_000_000_000)
    copy.hear(True, [row])
    assert find(copy, text).user == "ann"
    clock.secs += 60
    copy.hear(False, [])
    with pytest.raises(Unauthorized, match="expired") as caught:
        find(copy, text)
    assert caught.value.code == "expired_token"


def test_a_revoked_token_opens_nothing_and_nobody_stays_by_it(copy: TokenCopy) -> None:
    text, row = a_token()
    copy.hear(True, [row])
    ann = find(copy, text)
    assert copy.stands(ann)
    _, revoked = a_token()
    copy.hear(
        False, [TokenRow(**{**{f: getattr(revoked, f) for f in revoked.__struct_fields__}, "revoked_at": 1})]
    )
    assert not copy.stands(ann)
    with pytest.raises(Unauthorized):
        find(copy, text)


def test_an_id_without_its_secret_opens_nothing(copy: TokenCopy) -> None:
    text, row = a_token()
    copy.hear(True, [row])
    for false in (text[:-1] + "A", text[:-1], text + "x", text.upper(), f"sj_{row.token}_"):
        with pytest.raises(Unauthorized, match="not valid here"):
            find(copy, false)


def test_an_old_copy_lets_nobody_in_and_nobody_stay(copy: TokenCopy, clock: Times) -> None:
    text, row = a_token()
    with pytest.raises(Unavailable):  # nothing has been heard yet
        find(copy, text)
    copy.hear(False, [row])  # a change of what nobody has told us
    assert not copy.is_fresh
    copy.hear(True, [row])
    ann = find(copy, text)
    clock.secs += MAX_AGE_SECS
    assert find(copy, text) is ann
    clock.secs += 0.01
    assert not copy.stands(ann)
    with pytest.raises(Unavailable):
        find(copy, text)
    with pytest.raises(Unauthorized):  # what has not our form needs no book
        find(copy, "x" * 43)
    copy.hear(True, [])
    with pytest.raises(Unauthorized):
        find(copy, text)


def test_a_use_is_noted_once_a_day(copy: TokenCopy) -> None:
    text, row = a_token()
    copy.hear(True, [row])
    find(copy, text)
    assert copy.used == {row.token}


def test_a_token_ends_itself_and_what_may_no_more_than_it() -> None:
    _, full = a_token(1)
    _, reader = a_token(2, role=Role.READ_ONLY)
    assert tokens.may_revoke(frozenset(reader.scopes), reader.token, reader)
    assert tokens.may_revoke(frozenset(full.scopes), full.token, reader)
    assert not tokens.may_revoke(frozenset(reader.scopes), reader.token, full)


def test_a_proxy_is_believed_by_its_secret_only() -> None:
    proxy = Proxy("p" * 43)

    def asked(**headers: str) -> Any:
        return proxy.find(HTTPHeaders({name.replace("_", "-"): value for name, value in headers.items()}))

    ann = asked(X_Proxy_Secret="p" * 43, X_Remote_User="ann@lab.example")
    assert (ann.user, ann.role, ann.via) == ("ann@lab.example", "user", "proxy")
    assert asked() is None
    assert asked(X_Proxy_Secret="p" * 43) is None  # the user may have brought a token
    for headers in (
        {"X_Remote_User": "ann"},
        {"X_Proxy_Secret": "q" * 43, "X_Remote_User": "ann"},
        {"X_Proxy_Secret": "p" * 43, "X_Remote_User": "ann,root"},
        {"X_Proxy_Secret": "p" * 43, "X_Remote_User": "../ann"},
    ):
        with pytest.raises(Unauthorized):
            asked(**headers)
