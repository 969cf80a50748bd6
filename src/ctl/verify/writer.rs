//! Writers: each counts one register up, in every way in which a client can commit.

use super::checker::Outcome;
use super::ground::{Endpoint, PATIENCE, SCHEMA};
use super::reader;
use super::run::Run;
use std::rc::Rc;
use std::time::Duration;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Statement};

/// in the class "Connection Exception": transaction_resolution_unknown.
const UNKNOWN: &str = "08007";
/// Before a connection that was lost is made again, and after a write that was refused.
const PAUSE: Duration = Duration::from_millis(50);

/// How a write is sent; taken in turn.
#[derive(Clone, Copy)]
enum Style {
    Simple,
    Prepared,
    Unnamed,
    Block,
    /// A block, with the BEGIN of the next one right behind its COMMIT: the answers of both come together. The next one is
    /// broken off.
    Followed,
}

const STYLES: [Style; 5] = [Style::Simple, Style::Prepared, Style::Unnamed, Style::Block, Style::Followed];

/// One register's writer. Its connection is made when needed.
pub(super) struct Writer {
    pub(super) endpoint: Endpoint,
    pub(super) register: usize,
    pub(super) connection: Option<Connection>,
    pub(super) writes: usize,
}

/// A connection with its statement.
pub(super) struct Connection {
    client: Client,
    update: Statement,
}

impl Connection {
    pub(super) async fn prepare(client: Client) -> Result<Self, Error> {
        // A statement in doubt may still be on its way when the next was acknowledged; it must not undo that.
        let sql = format!("update {SCHEMA}.registers set n = $2 where register = $1 and n < $2");
        let update = client.prepare_typed(&sql, &[Type::INT4, Type::INT8]).await?;
        Ok(Self { client, update })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }
}

impl Writer {
    /// Write until the run is over.
    pub(super) async fn write_on(mut self, run: Rc<Run>) {
        while !run.is_over() {
            if self.connection.as_ref().is_none_or(|c| c.client.is_closed()) {
                self.connection = match connect(&self.endpoint).await {
                    Ok(connection) => Some(connection),
                    Err(error) => {
                        run.write_error(&error);
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                };
            }
            let connection = self.connection.as_ref().expect("made above");
            let outcome = write(&run, connection, self.register, self.writes).await;
            self.writes += 1;
            let pause = if outcome == Outcome::Acknowledged { run.write_pause() } else { PAUSE };
            tokio::time::sleep(pause).await;
        }
    }
}

async fn connect(endpoint: &Endpoint) -> Result<Connection, Error> {
    Connection::prepare(endpoint.connect(&[]).await?).await
}

/// Count `register` up once and note what became of it.
pub(super) async fn write(run: &Run, connection: &Connection, register: usize, turn: usize) -> Outcome {
    let n = run.checker.borrow_mut().send(register);
    let style = STYLES[turn % STYLES.len()];
    let result = match tokio::time::timeout(PATIENCE, send(connection, style, register, n)).await {
        Ok(result) => result,
        Err(_) => Err(Failure::Silent),
    };
    let outcome = match &result {
        Ok(()) => Outcome::Acknowledged,
        Err(Failure::Before(_)) => Outcome::Refused,
        Err(Failure::At(error)) => match error.code() {
            Some(code) if code.code() != UNKNOWN && !connection.client.is_closed() => Outcome::Refused,
            Some(_) | None => Outcome::InDoubt,
        },
        Err(Failure::Silent) => Outcome::InDoubt,
    };
    run.wrote(register, outcome);
    if let Err(Failure::Before(error) | Failure::At(error)) = &result {
        run.write_error(error);
        // A block that failed ends; outside of one this is a warning.
        let _ = tokio::time::timeout(PATIENCE, connection.client.batch_execute("rollback")).await;
    }
    outcome
}

enum Failure {
    /// Before anything was sent that could have committed it.
    Before(Error),
    /// In answer to what could have.
    At(Error),
    /// No answer.
    Silent,
}

async fn send(connection: &Connection, style: Style, register: usize, n: i64) -> Result<(), Failure> {
    let Connection { client, update } = connection;
    let as_int = i32::try_from(register).expect("few registers");
    let text = format!("update {SCHEMA}.registers set n = {n} where register = {register} and n < {n}");
    match style {
        Style::Simple => client.batch_execute(&text).await.map_err(Failure::At),
        Style::Prepared => client.execute(update, &[&as_int, &n]).await.map(drop).map_err(Failure::At),
        Style::Unnamed => client.query_typed(&text, &[]).await.map(drop).map_err(Failure::At),
        Style::Block => {
            client.batch_execute("begin").await.map_err(Failure::Before)?;
            client.batch_execute(&text).await.map_err(Failure::Before)?;
            client.batch_execute("commit").await.map_err(Failure::At)
        }
        Style::Followed => {
            client.batch_execute("begin").await.map_err(Failure::Before)?;
            client.batch_execute(&text).await.map_err(Failure::Before)?;
            // Each is sent when it is first polled, so in one write mostly.
            let (commit, begin) = tokio::join!(client.batch_execute("commit"), client.batch_execute("begin"));
            if begin.is_ok() {
                let _ = client.batch_execute(reader::REFUSED).await;
                let _ = client.batch_execute("rollback").await;
            }
            commit.map_err(Failure::At)
        }
    }
}
