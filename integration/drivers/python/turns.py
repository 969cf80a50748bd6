"""Turns, until the file MATRIX_STOP exists. See turns.rs. Usage: turns.py psycopg3|psycopg2|asyncpg"""

import asyncio
import importlib
import os
import sys
import time

name, stop = sys.argv[1], os.environ["MATRIX_STOP"]
KINDS = ("write", "block", "read")
INSERT = "insert into matrix_turns values ({}, {})"
COUNT = "select count(*) from matrix_turns where driver = {} and turn = {}"


def state(error):
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "-"


def say(*words):
    print(*[str(word).splitlines()[0] for word in words], flush=True)


def psycopg():
    driver = importlib.import_module("psycopg" if name == "psycopg3" else name)
    connection = driver.connect("")
    cursor, last = connection.cursor(), None
    insert, count = INSERT.format("%s", "%s"), COUNT.format("%s", "%s")

    def act(turn, kind):
        nonlocal last
        connection.autocommit = kind != "block"
        if kind == "read":
            cursor.execute(count, (name, last))
            return cursor.fetchone()[0] if last is not None else 1
        cursor.execute(insert, (name, turn))
        connection.commit()
        last = turn
        return 1

    turn = 0
    while not os.path.exists(stop):
        kind = KINDS[turn % 3]
        try:
            say("ok" if act(turn, kind) == 1 else "missing", turn, kind)
        except driver.Error as error:
            say("error", turn, kind, state(error), error)
            if connection.closed:
                say("closed", turn)
                connection = driver.connect("")
                cursor = connection.cursor()
            else:
                connection.rollback()
        turn += 1
        time.sleep(0.02)
    connection.close()


async def asyncpg():
    driver = importlib.import_module(name)
    connection, last, turn = await driver.connect(), None, 0
    insert, count = INSERT.format("$1", "$2"), COUNT.format("$1", "$2")
    while not os.path.exists(stop):
        kind, seen = KINDS[turn % 3], 1
        try:
            if kind == "read":
                seen = await connection.fetchval(count, name, last)
            elif kind == "write":
                await connection.execute(insert, name, turn)
            else:
                async with connection.transaction():
                    await connection.execute(insert, name, turn)
            last = last if kind == "read" else turn
            say("ok" if seen == 1 else "missing", turn, kind)
        except (driver.PostgresError, driver.InterfaceError, OSError) as error:
            say("error", turn, kind, state(error), error)
            if connection.is_closed():
                say("closed", turn)
                connection = await driver.connect()
        turn += 1
        await asyncio.sleep(0.02)
    await connection.close()


asyncio.run(asyncpg()) if name == "asyncpg" else psycopg()
