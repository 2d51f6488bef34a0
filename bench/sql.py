# SPDX-License-Identifier: GPL-2.0-or-later
"""What SQLite does in the evaluations."""

from __future__ import annotations

__all__ = ["sql_script"]


def sql_script(transactions: int, rows: int) -> str:
    """A new table: in each transaction so many rows and a tenth as many updates, then a query. Always the same."""
    lines = ["CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c INT);", "CREATE INDEX i ON t(c);"]
    for start in range(0, transactions * rows, rows):
        lines.append("BEGIN;")
        lines += [f"INSERT INTO t VALUES({n},'name {n}',{n * 7 % 1000});" for n in range(start, start + rows)]
        lines += [f"UPDATE t SET c = c + 1 WHERE a = {number};" for number in range(start, start + rows, 10)]
        lines += ["COMMIT;", f"SELECT count(*), sum(c) FROM t WHERE b LIKE '%{start // rows}%';"]
    return "\n".join(lines)
