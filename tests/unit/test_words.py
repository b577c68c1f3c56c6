"""Units, specs and frames: what comes from outside comes out typed, or raises one clear error."""

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sirepo_jobs import protocol as p
from sirepo_jobs.errors import BadInput, RemoteError, TooLarge
from sirepo_jobs.job import ulid
from sirepo_jobs.resources import Resources, format_bytes, format_secs, parse_bytes, parse_secs
from sirepo_jobs.spec import MAX_BATCH, JobSpec, parse_spec, parse_submission

# -- units (SYS-31)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (4096, 4096),
        ("1 GiB", 1 << 30),
        ("100GB", 10**11),
        ("10KB", 10_000),
        ("4G", 4 * 10**9),
        ("1.5 kib", 1536),
        ("7", 7),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "secs"),
    [
        (90, 90),
        (1.5, 1.5),
        ("90m", 5400),
        ("1h 30m", 5400),
        ("01:30:00", 5400),
        ("1-00:00:00", 86400),
        ("250ms", 0.25),
        ("90", 90),
    ],
)
def test_durations(text: object, secs: float) -> None:
    assert parse_secs(text) == pytest.approx(secs)


@pytest.mark.parametrize("bad", [-1, "12 parsecs", "", "GiB", True, None, [], "-5", "1e400", "9" * 40, "NaN"])
def test_what_is_no_size_is_refused(bad: object) -> None:
    with pytest.raises(BadInput, match=r"size|unit"):
        parse_bytes(bad)


@pytest.mark.parametrize(
    "bad", [-1, "soon", "", True, None, [], "1x", "m5", "5m junk", float("nan"), float("inf"), "99999d"]
)
def test_what_is_no_duration_is_refused(bad: object) -> None:
    with pytest.raises(BadInput, match="duration"):
        parse_secs(bad)


@given(st.integers(0, 1 << 50))
def test_sizes_are_shown_so_that_they_can_be_read_again(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=1e-3)


@given(st.integers(1, 10**7))
def test_durations_are_shown_so_that_they_can_be_read_again(secs: int) -> None:
    assert parse_secs(format_secs(float(secs))) == pytest.approx(secs, rel=0.05)


def test_a_shortage_names_the_numbers() -> None:
    assert Resources(cpus=4).shortage(Resources(cpus=1)) == "cpus: needs 4, 1 free"
    assert Resources(cpus=1).shortage(Resources(cpus=1)) == ""


# -- specs


def spec_error(raw: object) -> BadInput:
    with pytest.raises(BadInput) as caught:
        parse_spec(raw)
    return caught.value


def test_a_spec_becomes_canonical() -> None:
    spec = parse_spec(
        {
            "command": ["a"],
            "resources": {"memory": "1 GiB", "cpus": 2},
            "limits": {"soft": "55m", "grace": 5},
            "image": None,
        }
    )
    assert spec == JobSpec(
        command=["a"],
        resources=Resources(cpus=2, memory=1 << 30),
        limits=spec.limits.__class__(soft=3300.0, grace=5.0),
    )
    again = msgspec.json.decode(msgspec.json.encode(spec), type=JobSpec)
    assert again == spec


@pytest.mark.parametrize(
    ("raw", "pointer", "words"),
    [
        ({"comand": ["a"]}, "/comand", "did you mean 'command'"),
        ({"command": ["a"], "a/b~c": 1}, "/a~1b~0c", "unknown key"),
        ({"command": ["a"], "limits": {"sofft": 1}}, "/limits/sofft", "did you mean 'soft'"),
        ({"command": ["a"], "resources": {"cpu": 1}}, "/resources/cpu", "did you mean 'cpus'"),
        ({"command": "a b"}, "/command", "expected `array`"),
        ({"command": []}, "/command", "is empty"),
        ({"command": [""]}, "/command", "is empty"),
        ({}, "", "missing required field"),
        ({"command": ["a", 3]}, "/command/1", "expected `str`"),
        ({"command": ["a\0b"]}, "/command", "NUL"),
        ({"command": ["a"], "resources": {"cpus": 0}}, "/resources", "cannot be meant"),
        ({"command": ["a"], "resources": {"cpus": 10**9}}, "/resources", "cannot be meant"),
        ({"command": ["a"], "resources": {"memory": "lots"}}, "/resources/memory", "is not a size"),
        ({"command": ["a"], "limits": {"soft": 0}}, "/limits", "more than 0 seconds"),
        ({"command": ["a"], "limits": {"soft": "2h", "hard": "1h"}}, "/limits", "hard is the later one"),
        ({"command": ["a"], "limits": {"soft": "200y"}}, "/limits/soft", "not a duration"),
        ({"command": ["a"], "env": {"A=B": "x"}}, "/env", "not a variable name"),
        ({"command": ["a"], "env": {"SIREPO_JOBS_JID": "x"}}, "/env", "set by the launcher"),
        ({"command": ["a"], "env": {"A": 1}}, "/env", "expected `str`"),
        ({"command": ["a"], "priority": 11}, "/priority", "outside 0..10"),
        ({"command": ["a"], "max_attempts": 0}, "/max_attempts", "outside 1..100"),
        ({"command": ["a"], "retry_on": ["SADNESS"]}, "/retry_on/0", "invalid enum value"),
        ({"command": ["a"], "jid": "../../etc"}, "/jid", "letters, digits"),
        ({"command": ["a"], "progress": "xml"}, "/progress", "invalid enum value"),
        ({"command": ["a"], "image": "debian"}, "/image", "runs no containers"),
        ({"command": ["a"], "driver": "docker", "image": "a b"}, "/image", "not the name"),
        ({"command": ["a"], "driver": "docker", "mounts": ["x"]}, "/mounts", "not like"),
        # an empty text is no way to leave something out
        ({"command": ["a"], "image": ""}, "/image", "leave it out for none"),
        ({"command": ["a"], "driver": "docker", "image": ""}, "/image", "leave it out for none"),
        ({"command": ["a"], "driver": "docker", "mounts": [""]}, "/mounts", "not like"),
        ({"command": ["a"], "driver": "sbatch", "cluster": ""}, "/cluster", "not a cluster's name"),
        ({"command": ["a"], "driver": ""}, "/driver", "is not a name"),
        ({"command": ["a"], "queue": ""}, "/queue", "is not a name"),
        ({"command": ["a"], "env": {"": "x"}}, "/env", "not a variable name"),
        ({"command": ["a"], "tags": {"": "x"}}, "/tags", "has no name"),
        (["a"], "", "a JSON object, not a list"),
        (None, "", "a JSON object, not null"),
    ],
)
def test_bad_specs_get_a_clear_error_that_names_the_place(raw: object, pointer: str, words: str) -> None:
    error = spec_error(raw)
    assert words in str(error)
    assert error.pointer == pointer


def test_too_much_is_too_large() -> None:
    for raw in (
        {"command": ["a"] * 5000},
        {"command": ["x" * 200_000]},
        {"command": ["a"], "env": {"A": "x" * 200_000}},
    ):
        assert isinstance(spec_error(raw), TooLarge)


def test_a_batch_names_the_bad_one() -> None:
    body = json.dumps({"jobs": [{"command": ["a"]}, {"command": 1}]}).encode()
    with pytest.raises(BadInput) as caught:
        parse_submission(body)
    assert caught.value.pointer == "/jobs/1/command"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"jobs": []}', b'{"jobs": 1}', b'{"jobs":[],"x":1}']
)
def test_a_body_that_is_no_submission(body: bytes) -> None:
    with pytest.raises(BadInput):
        parse_submission(body)


def test_a_batch_has_its_limit() -> None:
    body = json.dumps({"jobs": [{"command": ["a"]}] * (MAX_BATCH + 1)}).encode()
    with pytest.raises(TooLarge):
        parse_submission(body)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_nothing_decodes_to_something_else_than_a_spec_or_one_error(raw: object) -> None:
    with contextlib.suppress(BadInput):
        assert isinstance(parse_spec(raw), JobSpec)


# -- frames


RUN = p.Run(
    jid="J",
    serial=1,
    attempt=1,
    op_id=7,
    command=["true"],
    run_dir="J/1",
    spec=msgspec.Raw(b'{"command":["true"]}'),
)
EXITED = p.Exited(jid="J", serial=1, attempt=1, seq=3, at=5, exit_code=0)


def test_frames_survive_the_wire() -> None:
    frame = p.ToAgentFrame(agent="a", epoch=2, session=3, ack=4, msgs=[RUN, p.Stop(kill_jobs=True)])
    got = p.decode_to_agent(p.encode(frame))
    assert (got.agent, got.epoch, got.session, got.ack) == ("a", 2, 3, 4)
    assert got.msgs[1] == p.Stop(kill_jobs=True)
    assert (got.msgs[0].command, bytes(got.msgs[0].spec)) == (["true"], b'{"command":["true"]}')
    back = p.FromAgentFrame(agent="a", epoch=2, session=3, msgs=[EXITED])
    assert p.decode_from_agent(p.encode(back).decode()).msgs == [EXITED]


def test_a_newer_version_may_say_more() -> None:
    """I33: unknown kinds come out as such, unknown fields are passed over, the rest is kept."""
    got = p.decode_from_agent(
        b'{"v":2,"agent":"a","epoch":1,"session":1,"mood":"good","msgs":['
        b'{"op":"dream","of":"sheep"},{"op":"heartbeat","at":1,"held":2,"weather":"fine"},{"op":"exited","seq":"x"}]}'
    )
    assert [type(m) for m in got.msgs] == [p.Unknown, p.Heartbeat, p.Unknown]
    assert (got.msgs[0].kind, got.msgs[2].kind) == ("dream", "exited")


@pytest.mark.parametrize("bad", [b'{"op":"\xff"}', b'{"op":"started","jid":"\xff"}', b'{"jid":"\xff"}'])
def test_a_message_that_is_no_text_costs_itself_alone(bad: bytes) -> None:
    frame = b'{"agent":"a","epoch":1,"session":1,"msgs":[%b]}' % bad
    for decode in (p.decode_from_agent, p.decode_to_agent):
        assert [type(m) for m in decode(frame).msgs] == [p.Unknown]


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"[]",
        b"{}",
        b'"a"',
        b"\xff\xfe",
        b"{" * 10_000,
        b"[" * 200_000,
        b'{"agent":1}',
        b'{"agent":"a","msgs":3}',
    ],
)
def test_what_is_no_frame_is_the_other_sides_fault(junk: bytes) -> None:
    for decode in (p.decode_from_agent, p.decode_to_agent):
        with pytest.raises(RemoteError):
            decode(junk)


@given(st.binary(max_size=200))
def test_random_bytes_never_do_more_than_raise(junk: bytes) -> None:
    for decode in (p.decode_from_agent, p.decode_to_agent, p.decode_chunk):
        with contextlib.suppress(RemoteError):
            decode(junk)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**63), st.binary())
def test_chunks_survive_the_wire(op_id: int, offset: int, data: bytes) -> None:
    assert p.decode_chunk(p.encode_chunk(op_id, offset, data)) == (op_id, offset, data)


# -- ids


@given(st.integers(0, 2**62), st.binary(min_size=10, max_size=10))
def test_ulids_have_their_form_and_order(at: int, randomness: bytes) -> None:
    first, later = ulid(at, randomness), ulid(at + 1000, randomness)
    assert len(first) == 26
    assert set(first) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")
    assert at // 1000 >= 1 << 48 or (at + 1000) // 1000 >= 1 << 48 or first < later
