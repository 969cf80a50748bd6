//! sqlx: its statement cache, transactions, a pool, COPY, a listener.

use crate::{Ended, say, version};
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{Connection, Executor, PgConnection, Row};

fn state<T>(result: Result<T, sqlx::Error>) -> serde_json::Value {
    match result {
        Ok(_) => json!("no error"),
        Err(sqlx::Error::Database(db)) => json!([db.code(), db.message()]),
        Err(e) => json!(e.to_string()),
    }
}

pub async fn run() -> Ended {
    say("version", version("sqlx"));
    let options = PgConnectOptions::new();
    let mut c = PgConnection::connect_with(&options).await?;
    c.execute("drop table if exists matrix_sqlx; create table matrix_sqlx(id int primary key, word text)").await?;
    for i in 0..20 {
        let insert = sqlx::query("insert into matrix_sqlx values ($1, $2)").bind(i).bind(format!("wörd {i}"));
        insert.execute(&mut c).await?;
    }
    for i in 0..5 {
        let word: String =
            sqlx::query_scalar("select word from matrix_sqlx where id = $1").bind(i).fetch_one(&mut c).await?;
        say("by id", word);
    }
    let rows = sqlx::query("select id from matrix_sqlx order by id").fetch(&mut c);
    let ids: Vec<i32> = rows.map_ok(|r| r.get::<i32, _>(0)).try_collect().await?;
    say("streamed", ids);
    say("unprepared", sqlx::raw_sql("select 1 as a; select 2 as b").fetch_all(&mut c).await?.len());
    let one_off = sqlx::query("select $1::int + 1").bind(41).persistent(false).fetch_one(&mut c).await?;
    say("not persistent", one_off.get::<i32, _>(0));
    say("unique", state(sqlx::query("insert into matrix_sqlx values (1)").execute(&mut c).await));
    say("syntax", state(sqlx::query("selec 1").execute(&mut c).await));
    say("division", state(sqlx::query("select 1/$1::int").bind(0).fetch_one(&mut c).await));
    let mut t = c.begin().await?;
    sqlx::query("update matrix_sqlx set word = 'changed' where id = 3").execute(&mut *t).await?;
    let mut inner = t.begin().await?;
    say("within", state(sqlx::query("select 1/0").execute(&mut *inner).await));
    say("aborted", state(sqlx::query("select 1").execute(&mut *inner).await));
    inner.rollback().await?;
    let again: i32 = sqlx::query_scalar("select 1").fetch_one(&mut *t).await?;
    say("after the savepoint", again);
    // Dropped, not ended: it is rolled back when the connection is used next.
    drop(t);
    let word: String = sqlx::query_scalar("select word from matrix_sqlx where id = 3").fetch_one(&mut c).await?;
    say("rolled back", word);
    let mut copy = c.copy_in_raw("copy matrix_sqlx from stdin").await?;
    for i in 100..2100 {
        copy.send(format!("{i}\tcopied\n").into_bytes()).await?;
    }
    say("copy in", copy.finish().await?);
    let copy = c.copy_in_raw("copy matrix_sqlx from stdin").await?;
    copy.abort("changed my mind").await?;
    let out = c.copy_out_raw("copy (select id from matrix_sqlx where id >= 100) to stdout").await?;
    let parts: Vec<_> = out.try_collect().await?;
    say("copy out", parts.iter().map(|p| p.len()).sum::<usize>());
    let big: String = sqlx::query_scalar("select md5($1)").bind("b".repeat(3_000_000)).fetch_one(&mut c).await?;
    say("large", big);
    c.execute("alter table matrix_sqlx add more int").await?;
    let columns = sqlx::query("select * from matrix_sqlx where id = 1").fetch_one(&mut c).await?.len();
    say("after DDL", columns);
    c.clear_cached_statements().await?;
    say("after the cache was cleared", sqlx::query_scalar::<_, i32>("select 1").fetch_one(&mut c).await?);
    let pool = PgPoolOptions::new().max_connections(5).connect_with(options.clone()).await?;
    let sums = join_all((0..20).map(|i| sqlx::query_scalar::<_, i32>("select $1::int").bind(i).fetch_one(&pool))).await;
    say("pool", sums.into_iter().collect::<Result<Vec<_>, _>>()?);
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen("tidings").await?;
    sqlx::query("select pg_notify('tidings', 'news')").execute(&pool).await?;
    let note = listener.recv().await?;
    say("notification", json!([note.channel(), note.payload()]));
    drop(listener);
    sqlx::query("drop table matrix_sqlx").execute(&pool).await?;
    pool.close().await;
    Ok(())
}
