//! Who is inside before having shown anything: a bounded crowd that a newcomer always gets into.
//!
//! Whoever fills it up loses places of its own: the oldest of the address that has the most is asked to leave. So neither
//! idle connections nor many of one host keep anybody else out, and no address needs a limit that a host of many processes
//! could reach.

use core::net::IpAddr;
use std::collections::{BTreeMap, VecDeque};

/// Those inside, oldest first, each with a `T` of the caller's.
#[derive(Debug)]
pub struct Crowd<T> {
    most: usize,
    next: u64,
    inside: VecDeque<Place<T>>,
}

#[derive(Debug)]
struct Place<T> {
    number: u64,
    from: IpAddr,
    whom: T,
}

impl<T> Crowd<T> {
    /// At most `most` at once, at least one.
    pub fn new(most: usize) -> Self {
        Self { most: most.max(1), next: 0, inside: VecDeque::new() }
    }

    /// Let one in. Gives its number for [`Crowd::leave`], and who is to leave for it.
    pub fn enter(&mut self, from: IpAddr, whom: T) -> (u64, Option<T>) {
        let out = if self.inside.len() < self.most { None } else { self.crowded_out() };
        let number = self.next;
        self.next += 1;
        self.inside.push_back(Place { number, from: host(from), whom });
        (number, out)
    }

    /// It is gone, or has shown who it is. Unknown numbers are left out.
    pub fn leave(&mut self, number: u64) {
        self.inside.retain(|p| p.number != number);
    }

    fn crowded_out(&mut self) -> Option<T> {
        let mut count: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for place in &self.inside {
            *count.entry(place.from).or_default() += 1;
        }
        let most = count.values().copied().max()?;
        let oldest = self.inside.iter().position(|p| count.get(&p.from) == Some(&most))?;
        self.inside.remove(oldest).map(|p| p.whom)
    }
}

/// What counts as one host: an address, in IPv6 its /64, of which a host may use each.
fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_in_numbers_makes_room_for_others_and_loses_its_oldest() {
        let mut crowd = Crowd::new(4);
        let at = |last: u8| IpAddr::from([10, 0, 0, last]);
        assert_eq!(crowd.enter(at(1), "a1"), (0, None));
        for (number, name) in [(1, "b1"), (2, "b2"), (3, "b3")] {
            assert_eq!(crowd.enter(at(2), name), (number, None));
        }
        assert_eq!(crowd.enter(at(3), "c1"), (4, Some("b1")));
        assert_eq!(crowd.enter(at(2), "b4"), (5, Some("b2")));
        crowd.leave(0);
        assert_eq!(crowd.enter(at(4), "d1").1, None, "a place was free");
        // All alike: the oldest of all.
        assert_eq!(crowd.enter(at(5), "e1").1, Some("b3"));
        assert_eq!(crowd.enter(at(6), "f1").1, Some("c1"));
    }

    #[test]
    fn a_host_is_one_whatever_its_notation() {
        for (one, other, same) in [
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("2001:db8::1", "2001:db8::ffff:1", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
        ] {
            assert_eq!(host(one.parse().unwrap()) == host(other.parse().unwrap()), same, "{one} {other}");
        }
    }
}
