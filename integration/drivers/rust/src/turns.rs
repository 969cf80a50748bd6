//! Turns with tokio-postgres or sqlx, until the file MATRIX_STOP exists. See turns.rs of the matrix.

use crate::{Ended, env};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use std::path::Path;
use std::time::Duration;
use tokio_postgres::{Client, NoTls};

const INSERT: &str = "insert into matrix_turns values ($1, $2)";
const COUNT: &str = "select count(*) from matrix_turns where driver = $1 and turn = $2";

/// One connection of a driver.
enum Driver {
    Tokio(Client),
    Sqlx(Box<PgConnection>),
}

/// Why a turn failed: the SQLSTATE, if the server sent one, and in words. Without one the connection is of no use.
struct Failed(Option<String>, String);

impl From<tokio_postgres::Error> for Failed {
    fn from(e: tokio_postgres::Error) -> Self {
        Self(e.as_db_error().map(|db| db.code().code().to_owned()), e.to_string())
    }
}

impl From<sqlx::Error> for Failed {
    fn from(e: sqlx::Error) -> Self {
        Self(e.as_database_error().and_then(|db| db.code()).map(Into::into), e.to_string())
    }
}

impl Driver {
    async fn connect(name: &str) -> Result<Self, Failed> {
        if name == "sqlx" {
            return Ok(Self::Sqlx(Box::new(PgConnection::connect_with(&PgConnectOptions::new()).await?)));
        }
        let (client, connection) = crate::tokio_script::config().connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(Self::Tokio(client))
    }

    async fn write(&mut self, name: &str, turn: i32) -> Result<i64, Failed> {
        match self {
            Self::Tokio(c) => c.execute(INSERT, &[&name, &turn]).await.map(drop)?,
            Self::Sqlx(c) => sqlx::query(INSERT).bind(name).bind(turn).execute(&mut **c).await.map(drop)?,
        }
        Ok(1)
    }

    async fn block(&mut self, name: &str, turn: i32) -> Result<i64, Failed> {
        match self {
            Self::Tokio(c) => {
                let t = c.transaction().await?;
                t.execute(INSERT, &[&name, &turn]).await?;
                t.commit().await?;
            }
            Self::Sqlx(c) => {
                let mut t = c.begin().await?;
                sqlx::query(INSERT).bind(name).bind(turn).execute(&mut *t).await?;
                t.commit().await?;
            }
        }
        Ok(1)
    }

    async fn read(&mut self, name: &str, last: i32) -> Result<i64, Failed> {
        Ok(match self {
            Self::Tokio(c) => c.query_one(COUNT, &[&name, &last]).await?.get(0),
            Self::Sqlx(c) => sqlx::query_scalar(COUNT).bind(name).bind(last).fetch_one(&mut **c).await?,
        })
    }
}

pub async fn run(name: &str) -> Ended {
    let refused = |Failed(_, words)| words;
    let mut driver = Driver::connect(name).await.map_err(refused)?;
    let (stop, mut last) = (env("MATRIX_STOP"), -1);
    for turn in 0.. {
        if Path::new(&stop).exists() {
            break;
        }
        let (kind, seen) = match turn % 3 {
            0 => ("write", driver.write(name, turn).await),
            1 => ("block", driver.block(name, turn).await),
            _ => ("read", driver.read(name, last).await),
        };
        match seen {
            Ok(1) => {
                println!("ok {turn} {kind}");
                last = if kind == "read" { last } else { turn };
            }
            Ok(_) => println!("missing {turn} {kind}"),
            Err(Failed(state, words)) => {
                println!("error {turn} {kind} {} {words}", state.as_deref().unwrap_or("-"));
                if state.is_none() {
                    println!("closed {turn}");
                    driver = Driver::connect(name).await.map_err(refused)?;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
