"""What is written down: one writer thread with group commit over SQLite or PostgreSQL.

    store.py       the facade `Store`; everybody else imports it from here
    unit.py        what is written: rows, and units of rows
    writer.py      the thread that writes          statements.py  what it says
    reader.py      the threads that read           queries.py, lists.py   what they ask
    claim.py       taking a database over          lock.py        who has it
    sqlite.py  postgres.py   the two kinds of database, behind database.py
    schema.py  migrations/   the tables, and how they came to be

Nobody outside this package imports SQLAlchemy, Alembic, psycopg or sqlite3.
"""

from .lists import JobPage, JobQuery
from .queries import PendingRow, StoredJob
from .store import Store, backup
from .unit import AgentRow, EventRow, KeyRow, NewJob, Unit

__all__ = [
    "Store", "backup",
    "Unit", "NewJob", "EventRow", "AgentRow", "KeyRow",
    "JobQuery", "JobPage", "StoredJob", "PendingRow",
]  # fmt: skip
