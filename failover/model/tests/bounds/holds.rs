//! The protocol as it is holds within bounds small enough for every run of the tests; `make model` goes further.

use model::{Change, Checked, Scope};
use stateright::{Checker, Model};
use std::io::Write as _;

/// Nothing that must hold breaks, and all that must happen once happens.
fn explore<const M: usize>(what: &str, scope: Scope) {
    let checked = Checked::<M>::new(scope).checker().threads(2).spawn_bfs().join();
    // Not println: how much was explored is of interest where everything holds, too.
    let _ = writeln!(std::io::stderr(), "{what}: m={M} {scope:?}: {} states", checked.unique_state_count());
    checked.assert_properties();
}

#[test]
fn two_failovers_with_a_crash_and_a_lost_answer_lose_nothing() {
    explore::<3>("two failovers", Scope { writes: 1, crashes: 1, lost: 1, ..Scope::three() });
}

#[test]
fn one_failover_with_two_crashes_and_two_lost_answers_loses_nothing() {
    explore::<3>("one failover", Scope { terms: 2, ..Scope::three() });
}

#[test]
fn protection_is_suspended_and_restored_around_a_failover() {
    explore::<3>("suspension", Scope { terms: 2, crashes: 1, lost: 0, change: Change::Suspension, ..Scope::three() });
}

#[test]
fn without_a_quorum_lease_and_views_keep_terms_apart() {
    explore::<3>("async", Scope { k: 0, terms: 2, crashes: 2, lost: 1, ..Scope::three() });
}

#[test]
fn a_round_that_changes_hands_promotes_one_node() {
    let scope = Scope { terms: 2, writes: 1, crashes: 1, lost: 1, leads: 1, ..Scope::three() };
    explore::<3>("a round changes hands", scope);
    let scope = Scope { terms: 2, writes: 2, crashes: 0, lost: 1, leads: 2, catch_up: true, ..Scope::three() };
    explore::<3>("a round changes hands twice", scope);
}

#[test]
fn a_recruit_that_receives_from_another_loses_nothing() {
    let scope = Scope { writes: 1, crashes: 0, lost: 0, catch_up: true, ..Scope::three() };
    explore::<3>("catching up", scope);
}

#[test]
fn k_changes_around_a_failover() {
    explore::<3>("more copies", Scope { terms: 2, crashes: 1, lost: 0, change: Change::Copies(2), ..Scope::three() });
    let scope = Scope { k: 2, terms: 2, crashes: 0, lost: 0, change: Change::Copies(1), ..Scope::three() };
    explore::<3>("fewer copies", scope);
}

#[test]
fn a_standby_that_leaves_connections_behind_counts_once_where_two_are_needed() {
    let scope = Scope { k: 2, terms: 2, writes: 1, crashes: 0, lost: 0, reconnects: 1, ..Scope::three() };
    explore::<4>("left connections", scope);
    explore::<3>("left connections, one copy", Scope { k: 1, writes: 2, crashes: 1, reconnects: 2, ..scope });
    explore::<3>("left connections, more copies", Scope { k: 1, change: Change::Copies(2), ..scope });
    explore::<3>("left connections, fewer copies", Scope { change: Change::Copies(1), ..scope });
}

#[test]
fn a_change_of_the_policy_whose_outcome_nobody_heard_is_made_or_not_and_loses_nothing() {
    let scope = Scope { terms: 2, writes: 1, crashes: 0, lost: 1, ..Scope::three() };
    explore::<3>("suspension, unheard", Scope { change: Change::Suspension, ..scope });
    explore::<3>("more copies, unheard", Scope { change: Change::Copies(2), ..scope });
    explore::<2>("available, unheard", Scope { change: Change::Available, ..scope });
}

#[test]
fn voters_change_around_a_failover() {
    let scope = Scope { terms: 2, writes: 1, crashes: 0, lost: 0, change: Change::Voters(2), ..Scope::three() };
    explore::<4>("three voters, four, three", scope);
}

#[test]
fn a_commit_whose_wait_was_cancelled_is_promised_nothing() {
    let scope = Scope { terms: 2, crashes: 1, lost: 0, cancels: 2, ..Scope::three() };
    explore::<3>("cancelled waits", scope);
}

#[test]
fn an_etcd_restored_from_a_backup_loses_nothing() {
    let scope = Scope { writes: 2, crashes: 0, lost: 0, restores: true, ..Scope::three() };
    explore::<3>("restored", scope);
}

#[test]
fn without_etcd_signatures_keep_terms_apart() {
    explore::<3>("signatures", Scope { k: 0, terms: 2, crashes: 1, lost: 0, signatures: true, ..Scope::three() });
}

#[test]
fn four_and_five_nodes() {
    explore::<4>("four nodes", Scope { k: 2, terms: 2, writes: 1, crashes: 0, lost: 0, ..Scope::three() });
    explore::<5>("five nodes", Scope { k: 2, terms: 2, writes: 1, crashes: 0, lost: 0, ..Scope::three() });
}

#[test]
fn quarantined_nodes_count_beside_one_that_was_chosen_in_vain() {
    let scope = Scope { k: 2, writes: 1, crashes: 0, lost: 0, ..Scope::three() };
    explore::<4>("chosen in vain", scope);
}

#[test]
fn two_nodes_go_on_alone_and_succeed_each_other_with_all_that_was_promised() {
    let scope = Scope { change: Change::Available, terms: 2, writes: 2, crashes: 1, lost: 0, ..Scope::three() };
    explore::<2>("available, two nodes", scope);
}

#[test]
fn three_nodes_in_available_mode_fail_over_by_the_quorum_or_to_a_complete_node() {
    let scope = Scope { change: Change::Available, terms: 2, writes: 1, crashes: 1, lost: 0, ..Scope::three() };
    explore::<3>("available, three nodes", scope);
}

#[test]
fn voters_replaced_while_unprotected_lose_nothing_that_was_promised_before_or_after() {
    let scope = Scope { change: Change::Replaced, terms: 2, writes: 1, crashes: 0, lost: 0, ..Scope::three() };
    explore::<3>("replaced voters", scope);
}
