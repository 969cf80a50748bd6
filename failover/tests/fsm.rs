//! Plays the text scenarios of `tests/fsm/*.txt` against the planner.
//!
//! A scenario is a list of blocks: commands, `----`, what the planner did, a blank line. One planner lives through a
//! whole file, or until `manager`. `UPDATE_SCENARIOS=1` writes what was seen into the files, to be reviewed as a diff.

mod fsm_world;

use fsm_world::World;
use std::fmt::Write as _;
use std::path::Path;

/// Runs one file and returns it with the outputs seen.
fn play(text: &str, file: &str) -> String {
    let mut world = World::default();
    let mut out = String::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        if line.trim().is_empty() || line.starts_with('#') {
            let _ = writeln!(out, "{line}");
            continue;
        }
        if line == "----" {
            let _ = writeln!(out, "----");
            for seen in world.take_seen() {
                let _ = writeln!(out, "{seen}");
            }
            // What was expected is replaced; the blank line that ends it stays.
            while lines.peek().is_some_and(|(_, l)| !l.trim().is_empty()) {
                lines.next();
            }
            continue;
        }
        let _ = writeln!(out, "{line}");
        if let Err(why) = world.command(line) {
            panic!("{file}:{}: {line}: {why}", number + 1);
        }
    }
    out
}

#[test]
fn every_scenario_goes_as_written() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fsm");
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 15, "scenarios are missing from {}", dir.display());
    let update = std::env::var_os("UPDATE_SCENARIOS").is_some();
    let mut wrong = Vec::new();
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let seen = play(&text, &name);
        if seen == text {
            continue;
        }
        if update {
            std::fs::write(&path, seen).unwrap();
            continue;
        }
        let first = text.lines().zip(seen.lines()).position(|(a, b)| a != b);
        let line = first.unwrap_or_else(|| text.lines().count().min(seen.lines().count()));
        let show = |t: &str| t.lines().nth(line).unwrap_or("(end)").to_owned();
        wrong.push(format!("{name}:{}\n  written: {}\n  seen:    {}", line + 1, show(&text), show(&seen)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
