//! Reads that were sent to a primary that is lost: such a one may have written, where it calls what is only labelled to
//! read. At a standby PostgreSQL itself sees to it that it did not.

use crate::session::client::Session;
use crate::session::outcome::{Answer, Record};
use crate::wire::backend::TxStatus;

/// From the first unit on that may have written, nobody knows what became of what was taken for reads; it is not sent again.
pub(super) fn doubt(s: &Session, sent: &[Record], verdicts: &mut [Answer]) {
    if s.table.doubtful().is_empty() {
        return;
    }
    let (mut at, mut doubted) = (0, None);
    for (i, record) in sent.iter().enumerate() {
        let len = s.retained_lens.get(i).copied().unwrap_or(0);
        let unit = s.retained.get(at..at + len).unwrap_or_default();
        at += len;
        let begins = record.leads_to(TxStatus::Idle) != TxStatus::Idle;
        // A read that was not kept was too long to be.
        if record.is_read() && !begins && (len == 0 || calls_doubtful(s, unit)) {
            doubted.get_or_insert(i);
        }
    }
    let Some(first) = doubted else { return };
    for (i, verdict) in verdicts.iter_mut().enumerate() {
        match *verdict {
            Answer::Repeat | Answer::ReadLost if i >= first => *verdict = Answer::Unknown,
            Answer::Repeat => *verdict = Answer::ReadLost,
            Answer::ReadLost
            | Answer::BlockAborted(_)
            | Answer::InFailedBlock
            | Answer::RollbackDone
            | Answer::Unknown => {}
        }
    }
}

fn calls_doubtful(s: &Session, unit: &[u8]) -> bool {
    let mut found = false;
    s.each_text_of(unit, unit.len(), |sql| found |= s.table.doubtful().in_text(sql));
    found
}
