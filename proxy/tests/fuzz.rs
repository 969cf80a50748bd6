//! What `make fuzz` checks for long, for a moment: the corpus, which holds every input that once failed, and a fixed
//! number of mutations of it. Without libFuzzer, so that the targets always build and never rot.
#![allow(missing_docs, reason = "a test")]

#[path = "../fuzz/src/backend.rs"]
mod backend;
#[path = "../fuzz/src/classify.rs"]
mod classify;
#[path = "../fuzz/src/frontend.rs"]
mod frontend;
#[path = "../fuzz/src/scram.rs"]
mod scram;
#[path = "../fuzz/src/startup.rs"]
mod startup;

use rand::{Rng, SeedableRng, rngs::StdRng};

/// Longest mutated input, bytes.
const LONGEST: usize = 4096;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let inputs: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(inputs.len() > 4, "the corpus of {target} is gone");
    inputs
}

/// An input changed a little: bytes flipped, set, taken out, repeated, or taken from another input.
fn mutated(corpus: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
    let mut input = corpus[rng.random_range(0..corpus.len())].clone();
    for _ in 0..rng.random_range(1..6) {
        if input.is_empty() {
            input.push(rng.random());
        }
        let at = rng.random_range(0..input.len());
        match rng.random_range(0..6) {
            0 => input[at] ^= 1 << rng.random_range(0..8),
            1 => input[at] = [0, 1, 4, 5, 0x7f, 0xff, b'\'', b';'][rng.random_range(0..8)],
            2 => drop(input.drain(at..(at + rng.random_range(1..9)).min(input.len()))),
            3 => {
                let run = input[at..(at + rng.random_range(1..40)).min(input.len())].to_vec();
                input.splice(at..at, run);
            }
            4 => {
                let other = &corpus[rng.random_range(0..corpus.len())];
                let from = rng.random_range(0..other.len());
                input.splice(at.., other[from..].iter().copied());
            }
            _ => input.insert(at, rng.random()),
        }
    }
    input.truncate(LONGEST);
    input
}

fn hold(target: &str, check: fn(&[u8]), mutations: u64) {
    let corpus = corpus(target);
    corpus.iter().for_each(|input| check(input));
    for seed in 0..mutations {
        let input = mutated(&corpus, &mut StdRng::seed_from_u64(seed));
        if std::panic::catch_unwind(|| check(&input)).is_err() {
            panic!("{target}, seed {seed}: {:?}", input.escape_ascii().to_string());
        }
    }
}

#[test]
fn no_startup_packet_panics() {
    hold("startup", startup::check, 20_000);
}

#[test]
fn no_client_message_panics_and_servers_get_whole_frames() {
    hold("frontend", frontend::check, 20_000);
}

#[test]
fn no_answer_panics_and_pieces_make_no_difference() {
    hold("backend", backend::check, 20_000);
}

#[test]
fn no_scram_message_panics_or_convinces() {
    hold("scram", scram::check, 300);
}

#[test]
fn no_text_panics_and_comments_make_no_difference() {
    hold("classify", classify::check, 20_000);
}
