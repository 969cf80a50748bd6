//! A COMMIT was sent, and its server is gone before it answered: what became of it is found out while its client waits.
//!
//! [`crate::ledger`] decides. Here the view is waited for in which the term is open that has the say, and that term's
//! primary is asked, on a connection of the client's own pool. All of that takes `proxy.hold_timeout` at most; a cancel
//! request ends it sooner. Where nobody can tell it is 08007, as it would have been at once.

use crate::ledger::verdict::{after_asking, before_asking};
use crate::ledger::{Descent, Mark, Since, Status, Verdict, Why};
use crate::metrics::Resolved;
use crate::route::By;
use crate::route::durability::Durability;
use crate::session::acquire::{self, Want, change};
use crate::session::client::Session;
use crate::session::in_use::InUse;
use crate::session::lost::{self, Owed};
use crate::session::presence::Activity;
use crate::worker::Worker;
use cluster::per_term::Fate;
use cluster::topology::Gate;
use cluster::{Instant, Term};
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

/// How long until a primary is asked again that could not tell.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// A COMMIT whose outcome is not known.
pub(super) struct InDoubt {
    /// What its server said before it.
    pub(super) mark: Mark,
    /// The term that it wrote in.
    pub(super) term: Term,
    /// What it waited for.
    pub(super) level: Durability,
    /// What the client is owed, the COMMIT's answer first.
    pub(super) owed: Owed,
}

impl Session {
    /// Find out what became of a COMMIT, and tell the client of it and of what came behind it.
    pub(super) async fn resolve_commit(&mut self) {
        let Some(doubt) = self.in_doubt.take() else { return };
        let now = self.w.now();
        self.mark(Activity::Waiting, now, true);
        // A limit that the statement exceeded while its server ran it says nothing about this wait.
        self.presence.expired.set(None);
        let w = self.w.clone();
        let (want, keeps) = self.want_beside(now);
        let search = Search { w: &w, want, keeps, term: doubt.term, level: doubt.level };
        let _resolving = Resolving::new(&w);
        let (verdict, open) = tokio::select! {
            biased;
            // Also where the session ends: why it does would be taken for the outcome, were that not told before.
            _ = poll_fn(|cx| self.watch_client(cx)) => (Verdict::Unknown(Why::GivenUp), None),
            found = search.run(&doubt.mark) => found,
        };
        let (outcome, fate) = match verdict {
            Verdict::Survived => (Resolved::Survived, Some(Fate::Survived)),
            Verdict::Lost(_) => (Resolved::Lost, Some(Fate::Lost)),
            // Counted with all that is told so.
            _ => (Resolved::Unknown, None),
        };
        self.w.counts.resolved(outcome);
        if let Some(fate) = fate {
            self.w.count_doubt(doubt.term, fate);
        }
        if let (Verdict::Survived, Some(open)) = (verdict, open) {
            let (now, mut causality) = (self.w.now(), self.causality.borrow_mut());
            causality.wrote(now);
            // It is of that term for whoever looks for it in a later one.
            let by = if open.protected { By::Quorum } else { By::Primary };
            causality.acknowledged(open.term, by, now);
        }
        lost::tell_resolved(self, doubt.owed, &doubt.mark, verdict);
    }
}

/// Counted while it lives: a process that is to stop waits for it.
struct Resolving<'a>(&'a Worker);

impl<'a> Resolving<'a> {
    fn new(w: &'a Worker) -> Self {
        w.count_resolving(true);
        Self(w)
    }
}

impl Drop for Resolving<'_> {
    fn drop(&mut self) {
        self.0.count_resolving(false);
    }
}

/// What is looked for, and how.
struct Search<'a> {
    w: &'a Rc<Worker>,
    want: Want,
    /// Connections may serve others afterwards.
    keeps: bool,
    /// The COMMIT's term.
    term: Term,
    /// What it waited for.
    level: Durability,
}

/// The term that is open.
#[derive(Clone, Copy)]
struct Open {
    term: Term,
    /// What it has to do with the COMMIT's.
    since: Since,
    /// Its commits wait for a quorum.
    protected: bool,
}

impl Search<'_> {
    /// What is known of it, and in which term.
    async fn run(&self, mark: &Mark) -> (Verdict, Option<Open>) {
        let deadline = self.want.since + self.w.config().hold_timeout;
        let mut why = Why::NoPrimary;
        loop {
            let now = self.w.now();
            let left = deadline.since(now);
            if left.is_zero() {
                return (Verdict::Unknown(why), None);
            }
            let open = self.open(now);
            let verdict = match open {
                // Nothing is final before a term is open.
                None => None,
                Some(open) => match before_asking(mark, open.since, open.protected) {
                    Verdict::Ask(xid) => Box::pin(self.ask(xid, open, deadline)).await,
                    known => Some(known),
                },
            };
            match verdict {
                Some(Verdict::Running) => why = Why::StillRunning,
                Some(Verdict::Unconfirmed) => why = Why::Unconfirmed,
                Some(Verdict::Ask(_)) | None => {}
                Some(known) => return (known, open),
            }
            change(self.w, ASK_AGAIN.min(left)).await;
        }
    }

    /// The term that is open, if one is that is not older than the COMMIT's.
    fn open(&self, now: Instant) -> Option<Open> {
        let view = self.w.view.borrow();
        let topology = &view.topology;
        let open = topology.gate_at(now) == Gate::Open && topology.term >= self.term;
        let since = Descent::of(topology).since(self.term);
        open.then_some(Open { term: topology.term, since, protected: topology.protected })
    }

    /// Ask the primary of a term about a transaction; `None`: it could not be asked, or not be trusted.
    async fn ask(&self, xid: u64, open: Open, deadline: Instant) -> Option<Verdict> {
        let verdict = tokio::select! {
            verdict = self.ask_primary(xid, open, deadline) => verdict,
            // Whoever was asked may never answer, and another has the say now.
            () = self.replaced(open.term) => None,
        };
        // As with any answer: what comes when the view has ended is nobody's word.
        verdict.filter(|_| self.open(self.w.now()).is_some_and(|now| now.term == open.term))
    }

    /// Until the term is another.
    async fn replaced(&self, term: Term) {
        while self.w.view.borrow().topology.term == term {
            change(self.w, ASK_AGAIN).await;
        }
    }

    async fn ask_primary(&self, xid: u64, open: Open, deadline: Instant) -> Option<Verdict> {
        let left = || deadline.since(self.w.now());
        // Where the pool is full that may take longer than the client is to wait for this.
        let found = tokio::time::timeout(left(), acquire::find(self.w, self.want.clone(), 0, None)).await.ok()?.ok()?;
        // One that was there may be dead: the rest of the time is for another one.
        let born = found.server.meta.born;
        let patience = if born < self.want.since { left() / 2 } else { left() };
        let mut primary = InUse::found(self.w, found, self.keeps);
        let answer = primary.ask(&question(xid), patience).await?;
        let [row] = answer.rows.as_slice() else { return None };
        let [status, Some(timeline)] = row.as_slice() else { return None };
        // A view may be behind what its primary has become: a transaction's id means something on one timeline only.
        if u64::from_str_radix(timeline, 16).ok().map(Term) != Some(open.term) {
            return None;
        }
        let verdict = after_asking(Status::of(status.as_deref()), open.since, open.protected);
        let Some(level) = confirming(verdict, self.level, open.protected) else { return Some(verdict) };
        // Who confirms a later commit has this one.
        let confirmed = primary.commits(level, left()).await;
        Some(if confirmed { Verdict::Survived } else { Verdict::Unconfirmed })
    }
}

/// What a later commit is to wait for before a transaction is told as committed that waited for `level`: in its own term
/// for that and for what the mode promises; in a later one only for what the opening of that term did not see to: until
/// standbys show it, and where the term is open unprotected, until they have it.
fn confirming(verdict: Verdict, level: Durability, protected: bool) -> Option<Durability> {
    let seen_to = if protected { Durability::SemiSync } else { Durability::Local };
    match verdict {
        Verdict::Unconfirmed => Some(level.max(seen_to)),
        Verdict::Survived => (level > seen_to).then_some(level),
        _ => None,
    }
}

/// What became of a transaction, and on which timeline that is so.
fn question(xid: u64) -> String {
    format!(
        "SELECT pg_catalog.pg_xact_status('{xid}'),\
         pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()),1,8)"
    )
}
