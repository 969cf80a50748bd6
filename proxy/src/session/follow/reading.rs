//! What a block has set for itself of that by which texts are read: SET LOCAL, and `set_config` with `true`.
//!
//! Nothing of it is left behind the block, so it pins nothing. But what is prepared meanwhile is read by it, and is no other
//! session's: constants are made when a text is parsed. Until the server has answered, and where it is not certain what is
//! set, it is nobody else's; behind that it is shared with blocks that have set the same by the same words.

use crate::session::batch::Unit;
use crate::session::client::Session;
use crate::session::settings::mix_bytes;
use crate::sql::{Local, PinReason, Touched, sets_plainly, tells};
use crate::wire::backend::TxStatus;
use crate::wire::codec::{head, split_cstring};
use crate::wire::frontend;

/// By which settings the open transaction reads texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::session) enum Reading {
    /// By the session's.
    #[default]
    Usual,
    /// By what these words set, hashed.
    Set(u64),
    /// Nobody knows.
    Unknown,
}

impl Session {
    /// A unit goes to the server: may the block be read by other settings from now on? True when it may.
    pub(super) fn follow_local(&mut self, input: &[u8], unit: &Unit) -> bool {
        let sets = match unit.local {
            Local::Nothing => false,
            Local::Named => self.sets_reading(input, unit),
            Local::Hidden => true,
        };
        self.reading = match self.reading {
            Reading::Usual if !sets => return false,
            Reading::Usual | Reading::Set(_) if sets => {
                let begun = unit.record.leads_to(self.relay.status) == TxStatus::Block;
                let certain = unit.local == Local::Named && unit.complete && begun && !self.relay.busy();
                let before = if let Reading::Set(before) = self.reading { before } else { 0 };
                let words = if certain { self.plain_words(&input[..unit.len], before) } else { None };
                words.map_or(Reading::Unknown, Reading::Set)
            }
            Reading::Set(_) | Reading::Unknown if !sets && !unit.undoes => return false,
            Reading::Usual | Reading::Set(_) | Reading::Unknown => Reading::Unknown,
        };
        self.read_apart();
        true
    }

    /// What is prepared now is this session's alone.
    fn read_apart(&mut self) {
        self.parse_key = self.w.texts.borrow_mut().fresh_id();
        self.statements.apart = true;
    }

    /// The server has told of a setting that no text has named: a function has set it.
    pub(in crate::session) fn read_as_told(&mut self, name: &str) {
        let within = self.relay.status != TxStatus::Idle || self.relay.busy();
        if self.reading == Reading::Usual && within && tells(&name.to_ascii_lowercase()) {
            self.reading = Reading::Unknown;
            self.read_apart();
        }
    }

    /// Nothing is owed: what the block has set for itself is known, or over.
    pub(in crate::session) fn settle_reading(&mut self) {
        match (self.reading, self.relay.status) {
            (Reading::Usual, _) => {}
            (_, TxStatus::Idle) => {
                self.reading = Reading::Usual;
                self.share_again();
            }
            (Reading::Set(words), TxStatus::Block) => {
                if !self.pins.has(PinReason::Set) && !self.pins.has(PinReason::Temp) {
                    self.parse_key = mix_bytes(self.shared_key(), &words.to_be_bytes());
                    self.statements.apart = self.relay.altered;
                }
            }
            (Reading::Set(_) | Reading::Unknown, TxStatus::Block | TxStatus::Failed) => {}
        }
    }

    /// May one of the settings that the unit's words name be one by which texts are read?
    fn sets_reading(&mut self, input: &[u8], unit: &Unit) -> bool {
        if unit.tail_left > 0 {
            return true;
        }
        let before = std::mem::take(&mut self.tracking.touched);
        self.touch(input, unit);
        let touched: Touched = std::mem::replace(&mut self.tracking.touched, before);
        touched.tells()
    }

    /// Hash the words and parameters of all that these messages execute; `None` where they do not tell what is set.
    fn plain_words(&self, messages: &[u8], before: u64) -> Option<u64> {
        let standard = self.lex.standard_conforming_strings && self.lex.ascii_safe_encoding;
        let (mut hash, mut parsed, mut bound, mut at) = (before, Vec::new(), None, 0);
        let plain = |sql: &[u8]| standard && sets_plainly(sql);
        while let Some(head) = head(&messages[at..]).ok().flatten() {
            let frame = messages.get(at..at + head.total)?;
            at += head.total;
            match head.kind {
                b'Q' => {
                    let sql = frontend::query(frame).filter(|sql| plain(sql))?;
                    hash = mix_bytes(hash, sql);
                }
                b'P' => parsed.push(frontend::parse(frame)?),
                b'B' => {
                    let b = frontend::bind(frame).filter(|_| bound.is_none())?;
                    let here = parsed.iter().rev().find(|p| p.name == b.statement).map(|p| p.sql);
                    let sql = here.or_else(|| self.statements.sql(b.statement)).filter(|sql| plain(sql))?;
                    hash = mix_bytes(hash, sql);
                    for value in frontend::bind_values(frame)? {
                        hash = mix_bytes(mix_bytes(hash, &[u8::from(value.is_some())]), value.unwrap_or_default());
                    }
                    bound = Some(b.portal);
                }
                b'E' => {
                    let (portal, _) = split_cstring(&frame[5..])?;
                    bound.take().filter(|bound| *bound == portal)?;
                }
                _ => {}
            }
        }
        bound.is_none().then_some(hash)
    }
}
