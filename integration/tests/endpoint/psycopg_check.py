"""What applications do with psycopg, through the endpoint. Usage: psycopg_check.py psycopg2|psycopg CONNINFO"""

import importlib
import sys
import threading
import time

module, conninfo = sys.argv[1], sys.argv[2]
driver = importlib.import_module(module)


def sqlstate(error):
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def expect(state, run):
    try:
        run()
    except driver.Error as error:
        assert sqlstate(error) == state, (state, sqlstate(error), error)
    else:
        raise AssertionError(f"{state} did not come")


def main():
    connection = driver.connect(conninfo)
    cursor = connection.cursor()
    cursor.execute("drop table if exists snakes")
    cursor.execute("create table snakes(id int primary key, name text, length numeric)")
    cursor.executemany("insert into snakes values (%s, %s, %s)", [(i, f"snake {i}", i / 10) for i in range(100)])
    connection.commit()

    cursor.execute("select name from snakes where id = %s", (42,))
    assert cursor.fetchone() == ("snake 42",)
    connection.rollback()

    expect("23505", lambda: cursor.execute("insert into snakes values (1, 'twice', 0)"))
    expect("25P02", lambda: cursor.execute("select 1"))
    connection.rollback()

    copy(connection, cursor)
    cursor_on_the_server(connection)

    connection.autocommit = True
    cursor.execute("select count(*) from snakes")
    assert cursor.fetchone() == (150,), "a session reads its own writes"
    cursor.execute("insert into snakes values (1000, 'long', 9) returning id")
    assert cursor.fetchone() == (1000,)
    cancel(connection, cursor)
    notices(connection, cursor)
    connection.close()
    print("all checks passed")


def copy(connection, cursor):
    rows = "".join(f"{i}\tcopied {i}\t{i}\n" for i in range(200, 250))
    if module == "psycopg2":
        import io

        cursor.copy_expert("copy snakes from stdin", io.StringIO(rows))
        out = io.StringIO()
        cursor.copy_expert("copy (select * from snakes where id >= 200 order by id) to stdout", out)
        assert out.getvalue() == rows, out.getvalue()
    else:
        with cursor.copy("copy snakes from stdin") as stream:
            stream.write(rows)
        with cursor.copy("copy (select * from snakes where id >= 200 order by id) to stdout") as stream:
            assert b"".join(bytes(part) for part in stream).decode() == rows
    connection.commit()


def cursor_on_the_server(connection):
    with connection.cursor(name="walk") as walk:
        walk.execute("select id from snakes order by id")
        first = walk.fetchmany(10)
        assert [row[0] for row in first] == list(range(10))
        assert len(walk.fetchall()) == 140
    connection.commit()


def cancel(connection, cursor):
    timer = threading.Timer(0.3, connection.cancel)
    timer.start()
    start = time.monotonic()
    expect("57014", lambda: cursor.execute("select pg_sleep(30)"))
    assert time.monotonic() - start < 10
    timer.join()


def notices(connection, cursor):
    seen = []
    if module == "psycopg":
        connection.add_notice_handler(lambda notice: seen.append(notice.message_primary))
    cursor.execute("do $$begin raise notice 'hello'; end$$")
    seen.extend(getattr(connection, "notices", []))
    assert any("hello" in notice for notice in seen), seen


main()
