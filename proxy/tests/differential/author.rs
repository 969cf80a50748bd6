//! Writes what a session says, round by round, from a seed. Left out is what is known to differ behind a pool:
//!
//! * Bind and Describe of an earlier statement in an aborted block, when the server lacks it: it cannot be prepared
//!   there, so the answer is 25P02. They come when no block can be aborted.
//! * Describe of an earlier statement behind other messages and before a BEGIN with an isolation level, all in one unit:
//!   where the server lacks the statement, preparing it takes the snapshot that must not be there. So a Sync comes first.
//! * A setting of an extension that was set and reset is '' instead of unset, and so it is for the next session on that
//!   server: here it has a default.
//! * Unqualified names in a statement that is prepared again under another `search_path`: statements with names have
//!   qualified ones. Likewise texts that another setting reads otherwise, and tables that gain columns.
//! * FETCH under a name, which has columns if its cursor was there when the server prepared it.
//! * `currval` and `lastval` of an earlier transaction, see the texts.

use super::random::Random;
use super::script::Script;
use super::texts::{ENCODINGS, Encoding, IDENTITY, QUERIES, TEXTS, WHO_AND_HOW};

/// SQL executes none of these: an EXECUTE of what begins or ends a block ends PostgreSQL's session.
const STATEMENTS: [&str; 3] = ["a", "b", "c"];
const PORTALS: [&str; 3] = ["", "p", "q"];
const VALUES: [Option<&str>; 6] = [Some("1"), Some("2"), Some("x"), None, Some("{1,2}"), Some("7")];

/// One session's.
pub struct Author {
    random: Random,
    number: usize,
    encoding: Option<&'static Encoding>,
    /// The transaction may be aborted where the next message is read.
    maybe_aborted: bool,
}

impl Author {
    pub fn new(seed: u64, number: usize) -> Self {
        let mut random = Random(seed.wrapping_mul(1000).wrapping_add(number as u64));
        // A third have none of these.
        let encoding = ENCODINGS.get(random.below(ENCODINGS.len() * 3 / 2));
        Self { random, number, encoding, maybe_aborted: false }
    }

    /// What it says first.
    pub fn first(&mut self) -> Script {
        let k = self.number;
        let mut sql = format!("set search_path = s{k}; set my.v = 'start{k}'");
        if let Some(encoding) = self.encoding {
            sql += &format!("; set client_encoding = '{}'", encoding.name);
        }
        if self.random.below(5) == 0 {
            sql += &format!("; set application_name = 'n{k}'");
        }
        // As applications do that have a role for all that they ask.
        sql += self.random.pick(&["", "", "; set role r1", "; set session authorization default; set role r1"]);
        Script::new("the first round").query(sql)
    }

    /// Some messages; what they leave open ends with the Sync that follows. `aborted`: the transaction is, before them.
    pub fn round(&mut self, aborted: bool) -> Script {
        self.maybe_aborted = aborted;
        let mut script = Script::new("a round");
        for _ in 0..1 + self.random.below(6) {
            script = self.unit(script);
        }
        if self.random.below(3) == 0 { script.sync().query(WHO_AND_HOW) } else { script }
    }

    fn unit(&mut self, script: Script) -> Script {
        let (statement, portal) = (self.random.pick(&STATEMENTS), self.random.pick(&PORTALS));
        match self.random.below(100) {
            0..20 => {
                let (sql, values) = self.text("");
                let script = script.parse("", sql, &[]);
                if self.random.below(5) < 3 {
                    return script.bind("", "", &values).execute("", 0);
                }
                script.describe(b'S', "").bind("", "", &values).describe(b'P', "").execute("", 0)
            }
            20..32 => {
                let (sql, values) = self.named();
                let limits = [self.random.below(4) as u32, self.random.below(3) as u32];
                let script = script.parse(statement, sql, &[]).bind(portal, statement, &values);
                script.execute(portal, limits[0]).execute(portal, limits[1])
            }
            32..37 => {
                let script = script.parse(statement, self.named().0, &[]);
                if self.random.below(2) == 0 { script.describe(b'S', statement) } else { script }
            }
            37..46 => {
                let values = vec![self.value(); self.random.below(2)];
                let script = self.in_order(script).bind(portal, statement, &values);
                script.execute(portal, self.random.below(3) as u32)
            }
            // PostgreSQL 15 crashes on the unnamed portal of a query that has failed within a block: its statements are freed.
            46..49 => script.execute(if portal.is_empty() { "p" } else { portal }, self.random.below(4) as u32),
            // The unnamed statement of an earlier unit, if nothing has destroyed it.
            49 => self.in_order(script).bind("", "", &[]).execute("", 0),
            50..52 => {
                let script = self.ready(script);
                self.in_order(script).describe(b'S', statement)
            }
            52 => script.describe(b'P', portal),
            53..56 => script.close(b'S', statement),
            56..58 => script.close(b'P', portal),
            58..61 => script.flush(),
            61..68 => self.ready(script).sync(),
            68..70 => self.function(script),
            70..75 => self.copy(script),
            75..80 => self.encoded(script),
            80..86 => {
                let text = self.random.pick(&IDENTITY);
                let sql = self.fill(text, "");
                if self.random.below(2) == 0 { self.ready(script).query(sql) } else { script.run(sql, &[]) }
            }
            86..89 => {
                // A Query without a Sync before it.
                let sql = self.random.pick(&["select 3", "show timezone", "begin", "select 1/0"]);
                self.ready(script).query(sql)
            }
            89 => self.two_phases(script),
            _ => {
                let text = self.random.pick(&QUERIES);
                let sql = self.fill(text, "");
                self.ready(script).sync().query(sql)
            }
        }
    }

    /// What follows comes behind a ReadyForQuery, and not behind the error before it.
    fn ready(&mut self, script: Script) -> Script {
        self.maybe_aborted = true;
        script
    }

    /// The transaction is not aborted, or all is skipped up to the next Sync.
    fn in_order(&mut self, script: Script) -> Script {
        if self.maybe_aborted { script.sync().query("rollback") } else { script }
    }

    fn fill(&self, text: &str, schema: &str) -> String {
        text.replace("{k}", &self.number.to_string()).replace("{s}", schema)
    }

    fn value(&mut self) -> Option<&'static str> {
        VALUES[self.random.below(VALUES.len())]
    }

    /// A text and its parameters. Some texts are the session's own, most are known to servers from others.
    fn text(&mut self, schema: &str) -> (String, Vec<Option<&'static str>>) {
        let (text, parameters) = TEXTS[self.random.below(TEXTS.len())];
        let mut sql = self.fill(text, schema);
        if self.random.below(4) == 0 {
            sql += &format!(" /* {} */", self.random.below(4));
        }
        (sql, (0..parameters).map(|_| self.value()).collect())
    }

    /// A text for a statement with a name.
    fn named(&mut self) -> (String, Vec<Option<&'static str>>) {
        let schema = format!("s{}.", self.number);
        if self.random.below(6) == 0 {
            let text = self.random.pick(&IDENTITY);
            return (self.fill(text, &schema), Vec::new());
        }
        let (sql, values) = self.text(&schema);
        if sql.starts_with("fetch") { ("select 1".to_owned(), values) } else { (sql, values) }
    }

    fn function(&mut self, script: Script) -> Script {
        // int4pl, and one that is not there.
        let (oid, arguments): (u32, &[&str]) =
            [(177, &["20", "22"] as &[&str]), (177, &["1"]), (177, &["x", "1"]), (999_999, &[])][self.random.below(4)];
        self.ready(script).function(oid, arguments)
    }

    fn copy(&mut self, script: Script) -> Script {
        let into = self.random.pick(&[
            "copy t(id, word) from stdin",
            "copy nowhere from stdin",
            "copy t(id, word) from stdin (format csv)",
            "copy kid from stdin",
        ]);
        let how = self.random.below(5);
        let begun = match how {
            0..2 => self.ready(script).sync().query(into),
            2 => self.ready(script).sync().query(format!("select 1; {into}; select 2")),
            _ => script.run(into, &[]),
        };
        let data = match self.random.below(5) {
            0 => begun.copy_data(b"90\tc\n"),
            1 => begun.copy_data(b"91\tc\n92").copy_data(b"\td\n"),
            2 => begun.copy_data(b"bad\n"),
            3 => begun.copy_data(b""),
            _ => begun.copy_data(b"93\tx\n").copy_data(b"93\tx\n"),
        };
        let ended = if self.random.below(3) == 0 { data.copy_fail("no") } else { data.copy_done() };
        if how == 3 { self.ready(ended).sync() } else { ended }
    }

    fn encoded(&mut self, script: Script) -> Script {
        let Some(encoding) = self.encoding else { return script.run("show client_encoding", &[]) };
        let sql = self.random.pick(encoding.queries);
        if self.random.below(3) == 0 { script.run(sql, &[]) } else { self.ready(script).sync().query(sql) }
    }

    /// All at once, so that no lock is left to a later round.
    fn two_phases(&mut self, script: Script) -> Script {
        let k = self.number;
        let script = self.ready(script).sync().query("rollback").query("begin; insert into t values (95, 'two')");
        let end = self.random.pick(&["commit", "rollback"]);
        script.query(format!("prepare transaction 'g{k}'")).query(format!("{end} prepared 'g{k}'"))
    }
}
