//! Which worker gets the next client.

/// The first worker with fewer than `fill` sessions; when there is none, the one with the fewest. `None` without workers.
pub fn worker_for(sessions: impl Iterator<Item = usize> + Clone, fill: usize) -> Option<usize> {
    let first = sessions.clone().position(|n| n < fill);
    first.or_else(|| sessions.enumerate().min_by_key(|(_, n)| *n).map(|(worker, _)| worker))
}

#[cfg(test)]
mod tests {
    use super::worker_for;

    fn check(sessions: &[usize], fill: usize, expected: Option<usize>) {
        assert_eq!(worker_for(sessions.iter().copied(), fill), expected, "{sessions:?} with {fill}");
    }

    #[test]
    fn few_clients_share_a_worker_and_many_are_spread() {
        check(&[0, 0, 0], 16, Some(0));
        check(&[15, 0, 0], 16, Some(0));
        check(&[16, 0, 0], 16, Some(1));
        // One has left: its place is taken first.
        check(&[15, 16, 3], 16, Some(0));
        check(&[16, 16, 16], 16, Some(0));
        check(&[18, 17, 16], 16, Some(2));
        check(&[], 16, None);
    }

    #[test]
    fn with_a_fill_of_one_clients_are_spread_from_the_first_on() {
        check(&[0, 0], 1, Some(0));
        check(&[1, 0], 1, Some(1));
        check(&[2, 1], 1, Some(1));
    }
}
