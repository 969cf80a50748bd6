"""The common script with psycopg 3 or psycopg2. Usage: psycopg_script.py psycopg|psycopg2

Connects as the environment says. Prints one line of JSON per step; what differs between any two connections (process
ids, times) is not printed.
"""

import datetime
import decimal
import importlib
import io
import json
import sys
import threading

name = sys.argv[1]
driver = importlib.import_module(name)
three = name == "psycopg"


def say(step, value):
    print(json.dumps([step, value], default=str), flush=True)


def state(error):
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def failing(step, run):
    try:
        run()
        say(step, "no error")
    except driver.Error as error:
        say(step, [state(error), str(error).splitlines()[0]])


say("version", driver.__version__)
connection = driver.connect("")
connection.autocommit = True
cursor = connection.cursor()
table = "matrix_" + name


def ask(step, sql, parameters=None):
    cursor.execute(sql, parameters)
    say(step, [cursor.statusmessage, [list(row) for row in cursor.fetchall()] if cursor.description else None])


cursor.execute(f"drop table if exists {table}")
cursor.execute(f"create table {table}(id int primary key, word text, amount numeric, at timestamptz)")
for i in range(20):
    at = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc) + datetime.timedelta(days=i)
    cursor.execute(f"insert into {table} values (%s, %s, %s, %s)", (i, f"wörd {i}", decimal.Decimal(i) / 7, at))
ask("rows", f"select id, word, round(amount, 5) from {table} order by id limit 3")
ask("types", "select 1::int2, 2::int8, 1.5::float8, true, null, '2026-01-02'::date, array[1,2], '{\"a\":1}'::jsonb, %s::text", ("q'\"\\",))
if three:
    binary = connection.cursor(binary=True)
    binary.execute("select 7::int4, 'x'::text, 2.25::float8, '\\x0102'::bytea, array[1,2,3]", prepare=True)
    say("binary", binary.fetchall())
    for i in range(12):
        say("prepared", connection.execute("select %s::int * 2", (i,), prepare=True).fetchall())
failing("unique", lambda: cursor.execute(f"insert into {table} values (1)"))
failing("syntax", lambda: cursor.execute("selec 1"))
failing("table", lambda: cursor.execute("select * from no_such_table"))
failing("division", lambda: cursor.execute("select 1/%s", (0,)))
connection.autocommit = False
ask("in a block", f"update {table} set word = 'changed' where id = 3 returning word")
cursor.execute("savepoint s")
failing("within", lambda: cursor.execute("select 1/0"))
failing("aborted", lambda: cursor.execute("select 1"))
cursor.execute("rollback to savepoint s")
ask("after the savepoint", "select 1")
connection.rollback()
ask("rolled back", f"select word from {table} where id = 3")
connection.commit()
walk = connection.cursor(name="walk")
walk.execute(f"select id from {table} order by id")
say("cursor", [[r[0] for r in walk.fetchmany(6)], len(walk.fetchall())])
walk.close()
connection.commit()
rows = "".join(f"{i}\tcopied\t1\t2026-01-01 00:00:00+00\n" for i in range(100, 2100))
if three:
    with cursor.copy(f"copy {table} from stdin") as copy:
        copy.write(rows)
    with cursor.copy(f"copy (select id from {table} where id >= 100 order by id) to stdout") as copy:
        say("copied", len(b"".join(bytes(part) for part in copy)))
else:
    cursor.copy_expert(f"copy {table} from stdin", io.StringIO(rows))
    out = io.StringIO()
    cursor.copy_expert(f"copy (select id from {table} where id >= 100 order by id) to stdout", out)
    say("copied", len(out.getvalue()))
connection.commit()
connection.autocommit = True
if three:
    with connection.pipeline() as pipeline:
        answers = [connection.execute("select %s::int", (i,)) for i in range(10)]
        pipeline.sync()
        say("pipeline", [a.fetchone()[0] for a in answers])
    try:
        with connection.pipeline():
            connection.execute("select 1")
            connection.execute("select 1/0")
            connection.execute(f"insert into {table} values (9999)")
    except driver.Error as error:
        say("pipeline error", state(error))
    ask("pipeline rolled back", f"select count(*) from {table} where id = 9999")
ask("set", "set timezone = 'Asia/Tokyo'")
ask("show", "show timezone")
ask("reset", "reset timezone")
cursor.execute("create temp table mine(x int)")
cursor.execute("insert into mine values (1), (2)")
ask("temp", "select sum(x) from mine")
ask("lock", "select pg_advisory_lock(77)")
ask("unlock", "select pg_advisory_unlock(77)")
ask("unlock again", "select pg_advisory_unlock(77)")
big = "b" * 3_000_000
ask("large", "select length(%s), md5(%s)", (big, big))
cursor.execute("select repeat('r', 5000000)")
say("large result", len(cursor.fetchone()[0]))
seen = []
if three:
    connection.add_notice_handler(lambda n: seen.append([n.severity, n.sqlstate, n.message_primary]))
cursor.execute("do $$ begin raise notice 'hello'; raise warning 'careful'; end $$")
say("notices", seen or connection.notices[-2:])
cursor.execute("listen tidings")
cursor.execute("notify tidings, 'news'")
if three:
    note = next(connection.notifies())
    say("notification", [note.channel, note.payload])
else:
    connection.poll()
    say("notification", [[n.channel, n.payload] for n in connection.notifies])
cursor.execute("unlisten *")
timer = threading.Timer(0.5, connection.cancel)
timer.start()
failing("cancel", lambda: cursor.execute("select pg_sleep(60)"))
timer.join()
cursor.execute("set statement_timeout = '50ms'")
failing("timeout", lambda: cursor.execute("select pg_sleep(60)"))
cursor.execute("reset statement_timeout")
others = [driver.connect("") for _ in range(5)]
say("others", [(lambda c: (c.execute("select 5"), c.fetchone()[0])[1])(o.cursor()) for o in others])
for other in others:
    other.close()
if three:
    sharers = [driver.connect("", autocommit=True) for _ in range(2)]
    shared = lambda one: one.execute(f"select * from {table} where id = %s", (1,), prepare=True).fetchall()
    for one in sharers:
        say("shared", shared(one))
    cursor.execute(f"alter table {table} add another int default 5")
    for one in sharers * 2:
        try:
            say("altered", shared(one))
        except driver.Error as error:
            say("altered", [state(error), str(error)])
    for one in sharers:
        one.close()
cursor.execute(f"drop table {table}")
connection.close()
