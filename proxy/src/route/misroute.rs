//! Shapes of statements that a standby has refused although they were taken for reads: they go to the primary for a
//! while. Bounded; the oldest is forgotten first.

use cluster::Instant;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Shapes remembered at most.
const MAX_SHAPES: usize = 1024;

/// What was refused, by a number for its shape and database.
#[derive(Debug, Default)]
pub struct Misroutes {
    until: BTreeMap<u64, Instant>,
    order: VecDeque<u64>,
    version: u64,
}

impl Misroutes {
    /// A standby has refused it at `now`. True when that is news.
    pub fn refused(&mut self, shape: u64, now: Instant, remember: Duration) -> bool {
        if remember.is_zero() {
            return false;
        }
        self.version += 1;
        if self.until.insert(shape, now + remember).is_some() {
            return false;
        }
        self.order.push_back(shape);
        if self.order.len() > MAX_SHAPES
            && let Some(oldest) = self.order.pop_front()
        {
            self.until.remove(&oldest);
        }
        true
    }

    /// Has a standby refused it lately?
    pub fn holds(&self, shape: u64, now: Instant) -> bool {
        self.until.get(&shape).is_some_and(|until| now < *until)
    }

    /// Nothing is remembered: there is no need to work out a shape.
    pub fn is_empty(&self) -> bool {
        self.until.is_empty()
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.until.len()
    }

    /// Grows with whatever may change what [`holds`](Self::holds) says.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Forget those whose time is over.
    pub fn expire(&mut self, now: Instant) {
        let before = self.until.len();
        self.until.retain(|_, until| now < *until);
        if self.until.len() < before {
            self.order.retain(|shape| self.until.contains_key(shape));
            self.version += 1;
        }
    }

    /// Forget all: what functions do has changed.
    pub fn forget(&mut self) {
        if !self.until.is_empty() {
            (self.until, self.order) = (BTreeMap::new(), VecDeque::new());
            self.version += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1000)
    }

    #[test]
    fn a_shape_is_remembered_for_its_time() {
        let mut m = Misroutes::default();
        assert!(m.refused(7, at(100), MEMORY) && !m.refused(7, at(105), MEMORY));
        let version = m.version();
        m.expire(at(114));
        assert!(m.holds(7, at(114)) && !m.holds(8, at(114)) && m.version() == version);
        assert!(!m.holds(7, at(115)));
        m.expire(at(115));
        assert!(m.is_empty() && m.version() > version);
        assert!(!m.refused(9, at(116), Duration::ZERO) && m.is_empty());
    }

    #[test]
    fn the_oldest_is_forgotten_for_the_newest() {
        let mut m = Misroutes::default();
        for shape in 0..=MAX_SHAPES as u64 {
            m.refused(shape, at(1), MEMORY);
        }
        assert_eq!(m.len(), MAX_SHAPES);
        assert!(!m.holds(0, at(2)) && m.holds(1, at(2)) && m.holds(MAX_SHAPES as u64, at(2)));
        m.forget();
        assert!(m.is_empty());
    }
}
