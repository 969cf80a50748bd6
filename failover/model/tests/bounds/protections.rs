//! Each protection that the protocol rests on, taken away in turn, must give a counterexample: otherwise the model
//! would not notice its loss in the protocol either.

use model::check::NAMES;
use model::scope::{Change, Protection, Scope};
use model::{Checked, Step};
use stateright::{Checker, HasDiscoveries, Model};
use std::io::Write as _;

const LOST: &str = NAMES[0];
const UNREAD: &str = NAMES[1];
const LATE: &str = NAMES[2];
const TWIN: &str = NAMES[3];
const BROKEN: &str = NAMES[4];
const UNSOUND: &str = NAMES[5];

/// One failover, one write, no fault.
const SMALL: Scope = Scope { terms: 2, writes: 1, crashes: 0, lost: 0, symmetric: false, ..Scope::three() };

/// The shortest way to break `property` without `protection`, as a list of steps.
fn breaks(protection: Protection, property: &'static str, scope: Scope) -> Vec<Step> {
    breaks_of::<3>(protection, property, scope)
}

fn breaks_of<const M: usize>(protection: Protection, property: &'static str, scope: Scope) -> Vec<Step> {
    let mut model = Checked::<M>::new(Scope { without: Some(protection), ..scope });
    model.only = Some(property);
    let checked = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let path = checked.discovery(property);
    let path = path.unwrap_or_else(|| panic!("without {protection:?} nothing broke: {}", checked.unique_state_count()));
    let steps = path.into_actions();
    let (states, long) = (checked.unique_state_count(), steps.len());
    let _ = writeln!(std::io::stderr(), "without {protection:?}: {long} steps, {states} states, against: {property}");
    steps.iter().for_each(|step| println!("  {step:?}"));
    steps
}

/// The same bounds are safe.
fn holds(scope: Scope) {
    let checked = Checked::<3>::new(scope).checker().spawn_bfs().join();
    for (name, _) in model::check::always::<3>() {
        assert!(checked.discovery(name).is_none(), "{name}: {:?}", checked.discovery(name));
    }
}

fn needed(protection: Protection, property: &'static str, scope: Scope) {
    let steps = breaks(protection, property, scope);
    assert!(steps.len() < 40, "shortest, so short");
    holds(scope);
}

#[test]
fn a_promise_that_is_forgotten_loses_a_write() {
    needed(Protection::PromiseFsync, LOST, Scope { crashes: 1, ..SMALL });
    breaks(Protection::PromiseFsync, BROKEN, Scope { crashes: 1, ..SMALL });
}

#[test]
fn a_policy_that_is_not_compared_lets_two_terms_acknowledge() {
    let scope = Scope { change: Change::Suspension, ..SMALL };
    needed(Protection::PolicyCompare, LATE, scope);
    // Either of T1 and T2 finds what the other overlooks.
    for one in [Protection::BeginPolicyCompare, Protection::ChoicePolicyCompare] {
        holds(Scope { without: Some(one), ..scope });
    }
}

#[test]
fn a_term_that_is_not_compared_loses_a_write() {
    needed(Protection::TermCompare, LOST, Scope { terms: 3, ..SMALL });
}

#[test]
fn a_change_of_the_policy_that_compares_nothing_comes_late_and_promises_too_much() {
    needed(Protection::ChangeCompare, UNSOUND, Scope { change: Change::Suspension, lost: 1, ..SMALL });
}

#[test]
fn a_change_of_the_policy_that_does_not_compare_the_term_promises_too_much() {
    let scope = Scope { change: Change::Suspension, lost: 1, ..SMALL };
    needed(Protection::ChangeTermCompare, UNSOUND, scope);
}

#[test]
fn a_term_opened_before_its_record_is_on_a_quorum_takes_back_what_was_read() {
    needed(Protection::RecordWait, UNREAD, Scope { terms: 3, ..SMALL });
}

#[test]
fn a_timeline_numbered_by_counting_is_written_twice() {
    needed(Protection::TimelineIsTerm, TWIN, Scope { terms: 3, ..SMALL });
}

#[test]
fn a_change_of_k_in_one_step_loses_a_write() {
    let scope = Scope { change: Change::Copies(2), ..SMALL };
    needed(Protection::JointRule, LOST, scope);
    breaks(Protection::JointRule, UNSOUND, scope);
}

#[test]
fn a_receiver_that_outlives_the_freeze_loses_a_write() {
    needed(Protection::ReceiverKill, LOST, SMALL);
}

#[test]
fn a_primary_restarted_in_its_term_shows_what_is_lost_later() {
    needed(Protection::RestartGate, UNREAD, Scope { crashes: 2, ..SMALL });
}

#[test]
fn a_choice_that_is_not_compared_promotes_two_nodes_in_one_term() {
    needed(Protection::ChoiceCompare, TWIN, Scope { leads: 1, ..SMALL });
}

#[test]
fn a_late_order_to_receive_from_a_recruit_loses_a_write() {
    // So long a way that names are not told apart.
    let scope = Scope { terms: 3, writes: 2, catch_up: true, symmetric: true, ..SMALL };
    needed(Protection::CatchUpFrozen, LOST, scope);
}

#[test]
fn a_recruit_that_receives_from_the_old_primary_loses_a_write() {
    needed(Protection::CatchUpRecruit, LOST, Scope { catch_up: true, ..SMALL });
}

#[test]
fn a_cancelled_wait_told_as_a_commit_loses_it() {
    needed(Protection::CancelUnknown, LOST, Scope { cancels: 1, ..SMALL });
}

#[test]
fn a_standby_under_a_false_name_loses_a_write() {
    needed(Protection::UniqueNames, LOST, SMALL);
}

#[test]
fn a_standby_that_is_connected_twice_and_counts_for_two_loses_a_write() {
    let scope = Scope { k: 2, reconnects: 1, ..SMALL };
    needed(Protection::Slots, LOST, scope);
    holds(Scope { writes: 2, crashes: 1, reconnects: 2, symmetric: true, ..scope });
    let steps = breaks_of::<4>(Protection::Slots, LOST, Scope { symmetric: true, ..scope });
    assert!(steps.len() < 40, "shortest, so short");
}

#[test]
fn two_that_may_confirm_before_both_stream_through_slots_lose_a_write() {
    needed(Protection::SlotsFirst, LOST, Scope { change: Change::Copies(2), reconnects: 1, ..SMALL });
}

#[test]
fn a_signature_that_does_not_bind_lets_two_terms_acknowledge() {
    needed(Protection::SignatureBinds, LATE, Scope { k: 0, signatures: true, ..SMALL });
}

#[test]
fn signatures_of_a_part_let_two_terms_acknowledge() {
    needed(Protection::AllSign, LATE, Scope { k: 0, signatures: true, ..SMALL });
}

#[test]
fn a_change_of_voters_in_one_step_loses_a_write() {
    let scope = Scope { change: Change::Voters(2), ..SMALL };
    let steps = breaks_of::<4>(Protection::JointRule, LOST, scope);
    assert!(steps.len() < 40, "shortest, so short");
}

#[test]
fn a_vote_taken_while_unprotected_before_others_have_what_was_promised_loses_a_write() {
    // That these bounds are safe is what the test in `holds` explores.
    let steps = breaks(Protection::Owed, LOST, Scope { change: Change::Replaced, ..SMALL });
    assert!(steps.len() < 40, "shortest, so short");
}

#[test]
fn one_recruit_less_loses_a_write() {
    needed(Protection::Quorum, LOST, SMALL);
}

#[test]
fn a_rewound_node_that_counts_at_once_loses_a_write() {
    needed(Protection::Quarantine, LOST, Scope { terms: 3, writes: 2, ..SMALL });
}

#[test]
fn a_rewound_node_that_counts_beside_anybody_loses_a_write() {
    // With k = 1 three terms do not get there: every standby is a recruit, and none has more than who was chosen.
    let scope = Scope { k: 2, terms: 3, writes: 2, symmetric: true, ..SMALL };
    let steps = breaks_of::<4>(Protection::ChosenThere, LOST, scope);
    assert!(steps.len() < 40, "shortest, so short");
}

#[test]
fn a_view_that_is_not_waited_for_lets_two_terms_acknowledge() {
    needed(Protection::ViewWait, LATE, Scope { k: 0, crashes: 1, ..SMALL });
}

#[test]
fn a_term_that_a_restored_etcd_has_forgotten_and_gives_out_again_writes_a_timeline_twice() {
    needed(Protection::AboveThePromised, TWIN, Scope { terms: 3, restores: true, ..SMALL });
}

#[test]
fn the_old_primary_that_a_restored_etcd_names_loses_a_write_of_another_term() {
    needed(Protection::AnyPrimary, LOST, Scope { terms: 3, restores: true, ..SMALL });
}

#[test]
fn a_follower_that_still_obeys_older_terms_writes_a_timeline_twice() {
    needed(Protection::FollowPromises, TWIN, Scope { terms: 3, ..SMALL });
}
