//! tokio-postgres: pipelines by joined futures, prepared statements, portals, COPY, notifications, cancel.

use crate::{Ended, env, say, version};
use futures_util::future::{join_all, poll_fn};
use futures_util::{SinkExt, TryStreamExt};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use std::pin::pin;
use std::time::Duration;
use tokio_postgres::config::SslMode;
use tokio_postgres::{AsyncMessage, Client, Config, Error};
use tokio_postgres_rustls::MakeRustlsConnect;

fn state<T>(result: Result<T, Error>) -> serde_json::Value {
    match result {
        Ok(_) => json!("no error"),
        Err(e) => match e.as_db_error() {
            Some(db) => json!([db.code().code(), db.message()]),
            None => json!(e.to_string()),
        },
    }
}

/// As the environment says, which tokio-postgres does not read.
pub fn config() -> Config {
    let mut config = Config::new();
    config.host(env("PGHOST")).port(env("PGPORT").parse().expect("PGPORT is a port"));
    config.user(env("PGUSER")).password(env("PGPASSWORD")).dbname(env("PGDATABASE"));
    config.ssl_mode(if tls() { SslMode::Require } else { SslMode::Disable });
    config
}

fn tls() -> bool {
    env("PGSSLMODE") != "disable"
}

/// Servers' certificates are verified, names included, as rustls always does.
fn encryption() -> Result<MakeRustlsConnect, Box<dyn std::error::Error>> {
    let mut roots = RootCertStore::empty();
    if tls() {
        roots.add(CertificateDer::from_pem_file(env("PGSSLROOTCERT"))?)?;
    }
    Ok(MakeRustlsConnect::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

async fn connect() -> Result<(Client, tokio::sync::mpsc::UnboundedReceiver<AsyncMessage>), Box<dyn std::error::Error>> {
    let (client, mut connection) = config().connect(encryption()?).await?;
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            let _ = sender.send(message);
        }
    });
    Ok((client, receiver))
}

pub async fn run() -> Ended {
    say("version", version("tokio-postgres"));
    let (mut c, mut messages) = connect().await?;
    c.batch_execute("drop table if exists matrix_tokio; create table matrix_tokio(id int primary key, word text)")
        .await?;
    let insert = c.prepare("insert into matrix_tokio values ($1, $2)").await?;
    let words: Vec<(i32, String)> = (0..50).map(|i| (i, format!("wörd {i}"))).collect();
    let done = join_all(words.iter().map(|(id, word)| {
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [id, word];
        let (c, insert) = (&c, &insert);
        async move { c.execute(insert, &parameters).await }
    }))
    .await;
    say("pipelined inserts", done.into_iter().collect::<Result<Vec<_>, _>>()?.len());
    for i in 0..8 {
        let row = c.query_one("select word from matrix_tokio where id = $1", &[&i]).await?;
        say("by id", row.get::<_, String>(0));
    }
    let row =
        c.query_one("select 1::int2, 2::int8, 1.5::float8, true, null::text, array[1,2], $1::text", &[&"q'\\"]).await?;
    say(
        "types",
        json!([
            row.get::<_, i16>(0),
            row.get::<_, i64>(1),
            row.get::<_, f64>(2),
            row.get::<_, bool>(3),
            row.get::<_, Option<String>>(4),
            row.get::<_, Vec<i32>>(5),
            row.get::<_, String>(6)
        ]),
    );
    say("unique", state(c.execute("insert into matrix_tokio values (1)", &[]).await));
    say("syntax", state(c.query("selec 1", &[]).await));
    say("table", state(c.query("select * from no_such_table", &[]).await));
    say("division", state(c.query("select 1/$1::int", &[&0]).await));
    let mut t = c.transaction().await?;
    t.execute("update matrix_tokio set word = 'changed' where id = 3", &[]).await?;
    let inner = t.savepoint("s").await?;
    say("within", state(inner.query("select 1/0", &[]).await));
    say("aborted", state(inner.query("select 1", &[]).await));
    inner.rollback().await?;
    let portal = t.bind("select id from matrix_tokio order by id", &[]).await?;
    say("portal", json!([t.query_portal(&portal, 6).await?.len(), t.query_portal(&portal, 0).await?.len()]));
    t.rollback().await?;
    let word: String = c.query_one("select word from matrix_tokio where id = 3", &[]).await?.get(0);
    say("rolled back", word);
    let options = c.build_transaction().read_only(true).isolation_level(tokio_postgres::IsolationLevel::RepeatableRead);
    let t = options.start().await?;
    say("read only", state(t.execute("insert into matrix_tokio values (99)", &[]).await));
    t.rollback().await?;
    let mut sink = pin!(c.copy_in("copy matrix_tokio from stdin").await?);
    for i in 100..2100 {
        sink.send(bytes(format!("{i}\tcopied\n"))).await?;
    }
    say("copy in", sink.finish().await?);
    let out = c.copy_out("copy (select id from matrix_tokio where id >= 100) to stdout").await?;
    let parts: Vec<_> = out.try_collect().await?;
    say("copy out", parts.iter().map(|p| p.len()).sum::<usize>());
    let several = c.simple_query("select 1 as a; select 2 as b; set timezone = 'Asia/Tokyo'; show timezone").await?;
    say("several", several.len());
    c.batch_execute("reset timezone; create temp table mine(x int); insert into mine values (1), (2)").await?;
    say("temp", c.query_one("select sum(x) from mine", &[]).await?.get::<_, i64>(0));
    say("large", c.query_one("select md5($1)", &[&"b".repeat(3_000_000)]).await?.get::<_, String>(0));
    say("large result", c.query_one("select repeat('r', 5000000)", &[]).await?.get::<_, String>(0).len());
    let held = c.prepare("select * from matrix_tokio where id = $1").await?;
    c.query(&held, &[&1]).await?;
    c.batch_execute("alter table matrix_tokio add more int").await?;
    say("a changed result", state(c.query(&held, &[&1]).await));
    // Two that have prepared the same, and one that alters the table.
    let sharers = [connect().await?.0, connect().await?.0];
    let mut shared = Vec::new();
    for one in &sharers {
        let statement = one.prepare("select * from matrix_tokio where id = $1").await?;
        say("shared", one.query_one(&statement, &[&1]).await?.len());
        shared.push((one, statement));
    }
    c.batch_execute("alter table matrix_tokio add another int default 5").await?;
    for (one, statement) in shared.iter().chain(&shared) {
        say("altered", state(one.query(statement, &[&1]).await));
        say("columns", one.query_one("select * from matrix_tokio where id = $1", &[&1]).await?.len());
    }
    while messages.try_recv().is_ok() {}
    c.batch_execute("do $$ begin raise notice 'hello'; end $$; listen tidings; notify tidings, 'news'").await?;
    for _ in 0..2 {
        match tokio::time::timeout(Duration::from_secs(20), messages.recv()).await? {
            Some(AsyncMessage::Notice(n)) => say("notice", json!([n.severity(), n.code().code(), n.message()])),
            Some(AsyncMessage::Notification(n)) => say("notification", json!([n.channel(), n.payload()])),
            _ => say("message", "none"),
        }
    }
    c.batch_execute("unlisten *").await?;
    let (cancel, encryption) = (c.cancel_token(), encryption()?);
    let sleeping = c.query("select pg_sleep(60)", &[]);
    let cancelling = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        cancel.cancel_query(encryption).await
    };
    let (slept, cancelled) = tokio::join!(sleeping, cancelling);
    say("cancel", json!([state(slept), state(cancelled)]));
    c.batch_execute("drop table matrix_tokio").await?;
    Ok(())
}

fn bytes(text: String) -> std::io::Cursor<Vec<u8>> {
    std::io::Cursor::new(text.into_bytes())
}
