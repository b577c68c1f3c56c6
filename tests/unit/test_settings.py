"""Settings: who wins, what is refused, where a value came from."""

from pathlib import Path
from typing import Any

import pytest

from sirepo_jobs import settings
from sirepo_jobs.errors import BadInput


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing is set."""
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_STATE_HOME": str(tmp_path / "state")}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_flag_beats_environment_beats_file_beats_default(home: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "config/sirepo-jobs/config.toml", "port = 1\nqueue_window = 1\nlocal_cpus = 1\n")
    home |= {"SIREPO_JOBS_PORT": "2", "SIREPO_JOBS_QUEUE_WINDOW": "2"}
    loaded = settings.load({"port": 3, "local_cpus": None}, home)
    now = loaded.settings
    assert (now.port, now.queue_window, now.local_cpus, now.heartbeat_secs) == (3, 2, 1, 15.0)
    assert loaded.sources["port"] == "flag"
    assert loaded.sources["queue_window"] == "environment SIREPO_JOBS_QUEUE_WINDOW"
    assert loaded.sources["local_cpus"] == f"file {tmp_path}/config/sirepo-jobs/config.toml"
    assert loaded.sources["heartbeat_secs"] == "default"


def test_defaults_hang_on_the_root(home: dict[str, str], tmp_path: Path) -> None:
    assert settings.load({}, home).settings.root == tmp_path / "state/sirepo-jobs"
    now = settings.load({"root": tmp_path / "x"}, home).settings
    assert now.database_url == f"sqlite:///{tmp_path}/x/jobs.db"


def test_a_named_file_is_the_only_one(home: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "config/sirepo-jobs/config.toml", "port = 1\nlocal_cpus = 7\n")
    named = write(tmp_path / "other.toml", "port = 2\n")
    for loaded in (
        settings.load({}, home, named),
        settings.load({}, {**home, "SIREPO_JOBS_CONFIG": str(named)}),
    ):
        assert loaded.settings.port == 2
        assert loaded.sources["local_cpus"] == "default"


def test_parts_of_a_name_may_be_nested(home: dict[str, str], tmp_path: Path) -> None:
    named = write(tmp_path / "c.toml", '[agent]\nidle_secs = "2m"\n')
    assert settings.load({}, home, named).settings.agent_idle_secs == 120.0
    assert settings.load({}, {**home, "SIREPO_JOBS_AGENT__IDLE_SECS": "5"}).settings.agent_idle_secs == 5.0


def test_units_and_lists_are_read_from_text(home: dict[str, str]) -> None:
    now = settings.load(
        {}, {**home, "SIREPO_JOBS_MAX_BODY_BYTES": "32 MiB", "SIREPO_JOBS_DRIVERS": "local,docker:sbatch"}
    ).settings
    assert now.max_body_bytes == 32 << 20
    assert now.drivers == ("local", "docker", "sbatch")


def test_an_empty_variable_is_not_set(home: dict[str, str]) -> None:
    assert settings.load({}, {**home, "SIREPO_JOBS_PORT": ""}).sources["port"] == "default"


def test_what_a_job_sees_is_no_setting(home: dict[str, str]) -> None:
    seen = {
        "JID": "x",
        "ATTEMPT": "1",
        "RUN_DIR": "/x",
        "CPUS": "4",
        "PROGRESS": "/x",
        "URL": "u",
        "TOKEN": "t",
    }
    home |= {f"SIREPO_JOBS_{name}": value for name, value in seen.items()}
    assert settings.load({}, home).sources["local_cpus"] == "default"


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("SIREPO_JOBS_PRT", "did you mean SIREPO_JOBS_PORT?"),
        ("SIREPO_JOBS_URI", "did you mean SIREPO_JOBS_URL?"),
    ],
)
def test_a_misspelled_variable_is_refused(home: dict[str, str], variable: str, hint: str) -> None:
    with pytest.raises(BadInput, match="unknown setting") as caught:
        settings.load({}, {**home, variable: "1"})
    assert hint in str(caught.value)


def test_a_misspelled_key_of_a_file_is_refused(home: dict[str, str], tmp_path: Path) -> None:
    named = write(tmp_path / "c.toml", "[heart]\nbeat_sec = 1\n")
    with pytest.raises(BadInput, match=r"'heart\.beat_sec'.*did you mean heartbeat_secs"):
        settings.load({}, home, named)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("port", True),
        ("port", "eight"),
        ("host", "0.0.0.0"),
        ("host", "example.org"),
        ("heartbeat_secs", "0"),
        ("max_body_bytes", "12 parsecs"),
        ("log_level", "loud"),
        ("drivers", 7),
        ("root", "a\0b"),
    ],
)
def test_what_cannot_be_meant_names_setting_and_source(home: dict[str, str], name: str, value: Any) -> None:
    with pytest.raises(BadInput, match=rf"setting {name} \(flag\)") as caught:
        settings.load({name: value}, home)
    assert caught.value.pointer == f"/{name}"


def test_passwords_are_hidden_and_may_lie_in_a_file(home: dict[str, str], tmp_path: Path) -> None:
    secret = write(tmp_path / "db", "postgresql+psycopg://me:hunter2@host/db\n")
    loaded = settings.load({}, {**home, "SIREPO_JOBS_DATABASE_URL_FILE": str(secret)})
    assert loaded.settings.database_url == "postgresql+psycopg://me:hunter2@host/db"
    shown = {name: value for name, value, _ in loaded.shown()}
    assert shown["database_url"] == "postgresql+psycopg://me:***@host/db"
    assert "hunter2" not in str(shown)


def test_every_setting_has_its_row() -> None:
    assert tuple(settings.SETTINGS) == settings.Settings.__struct_fields__


def test_origins_and_the_public_url_are_exact() -> None:
    said = {
        "allowed_origins": "https://A.example, http://b.example:8080/",
        "public_url": "https://x.example/jobs/",
    }
    found = settings.load(said, {}).settings
    assert found.allowed_origins == ("https://a.example", "http://b.example:8080")
    assert found.public_url == "https://x.example/jobs"
    for bad in ("*", "null", "a.example", "https://*.example", "https://a.example/path", "https://a@b"):
        with pytest.raises(BadInput, match="not an origin"):
            settings.load({"allowed_origins": [bad]}, {})
    for bad in ("x.example", "https://x.example/a b", "https://x.example/?a=b", "https://u:p@x.example"):
        with pytest.raises(BadInput, match="public_url"):
            settings.load({"public_url": bad}, {})
