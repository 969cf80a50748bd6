//! How often a statement is sent again whose server is lost. Pure.
//!
//! A read that kills its server, by its memory or by a fault in a function, would take down one node after the other, and
//! one that an operator ends would begin anew for ever. Nothing tells such a read from one whose server was lost for
//! another reason, so each is sent again once. What the same outage takes away besides does not count: the connections
//! to that node that were there before are lost with it, however many there are. Nor do servers that are ended while the
//! cluster changes its primary: that ends the old one, and the readers of the new one.

use cluster::{Instant, NodeId, Term};
use std::time::Duration;

/// How long those are ended that a stopping server ends, or an operator all at once. Later it is one who ends one by one
/// what has run for so long.
const STOPPING: Duration = Duration::from_secs(1);
/// Times that a statement is sent again because of what has become of the cluster, or of a server that had hardly begun.
const MAX_MOVES: u8 = 8;

/// How a server was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Its connection ended or failed.
    Gone,
    /// It said FATAL.
    Fatal([u8; 5]),
    /// The topology has another primary, or the node another role.
    Deposed,
    /// Its answer came after the view had run out.
    ViewStale,
    /// A standby refused the read.
    Refused([u8; 5]),
    /// It broke the protocol.
    Violation(&'static str),
    /// A block was held for too long.
    HoldTimeout,
    /// It does not end a statement that was cancelled.
    Stuck,
}

/// What the oldest unit in flight has lost.
#[derive(Debug, Default)]
pub struct Losses {
    first: Option<Box<First>>,
    moves: u8,
}

#[derive(Debug)]
struct First {
    node: NodeId,
    at: Instant,
    /// The newest term known then.
    term: Term,
}

/// What is known of the cluster when a server is lost.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The newest term.
    pub term: Term,
    /// Transactions may begin at its primary.
    pub open: bool,
}

/// What another loss says of the first one.
enum Cause {
    /// It was the statement, which would be no better elsewhere.
    Itself,
    /// It may have been the statement.
    Statement,
    /// The node has gone, and with it all that were connected to it.
    Node,
    /// As well; or somebody has ended this one.
    Ended,
    /// The cluster has changed, or what is known of it.
    Cluster,
    /// A standby does not serve this statement, and is not asked again.
    Standby,
}

impl Losses {
    /// The server that had the unit since `sent`, connected at `born`, is lost: may the unit be sent again?
    pub fn allow(
        &mut self,
        loss: Loss,
        (node, born): (&NodeId, Instant),
        view: View,
        (sent, now): (Instant, Instant),
    ) -> bool {
        let same = |first: &First| first.node == *node;
        let changes = !view.open || self.first.as_ref().is_some_and(|first| view.term > first.term);
        let cause = match cause(loss) {
            Cause::Ended if changes => Cause::Cluster,
            cause => cause,
        };
        match (cause, &self.first) {
            (Cause::Standby, _) => true,
            (Cause::Itself, _) => false,
            (Cause::Cluster, _) => self.moves_on(),
            (Cause::Statement | Cause::Node | Cause::Ended, None) => {
                self.first = Some(Box::new(First { node: node.clone(), at: now, term: view.term }));
                true
            }
            (Cause::Node, Some(first)) => same(first) && born <= first.at,
            (Cause::Ended, Some(first)) if same(first) && now < first.at + STOPPING => true,
            // It was meant for the server, which was idle until then: the statement has waited for it, and not run.
            (Cause::Ended, Some(_)) => now < sent + STOPPING && self.moves_on(),
            (Cause::Statement, Some(_)) => false,
        }
    }

    fn moves_on(&mut self) -> bool {
        self.moves = self.moves.saturating_add(1);
        self.moves <= MAX_MOVES
    }

    /// The node that was lost first.
    pub fn first(&self) -> Option<&NodeId> {
        self.first.as_deref().map(|first| &first.node)
    }

    /// The unit was answered: the next one has lost nothing.
    pub fn forget(&mut self) {
        if self.first.is_some() || self.moves > 0 {
            *self = Self::default();
        }
    }
}

fn cause(loss: Loss) -> Cause {
    match loss {
        // A crash ends them all.
        Loss::Gone | Loss::Fatal([b'5', b'7', b'P', b'0', b'2' | b'3']) => Cause::Node,
        Loss::Fatal([b'5', b'7', b'P', b'0', b'1']) => Cause::Ended,
        Loss::Stuck => Cause::Itself,
        Loss::Fatal(_) | Loss::Violation(_) => Cause::Statement,
        Loss::Deposed | Loss::ViewStale | Loss::HoldTimeout => Cause::Cluster,
        Loss::Refused(_) => Cause::Standby,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDS: View = View { term: Term(7), open: true };

    /// `lost`: what, of which node, connected and lost when, in tenths of a second.
    fn check(lost: &[(Loss, &str, u64, u64)], want: &[bool]) {
        let views: Vec<View> = lost.iter().map(|_| STANDS).collect();
        check_in(&views, lost, want);
    }

    fn check_in(views: &[View], lost: &[(Loss, &str, u64, u64)], want: &[bool]) {
        let (mut losses, at) = (Losses::default(), |s: u64| Instant::from_millis(s * 100));
        let allowed = |(&(loss, node, born, now), &view): (&(Loss, &str, u64, u64), &View)| {
            // Each has run for long.
            losses.allow(loss, (&node.parse().unwrap(), at(born)), view, (at(0), at(now)))
        };
        assert_eq!(lost.iter().zip(views).map(allowed).collect::<Vec<_>>(), want, "{lost:?} {views:?}");
    }

    const ENDED: Loss = Loss::Fatal(*b"57P01");
    const CRASHED: Loss = Loss::Fatal(*b"57P02");

    #[test]
    fn a_statement_loses_two_servers_at_most() {
        for loss in [Loss::Gone, ENDED, CRASHED, Loss::Fatal(*b"53200"), Loss::Violation("too long")] {
            check(&[(loss, "n2", 1, 10), (loss, "n3", 1, 11), (loss, "n1", 1, 12)], &[true, false, false]);
            // Nor the same one twice, when that has come back meanwhile.
            check(&[(loss, "n2", 1, 10), (loss, "n2", 11, 20)], &[true, false]);
        }
    }

    #[test]
    fn what_was_cancelled_is_not_sent_again() {
        check(&[(Loss::Stuck, "n2", 1, 10), (Loss::Gone, "n3", 1, 11)], &[false, true]);
    }

    #[test]
    fn what_goes_with_the_same_node_is_one_loss() {
        check(&[(Loss::Gone, "n2", 1, 10), (CRASHED, "n2", 9, 10), (Loss::Gone, "n2", 1, 30)], &[true, true, true]);
        check(&[(CRASHED, "n2", 1, 10), (Loss::Gone, "n2", 9, 10), (Loss::Gone, "n3", 9, 10)], &[true, true, false]);
        // A statement that its server cannot answer is not tried on all connections.
        check(
            &[(Loss::Violation("too long"), "n2", 1, 10), (Loss::Violation("too long"), "n2", 1, 10)],
            &[true, false],
        );
    }

    #[test]
    fn who_ends_a_statement_a_second_time_means_it() {
        check(&[(ENDED, "n1", 1, 10), (ENDED, "n1", 15, 19), (ENDED, "n1", 1, 20)], &[true, true, false]);
    }

    #[test]
    fn a_server_that_is_ended_before_its_statement_has_run_was_not_ended_for_it() {
        let (mut losses, n1, n2) = (Losses::default(), "n1".parse().unwrap(), "n2".parse().unwrap());
        let mut lost = |loss, node: &NodeId, sent: u64, now: u64| {
            let at = Instant::from_millis;
            losses.allow(loss, (node, at(0)), STANDS, (at(sent), at(now)))
        };
        assert!(lost(ENDED, &n1, 0, 10));
        // It has waited for another server for longer than those are ended that are ended together.
        assert!(lost(ENDED, &n1, 3000, 3010) && lost(ENDED, &n2, 9000, 9999));
        assert!(!lost(ENDED, &n1, 11_000, 12_000), "it has run");
        assert!(!lost(CRASHED, &n2, 15_000, 15_001), "it may have crashed it");
        // Nobody is sent again for ever.
        let more = (0..100).filter(|n| lost(ENDED, &n1, 20_000 + 5000 * n, 20_001 + 5000 * n)).count();
        assert_eq!(more, usize::from(MAX_MOVES) - 2);
    }

    #[test]
    fn who_is_ended_while_the_primary_changes_was_not_ended_for_its_statement() {
        let closed = View { open: false, ..STANDS };
        let next = View { term: Term(8), ..STANDS };
        let (of_old, of_new) = ((ENDED, "n1", 1, 10), (ENDED, "n2", 1, 30));
        let crash = (Loss::Gone, "n1", 1, 10);
        for (first, views) in
            [(of_old, [closed, closed]), (of_old, [STANDS, closed]), (crash, [STANDS, closed]), (crash, [STANDS, next])]
        {
            check_in(&views, &[first, of_new], &[true, true]);
        }
        // A crash may be the statement's doing, whatever comes of it.
        check_in(&[STANDS, closed], &[crash, (CRASHED, "n2", 1, 30)], &[true, false]);
        check_in(&[STANDS, next], &[crash, (Loss::Gone, "n2", 1, 30)], &[true, false]);
        check_in(&[closed, STANDS, STANDS], &[of_old, of_new, (ENDED, "n3", 1, 50)], &[true, true, false]);
    }

    #[test]
    fn what_becomes_of_the_cluster_does_not_count_as_that() {
        let moved = [(Loss::Deposed, "n1", 1, 10); MAX_MOVES as usize];
        check(&moved, &[true; MAX_MOVES as usize]);
        check(
            &[&moved[..], &[(Loss::ViewStale, "n1", 1, 10)]].concat(),
            &[&[true; MAX_MOVES as usize][..], &[false]].concat(),
        );
        check(
            &[(Loss::Deposed, "n1", 1, 10), (Loss::Gone, "n2", 1, 10), (Loss::Gone, "n3", 1, 10)],
            &[true, true, false],
        );
        check(&[(Loss::Refused(*b"25006"), "n2", 1, 10), (Loss::Gone, "n1", 1, 10)], &[true, true]);
    }

    #[test]
    fn the_next_statement_has_lost_nothing() {
        let (mut losses, n) = (Losses::default(), "n1".parse().unwrap());
        let at = Instant::from_millis(1000);
        let crash = |losses: &mut Losses| losses.allow(CRASHED, (&n, at + STOPPING), STANDS, (at, at));
        assert!(crash(&mut losses) && !crash(&mut losses));
        assert_eq!(losses.first(), Some(&n));
        losses.forget();
        assert!(crash(&mut losses));
    }
}
