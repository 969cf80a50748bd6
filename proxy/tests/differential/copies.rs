//! COPY both ways, and what may come in the middle of it.

use super::script::Script;

/// Short enough to be cut at every byte.
pub fn copies() -> Vec<Script> {
    let rows = b"100\thundred\n101\t\\N\n";
    vec![
        Script::new("copy in")
            .query("copy t from stdin")
            .answers(1)
            .copy_data(rows)
            .copy_data(b"10")
            .copy_data(b"2\tx\n")
            .copy_done()
            .answers(2)
            .query("select count(*) from t"),
        Script::new("copy in fails")
            .query("copy t from stdin")
            .copy_data(rows)
            .copy_fail("changed my mind")
            .query("select count(*) from t"),
        Script::new("copy in of bad data")
            .query("copy t from stdin")
            .answers(1)
            .copy_data(b"not a number\tx\n")
            .answers(0)
            .copy_data(rows)
            .copy_done()
            .query("select count(*) from t"),
        Script::new("copy in to nowhere")
            .query("copy nowhere from stdin")
            .copy_data(rows)
            .copy_done()
            .query("select 1")
            .copy_fail("late")
            .query("select 2"),
        Script::new("copy data by itself").copy_data(rows).copy_done().copy_fail("x").query("select 1"),
        Script::new("copy in, extended")
            .run("copy t from stdin", &[])
            .sync()
            .copy_data(rows)
            .flush()
            .copy_done()
            .sync()
            .query("select count(*) from t"),
        Script::new("copy in fails, extended")
            .run("copy t from stdin", &[])
            .copy_data(rows)
            .copy_fail("no")
            .run("select 1", &[])
            .sync()
            .query("select count(*) from t"),
        Script::new("copy in of bad data, extended")
            .run("copy t from stdin", &[])
            .copy_data(b"bad\n")
            .copy_data(rows)
            .copy_done()
            .sync()
            .run("select 1", &[])
            .sync(),
        Script::new("copy to nowhere, extended")
            .run("copy nowhere from stdin", &[])
            .sync()
            .copy_data(rows)
            .copy_done()
            .sync()
            .query("select 1"),
        // What libpq does: it sends a Sync right behind the Execute, which the server ignores once it copies.
        Script::new("copy in of bad data behind a sync")
            .run("copy t from stdin", &[])
            .sync()
            .answers(3)
            .copy_data(b"bad\n")
            .answers(1)
            .copy_data(rows)
            .copy_done()
            .sync()
            .run("select 1", &[])
            .sync(),
        Script::new("copy in that fails behind a sync before it reads")
            .run("copy shut from stdin", &[])
            .sync()
            .answers(4)
            .copy_data(rows)
            .copy_done()
            .sync()
            .run("select 1", &[])
            .sync(),
        Script::new("copy in that fails behind two syncs, in a block")
            .query("begin")
            .run("copy shut from stdin", &[])
            .sync()
            .sync()
            .copy_data(rows)
            .copy_done()
            .sync()
            .query("rollback"),
        Script::new("syncs within copy in of bad data")
            .run("copy t from stdin", &[])
            .copy_data(b"bad\n")
            .sync()
            .copy_data(rows)
            .sync()
            .copy_done()
            .sync()
            .query("select count(*) from t"),
        Script::new("syncs within copy in")
            .run("copy t from stdin", &[])
            .sync()
            .copy_data(rows)
            .sync()
            .sync()
            .copy_done()
            .sync()
            .query("select count(*) from t"),
        Script::new("copy in fails behind a sync")
            .run("copy t from stdin", &[])
            .sync()
            .copy_data(rows)
            .copy_fail("no")
            .copy_data(rows)
            .sync()
            .query("select count(*) from t"),
        Script::new("a query within copy in")
            .query("copy t from stdin")
            .copy_data(rows)
            .query("select 1")
            .query("select 2"),
        Script::new("a close within copy in, extended")
            .run("copy t from stdin", &[])
            .copy_data(rows)
            .close(b'S', "a")
            .sync(),
        Script::new("a parse behind copy in, extended").run("copy t from stdin", &[]).run("select 1", &[]).sync(),
        Script::new("copy out")
            .query("copy (select * from t order by id) to stdout")
            .query("copy (select 1, null) to stdout csv")
            .query("copy (select * from t order by id) to stdout binary")
            .run("copy (select * from t order by id) to stdout", &[])
            .sync()
            .query("copy (select 1/0) to stdout"),
        Script::new("copies among statements")
            .query("select 1; copy t from stdin; select 2; copy (select * from t order by id) to stdout; select 3")
            .copy_data(b"103\tm\n")
            .copy_done(),
        Script::new("two copies in one query")
            .query("copy t from stdin; copy t from stdin; select count(*) from t")
            .copy_data(b"104\ta\n")
            .copy_done()
            .copy_data(b"105\tb\n")
            .copy_done(),
        Script::new("copy in a block")
            .query("begin")
            .query("copy t from stdin")
            .copy_data(rows)
            .copy_done()
            .query("copy t from stdin")
            .copy_fail("no")
            .query("select 1")
            .query("rollback")
            .query("select count(*) from t"),
    ]
}
