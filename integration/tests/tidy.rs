//! Checks of the source itself: what PURE modules may import, which crate may depend on which, which words are used,
//! that every alert and every operator verb has its page.

use integration::source::{code_only, find_word, paths};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files and directories whose modules are PURE: they decide, they never touch a clock, a socket or a file.
const PURE: &[&str] = &[
    "cluster/src",
    "failover/src/api.rs",
    "failover/src/fsm",
    "failover/src/rebuild/plan.rs",
    "failover/src/record",
    "failover/src/store/etcd/classify.rs",
    "lagmon/src/model",
    "proxy/src/auth/cancel_keys.rs",
    "proxy/src/auth/credentials.rs",
    "proxy/src/auth/md5.rs",
    "proxy/src/auth/rules",
    "proxy/src/auth/rules.rs",
    "proxy/src/auth/scram",
    "proxy/src/console/columns.rs",
    "proxy/src/console/command",
    "proxy/src/console/command.rs",
    "proxy/src/console/table.rs",
    "proxy/src/console/tally.rs",
    "proxy/src/config/console.rs",
    "proxy/src/config/durability.rs",
    "proxy/src/config/functions.rs",
    "proxy/src/config/pools.rs",
    "proxy/src/config/reads.rs",
    "proxy/src/config/throttle.rs",
    "proxy/src/config/timeouts.rs",
    "proxy/src/ledger",
    "proxy/src/placing.rs",
    "proxy/src/pool/backoff.rs",
    "proxy/src/pool/doors.rs",
    "proxy/src/pool/policy.rs",
    "proxy/src/route",
    "proxy/src/session/account.rs",
    "proxy/src/session/assigned.rs",
    "proxy/src/session/batch",
    "proxy/src/session/batch.rs",
    "proxy/src/session/losses.rs",
    "proxy/src/session/outcome.rs",
    "proxy/src/session/portals.rs",
    "proxy/src/session/relay",
    "proxy/src/session/relay.rs",
    "proxy/src/session/sets_after.rs",
    "proxy/src/session/settings.rs",
    "proxy/src/session/state.rs",
    "proxy/src/session/statements.rs",
    "proxy/src/session/timers.rs",
    "proxy/src/session/tracking.rs",
    "proxy/src/session/translate.rs",
    "proxy/src/silence.rs",
    "proxy/src/sql",
    "proxy/src/tls/x509.rs",
    "proxy/src/wire",
    "failover/src/view/topology.rs",
    "failover/src/agent/parse.rs",
    "src/ctl/verify/checker.rs",
    "src/ctl/verify/spread.rs",
];

/// In PURE directories, the files that read the world so that others need not.
const NOT_PURE: [&str; 1] = ["cluster/src/clock.rs"];

/// Paths that no PURE module may name.
const BANNED_PATHS: [&str; 14] = [
    "std::net",
    "std::fs",
    "std::process",
    "std::thread",
    "std::env",
    "std::io::stdin",
    "std::io::stdout",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::os",
    "Instant::now",
    "SystemTime::now",
    "Clock::system",
    "rand",
];

/// External crates that PURE modules may use.
const ALLOWED_CRATES: [&str; 4] = ["bytes", "cluster", "serde", "thiserror"];

/// Further crates that single PURE files may use, with the reason.
const ALLOWED_IN: [(&str, &[&str]); 7] = [
    // It sorts the client library's errors.
    ("failover/src/store/etcd/classify.rs", &["etcd_client"]),
    // The exchange is arithmetic over hashes; pgwire's state machine does no IO.
    ("proxy/src/auth/scram/mod.rs", &["base64", "pgwire", "ring"]),
    ("proxy/src/auth/scram/client_side.rs", &["base64"]),
    ("proxy/src/auth/scram/server_side.rs", &["base64"]),
    // Hashes with a key.
    ("proxy/src/auth/cancel_keys.rs", &["ring"]),
    // A hash function and nothing else.
    ("proxy/src/auth/md5.rs", &["md5"]),
    // The records are JSON by definition.
    ("failover/src/record/mod.rs", &["serde_json"]),
];

/// Who may depend on whom.
const DIRECTIONS: [(&str, &[&str]); 8] = [
    ("cluster", &[]),
    ("proxy", &["cluster"]),
    ("lagmon", &["cluster"]),
    ("failover", &["cluster"]),
    // Its tests compare it with the code; nothing depends on it.
    ("model", &["cluster", "failover"]),
    // It has failover's PURE modules as its own.
    ("sim", &["cluster"]),
    ("pgtenure", &["cluster", "proxy", "lagmon", "failover"]),
    ("integration", &["cluster", "proxy", "lagmon", "failover", "pgtenure"]),
];

/// What the tests of a crate may use besides: the simulator plays proxies too.
const FOR_TESTS: [(&str, &str); 1] = [("sim", "proxy")];

/// Words that are not ours, and the word to use.
const BANNED_WORDS: [(&str, &str); 6] = [
    ("master", "primary"),
    ("slave", "standby"),
    ("slaves", "standbys"),
    ("whitelist", "allow list"),
    ("blacklist", "deny list"),
    ("xlog_location", "Lsn"),
];

/// The verbs of an operator; each has a page in runbooks/.
const VERBS: [&str; 18] = [
    "status",
    "lag",
    "switchover",
    "failover",
    "fence",
    "unfence",
    "pause",
    "resume",
    "maintenance",
    "node",
    "adopt",
    "rebuild",
    "policy",
    "report",
    "history",
    "reload",
    "verify",
    "route",
];

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("the package lies in the workspace").to_owned()
}

/// Every file of the project, as paths relative to its root, build products left out.
fn files() -> Vec<String> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).expect("the source can be read").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if name == "target" || name == ".git" || name == "__pycache__" {
                continue;
            }
            // Followed links could lead out of the project.
            let kind = entry.file_type().expect("a file has a type");
            if kind.is_dir() {
                walk(&path, found);
            } else if kind.is_file() {
                found.push(path);
            }
        }
    }
    let (root, mut found) = (root(), Vec::new());
    walk(&root, &mut found);
    let relative = |p: PathBuf| p.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
    let mut names: Vec<String> = found.into_iter().map(relative).collect();
    names.sort();
    names
}

fn read(name: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(root().join(name)).expect("a file just listed")).into_owned()
}

fn is_pure(file: &str) -> bool {
    let below = |p: &str| file == p || file.strip_prefix(p).is_some_and(|rest| rest.starts_with('/'));
    // Test modules in files of their own may use what tests use.
    let test = file.ends_with("/tests.rs") || file.contains("/tests/");
    file.ends_with(".rs") && PURE.iter().any(|p| below(p)) && !NOT_PURE.contains(&file) && !test
}

/// What `cargo metadata` says of this workspace: package name to (dependency, is it only for tests or builds).
fn dependencies() -> BTreeMap<String, Vec<(String, bool)>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).current_dir(root());
    let output = command.output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = json["packages"].as_array().expect("a workspace has packages");
    let name = |v: &serde_json::Value| v["name"].as_str().expect("it has a name").to_owned();
    let of = |p: &serde_json::Value| {
        let all = p["dependencies"].as_array().expect("a list");
        all.iter().map(|d| (name(d), !d["kind"].is_null())).collect()
    };
    packages.iter().map(|p| (name(p), of(p))).collect()
}

fn assert_none(what: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{what}:\n  {}", wrong.join("\n  "));
}

#[test]
fn crates_depend_only_in_the_allowed_directions() {
    let dependencies = dependencies();
    let ours: BTreeSet<&str> = DIRECTIONS.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = dependencies.keys().map(String::as_str).collect();
    assert_eq!(ours, found, "a new package needs its line in DIRECTIONS");
    let mut wrong = Vec::new();
    for (package, allowed) in DIRECTIONS {
        let used = dependencies[package].iter().filter(|(d, _)| ours.contains(d.as_str()));
        let used = used.filter(|(d, tests)| !(*tests && FOR_TESTS.contains(&(package, d.as_str()))));
        let forbidden = used.filter(|(d, _)| !allowed.contains(&d.as_str()));
        wrong.extend(forbidden.map(|(d, _)| format!("{package} must not depend on {d}")));
    }
    assert_none("dependency directions", &wrong);
}

#[test]
fn the_shared_vocabulary_pulls_in_no_runtime() {
    let io = ["tokio", "hyper", "hyper-util", "tracing", "tokio-postgres", "etcd-client", "rand"];
    let wrong: Vec<String> =
        dependencies()["cluster"].iter().map(|(d, _)| d.clone()).filter(|d| io.contains(&d.as_str())).collect();
    assert_none("cluster depends on", &wrong);
}

#[test]
fn pure_modules_import_no_clock_socket_file_or_runtime() {
    let external: BTreeSet<String> = dependencies().values().flatten().map(|(d, _)| d.replace('-', "_")).collect();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in files().iter().filter(|f| is_pure(f)) {
        seen += 1;
        let allowed_here = ALLOWED_IN.iter().find(|(f, _)| f == file).map_or(&[][..], |(_, crates)| crates);
        let found = impurities(&code_only(&read(file)), &external, allowed_here);
        wrong.extend(found.into_iter().map(|path| format!("{file}: {path}")));
    }
    assert!(seen > 10, "the list of PURE modules no longer fits the tree: only {seen} files");
    assert_none("PURE modules may not use", &wrong);
}

/// Every path that a PURE file may not name; `external` are the crates from elsewhere.
fn impurities(code: &str, external: &BTreeSet<String>, allowed_here: &[&str]) -> Vec<String> {
    let banned = |path: &str| {
        let first = path.split("::").next().unwrap_or_default();
        let foreign = external.contains(first) && !ALLOWED_CRATES.contains(&first) && !allowed_here.contains(&first);
        foreign || BANNED_PATHS.iter().any(|b| path == *b || path.starts_with(&format!("{b}::")))
    };
    paths(code).into_iter().filter(|p| banned(p)).collect()
}

#[test]
fn what_a_pure_module_may_not_name_is_found_however_it_is_written() {
    let external = BTreeSet::from(["tokio".to_owned(), "tracing".to_owned(), "bytes".to_owned()]);
    for bad in [
        "use std::net::TcpStream;",
        "use std::{fmt, fs::{self, File}};",
        "use std::time::{Duration, Instant};",
        "fn f() { std::thread::spawn(g); }",
        "fn f() { tracing::info!(x); }",
        "let now = Instant::now();",
        "use tokio::sync::watch;",
    ] {
        assert!(!impurities(bad, &external, &[]).is_empty(), "{bad}");
    }
    for good in
        ["use bytes::Bytes;", "use std::time::Duration;", "use cluster::Instant;", "use std::collections::BTreeMap;"]
    {
        assert_eq!(impurities(good, &external, &[]), Vec::<String>::new(), "{good}");
    }
}

#[test]
fn pure_modules_use_only_pure_modules_of_their_crate() {
    let all: BTreeSet<String> = files().into_iter().collect();
    let mut wrong = Vec::new();
    for file in all.iter().filter(|f| is_pure(f) && !f.starts_with("cluster/")) {
        for path in paths(&code_only(&read(file))) {
            let Some(target) = resolve(file, &path, &all) else { continue };
            if !is_pure(&target) {
                wrong.push(format!("{file}: {path} is in {target}, which is not PURE"));
            }
        }
    }
    assert_none("PURE modules may not use", &wrong);
}

/// The file in which a path of our own crate (`crate::`, `super::`, `self::`) lies, if it is not the crate's root.
fn resolve(file: &str, path: &str, all: &BTreeSet<String>) -> Option<String> {
    let (crate_dir, inside) = file.split_once("/src/")?;
    let mut module: Vec<&str> = inside.trim_end_matches(".rs").split('/').collect();
    if module.last() == Some(&"mod") {
        module.pop();
    }
    let mut rest: Vec<&str> = path.split("::").collect();
    match rest.first().copied() {
        Some("crate") => module.clear(),
        Some("super" | "self") => {}
        _ => return None,
    }
    while let Some(step @ ("crate" | "super" | "self")) = rest.first().copied() {
        if step == "super" {
            module.pop();
        }
        rest.remove(0);
    }
    module.extend(rest);
    while !module.is_empty() {
        let at = format!("{crate_dir}/src/{}", module.join("/"));
        for candidate in [format!("{at}.rs"), format!("{at}/mod.rs")] {
            if all.contains(&candidate) {
                return Some(candidate);
            }
        }
        module.pop();
    }
    None
}

#[test]
fn pure_modules_never_iterate_over_a_hash_map() {
    let mut wrong = Vec::new();
    for file in files().iter().filter(|f| is_pure(f)) {
        wrong.extend(hash_walks(&code_only(&read(file))).into_iter().map(|w| format!("{file}: {w}")));
    }
    assert_none("the order of a hash map is random, so a decision would be too", &wrong);
}

/// Where a file walks over a hash map or set.
fn hash_walks(code: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for name in hashed_names(code) {
        let calls = [".iter()", ".iter_mut()", ".keys()", ".values()", ".values_mut()", ".drain()", ".into_iter()"];
        let mut ways: Vec<String> = calls.iter().map(|w| format!("{name}{w}")).collect();
        ways.extend(["&", "&mut ", ""].map(|p| format!("in {p}{name} {{")));
        let letter = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
        let found = |w: &String| code.match_indices(w.as_str()).any(|(at, _)| !code[..at].ends_with(letter));
        wrong.extend(ways.into_iter().filter(found));
    }
    wrong
}

#[test]
fn walks_over_hash_maps_are_found_and_lookups_are_not() {
    let check = |code: &str, expected: &[&str]| assert_eq!(hash_walks(code), expected, "{code}");
    check("struct S {\n    m: HashMap<u8, u8>,\n}\nfn f() { self.m.keys() }", &["self.m.keys()"]);
    check("struct S {\n    m: HashMap<u8, u8>,\n}\nfn f() { self.m.get(1); m.keys() }", &[]);
    check("let mut seen = HashSet::new();\nfor x in &seen { }", &["in &seen {"]);
    check("let mut seen = BTreeSet::new();\nfor x in &seen { }", &[]);
}

/// How the hash maps and sets of a file are called where they are used: a field is `self.name`, a variable `name`.
fn hashed_names(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in code.lines().filter(|l| find_word(l, "HashMap").or(find_word(l, "HashSet")).is_some()) {
        let line = line
            .trim_start()
            .trim_start_matches("pub ")
            .trim_start_matches("pub(super) ")
            .trim_start_matches("pub(crate) ");
        let variable = line.strip_prefix("let mut ").or_else(|| line.strip_prefix("let "));
        let name: String = variable.unwrap_or(line).chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let declared = variable.is_some() || line[name.len()..].starts_with(": ");
        if declared && !name.is_empty() {
            names.insert(if variable.is_some() { name } else { format!("self.{name}") });
        }
    }
    names
}

#[test]
fn a_file_that_calls_itself_pure_is_checked_as_such() {
    let mut wrong = Vec::new();
    for file in files().iter().filter(|f| f.ends_with(".rs") && f.contains("/src/") && !f.starts_with("integration/")) {
        let text = read(file);
        let header: String = text.lines().take_while(|l| l.starts_with("//!")).collect();
        if (header.contains("PURE.") || header.contains("PURE:")) && !is_pure(file) {
            wrong.push(file.clone());
        }
    }
    assert_none("missing from the list of PURE modules", &wrong);
}

#[test]
fn words_that_are_not_ours_do_not_appear() {
    let skipped = ["integration/tests/tidy.rs", "Cargo.lock", "LICENSE"];
    let mut wrong = Vec::new();
    for file in files().iter().filter(|f| !skipped.contains(&f.as_str())) {
        for (number, line) in read(file).lines().enumerate() {
            let lower = line.to_lowercase();
            for (word, ours) in BANNED_WORDS {
                if find_word(&lower, word).is_some() {
                    wrong.push(format!("{file}:{}: {word}, say {ours}", number + 1));
                }
            }
        }
    }
    assert_none("the vocabulary is PostgreSQL's", &wrong);
}

#[test]
fn every_alert_and_every_verb_has_a_page_and_every_page_belongs_to_one() {
    let rules = read("configs/prometheus/alerts.yml");
    let alerts = integration::prometheus::alert_expressions(&rules);
    assert!(!alerts.is_empty(), "no alerts found in configs/prometheus/alerts.yml");
    let alerts = alerts.into_iter().map(|(name, _)| name);
    let wanted: BTreeSet<String> = alerts.chain(VERBS.map(str::to_owned)).collect();
    let page = |f: &String| f.strip_prefix("runbooks/")?.strip_suffix(".md").map(str::to_owned);
    let mut found: BTreeSet<String> = files().iter().filter_map(page).collect();
    found.remove("README");
    assert_eq!(found, wanted, "left: pages in runbooks/, right: alerts and verbs");
}

#[test]
fn every_alert_names_its_page() {
    let rules = read("configs/prometheus/alerts.yml");
    for (alert, _) in integration::prometheus::alert_expressions(&rules) {
        assert!(rules.contains(&format!("runbooks/{alert}.md")), "{alert} does not name runbooks/{alert}.md");
    }
}

/// CommonMark: an indented line that follows a paragraph's belongs to it, and one that is not indented is prose.
#[test]
fn a_command_on_a_page_is_a_block_of_its_own() {
    let mut wrong = Vec::new();
    for file in files().iter().filter(|f| f.starts_with("runbooks/")) {
        let text = format!("\n{}\n\n", read(file));
        for (number, lines) in text.lines().collect::<Vec<_>>().windows(3).enumerate() {
            let [before, line, behind] = lines else { continue };
            let in_list = before.starts_with("* ") || before.starts_with("  ");
            let swallowed = line.starts_with("    ") && !before.is_empty() && !in_list;
            let bare = (before.is_empty() && behind.is_empty())
                && ["pgtenure ", "pgtenure_", "curl "].iter().any(|c| line.starts_with(c));
            if swallowed || bare {
                wrong.push(format!("{file}:{}: {line}", number + 1));
            }
        }
    }
    assert_none("no indented block behind an empty line", &wrong);
}

#[test]
fn no_file_of_configs_is_forgotten() {
    let all = files();
    let texts: Vec<(&String, String)> = all.iter().filter(|f| !f.ends_with(".lock")).map(|f| (f, read(f))).collect();
    let mut wrong = Vec::new();
    for file in all.iter().filter(|f| f.starts_with("configs/")) {
        let name = file.rsplit('/').next().expect("a path has a last part");
        if !texts.iter().any(|(other, text)| *other != file && text.contains(name)) {
            wrong.push(file.clone());
        }
    }
    assert_none("nothing mentions", &wrong);
}

/// A second borrow of what etcd's records were read into waits for who is to write in between, who waits for the first.
#[test]
fn no_agent_borrows_its_records_twice() {
    let of_agents = |file: &String| file.starts_with("failover/src/agent/") && file.ends_with(".rs");
    let code: Vec<(String, String)> = files().into_iter().filter(of_agents).map(|f| (f.clone(), chained(&f))).collect();
    let borrowing = borrowing(code.iter().map(|(_, code)| code.as_str()));
    assert!(borrowing.contains("policy") && borrowing.contains("protects"), "{borrowing:?}");
    let wrong = |(file, code): &(String, String)| {
        twice(code, &borrowing).into_iter().map(move |name| format!("{file}: {name}")).collect::<Vec<_>>()
    };
    assert_none("borrows the records while they are borrowed", &code.iter().flat_map(wrong).collect::<Vec<_>>());
}

/// The code of a file, with chains of calls that go on in the next line in one.
fn chained(file: &str) -> String {
    let mut all = String::new();
    for line in code_only(&read(file)).lines() {
        if !line.trim_start().starts_with('.') {
            all.push('\n');
        }
        all.push_str(if line.trim_start().starts_with('.') { line.trim() } else { line });
    }
    all
}

/// Methods that borrow the records, by themselves or by what they call of `self`.
fn borrowing<'a>(code: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let bodies: Vec<(String, &str)> = code.flat_map(methods).collect();
    let mut found: BTreeSet<String> = BTreeSet::new();
    loop {
        let calls = |body: &str| found.iter().any(|name| body.contains(&format!("self.{name}(")));
        let new = |(name, body): &&(String, &str)| {
            !found.contains(name) && (body.contains("self.records.borrow()") || calls(body))
        };
        let more: Vec<String> = bodies.iter().filter(new).map(|(name, _)| name.clone()).collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// The methods of a file that wait for nothing, and their bodies.
fn methods(code: &str) -> Vec<(String, &str)> {
    let starts = code.match_indices("    fn ").chain(code.match_indices(") fn ")).map(|(at, _)| at);
    let method = |at: usize| {
        let rest = &code[at..];
        let name = rest[rest.find("fn ")? + 3..].split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
        let open = rest.find('{')?;
        rest[..open].contains("&self").then(|| (name.to_owned(), block(&rest[open + 1..])))
    };
    starts.filter_map(method).collect()
}

/// Up to the end of the block that this is in.
fn block(code: &str) -> &str {
    let mut depth = 0;
    let end = code.char_indices().find(|(_, c)| {
        depth += i32::from(*c == '{') - i32::from(*c == '}');
        depth < 0
    });
    end.map_or(code, |(at, _)| &code[..at])
}

/// What borrows while a guard lives.
fn twice(code: &str, borrowing: &BTreeSet<String>) -> Vec<String> {
    const BORROW: &str = "self.records.borrow()";
    let behind = |at: usize| {
        let (line, rest) = (code[..at].rsplit('\n').next().unwrap_or(""), &code[at + BORROW.len()..]);
        // Kept under a name, by itself or with others.
        let named = line.contains("let ") && (rest.starts_with(';') || rest.starts_with(", "));
        // What is matched lives as long as the block behind it.
        let matched = ["if let ", "while let ", "match "].iter().any(|word| line.contains(word));
        let opens = rest.find('{').filter(|_| matched && !named).map(|open| &rest[open + 1..]);
        opens.or_else(|| named.then_some(rest)).map(block)
    };
    let guards = code.match_indices(BORROW).filter_map(|(at, _)| behind(at));
    let held = guards.map(|body| &body[..body.find("drop(").unwrap_or(body.len())]);
    let again = |body: &str| -> Vec<String> {
        let names = borrowing.iter().filter(|name| body.contains(&format!("self.{name}("))).cloned();
        names.chain(body.contains(BORROW).then(|| "records".to_owned())).collect()
    };
    held.flat_map(again).collect()
}

#[test]
fn a_second_borrow_is_found_behind_a_call() {
    let code = "impl Agent {
        fn policy(&self) -> u8 { self.records.borrow().policy }
        fn protects(&self) -> bool { self.policy() > 0 }
        fn wrong(&self) -> bool { let r = self.records.borrow(); r.adopt && self.protects() }
        fn right(&self) -> bool { let p = self.protects(); let r = self.records.borrow(); r.adopt && p }
        fn over(&self) -> bool { let x = { let r = self.records.borrow(); r.adopt }; x && self.protects() }
        fn both(&self) -> bool { let (r, x) = (self.records.borrow(), 1); r.adopt && self.policy() > x }
        fn matched(&self) -> u8 { if let Some(t) = &self.records.borrow().term { self.policy() } else { 0 } }
        fn looked(&self) -> u8 { if self.records.borrow().adopt { self.policy() } else { 0 } }
    }";
    let found = borrowing([code].into_iter());
    assert_eq!(twice(code, &found), ["protects", "policy", "policy"]);
}
