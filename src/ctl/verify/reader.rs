//! Readers: sessions that ask for all registers at once, in every way in which a client can read, and tell what came
//! to the checker.

use super::checker::{Begun, Mode, Session};
use super::ground::{Endpoint, PATIENCE, SCHEMA};
use super::run::{Run, Shown};
use super::writer::{self, Connection};
use cluster::{Clock, Instant};
use std::rc::Rc;
use std::time::Duration;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, Row, Statement};

/// Before a connection that was lost is made again.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// What is asked: who answers, and all registers. Everything in it is stable and the same on every server, so an endpoint can
/// take it for a read.
pub(super) fn query() -> String {
    format!(
        "select current_setting('cluster_name', true), current_setting('in_hot_standby', true), \
         string_agg(n::text, ',' order by register) from {SCHEMA}.registers"
    )
}

/// How a read is sent; taken in turn.
#[derive(Clone, Copy)]
pub(super) enum Style {
    Prepared,
    Simple,
    Unnamed,
    ReadOnly,
}

const STYLES: [Style; 3] = [Style::Prepared, Style::Simple, Style::Unnamed];
/// Every so many sessions one reads in READ ONLY transactions only. A block that goes to the primary would keep the other
/// reads of its session there.
const READ_ONLY_EACH: usize = 4;

/// What an endpoint refuses in a block, and PostgreSQL has nothing against.
pub(super) const REFUSED: &str = "set local pgtenure.after = 'no position'";
/// Every so many READ ONLY transactions one is broken off behind what it has read.
const BROKEN_OFF_EACH: usize = 4;

/// How a session sends its next read: `index` is its number among those of its mode, `reads` how many it has sent.
pub(super) fn style(index: usize, reads: usize) -> Style {
    let in_blocks = index % READ_ONLY_EACH == READ_ONLY_EACH - 1;
    if in_blocks { Style::ReadOnly } else { STYLES[reads % STYLES.len()] }
}

/// One connection after another, each a session of its own.
pub(super) struct Reader {
    pub(super) mode: Mode,
    /// Its number among those of its mode.
    pub(super) index: usize,
    pub(super) endpoint: Endpoint,
    /// The register that it writes itself.
    pub(super) own: Option<usize>,
}

struct Open {
    connection: Connection,
    read: Statement,
    session: Session,
    number: usize,
}

impl Reader {
    /// Read until the run is over.
    pub(super) async fn read_on(self, run: Rc<Run>) {
        let (mut reads, mut writes) = (0, 0);
        while !run.is_over() {
            let mut open = match self.open(&run).await {
                Ok(open) => open,
                Err(error) => {
                    run.read_error(self.mode, &error);
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let mut next_write = Clock.now();
            while !run.is_over() && !open.connection.client().is_closed() {
                if let Some(own) = self.own.filter(|_| Clock.now() >= next_write) {
                    writer::write(&run, &open.connection, own, writes).await;
                    writes += 1;
                    next_write = Clock.now() + run.own_write_pause();
                }
                self.read(&run, &mut open, style(self.index, reads), reads).await;
                reads += 1;
                tokio::time::sleep(run.read_pause()).await;
            }
        }
    }

    async fn open(&self, run: &Run) -> Result<Open, Error> {
        let client = self.endpoint.connect(&run.settings(self.mode)).await?;
        let connection = Connection::prepare(client).await?;
        let read = connection.client().prepare(&query()).await?;
        Ok(Open { connection, read, session: Session::new(self.mode, self.own), number: run.next_session() })
    }

    async fn read(&self, run: &Run, open: &mut Open, style: Style, turn: usize) {
        let begun_at = Clock.now();
        let begun = run.checker.borrow().begin(&open.session, begun_at);
        let asked = ask(open.connection.client(), &open.read, style);
        let result = tokio::time::timeout(PATIENCE, asked).await;
        let now = Clock.now();
        let answer = match result {
            Ok(Ok(answer)) => answer,
            // Older than the table itself: nothing is there.
            Ok(Err(error)) if older_than_the_table(&error) => Answer::default(),
            Ok(Err(error)) => {
                run.read_error(self.mode, &error);
                return roll_back(open.connection.client(), style).await;
            }
            Err(_) => return run.read_silent(self.mode),
        };
        // Whatever becomes of its transaction, this was shown.
        self.note(run, open, (&begun, begun_at, now), answer);
        let client = open.connection.client();
        if turn / READ_ONLY_EACH % BROKEN_OFF_EACH == BROKEN_OFF_EACH - 1 && matches!(style, Style::ReadOnly) {
            let _ = tokio::time::timeout(PATIENCE, client.batch_execute(REFUSED)).await;
            return roll_back(client, style).await;
        }
        match tokio::time::timeout(PATIENCE, end(client, style)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                run.read_error(self.mode, &error);
                roll_back(client, style).await;
            }
            Err(_) => run.read_silent(self.mode),
        }
    }

    fn note(&self, run: &Run, open: &mut Open, (begun, at, now): (&Begun, Instant, Instant), answer: Answer) {
        let found = run.checker.borrow_mut().end(&mut open.session, begun, &answer.numbers);
        let shown = Shown {
            mode: self.mode,
            session: open.number,
            endpoint: &self.endpoint.name,
            node: answer.node,
            standby: answer.standby,
            at,
            took: now.since(at),
        };
        run.read(&shown, &found);
    }
}

#[derive(Default)]
pub(super) struct Answer {
    node: String,
    standby: bool,
    numbers: Vec<i64>,
}

fn older_than_the_table(error: &Error) -> bool {
    [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME].iter().any(|code| error.code() == Some(code))
}

/// A transaction that is broken off, where the style has one.
async fn roll_back(client: &Client, style: Style) {
    if matches!(style, Style::ReadOnly) {
        let _ = tokio::time::timeout(PATIENCE, client.batch_execute("rollback")).await;
    }
}

/// The end of what [`ask`] has begun.
pub(super) async fn end(client: &Client, style: Style) -> Result<(), Error> {
    match style {
        Style::Prepared | Style::Simple | Style::Unnamed => Ok(()),
        Style::ReadOnly => client.batch_execute("commit").await,
    }
}

/// Ask; a transaction that the style has is left open.
pub(super) async fn ask(client: &Client, read: &Statement, style: Style) -> Result<Answer, Error> {
    match style {
        Style::Prepared => Ok(of_row(&client.query_one(read, &[]).await?)),
        Style::Unnamed => {
            let rows = client.query_typed(&query(), &[]).await?;
            Ok(rows.first().map(of_row).unwrap_or_default())
        }
        Style::Simple => simple(client).await,
        Style::ReadOnly => {
            client.batch_execute("begin read only").await?;
            simple(client).await
        }
    }
}

async fn simple(client: &Client) -> Result<Answer, Error> {
    for message in client.simple_query(&query()).await? {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            return Ok(answer([row.get(0), row.get(1), row.get(2)]));
        }
    }
    Ok(Answer::default())
}

fn of_row(row: &Row) -> Answer {
    answer([row.get(0), row.get(1), row.get(2)])
}

fn answer([node, standby, numbers]: [Option<&str>; 3]) -> Answer {
    Answer {
        node: node.unwrap_or_default().to_owned(),
        standby: standby == Some("on"),
        numbers: numbers.unwrap_or_default().split(',').filter_map(|n| n.parse().ok()).collect(),
    }
}
