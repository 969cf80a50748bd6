//! One pass over a text: the access it needs and its effects.
//!
//! A text is a read only when every token is understood, its first word is one of the few that can read, no word in
//! it can write, and every function it calls is known not to be volatile. Everything else is a write.

mod about;
mod body;
mod executed;
mod long;
mod part;
mod why;

pub(super) use body::{BodyLeaves, body_leaves, code, literals, words};
pub(super) use executed::executes;
pub use long::{Leaves, LongText};
pub use why::{Why, why};

use super::aside::sets_aside;
use super::functions::FunctionTable;
use super::keyword::Keyword as K;
use super::lexer::Lexer;
use super::loose::{
    calls_new, each_word, local_anywhere, locks_anywhere, loose_pins, names_anywhere, pins_anywhere, worse,
};
use super::{Access, Control, LexRules, Local, Names, PinReason, Pins, Statement, named};
use part::{End, Part};

/// What a text does, as far as the text tells. No allocation.
pub fn classify(sql: &[u8], functions: &FunctionTable, lex: LexRules) -> Statement {
    classified(sql, functions, lex).0
}

/// The same, and whether more of what stands in literals was looked at than that all of it is ASCII. Where it was not, any
/// text does the same that is cut into the same tokens, its words and names being the same.
pub(super) fn classified(sql: &[u8], functions: &FunctionTable, lex: LexRules) -> (Statement, bool) {
    let standard = lex.standard_conforming_strings && lex.ascii_safe_encoding;
    if !standard && sql.iter().any(|b| !b.is_ascii() || *b == b'\\') {
        return (assume_the_worst(sql, functions), true);
    }
    let mut lexer = Lexer::new(sql);
    let mut all = Sum::new(sql);
    loop {
        let (part, end) = Part::scan(&mut lexer, functions);
        match end {
            End::Odd => return (assume_the_worst(sql, functions), true),
            End::Semicolon => all.add(&part),
            End::Text => {
                all.add(&part);
                break;
            }
        }
    }
    let unseen = || functions.may_hide_volatile(sql) || functions.may_be_misread(sql, lex);
    let known = standard && !((all.access == Access::Read || all.declares) && unseen());
    let operators = functions.bodies().operators_in(sql);
    all.pins.join(operators.0);
    all.unpins |= operators.1;
    let known = known && operators.0.is_empty();
    let access = if known && all.access == Access::Read { Access::Read } else { Access::Write };
    let aside = all.count == 1 && (known && all.declares || standard && all.sets && sets_aside(sql));
    // Where the functions are read anew everything may hide something, and hardly anything does.
    let hides = !functions.is_outdated() && functions.may_hide_volatile(sql);
    all.quiet &= standard && !hides;
    let looked = all.does || all.ours || all.names != Names::None || functions.looks_into_literals();
    (Statement { aside, ..all.end(access) }, looked)
}

/// What the first statement of a text does to the transaction block, and the text behind it. What cannot be read does
/// nothing to it.
pub fn first_of(sql: &[u8]) -> (Control, &[u8]) {
    let functions = FunctionTable::unloaded();
    let mut lexer = Lexer::new(sql);
    loop {
        let (part, end) = Part::scan(&mut lexer, &functions);
        let rest = &sql[lexer.at().min(sql.len())..];
        match end {
            End::Odd => return (Control::None, rest),
            End::Semicolon if part.is_empty() => {}
            End::Text if part.is_empty() => return (Control::Empty, rest),
            End::Semicolon | End::Text => return (part.head.control(), rest),
        }
    }
}

/// What the statements of a text add up to.
struct Sum<'a> {
    sql: &'a [u8],
    count: u32,
    access: Access,
    quiet: bool,
    strange: bool,
    /// None of them does anything to the transaction block.
    plain: bool,
    control: Control,
    may_commit: bool,
    begins: bool,
    ends: bool,
    revives: bool,
    /// The last that begins or ends a block ends it.
    over: bool,
    /// The last that was about the block has rolled it back: what comes behind it is committed with the string.
    rolled_back: bool,
    pins: Pins,
    unpins: bool,
    advisory: bool,
    ours: bool,
    /// One of them is a SET, or declares a cursor for what is proven to read.
    sets: bool,
    declares: bool,
    /// One of them is a DO.
    does: bool,
    local: Local,
    names: Names,
}

impl<'a> Sum<'a> {
    fn new(sql: &'a [u8]) -> Self {
        Self {
            sql,
            count: 0,
            access: Access::Read,
            quiet: true,
            strange: false,
            plain: true,
            control: Control::Empty,
            may_commit: false,
            begins: false,
            ends: false,
            revives: false,
            over: false,
            rolled_back: false,
            pins: Pins::NONE,
            unpins: false,
            advisory: false,
            ours: false,
            sets: false,
            declares: false,
            does: false,
            local: Local::Nothing,
            names: Names::None,
        }
    }

    fn add(&mut self, part: &Part<'_>) {
        if part.is_empty() {
            return;
        }
        self.count += 1;
        self.access = self.access.max(part.access());
        self.quiet &= part.reads();
        // Where it is not known what statements run, none but those about the block itself is known to leave nothing.
        let rows = matches!(part.verb, K::Insert | K::Update | K::Delete | K::Merge | K::Copy);
        let command = part.functions.tells_of_rows_only() && !rows && !part.reads();
        let unknown = !part.functions.tells_all() || command;
        self.strange |= part.strange || unknown && part.runs();
        self.plain &= part.head.control() == Control::None;
        self.control = part.head.control();
        self.may_commit |= part.head.may_commit();
        self.begins |= part.head.begins();
        self.end_block(part);
        self.pins.join(part.head.pins());
        let mut names = part.names();
        // The whole text is looked at, once.
        if part.verb == K::Do && !std::mem::replace(&mut self.does, true) {
            self.pins.join(pins_anywhere(self.sql, part.functions));
            self.advisory |= locks_anywhere(self.sql, part.functions);
            self.local = self.local.max(local_anywhere(self.sql, part.functions));
            // EXECUTE is another thing there.
            names = Some(names_anywhere(self.sql)).filter(|n| *n == Names::Unknown).unwrap_or(names);
            self.strange |= calls_new(self.sql, part.functions) || executed::runs_anything(self.sql);
        }
        self.unpins |= part.head.unpins();
        self.advisory |= part.head.advisory;
        self.local = self.local.max(part.head.local());
        // What a body or a clause sets, of CREATE or of ALTER (which is no word we know), is set some day.
        self.sets |= part.verb == K::Set;
        self.declares |= part.declares();
        self.ours |= part.ours || matches!(part.verb, K::Do | K::Create | K::None);
        self.names = if self.count == 1 { names } else { worse(self.names, names) };
    }

    /// Follow what of a string lies behind the end of a block.
    fn end_block(&mut self, part: &Part<'_>) {
        match self.control {
            Control::Begin(_) => (self.over, self.rolled_back) = (false, false),
            Control::Commit { chain } => (self.ends, self.begins, self.over) = (true, self.begins | chain, !chain),
            Control::Rollback { chain } => {
                (self.ends, self.begins, self.over) = (true, self.begins | chain, !chain);
                self.rolled_back = !chain;
            }
            Control::PrepareTransaction => (self.ends, self.over) = (true, true),
            Control::RollbackTo => self.revives = true,
            Control::SetTransaction(_) | Control::Savepoint | Control::Release | Control::Empty => {}
            Control::None
            | Control::FinishPrepared
            | Control::Deallocate
            | Control::DeallocateAll
            | Control::DiscardAll
            | Control::Discard
            | Control::Multi { .. } => self.may_commit |= self.rolled_back && part.access() == Access::Write,
        }
    }

    fn end(self, access: Access) -> Statement {
        let control = self.control();
        let names = match self.names {
            Names::Prepare if named::prepared(self.sql).is_none() => Names::Unknown,
            Names::Deallocate if named::deallocated(self.sql).is_none() => Names::Unknown,
            Names::Execute { .. } if named::executed(self.sql).is_none() => Names::Several,
            found => found,
        };
        let mut pins = self.pins;
        let strange = pins.take_anything() || self.strange;
        match names {
            // What it prepares does nothing yet.
            Names::Prepare => pins = Pins::NONE,
            Names::Unknown => pins.add(PinReason::Prepare),
            _ => {}
        }
        let advisory = self.advisory && names != Names::Prepare;
        let ours = self.ours && names_ours(self.sql);
        Statement {
            access,
            quiet: self.quiet,
            strange: strange && names != Names::Prepare,
            control,
            may_commit: self.may_commit,
            pins,
            unpins: self.unpins,
            advisory,
            ours,
            aside: false,
            local: if names == Names::Prepare { Local::Nothing } else { self.local },
            names,
        }
    }

    /// Of several statements the order is not followed but for how they end, unless all only read: then they are as good as
    /// one.
    fn control(&self) -> Control {
        let one = self.count <= 1 || self.quiet && self.plain;
        let Self { begins, ends, revives, over, .. } = *self;
        if one { self.control } else { Control::Multi { begins, ends, revives, over } }
    }
}

/// Is a setting named anywhere that we look at before the server does?
fn names_ours(sql: &[u8]) -> bool {
    let named = |name: &[u8]| sql.windows(name.len()).any(|w| w.eq_ignore_ascii_case(name));
    named(b"pgtenure.") || named(b"synchronous_commit")
}

/// A text that cannot be read with certainty: a write, and whatever else any of its words could mean.
fn assume_the_worst(sql: &[u8], functions: &FunctionTable) -> Statement {
    let (mut commits, mut begins, mut rolls_back) = (false, false, false);
    each_word(sql, |word, _| {
        commits |= matches!(word, K::Commit | K::End | K::Prepare);
        begins |= matches!(word, K::Begin | K::Start | K::Chain);
        rolls_back |= matches!(word, K::Rollback | K::Abort);
    });
    // The first words of a text come before anything odd in it, or it begins with the odd thing and fails.
    let (first, _) = Part::scan(&mut Lexer::new(sql), functions);
    let several = sql.contains(&b';');
    let multi = Control::Multi { begins, ends: commits || rolls_back, revives: rolls_back, over: false };
    let control = if several { multi } else { first.head.control() };
    // What comes behind a ROLLBACK in a string is committed with that.
    let may_commit = commits || several && rolls_back;
    let mut pins = first.head.pins();
    let names = names_anywhere(sql);
    if names == Names::Unknown {
        pins.add(PinReason::Prepare);
    }
    pins.join(pins_anywhere(sql, functions));
    if several {
        pins.join(loose_pins(sql));
    }
    let (unpins, advisory, ours) = (true, true, names_ours(sql));
    let access = Access::Write;
    pins.join(functions.bodies().operators_in(sql).0);
    let strange = pins.take_anything() || !functions.tells_all() || calls_new(sql, functions);
    let strange = strange || functions.tells_of_rows_only();
    let (quiet, aside, local) = (false, false, local_anywhere(sql, functions));
    Statement { access, quiet, strange, control, may_commit, pins, unpins, advisory, ours, aside, local, names }
}

#[cfg(test)]
mod tests;
