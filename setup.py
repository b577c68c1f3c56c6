"""Distribution of sirepo_jobs: maps the top-level `agents/` and `drivers/` into the import package."""

from pathlib import Path

from setuptools import setup

#: What runs on the other side. Everything an agent imports, and nothing else (design 2).
AGENT = ["msgspec>=0.22,<0.23", "psutil>=7.2", "websockets>=17.0.1"]

SUPERVISOR = [
    "alembic>=1.20",
    "click>=8.3.2",
    "prometheus_client>=0.26",
    "pykern>=20260915",
    "rich>=15",
    "sqlalchemy>=2.1,<2.2",
    "structlog>=26.1",
    "tornado>=6.6,<7",
    "urllib3>=2.8",
]

setup(
    name="sirepo_jobs",
    version="0.1.0",
    description="A job supervisor for science gateways and HPC groups",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    install_requires=AGENT + SUPERVISOR,
    extras_require={
        "docker": ["aiodocker~=0.27"],
        "ssh": ["asyncssh[bcrypt]>=2.24"],
        "postgres": ["psycopg[binary]>=3.3"],
        "demo": ["lammps", "mpich", "matplotlib"],
        "dev": [
            "hypothesis",
            "mypy>=2.4",
            "openapi-spec-validator>=0.9",
            "pre-commit",
            "pytest>=9",
            "pytest-asyncio>=1.5",
            "pytest-timeout",
            "pytest-xdist",
            "ruff>=0.17",
            "schemathesis>=4.32",
            "trustme",
        ],
    },
    packages=[
        "sirepo_jobs",
        "sirepo_jobs.agents",
        "sirepo_jobs.api",
        "sirepo_jobs.cli",
        "sirepo_jobs.client",
        "sirepo_jobs.drivers",
        "sirepo_jobs.drivers.docker",
        "sirepo_jobs.drivers.sbatch",
        "sirepo_jobs.frontend",
        "sirepo_jobs.store",
        "sirepo_jobs.store.migrations",
        "sirepo_jobs.store.migrations.versions",
    ],
    package_dir={
        "sirepo_jobs": "sirepo_jobs",
        "sirepo_jobs.agents": "agents",
        "sirepo_jobs.drivers": "drivers",
    },
    package_data={"sirepo_jobs": ["py.typed"]},
    entry_points={
        "console_scripts": ["sirepo-jobs = sirepo_jobs.cli.main:main"],
        "sirepo_jobs.drivers": [
            "docker = sirepo_jobs.drivers.docker:DockerDriver",
            "local = sirepo_jobs.drivers.local:LocalDriver",
            "sbatch = sirepo_jobs.drivers.sbatch:SbatchDriver",
        ],
    },
)
