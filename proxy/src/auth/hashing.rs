//! Thousands of hashes for one password, done on threads of their own so that no session waits for them, a few at a
//! time, and remembered.
//!
//! Only passwords need this: a verifier or a client's key costs a handful of hashes and stays where it is.

use crate::auth::scram::{ITERATIONS, LoginKeys, Salted, Verifier, Work};
use cluster::secret::Secret;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Results kept, of each kind. At more users than that the oldest habit, computing, returns.
const MAX_KEPT: usize = 10_000;

/// User, salt and rounds.
type Asked = (String, Vec<u8>, u32);

/// The threads' turns, and what they found.
#[derive(Debug)]
pub struct Hashing {
    turns: Arc<Semaphore>,
    verifiers: Mutex<HashMap<String, (Secret, Verifier)>>,
    salted: Mutex<HashMap<Asked, (Secret, Salted)>>,
}

impl Hashing {
    /// At most `at_once` passwords at the same time.
    pub fn new(at_once: usize) -> Self {
        Self { turns: Arc::new(Semaphore::new(at_once)), verifiers: Mutex::default(), salted: Mutex::default() }
    }

    /// A verifier of a user's password; the same one as long as the password is.
    pub async fn verifier(&self, user: &str, password: &Secret) -> Verifier {
        let known = self.verifiers.lock().unwrap_or_else(PoisonError::into_inner).get(user).cloned();
        if let Some((for_password, verifier)) = known
            && for_password == *password
        {
            return verifier;
        }
        let (copy, salt) = (password.clone(), rand::random());
        let verifier = self.run(move || Verifier::from_password(copy.expose(), salt, ITERATIONS)).await;
        keep(&self.verifiers, user.to_owned(), (password.clone(), verifier.clone()));
        verifier
    }

    /// A user's password, salted as a server asked for it.
    pub async fn salted(&self, user: &str, work: Work) -> Salted {
        let key = (user.to_owned(), work.salt.clone(), work.iterations);
        let known = self.salted.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some((for_password, salted)) = known
            && for_password == *work.password()
        {
            return salted;
        }
        let password = work.password().clone();
        let salted = self.run(move || work.run()).await;
        keep(&self.salted, key, (password, salted.clone()));
        salted
    }

    /// Is it the verifier's password?
    pub async fn matches(&self, verifier: Verifier, password: Secret) -> Option<LoginKeys> {
        self.run(move || verifier.matches(password.expose())).await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        // Owned: it goes with the thread, which goes on when the client that waits for it has gone.
        let turn = self.turns.clone().acquire_owned().await.expect("the semaphore is never closed");
        let done = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(turn);
            result
        });
        done.await.expect("hashing does not panic, and is never aborted")
    }
}

fn keep<K: std::hash::Hash + Eq, V>(kept: &Mutex<HashMap<K, V>>, key: K, value: V) {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() >= MAX_KEPT && !kept.contains_key(&key) {
        kept.clear();
    }
    kept.insert(key, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::scram::{ClientSide, ServerSide};

    #[tokio::test]
    async fn a_verifier_is_made_once_for_each_password() {
        let hashing = Hashing::new(1);
        let first = hashing.verifier("u", &Secret::new("a")).await;
        assert_eq!(hashing.verifier("u", &Secret::new("a")).await, first);
        assert_ne!(hashing.verifier("u", &Secret::new("b")).await, first);
        assert!(hashing.matches(first.clone(), Secret::new("a")).await.is_some());
        assert!(hashing.matches(first, Secret::new("b")).await.is_none());
    }

    #[tokio::test]
    async fn hashing_leaves_the_thread_of_the_relay_alone() {
        let relay = std::thread::current().id();
        let hashing = Hashing::new(1);
        assert_ne!(hashing.run(|| std::thread::current().id()).await, relay);
        // One at a time, also when who waits for the first has gone: its thread still computes.
        let (begin, begun) = tokio::sync::oneshot::channel();
        let (release, held) = std::sync::mpsc::sync_channel::<()>(1);
        let first = hashing.run(move || {
            begin.send(()).expect("somebody waits for this");
            held.recv()
        });
        tokio::select! {
            _ = first => panic!("it is held"),
            begun = begun => begun.expect("the first began"),
        }
        assert_eq!(hashing.turns.available_permits(), 0);
        release.send(()).expect("the thread waits");
        assert!(hashing.run(|| true).await);
    }

    #[tokio::test]
    async fn a_password_salted_elsewhere_answers_the_challenge() {
        let hashing = Hashing::new(1);
        let mut server = ServerSide::new(Verifier::from_password("pw", [3; 16], 4096), [1; 18]);
        for (password, right) in [("pw", true), ("other", false), ("pw", true)] {
            let mut client = ClientSide::with_password("u", password, [2; 18]);
            let challenge = server.first(client.mechanism().as_bytes(), &client.first()).unwrap();
            let work = client.work(&challenge).unwrap().expect("a password needs work");
            let (salt, rounds) = (work.salt.clone(), work.iterations);
            let salted = hashing.salted("u", work).await;
            client.supply(salt, rounds, &salted);
            let answer = client.respond(&challenge).unwrap();
            assert_eq!(server.finish(&answer).is_ok(), right);
        }
    }
}
