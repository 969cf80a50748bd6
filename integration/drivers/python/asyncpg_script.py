"""The common script with asyncpg. Connects as the environment says."""

import asyncio
import json

import asyncpg


def say(step, value):
    print(json.dumps([step, value], default=str), flush=True)


async def failing(step, awaited):
    try:
        await awaited
        say(step, "no error")
    except asyncpg.PostgresError as error:
        say(step, [error.sqlstate, str(error).splitlines()[0]])


async def main():
    say("version", asyncpg.__version__)
    c = await asyncpg.connect()
    await c.execute("drop table if exists matrix_asyncpg; create table matrix_asyncpg(id int primary key, word text)")
    await c.executemany("insert into matrix_asyncpg values ($1, $2)", [(i, f"wörd {i}") for i in range(50)])
    say("rows", [tuple(r) for r in await c.fetch("select * from matrix_asyncpg order by id limit 3")])
    say("types", [tuple(r) for r in await c.fetch("select 1::int2, 2::int8, 1.5::float8, true, null, '2026-01-02'::date, array[1,2], 1.25::numeric, 'a b'::tsvector::text")])
    statement = await c.prepare("select word from matrix_asyncpg where id = $1")
    for i in range(5):
        say("prepared", await statement.fetchval(i))
    await failing("unique", c.execute("insert into matrix_asyncpg values (1)"))
    await failing("syntax", c.fetch("selec 1"))
    await failing("table", c.fetch("select * from no_such_table"))
    await failing("division", c.fetch("select 1/$1::int", 0))
    transaction = c.transaction()
    await transaction.start()
    await c.execute("update matrix_asyncpg set word = 'changed' where id = 3")
    inner = c.transaction()
    await inner.start()
    await failing("within", c.fetch("select 1/0"))
    await failing("aborted", c.fetch("select 1"))
    await inner.rollback()
    say("after the savepoint", await c.fetchval("select 1"))
    await transaction.rollback()
    say("rolled back", await c.fetchval("select word from matrix_asyncpg where id = 3"))
    async with c.transaction():
        cursor = await c.cursor("select id from matrix_asyncpg order by id")
        say("cursor", [[r[0] for r in await cursor.fetch(6)], len(await cursor.fetch(1000))])
    say("copy in", await c.copy_records_to_table("matrix_asyncpg", records=[(i, "copied") for i in range(100, 2100)]))
    parts = []

    async def take(part):
        parts.append(part)

    await c.copy_from_query("select id from matrix_asyncpg where id >= 100 order by id", output=take)
    say("copy out", len(b"".join(parts)))
    say("set", [await c.execute("set timezone = 'Asia/Tokyo'"), await c.fetchval("show timezone"), await c.execute("reset timezone")])
    await c.execute("create temp table mine(x int); insert into mine values (1), (2)")
    say("temp", await c.fetchval("select sum(x) from mine"))
    say("locks", [await c.fetchval(f"select {f}(78)::text") for f in ("pg_advisory_lock", "pg_advisory_unlock", "pg_advisory_unlock")])
    say("large", await c.fetchval("select md5($1::text)", "b" * 3_000_000))
    say("large result", len(await c.fetchval("select repeat('r', 5000000)")))
    notices, notes, came = [], [], asyncio.Event()
    c.add_log_listener(lambda _, m: notices.append([m.severity, m.sqlstate, m.message]))
    await c.execute("do $$ begin raise notice 'hello'; raise warning 'careful'; end $$")
    await asyncio.sleep(0)
    say("notices", notices)
    await c.add_listener("tidings", lambda _c, _pid, channel, payload: (notes.append([channel, payload]), came.set()))
    await c.execute("notify tidings, 'news'")
    await asyncio.wait_for(came.wait(), 20)
    say("notification", notes)
    try:
        await c.fetch("select pg_sleep(60)", timeout=0.3)
    except asyncio.TimeoutError:
        say("cancelled by a timeout", await c.fetchval("select 1"))
    await c.execute("alter table matrix_asyncpg add more int")
    say("after DDL", [tuple(r) for r in await c.fetch("select * from matrix_asyncpg order by id limit 1")])
    sharers = [await asyncpg.connect() for _ in range(2)]
    shared = "select * from matrix_asyncpg where id = $1"
    for one in sharers:
        say("shared", [tuple(r) for r in await one.fetch(shared, 1)])
    await c.execute("alter table matrix_asyncpg add another int default 5")
    for one in sharers * 2:
        try:
            say("altered", [tuple(r) for r in await one.fetch(shared, 1)])
        except asyncpg.PostgresError as error:
            say("altered", [error.sqlstate, str(error)])
    for one in sharers:
        await one.close()
    pool = await asyncpg.create_pool(min_size=5, max_size=5)
    say("pool", sorted(await asyncio.gather(*(pool.fetchval("select $1::int", i) for i in range(20)))))
    await pool.close()
    await c.execute("drop table matrix_asyncpg")
    await c.close()


asyncio.run(main())
