//! Readers: sessions that ask for all registers at once, in every way in which a client can read, and tell what came
//! to the checker.

use super::checker::{Begun, Mode, Outcome, Session};
use super::ground::{Endpoint, PATIENCE, SCHEMA};
use super::run::{Run, Shown, Token};
use super::writer::{self, Connection};
use cluster::{Clock, Instant};
use std::rc::Rc;
use std::time::Duration;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Row, SimpleQueryMessage, Statement};

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
    /// What it may miss is said in a comment before it,
    HintedSimple,
    HintedUnnamed,
    /// Two, of which the second is sent before the first is answered. Then the session rests: one that has always something on
    /// its way to the primary stays there.
    Pipelined,
    /// Right behind a read one in a block that may write, which reads at the primary,
    InBlock,
    /// or one that an endpoint cannot take for a read.
    Unproven,
}

const STYLES: [Style; 3] = [Style::Prepared, Style::Simple, Style::Unnamed];
const HINTED: [Style; 2] = [Style::HintedSimple, Style::HintedUnnamed];

/// What a session does besides, by its number among those of its mode.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// All its reads are hinted, and it asks for nothing itself.
    Hinted,
    Pipelined,
    /// It reads in READ ONLY transactions only, twice in each. A block that goes to the primary would keep its other reads there.
    ReadOnly,
}

const KINDS: [Kind; 4] = [Kind::Plain, Kind::Hinted, Kind::Pipelined, Kind::ReadOnly];

/// Every so many reads of a plain session one is in a block that may write, and halfway between one is not to be taken for a read.
/// Both keep the reads behind them at the primary for a while.
const AT_PRIMARY_EACH: usize = 16;

fn kind(index: usize) -> Kind {
    KINDS[index % KINDS.len()]
}

/// Who takes other sessions' tokens takes one for the first half of so many turns.
const TAKEN_EACH: usize = 32;

/// What an endpoint refuses in a block, and PostgreSQL has nothing against.
pub(super) const REFUSED: &str = "set local pgtenure.after = 'no position'";
/// Every so many READ ONLY transactions one is broken off behind what it has read.
const BROKEN_OFF_EACH: usize = 4;

/// How a session sends its next read: `index` is its number among those of its mode, `reads` how many it has sent.
/// `hinted`: comments are read.
pub(super) fn style(index: usize, reads: usize, hinted: bool) -> Style {
    match kind(index) {
        Kind::ReadOnly => Style::ReadOnly,
        Kind::Pipelined => Style::Pipelined,
        Kind::Hinted if hinted => HINTED[reads % HINTED.len()],
        Kind::Plain if reads % AT_PRIMARY_EACH == AT_PRIMARY_EACH - 1 => Style::InBlock,
        Kind::Plain if reads % AT_PRIMARY_EACH == AT_PRIMARY_EACH / 2 - 1 => Style::Unproven,
        Kind::Hinted | Kind::Plain => STYLES[reads % STYLES.len()],
    }
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
    /// The comment before each of its reads; `None`: it has asked itself.
    hint: Option<String>,
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
            // A session that keeps its server leaves the standbys for good with its first write.
            let mut next_write = Clock.now() + run.own_write_pause();
            while !run.is_over() && !open.connection.client().is_closed() {
                if let Some(own) = self.own.filter(|_| Clock.now() >= next_write) {
                    let outcome = writer::write(&run, &open.connection, own, writes).await;
                    writes += 1;
                    next_write = Clock.now() + run.own_write_pause();
                    if outcome == Outcome::Acknowledged {
                        self.hand_on(&run, &open).await;
                    }
                }
                let style = style(self.index, reads, open.hint.is_some());
                let goes_on = self.take(&run, &mut open, reads).await && self.read(&run, &mut open, style, reads).await;
                reads += 1;
                if !goes_on {
                    break;
                }
                tokio::time::sleep(run.read_pause()).await;
            }
        }
    }

    async fn open(&self, run: &Run) -> Result<Open, Error> {
        let mut hint = None;
        let mut client = self.endpoint.connect(&run.settings(self.mode, kind(self.index) == Kind::Hinted)).await?;
        if kind(self.index) == Kind::Hinted {
            if reads_hints(&client).await? {
                hint = Some(run.hint(self.mode));
            } else {
                run.no_hints(&self.endpoint.name);
                client = self.endpoint.connect(&run.settings(self.mode, false)).await?;
            }
        }
        let connection = Connection::prepare(client).await?;
        let read = connection.client().prepare(&query()).await?;
        Ok(Open { connection, read, session: Session::new(self.mode, self.own), number: run.next_session(), hint })
    }

    /// Ask for a token, for others to take.
    async fn hand_on(&self, run: &Run, open: &Open) {
        let covered = run.checker.borrow().covered(&open.session, Clock.now());
        let asked = open.connection.client().simple_query("show pgtenure.token");
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(messages)) => {
                let text = messages.iter().find_map(|message| match message {
                    SimpleQueryMessage::Row(row) => row.get(0),
                    _ => None,
                });
                // Behind a failover none may be known: then it is empty.
                if let Some(text) = text.filter(|text| !text.is_empty()) {
                    run.hand_on(Token { text: text.to_owned(), covered, giver: open.number });
                }
            }
            Ok(Err(error)) => run.read_error(self.mode, &error),
            Err(_) => run.read_silent(self.mode),
        }
    }

    /// Take another session's token, or put away what was taken, when it is time. False: what holds now is not known, and the
    /// session ends.
    async fn take(&self, run: &Run, open: &mut Open, turn: usize) -> bool {
        let client = open.connection.client();
        let takes = matches!(kind(self.index), Kind::Pipelined | Kind::ReadOnly);
        let token = match (turn % TAKEN_EACH < TAKEN_EACH / 2, open.session.holds_token()) {
            (true, false) if takes => match run.token_for(open.number) {
                Some(token) => Some(token),
                None => return true,
            },
            (false, true) => None,
            (true, true) | (_, false) => return true,
        };
        let text = token.as_ref().map_or("", |token| &token.text);
        if token.is_none() {
            open.session.put_away();
        }
        let by_parameter = (turn / TAKEN_EACH).is_multiple_of(2);
        let set = async {
            if by_parameter {
                let sql = "select set_config('pgtenure.after', $1, false)";
                client.query_typed(sql, &[(&text, Type::TEXT)]).await.map(drop)
            } else {
                client.batch_execute(&format!("set pgtenure.after = '{}'", text.replace('\'', "''"))).await
            }
        };
        match tokio::time::timeout(PATIENCE, set).await {
            Ok(Ok(())) => {
                if let Some(token) = token {
                    open.session.take(token.covered.clone());
                }
                true
            }
            Ok(Err(error)) => {
                run.read_error(self.mode, &error);
                false
            }
            Err(_) => {
                run.read_silent(self.mode);
                false
            }
        }
    }

    /// False: the session is of no use any more.
    async fn read(&self, run: &Run, open: &mut Open, style: Style, turn: usize) -> bool {
        let begun_at = Clock.now();
        let mut begun = run.checker.borrow().begin(&open.session, begun_at);
        let (mut answers, hint) = (Vec::new(), open.hint.as_deref().unwrap_or_default());
        let asked = ask(open.connection.client(), &open.read, style, hint, &mut answers);
        let mut result = tokio::time::timeout(PATIENCE, asked).await;
        if matches!(&result, Ok(Err(error)) if older_than_the_table(error)) {
            // Older than the table itself: nothing is there.
            answers.push((Answer::default(), Clock.now()));
            result = Ok(Ok(()));
        }
        // Whatever becomes of its transaction, this was shown.
        for (answer, now) in answers {
            let numbers = answer.numbers.clone();
            self.note(run, open, (&begun, begun_at, now), style, answer);
            if matches!(style, Style::ReadOnly) {
                begun = begun.behind(&numbers);
            }
        }
        match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                run.read_error(self.mode, &error);
                let over = roll_back(open.connection.client(), style).await;
                // A token of what was lost is refused for ever.
                let lost = error.code() == Some(&SqlState::TRANSACTION_RESOLUTION_UNKNOWN);
                return over && !(lost && open.session.holds_token());
            }
            Err(_) => {
                run.read_silent(self.mode);
                // What comes of it, and of a transaction that is open still, belongs to nothing any more.
                return false;
            }
        }
        let client = open.connection.client();
        if turn / KINDS.len() % BROKEN_OFF_EACH == BROKEN_OFF_EACH - 1 && matches!(style, Style::ReadOnly) {
            let _ = tokio::time::timeout(PATIENCE, client.batch_execute(REFUSED)).await;
            return roll_back(client, style).await;
        }
        match tokio::time::timeout(PATIENCE, end(client, style)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                run.read_error(self.mode, &error);
                roll_back(client, style).await
            }
            Err(_) => {
                run.read_silent(self.mode);
                false
            }
        }
    }

    fn note(
        &self,
        run: &Run,
        open: &mut Open,
        (begun, at, now): (&Begun, Instant, Instant),
        style: Style,
        answer: Answer,
    ) {
        let mut ways = Vec::new();
        match style {
            Style::HintedSimple | Style::HintedUnnamed => ways.push("hinted"),
            Style::Pipelined => ways.push("pipelined"),
            // The one before it is like any other.
            Style::InBlock if answer.last => ways.push("in_block"),
            Style::Unproven if answer.last => ways.push("unproven"),
            Style::Prepared | Style::Simple | Style::Unnamed | Style::ReadOnly | Style::InBlock | Style::Unproven => {}
        }
        if open.session.holds_token() {
            ways.push("with_token");
        }
        let found = run.checker.borrow_mut().end(&mut open.session, begun, &answer.numbers);
        let shown = Shown {
            mode: self.mode,
            session: open.number,
            endpoint: &self.endpoint.name,
            node: answer.node,
            standby: answer.standby,
            at,
            took: now.since(at),
            ways,
        };
        run.read(&shown, &found);
    }
}

/// Are comments read there? Then one that says nonsense of a commit is refused.
async fn reads_hints(client: &Client) -> Result<bool, Error> {
    match client.batch_execute("/* pgtenure: durability=nonsense */ select 1").await {
        Ok(()) => Ok(false),
        Err(error) if error.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) => Ok(true),
        Err(error) => Err(error),
    }
}

#[derive(Default)]
pub(super) struct Answer {
    node: String,
    standby: bool,
    numbers: Vec<i64>,
    /// The last one of what was asked at once.
    last: bool,
}

fn older_than_the_table(error: &Error) -> bool {
    [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME].iter().any(|code| error.code() == Some(code))
}

/// A transaction that is broken off, where the style has one. False: whether it is over is not known.
async fn roll_back(client: &Client, style: Style) -> bool {
    !matches!(style, Style::ReadOnly | Style::InBlock)
        || tokio::time::timeout(PATIENCE, client.batch_execute("rollback")).await.is_ok()
}

/// The end of what [`ask`] has begun.
pub(super) async fn end(client: &Client, style: Style) -> Result<(), Error> {
    match style {
        Style::Prepared
        | Style::Simple
        | Style::Unnamed
        | Style::HintedSimple
        | Style::HintedUnnamed
        | Style::Pipelined
        | Style::Unproven => Ok(()),
        Style::ReadOnly | Style::InBlock => client.batch_execute("commit").await,
    }
}

/// Ask; a transaction that the style has is left open. The answers in their order, and when each was there, also those before
/// an error.
pub(super) async fn ask(
    client: &Client,
    read: &Statement,
    style: Style,
    hint: &str,
    answers: &mut Vec<(Answer, Instant)>,
) -> Result<(), Error> {
    let last = match style {
        Style::Prepared => prepared(client, read).await,
        Style::Unnamed => unnamed(client, &query()).await,
        Style::HintedUnnamed => unnamed(client, &format!("{hint}{}", query())).await,
        Style::Simple => simple(client, &query()).await,
        Style::HintedSimple => simple(client, &format!("{hint}{}", query())).await,
        Style::ReadOnly => {
            client.batch_execute("begin read only").await?;
            answers.push(simple(client, &query()).await?);
            simple(client, &query()).await
        }
        Style::Pipelined => {
            // Each is sent when it is first polled.
            let sql = query();
            let (first, second) = tokio::join!(prepared(client, read), simple(client, &sql));
            answers.push(first?);
            second
        }
        Style::InBlock => {
            answers.push(prepared(client, read).await?);
            client.batch_execute("begin").await?;
            simple(client, &query()).await
        }
        Style::Unproven => {
            answers.push(prepared(client, read).await?);
            simple(client, &format!("{} where pg_backend_pid() > 0", query())).await
        }
    };
    let (last, at) = last?;
    answers.push((Answer { last: true, ..last }, at));
    Ok(())
}

async fn prepared(client: &Client, read: &Statement) -> Result<(Answer, Instant), Error> {
    let row = client.query_one(read, &[]).await?;
    Ok((of_row(&row), Clock.now()))
}

async fn unnamed(client: &Client, sql: &str) -> Result<(Answer, Instant), Error> {
    let rows = client.query_typed(sql, &[]).await?;
    Ok((rows.first().map(of_row).unwrap_or_default(), Clock.now()))
}

async fn simple(client: &Client, sql: &str) -> Result<(Answer, Instant), Error> {
    let messages = client.simple_query(sql).await?;
    let found = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(answer([row.get(0), row.get(1), row.get(2)])),
        _ => None,
    });
    Ok((found.unwrap_or_default(), Clock.now()))
}

fn of_row(row: &Row) -> Answer {
    answer([row.get(0), row.get(1), row.get(2)])
}

fn answer([node, standby, numbers]: [Option<&str>; 3]) -> Answer {
    Answer {
        node: node.unwrap_or_default().to_owned(),
        standby: standby == Some("on"),
        numbers: numbers.unwrap_or_default().split(',').filter_map(|n| n.parse().ok()).collect(),
        last: false,
    }
}
