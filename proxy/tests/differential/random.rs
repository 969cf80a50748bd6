//! Sequences of messages that nobody thought of, made from a seed.

use super::script::{Script, TEXT};

/// SplitMix64: the same sequence for the same seed, on every machine.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

const STATEMENTS: [&str; 4] = ["", "a", "b", "c"];
/// Names for SQL too: what ends or begins a block is not under them, for an EXECUTE of that is the end of a session.
const BOTH_WAYS: [&str; 2] = ["x", "y"];
const PORTALS: [&str; 3] = ["", "p", "q"];
/// With the number of parameters each takes.
const TEXTS: [(&str, usize); 22] = [
    ("select 1", 0),
    ("select $1::text", 1),
    ("select $1::text || $2::text, $1", 2),
    ("select generate_series(1, 5)", 0),
    ("select 1/0", 0),
    ("selec", 0),
    ("", 0),
    ("insert into t values (1000 + (random() * 0)::int, $1)", 1),
    ("select count(*) from t", 0),
    ("update t set word = $1 where id = 2 returning word", 1),
    ("begin", 0),
    ("commit", 0),
    ("rollback", 0),
    ("savepoint s", 0),
    ("rollback to s", 0),
    ("set timezone = 'Asia/Tokyo'", 0),
    ("prepare x as select 'by SQL'", 0),
    ("prepare y(text) as insert into t values (4000, $1) on conflict do nothing returning id", 0),
    ("execute x", 0),
    ("execute y('x')", 0),
    ("deallocate x", 0),
    ("deallocate y", 0),
];
const QUERIES: [&str; 21] = [
    "select 2",
    "begin",
    "commit",
    "rollback",
    "select 1/0",
    "",
    "select 1; select 2",
    "insert into t values (2000, 'r') on conflict do nothing",
    "select word from t order by id",
    "select 1; begin; select 2",
    "do $$ begin raise notice 'n'; end $$",
    "show timezone",
    "set timezone = 'UTC'",
    "prepare x(int) as select $1 + 1",
    "prepare y as select 1/0",
    "execute x(1)",
    "execute x",
    "execute y",
    "deallocate x",
    "deallocate all",
    "execute x; deallocate y",
];

/// A sequence of about `length` messages. What it leaves open, a clean-up that anybody can send will end.
pub fn script(seed: u64, length: usize) -> Script {
    let mut random = Random(seed);
    let mut script = Script::new(format!("random sequence, seed {seed}"));
    for _ in 0..length {
        script = step(script, &mut random);
    }
    // A COPY that is open takes a Sync for nothing; a CopyFail without one is for nothing itself.
    script.copy_fail("the end").sync()
}

fn step(script: Script, random: &mut Random) -> Script {
    let (statement, portal) = (random.pick(&STATEMENTS), random.pick(&PORTALS));
    let (sql, parameters) = TEXTS[random.below(TEXTS.len())];
    let values: [Option<&str>; 2] = [Some("x"), [None, Some("why")][random.below(2)]];
    // Half of the named texts are known to servers already, half are new to all.
    let own = if random.below(2) == 0 { sql.to_owned() } else { format!("{sql} /* {:x} */", random.next()) };
    match random.below(30) {
        0..=3 => script.parse(statement, &own, &[]),
        4 => script.parse(statement, &own, &[TEXT][..parameters.min(1)]),
        // Mostly what the other messages need: a whole statement.
        5..=8 => script.parse("", &own, &[]).bind("", "", &values[..parameters]).execute("", 0),
        9 => script.parse(statement, &own, &[]).bind(portal, statement, &values[..parameters]),
        10 => script.bind(portal, statement, &values[..random.below(3)]),
        // PostgreSQL 15 crashes on the unnamed portal of a query that has failed within a block: its statements are freed.
        11..=12 if portal.is_empty() => {
            script.parse("", &own, &[]).bind("", "", &values[..parameters]).execute("", random.below(3) as u32)
        }
        11..=12 => script.execute(portal, random.below(3) as u32),
        13 => script.describe(b'S', statement),
        14 => script.describe(b'P', portal),
        15..=16 => script.close(b'S', statement),
        17 => script.close(b'P', portal),
        18 => script.flush(),
        19..=21 => script.sync(),
        22 => script.query(random.pick(&QUERIES)),
        23..=24 => script.sync().query(random.pick(&QUERIES)),
        25 => copy(script.sync(), random),
        26 => script.parse(random.pick(&BOTH_WAYS), random.pick(&["select 'by message'", "select $1::int"]), &[]),
        27 => script.bind(portal, random.pick(&BOTH_WAYS), &[]),
        28 => script.close(b'S', random.pick(&BOTH_WAYS)),
        _ => script.describe(b'S', random.pick(&BOTH_WAYS)),
    }
}

fn copy(script: Script, random: &mut Random) -> Script {
    let begun = match random.below(3) {
        0 => script.query("copy t from stdin"),
        1 => script.run("copy t from stdin", &[]),
        // Nothing begun: what follows is for nobody.
        _ => script,
    };
    match random.below(3) {
        0 => begun.copy_data(b"3000\tc\n").copy_done(),
        1 => begun.copy_data(b"bad\n").copy_done(),
        _ => begun.copy_fail("no"),
    }
}
