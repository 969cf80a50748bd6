//! One statement of a text, token by token.

use super::about::{is_about_this_server, is_about_transactions, plain_literal};
use crate::sql::effects::{Head, SetConfig, Stop};
use crate::sql::ends::{Ends, Room, fold};
use crate::sql::functions::{FunctionTable, Volatility};
use crate::sql::keyword::{Keyword as K, Known};
use crate::sql::lexer::{Lexer, Token};
use crate::sql::{Access, Control, Names, PinReason, Pins};

/// NAMEDATALEN - 1: PostgreSQL cuts longer names, so they are not looked up.
const MAX_NAME: usize = 63;
/// Deepest nesting followed: one bit each.
const MAX_DEPTH: u32 = 63;

/// Why the scan of a statement ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Semicolon,
    Text,
    Odd,
}

/// The token before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Start,
    Word(K),
    Quoted,
    Dot,
    Open,
    Close,
    Comma,
    Other,
}

/// How a name in front of `(` was written.
#[derive(Clone, Copy)]
struct Named {
    quoted: bool,
    before: Last,
}

/// One statement while it is scanned.
pub(super) struct Part<'t> {
    pub(super) functions: &'t FunctionTable,
    pub(super) head: Head,
    /// The first word.
    pub(super) verb: K,
    last: Last,
    /// The last two words as keywords, nearest last.
    words: [K; 2],
    pub(super) depth: u32,
    /// Depths at which a WITH list is open, as bits.
    with: u64,
    /// Depths at which the last parenthesis followed `DISTINCT ON` or OPERATOR, as bits: a call may stand behind it.
    calls_behind: u64,
    pub(super) writes: bool,
    /// It names a relation that only the primary has.
    pub(super) local: bool,
    /// The same, unless what was named last is called.
    pub(super) maybe_local: bool,
    /// A query, or what an UPDATE sets, has begun: what stands before `(` may be called.
    computes: bool,
    /// It calls what may have been made since the functions were read.
    pub(super) strange: bool,
    /// It may name a setting of ours: SHOW, SET, `current_setting`, `set_config`.
    pub(super) ours: bool,
    /// EXPLAIN: in its options, and has the statement explained begun?
    explain_options: bool,
    explained: bool,
    /// EXPLAIN may run what it explains: ANALYZE came by, or an option that is not known.
    analyzes: bool,
    /// EXECUTE of a prepared statement was met, and what shows all of them.
    executes: bool,
    lists: bool,
    /// COPY … TO STDOUT was met.
    to_stdout: bool,
    /// The last word or quoted identifier, in the case that counts.
    pub(super) name: Room,
    /// Its length; 0 when it is too long or not plain.
    pub(super) name_len: usize,
    ends: Ends,
    /// What is known of it.
    known: Known,
    named: Option<Named>,
    set_config: Option<SetConfig>,
    asks: Asks,
}

/// How far the argument of `current_setting` was read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    Nothing,
    /// The name comes next.
    Name,
    /// The name was a literal of a setting that is the session's everywhere; a cast may follow.
    Known,
}

impl<'t> Part<'t> {
    pub(super) fn new(functions: &'t FunctionTable) -> Self {
        Part {
            functions,
            head: Head::new(),
            verb: K::None,
            last: Last::Start,
            words: [K::None; 2],
            depth: 0,
            with: 0,
            calls_behind: 0,
            writes: false,
            local: false,
            maybe_local: false,
            computes: false,
            strange: false,
            ours: false,
            explain_options: false,
            explained: false,
            analyzes: false,
            executes: false,
            lists: false,
            to_stdout: false,
            name: [0; 64],
            name_len: 0,
            ends: Ends::NONE,
            known: Known::NOTHING,
            named: None,
            set_config: None,
            asks: Asks::Nothing,
        }
    }

    /// Scan up to the end of one statement.
    pub(super) fn scan(lexer: &mut Lexer<'_>, functions: &'t FunctionTable) -> (Self, End) {
        let mut part = Self::new(functions);
        while let Some(token) = lexer.next() {
            match token {
                Token::Odd => return (part, End::Odd),
                Token::Semicolon => return (part, End::Semicolon),
                token => {
                    if part.asks != Asks::Nothing {
                        part.asked(token, lexer.last());
                    }
                    part.take(token);
                }
            }
        }
        (part, End::Text)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.last == Last::Start
    }

    /// What it leaves in the session when its names are not followed.
    pub(super) fn pins(&self) -> Pins {
        let mut pins = self.head.pins();
        if matches!(self.names(), Names::Prepare | Names::Deallocate) {
            pins.add(PinReason::Prepare);
        }
        pins
    }

    /// What it does with prepared statements.
    pub(super) fn names(&self) -> Names {
        let head = self.head.names();
        if head != Names::None {
            return head;
        }
        if self.lists {
            return Names::List;
        }
        let explains = self.verb == K::Explain && self.explained && !self.explain_options;
        let plain = (self.verb == K::Execute || explains) && !self.writes && self.depth == 0;
        if self.executes { Names::Execute { plain } } else { Names::None }
    }

    pub(super) fn access(&self) -> Access {
        if self.reads() && !self.names_local() { Access::Read } else { Access::Write }
    }

    /// Does it name what only the primary has?
    fn names_local(&self) -> bool {
        self.local || self.maybe_local
    }

    /// May it run functions? Not if it is about the transaction block only, or shows a setting.
    pub(super) fn runs(&self) -> bool {
        self.head.control() == Control::None && self.verb != K::Show
    }

    /// Is it proven to read, be it what only the primary has?
    pub(super) fn reads(&self) -> bool {
        let proven = match self.verb {
            // What it executes may write.
            _ if self.executes => false,
            K::Select | K::Values | K::Table | K::With | K::Show => true,
            K::Explain => self.explained && !self.explain_options,
            K::Copy => self.to_stdout,
            // Whatever else begins a statement is not known to read only.
            _ => false,
        };
        proven && !self.writes && self.depth == 0
    }

    /// Does it declare a cursor, that ends with the transaction, for what is proven to read?
    pub(super) fn declares(&self) -> bool {
        self.verb == K::Declare && !self.writes && !self.names_local() && self.depth == 0 && !self.head.with_hold
    }

    /// A token of the name that `current_setting` is asked for, before it is taken.
    pub(super) fn asked(&mut self, token: Token<'_>, text: &[u8]) {
        self.asks = match (self.asks, token) {
            (Asks::Name, Token::Literal) if plain_literal(text).is_some_and(|name| !is_about_transactions(name)) => {
                Asks::Known
            }
            // A policy or view as the server shows it has 'name'::text.
            (Asks::Known, Token::Operator) if text == b":" => Asks::Known,
            (Asks::Known, Token::Word(_)) => Asks::Known,
            (Asks::Known, Token::Comma | Token::Close) | (Asks::Nothing, _) => Asks::Nothing,
            // One that is put together, or a parameter: what it names is not known.
            (Asks::Name | Asks::Known, _) => {
                self.writes = true;
                Asks::Nothing
            }
        };
    }

    pub(super) fn take(&mut self, token: Token<'_>) {
        if self.maybe_local {
            self.maybe_local = false;
            self.local |= token != Token::Open;
        }
        if let Some(call) = &mut self.set_config {
            match token {
                Token::Comma => call.comma(self.depth),
                Token::Close => {}
                token => call.token(matches!(token, Token::Word(w) if w.eq_ignore_ascii_case(b"true"))),
            }
        }
        self.last = match token {
            Token::Word(word) => self.word(word),
            Token::Quoted(name) => self.quoted(name),
            Token::Open => self.open(),
            Token::Close => self.close(),
            Token::Dot => self.other(Last::Dot, Stop::NamePart),
            Token::Comma => self.other(Last::Comma, Stop::Other),
            Token::Literal => self.other(Last::Other, Stop::Literal),
            Token::Operator => self.other(Last::Other, Stop::NamePart),
            // The caller keeps these two to itself.
            Token::Semicolon | Token::Odd => Last::Other,
        };
    }

    fn other(&mut self, last: Last, stop: Stop) -> Last {
        self.head.stop(stop);
        self.needs_verb();
        self.named = None;
        self.words = [self.words[1], K::None];
        last
    }

    fn word(&mut self, word: &[u8]) -> Last {
        self.remember_word(word);
        // Behind a dot any word is a name.
        let word = if self.last == Last::Dot { K::None } else { self.known.keyword };
        self.named = Some(Named { quoted: false, before: self.last });
        self.head.word(word);
        if word == K::None {
            self.name_seen();
        } else {
            self.head.pair(self.words, word);
            // Most of our keywords can be names of relations as well.
            self.relation_seen();
            self.used();
        }
        self.steer(word);
        self.words = [self.words[1], word];
        Last::Word(word)
    }

    fn quoted(&mut self, name: &[u8]) -> Last {
        self.head.stop(Stop::Other);
        self.needs_verb();
        self.remember_quoted(name);
        self.named = Some(Named { quoted: true, before: self.last });
        // An option may be written so, too.
        self.analyzes |= self.explain_options;
        self.name_seen();
        self.words = [self.words[1], K::None];
        Last::Quoted
    }

    /// Only parentheses may stand before the first word.
    fn needs_verb(&mut self) {
        self.writes |= self.verb == K::None;
    }

    /// Keep a word for the next token, folded as the server folds it; one too long to look up gets length 0.
    fn remember_word(&mut self, word: &[u8]) {
        let word = if word.len() > MAX_NAME { b"" } else { word };
        self.ends = fold(word, &mut self.name);
        self.name_len = word.len();
        self.known = Known::of(self.ends, &self.name[..self.name_len]);
    }

    /// The same for a quoted name, in which only quotes are doubled.
    fn remember_quoted(&mut self, name: &[u8]) {
        (self.name_len, self.ends, self.known) = (0, Ends::NONE, Known::NOTHING);
        if name.len() > MAX_NAME {
            return;
        }
        let mut after_quote = false;
        for b in name {
            after_quote = *b == b'"' && !after_quote;
            if !after_quote {
                self.name[self.name_len] = *b;
                self.name_len += 1;
            }
        }
        self.ends = Ends::of(&self.name[..self.name_len]);
        self.known = Known::of(self.ends, &self.name[..self.name_len]);
    }

    /// A name: of a relation whose use leaves something in the session?
    fn used(&mut self) {
        if let Some(used) = self.functions.used_by(self.ends, &self.name[..self.name_len]) {
            self.head.relation(used);
            self.writes |= !used.read.pins.is_empty() || used.read.advisory;
        }
    }

    /// A name: of a relation that only the primary has, or of a volatile function in attribute notation?
    fn name_seen(&mut self) {
        self.used();
        let name = &self.name[..self.name_len];
        if name.starts_with(b"pg_") {
            if name == b"pg_settings" {
                self.head.settings_named();
            }
            self.head.pg_temp |= name.starts_with(b"pg_temp");
            self.writes |= is_about_this_server(name);
            self.lists |= name.starts_with(b"pg_prepared_statement");
        } else if matches!(self.verb, K::Show | K::Set | K::Reset) {
            self.ours |= name == b"pgtenure" || name == b"synchronous_commit";
            self.writes |= is_about_transactions(name) || name == b"in_hot_standby";
        }
        if self.writes {
            return;
        }
        let attribute = self.last == Last::Dot
            && !self.only_plans()
            && self.functions.volatility(name) == Some(Volatility::Volatile);
        self.writes |= name.is_empty() || attribute;
        self.relation_seen();
    }

    /// A name that may be one of a relation: does only the primary have it?
    fn relation_seen(&mut self) {
        let name = &self.name[..self.name_len];
        // The columns of a sequence, which may be too new to be known, and a window function.
        self.local |= matches!(name, b"is_called" | b"log_cnt");
        self.maybe_local = name == b"last_value";
        if self.functions.has_local_relation(self.ends, name) {
            self.local = true;
            self.writes |= self.functions.hides_volatile(name);
        }
    }

    /// Within what EXPLAIN only plans: its volatile functions are not called.
    fn only_plans(&self) -> bool {
        self.explained && !self.analyzes && !self.executes
    }

    /// A word or name among the options of EXPLAIN.
    fn explain_option(&mut self) {
        self.analyzes |= !matches!(
            &self.name[..self.name_len],
            b"costs"
                | b"verbose"
                | b"buffers"
                | b"settings"
                | b"summary"
                | b"memory"
                | b"generic_plan"
                | b"format"
                | b"text"
                | b"json"
                | b"xml"
                | b"yaml"
                | b"on"
                | b"off"
                | b"true"
                | b"false"
        );
    }

    /// What a keyword changes.
    fn steer(&mut self, word: K) {
        if self.verb == K::None {
            if matches!(self.last, Last::Start | Last::Open) {
                self.verb = word;
                self.explained = false;
                // A word that begins nothing we know still is the verb: it must not be looked for further on.
                self.writes |= word == K::None;
                self.executes = word == K::Execute && self.last == Last::Start;
                self.head.changes |= matches!(
                    &self.name[..self.name_len],
                    // The rest computes what an index holds, or a materialized view, or runs checks.
                    b"truncate" | b"refresh" | b"reindex" | b"cluster" | b"vacuum" | b"analyze" | b"analyse" | b"alter"
                );
            }
        } else if self.explain_options {
            self.explain_option();
        } else if self.verb == K::Explain && !self.explained {
            match word {
                K::Analyze => self.analyzes = true,
                K::Verbose => {}
                K::Select | K::Values | K::Table | K::With => self.explained = true,
                K::Execute => (self.explained, self.executes) = (true, true),
                _ => self.writes = true,
            }
            if word == K::With {
                self.with |= 1 << self.depth;
            }
        }
        match word {
            K::Insert | K::Update | K::Delete | K::Merge => (self.writes, self.head.changes) = (true, true),
            K::Into => self.writes = true,
            K::Share if matches!(self.words[1], K::For | K::Key) => self.writes = true,
            K::With if matches!(self.last, Last::Start | Last::Open) => self.with |= 1 << self.depth,
            K::Select | K::Values | K::Table => {
                self.with &= !(1 << self.depth);
                self.computes |= word != K::Table;
            }
            K::Set | K::Call => self.computes = true,
            K::From if self.verb == K::Copy && self.depth == 0 => (self.writes, self.head.changes) = (true, true),
            K::Stdout if self.verb == K::Copy && self.depth == 0 => self.to_stdout |= self.words[1] == K::To,
            K::All if self.verb == K::Show => self.writes = true,
            K::Execute if self.words[1] == K::As && self.depth == 0 => {
                self.executes |= matches!(self.verb, K::Create | K::Explain);
            }
            _ => {}
        }
    }

    fn open(&mut self) -> Last {
        self.head.stop(Stop::Other);
        if self.depth == 0 && self.last == Last::Word(K::Explain) && self.verb == K::Explain {
            self.explain_options = true;
        } else if let Some(named) = self.named.take() {
            self.call(named);
        }
        // What was named last, in the case that counts; anything but a word has cleared it.
        let before = if matches!(self.last, Last::Word(_)) { &self.name[..self.name_len] } else { b"" };
        if matches!(before, b"on" | b"operator") {
            self.calls_behind |= 1 << self.depth;
        } else {
            self.calls_behind &= !(1 << self.depth);
        }
        // In a WITH list only names and AS stand before a parenthesis; any other one begins the query behind it.
        if !matches!(self.last, Last::Word(_) | Last::Quoted) {
            self.with &= !(1 << self.depth);
        }
        if self.depth == MAX_DEPTH {
            self.writes = true;
        } else {
            self.depth += 1;
            self.with &= !(1 << self.depth);
        }
        self.words = [self.words[1], K::None];
        Last::Open
    }

    fn close(&mut self) -> Last {
        self.head.stop(Stop::Other);
        self.named = None;
        match self.depth.checked_sub(1) {
            Some(depth) => self.depth = depth,
            None => self.writes = true,
        }
        if let Some(for_transaction) = self.set_config.as_mut().and_then(|call| call.close(self.depth)) {
            self.set_config = None;
            self.head.sets(for_transaction);
        }
        if self.depth == 0 {
            self.explain_options = false;
        }
        self.words = [self.words[1], K::None];
        if self.calls_behind & (1 << self.depth) == 0 { Last::Close } else { Last::Other }
    }

    /// A name stands before `(`.
    fn call(&mut self, named: Named) {
        let (name, plans) = (&self.name[..self.name_len], self.only_plans());
        if !plans {
            self.head.call(name);
        }
        if self.functions.is_pinning(name) {
            self.head.calls.add(PinReason::Extension);
        }
        if let Some(left) = self.functions.bodies().get(name) {
            self.head.calls.join(left.pins);
            self.head.unlocks |= left.unpins;
            self.head.advisory |= left.advisory;
            self.head.local = self.head.local.max(left.local);
            self.writes |= !left.pins.is_empty() || left.advisory;
        }
        if plans {
            return;
        }
        if name == b"set_config" {
            // One within the arguments of another is not followed.
            if self.set_config.replace(SetConfig::new(self.depth + 1)).is_some() {
                self.head.sets(false);
            }
        }
        self.ours |= matches!(name, b"current_setting" | b"set_config");
        if name == b"current_setting" {
            self.asks = Asks::Name;
        }
        // An INSERT's columns stand behind the table's name, before anything is computed, and behind CONFLICT.
        let may_be_new = self.computes && !self.strange && self.known.keyword == K::None && name != b"conflict";
        if self.writes && !may_be_new || !self.may_be_call(named) {
            return;
        }
        let volatility = self.functions.volatility(name);
        if may_be_new && volatility.is_none() {
            self.strange = !self.known.perhaps_before_parenthesis;
        }
        let keyword = !named.quoted && named.before != Last::Dot && self.known.perhaps_before_parenthesis;
        let reads = match volatility {
            // Outside ASCII the client's bytes need not be those of the catalog.
            _ if !name.is_ascii() => false,
            Some(Volatility::Immutable | Volatility::Stable) => true,
            Some(Volatility::Volatile) => false,
            None => keyword && self.functions.is_loaded(),
        };
        self.writes |= !reads;
    }

    /// Can what stands before `(` be a function call?
    fn may_be_call(&self, named: Named) -> bool {
        // The table's columns before TO STDOUT, options behind it.
        if self.verb == K::Copy && (self.to_stdout || self.depth == 0) {
            return false;
        }
        let in_with = self.with & (1 << self.depth) != 0;
        match named.before {
            Last::Dot => return true,
            // `(query) alias (columns)`, `f() alias (columns)`.
            Last::Close => return false,
            // `AS alias (columns)`, `CAST(x AS type(3))`, a sampling method.
            Last::Word(K::As | K::Tablesample) => return false,
            Last::Word(K::Execute) if self.depth == 0 && self.executes => return false,
            Last::Word(K::With | K::Recursive) | Last::Comma if in_with => return false,
            _ => {}
        }
        named.quoted || !self.known.reserved_before_parenthesis
    }
}
