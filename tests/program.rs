//! The program as a process: exit codes, complaints on one line, signals, the admin listener. Neither PostgreSQL nor
//! etcd is needed; the cluster itself is tested by the package `integration`.

#[path = "../integration/src/ports.rs"]
mod ports;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use ports::free_port;
use proxy::wire::backend::fields;
use proxy::wire::codec::head;
use proxy::wire::frontend::write_query;
use proxy::wire::startup::write_startup;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(60);

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenure"));
    command.args(args).env_remove("PGTENURE_CONFIG").env_remove("PGTENURE_ADMIN").stdin(Stdio::null());
    command
}

fn output(args: &[&str]) -> Output {
    program(args).output().expect("the program was built")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A file of a proxy whose etcd does not answer.
fn proxy_file(dir: &Path, admin: u16, proxy: u16) -> String {
    std::fs::write(dir.join("userlist.txt"), "").unwrap();
    let nobody = free_port();
    let text = format!(
        "roles = [\"proxy\", \"lagmon\"]\n[process]\ndrain_timeout = \"5s\"\n[admin]\nlisten = \"127.0.0.1:{admin}\"\n\
         [cluster]\nname = \"t\"\n[etcd]\nendpoints = [\"http://127.0.0.1:{nobody}\"]\n\
         [proxy]\nlisten = \"127.0.0.1:{proxy}\"\nworkers = 1\nuserlist = \"{}/userlist.txt\"\n",
        dir.display()
    );
    let file = dir.join("proxy.toml");
    std::fs::write(&file, text).unwrap();
    file.to_str().expect("a scratch directory's name is text").to_owned()
}

/// Kills the process when the test ends early.
struct Running(Child);

impl Running {
    fn start(file: &str) -> Self {
        // No line of its log can be written, as on a full disk.
        Self::logging_to(file, std::fs::File::options().write(true).open("/dev/full").expect("Linux has it"))
    }

    fn logging_to(file: &str, log: std::fs::File) -> Self {
        let mut command = program(&["run", "--config", file]);
        Self(command.stdout(Stdio::null()).stderr(log).spawn().expect("the program was built"))
    }

    fn exit_code(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("our own child") {
                return status.code();
            }
            assert!(start.elapsed() < BOUND, "waited {BOUND:?} for the process to end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ask(port: u16, request: &str) -> Option<String> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(BOUND)).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn get(port: u16, path: &str) -> Option<String> {
    ask(port, &format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"))
}

fn wait_for(port: u16, path: &str, status: &str) -> String {
    let start = Instant::now();
    loop {
        let answer = get(port, path).unwrap_or_default();
        if answer.starts_with(&format!("HTTP/1.1 {status}")) {
            return answer;
        }
        assert!(start.elapsed() < BOUND, "waited {BOUND:?} for {path} to answer {status}; last: {answer}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn wrong_usage_is_64_and_help_is_0() {
    assert_eq!(output(&["frobnicate"]).status.code(), Some(64));
    assert_eq!(output(&["status"]).status.code(), Some(64));
    assert_eq!(output(&["--help"]).status.code(), Some(0));
}

#[test]
fn a_check_lists_every_problem_with_its_line_and_fails() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.toml");
    std::fs::write(
        &file,
        "roles = [\"proxy\"]\n[cluster]\nname = \"t\"\n[proxy]\nhold_timout = \"3s\"\npool_size = 0\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let out = output(&["config", "check", file]);
    assert_eq!(out.status.code(), Some(1));
    let text = stderr(&out);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with(&format!("{file}:5: proxy.hold_timout: unknown key")), "{text}");
    assert!(lines[0].ends_with("the nearest known key is proxy.hold_timeout"), "{text}");
    assert!(lines[1].starts_with(&format!("{file}:6: proxy.pool_size = 0: ")), "{text}");
    // A service that checks its file first starts with one of before, as the process itself does.
    let older = proxy_file(dir.path(), 1, 2);
    let text = std::fs::read_to_string(&older).unwrap();
    std::fs::write(&older, text.replace("[etcd]\n", "[etcd]\nlease_margin = \"500ms\"\n")).unwrap();
    let out = output(&["config", "check", &older]);
    assert_eq!(out.status.code(), Some(0));
    assert!(stderr(&out).contains("etcd.lease_margin: is no more"), "{}", stderr(&out));
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/example.toml");
    assert_eq!(output(&["config", "check", example]).status.code(), Some(0));
}

#[test]
fn a_taken_port_is_one_line_and_exit_code_1() {
    let dir = tempfile::tempdir().unwrap();
    for taken_by_admin in [true, false] {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let (admin, proxy) = if taken_by_admin { (port, free_port()) } else { (free_port(), port) };
        let out = output(&["run", "--config", &proxy_file(dir.path(), admin, proxy)]);
        assert_eq!(out.status.code(), Some(1));
        let complaint = stderr(&out).lines().last().unwrap_or_default().to_owned();
        assert!(complaint.contains(&port.to_string()) && complaint.contains("in use"), "{complaint}");
    }
}

#[test]
fn a_missing_secret_is_named_and_ends_a_manager() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.toml");
    let text = format!(
        "roles = [\"manager\"]\n[admin]\nlisten = \"127.0.0.1:{}\"\n[cluster]\nname = \"t\"\nvoters = [\"n1\", \"n2\"]\n\
         secret_file = \"{}/none\"\n",
        free_port(),
        dir.path().display()
    );
    std::fs::write(&file, text).unwrap();
    let out = output(&["run", "--config", file.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1));
    let text = stderr(&out);
    assert!(text.lines().last().is_some_and(|l| l.contains("cluster.secret_file") && l.contains("/none")), "{text}");
}

#[test]
fn a_process_without_etcd_lives_is_not_ready_and_ends_by_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let (admin, proxy) = (free_port(), free_port());
    let mut running = Running::start(&proxy_file(dir.path(), admin, proxy));
    wait_for(admin, "/livez", "200");
    let ready = wait_for(admin, "/readyz", "503");
    assert!(ready.contains("proxy: ") && ready.contains("lagmon: "), "{ready}");
    let metrics = wait_for(admin, "/metrics", "200");
    assert!(metrics.contains("pgtenure_admin_ready{role=\"proxy\"} 0"), "{metrics}");
    assert!(wait_for(admin, "/status", "200").contains("\"roles\""));
    wait_for(admin, "/lag", "200");
    assert!(wait_for(admin, "/lag/history", "200").contains("\"step_ms\": 1000"));
    let looks = ["lag", "--watch", "--interval", "100ms", "--count", "3", "--admin", &format!("127.0.0.1:{admin}")];
    let watched = output(&looks);
    assert_eq!(watched.status.code(), Some(0), "{}", stderr(&watched));
    let text = String::from_utf8_lossy(&watched.stdout).into_owned();
    assert!(text.matches("no standbys known").count() == 3 && !text.contains('\x1b'), "{text}");
    wait_for(admin, "/history", "404");
    assert!(wait_for(admin, "/route?database=a&user=b", "400").contains("needs database, user and sql"));
    let order = "POST /ops/switchover HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\n{}";
    let refused = ask(admin, order).unwrap_or_default();
    assert!(refused.starts_with("HTTP/1.1 401"), "an order needs the secret: {refused}");
    let pid = nix::unistd::Pid::from_raw(running.0.id().try_into().expect("a pid is positive"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(running.exit_code(), Some(0));
}

#[test]
fn a_storm_of_refused_logins_is_a_bounded_number_of_lines() {
    const STORM: usize = 300;
    let dir = tempfile::tempdir().unwrap();
    let (admin, proxy) = (free_port(), free_port());
    let log = dir.path().join("log");
    let running = Running::logging_to(&proxy_file(dir.path(), admin, proxy), std::fs::File::create(&log).unwrap());
    wait_for(admin, "/livez", "200");
    let start = Instant::now();
    let mut nobody = Vec::new();
    write_startup(&mut nobody, std::iter::once(("database", "a")));
    for _ in 0..STORM {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], proxy))).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        stream.write_all(&nobody).unwrap();
        let mut told = Vec::new();
        stream.read_to_end(&mut told).unwrap();
        assert!(told.starts_with(b"E"), "{told:?}");
    }
    // Twenty in each second that there was.
    let most = 20 * (usize::try_from(start.elapsed().as_secs()).unwrap() + 2);
    drop(running);
    let lines = std::fs::read_to_string(&log).unwrap().matches("login refused").count();
    assert!((1..=most.min(STORM)).contains(&lines), "{lines} lines of {STORM}, {most} at most");
}

#[test]
fn an_operator_without_a_manager_is_told_so() {
    let nobody = free_port();
    let out = output(&["status", "--admin", &format!("127.0.0.1:{nobody}")]);
    assert_eq!(out.status.code(), Some(1));
    assert!(stderr(&out).starts_with("no manager answers: "), "{}", stderr(&out));
    let out = output(&["status", "--json", "--admin", &format!("127.0.0.1:{nobody}")]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON also for failures");
    assert!(json["error"].is_string());
}

/// An admin HTTP that takes one order; gives what it was sent.
fn taker() -> (String, std::thread::JoinHandle<String>) {
    answering(&[("200 OK", "{}")])
}

/// Only orders have a body, and it is JSON.
fn is_whole(request: &[u8]) -> bool {
    request.ends_with(b"}") || request.starts_with(b"GET") && request.ends_with(b"\r\n\r\n")
}

/// An admin HTTP that gives these answers, one to each connection; gives what it was sent.
fn answering(answers: &'static [(&str, &str)]) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let taken = std::thread::spawn(move || {
        let mut all = Vec::new();
        for (status, body) in answers {
            let mut stream = listener.accept().unwrap().0;
            stream.set_read_timeout(Some(BOUND)).unwrap();
            let mut request = Vec::new();
            while !is_whole(&request) {
                let mut more = [0; 1024];
                match stream.read(&mut more).expect("an order is sent in time") {
                    0 => break,
                    n => request.extend_from_slice(&more[..n]),
                }
            }
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            stream.write_all((head + body).as_bytes()).unwrap();
            all.append(&mut request);
        }
        String::from_utf8(all).unwrap()
    });
    (at, taken)
}

#[test]
fn a_maintenance_that_is_refused_behind_a_switchover_says_that_something_was_done() {
    let (at, taken) = answering(&[
        ("200 OK", r#"{"primary":"n1","term":3}"#),
        ("200 OK", "{}"),
        ("409 Conflict", r#"{"blockers":[{"blocker":"busy","what":"a policy change"}]}"#),
    ]);
    let out = output(&["maintenance", "n1", "--on", "--switchover", "--admin", &at]);
    let told = stderr(&out);
    assert_eq!(out.status.code(), Some(1), "{told}");
    assert!(told.contains("n1 is not the primary any more") && told.contains("a policy change"), "{told}");
    assert!(!told.contains("nothing was done"), "{told}");
    let sent = taken.join().unwrap();
    let switchover = sent.split("POST ").find(|r| r.starts_with("/ops/switchover")).expect("it was ordered");
    assert!(switchover.contains("\"by\":"), "{switchover}");
}

#[test]
fn a_secret_that_cannot_be_read_is_named_where_an_order_is_refused_for_lack_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = proxy_file(dir.path(), free_port(), free_port());
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("name = \"t\"", "name = \"t\"\nsecret_file = \"/nowhere/secret\"")).unwrap();
    let (at, taken) = answering(&[("401 Unauthorized", "{}")]);
    let out = output(&["resume", "--config", &file, "--admin", &at]);
    assert!(stderr(&out).contains("cannot read the shared secret /nowhere/secret"), "{}", stderr(&out));
    taken.join().unwrap();
}

#[test]
fn a_typed_file_beats_the_variable_of_the_managers_and_gives_the_secret_for_a_typed_address() {
    let dir = tempfile::tempdir().unwrap();
    let file = proxy_file(dir.path(), free_port(), free_port());
    std::fs::write(dir.path().join("secret"), "0123456789abcdef\n").unwrap();
    std::fs::write(dir.path().join("other"), "fedcba9876543210\n").unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let secret_file = format!("name = \"t\"\nsecret_file = \"{}/secret\"", dir.path().display());
    std::fs::write(&file, text.replace("name = \"t\"", &secret_file)).unwrap();

    // Nobody is at either place; the complaint tells who was asked.
    let managers = format!("127.0.0.1:{}", free_port());
    let told = |args: &[&str]| {
        let out = program(args).env("PGTENURE_ADMIN", &managers).output().expect("it runs");
        assert_eq!(out.status.code(), Some(1));
        stderr(&out)
    };
    let from_file = told(&["status", "--config", &file]);
    assert!(from_file.contains("etcd") && !from_file.contains(&managers), "{from_file}");
    assert!(told(&["status"]).contains(&managers));

    let other = format!("{}/other", dir.path().display());
    for (more, secret) in [(vec![], "0123456789abcdef"), (vec!["--secret-file", other.as_str()], "fedcba9876543210")] {
        let (at, taken) = taker();
        let both = [vec!["resume", "--config", file.as_str(), "--admin", at.as_str()], more].concat();
        let out = output(&both);
        assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
        let order = taken.join().unwrap().to_lowercase();
        assert!(order.contains(&format!("authorization: bearer {secret}")), "{order}");
    }
}

#[test]
fn an_order_names_the_cluster_of_the_file_and_a_typed_one_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = proxy_file(dir.path(), free_port(), free_port());
    for (more, asked) in
        [(vec![], "/ops/resume?cluster=t "), (vec!["--cluster", "orders"], "/ops/resume?cluster=orders ")]
    {
        let (at, taken) = taker();
        let both = [vec!["resume", "--config", file.as_str(), "--admin", at.as_str()], more].concat();
        let out = output(&both);
        assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
        let order = taken.join().unwrap();
        assert!(order.contains(asked), "{order}");
    }
}

#[test]
fn a_statement_is_explained_by_its_text_alone() {
    let out = output(&["route", "select 1 for share"]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.code() == Some(0) && text.starts_with("write, by word \"share\": "), "{text}");
    assert!(text.contains("ask a proxy with --config or --admin"), "{text}");
    let json: serde_json::Value =
        serde_json::from_slice(&output(&["route", "select 1", "--json"]).stdout).expect("JSON");
    assert!(json["class"] == "read" && json["catalog"] == false && json["target"].is_null(), "{json}");
    let nobody = format!("127.0.0.1:{}", free_port());
    let out = output(&["route", "select 1", "--admin", &nobody]);
    assert!(
        out.status.code() == Some(1) && stderr(&out).starts_with(&format!("no proxy answers: {nobody}")),
        "{}",
        stderr(&out)
    );
}

fn signal(process: &Running, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(process.0.id()).expect("a pid"));
    nix::sys::signal::kill(pid, signal).expect("the process is a child of ours");
}

/// The value of a metric without labels.
fn metric(port: u16, name: &str) -> Option<f64> {
    let page = get(port, "/metrics")?;
    page.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[test]
fn a_good_file_is_reloaded_and_a_wrong_one_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (admin, endpoint) = (free_port(), free_port());
    let file = proxy_file(dir.path(), admin, endpoint);
    std::fs::write(dir.path().join("secret"), "0123456789abcdef\n").unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let text =
        text.replace("name = \"t\"", &format!("name = \"t\"\nsecret_file = \"{}/secret\"", dir.path().display()));
    std::fs::write(&file, &text).unwrap();
    let running = Running::start(&file);
    wait_for(admin, "/livez", "200");
    // Where the managers are, as operators are told to set it: not the process to be reloaded.
    let managers = format!("127.0.0.1:{}", free_port());
    let reload = || program(&["reload", "--config", &file]).env("PGTENURE_ADMIN", &managers).output().expect("it runs");
    let unauthorised = ask(admin, "POST /reload HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert!(unauthorised.unwrap().starts_with("HTTP/1.1 401"));

    let changed = text.replace("workers = 1", "workers = 2\nhold_timeout = \"7s\"");
    std::fs::write(&file, &changed).unwrap();
    let out = reload();
    let told = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!((out.status.code(), stderr(&out)), (Some(0), String::new()));
    assert_eq!(told, "reloaded\nin force: proxy.hold_timeout\nneeds a restart: proxy.workers\n");
    // What is in force is no change any more; what is not stays named.
    assert_eq!(String::from_utf8_lossy(&reload().stdout), "reloaded\nneeds a restart: proxy.workers\n");

    // Wrong in the eyes of the process, asked directly: the command line's own check is passed by.
    std::fs::write(&file, changed.replace("7s", "0s").replace("workers = 2", "wrokers = 2")).unwrap();
    let request = "POST /reload HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer 0123456789abcdef\r\nContent-Length: 0\r\n\
                   Connection: close\r\n\r\n";
    let answer = ask(admin, request).unwrap();
    assert!(answer.starts_with("HTTP/1.1 409") && answer.contains("proxy.wrokers") && answer.contains("hold_timeout"));
    assert_eq!(metric(admin, "pgtenure_admin_config_last_reload_successful"), Some(0.0));
    let out = reload();
    assert_eq!(out.status.code(), Some(2));
    assert_eq!(stderr(&out).lines().count(), 4, "{}", stderr(&out));

    // A good file again, by signal.
    std::fs::write(&file, &changed).unwrap();
    signal(&running, Signal::SIGHUP);
    let start = Instant::now();
    while metric(admin, "pgtenure_admin_config_last_reload_successful") != Some(1.0) {
        assert!(start.elapsed() < BOUND, "waited {BOUND:?} for the reload by signal");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A client that is let in without a password says one thing; what it is told, as `SEVERITY CODE message` for errors, up
/// to the end of the answer. `None`: nothing listens.
fn say(port: u16, (user, database): (&str, &str), sql: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(BOUND)).ok()?;
    let mut out = Vec::new();
    write_startup(&mut out, [("user", user), ("database", database)].into_iter());
    write_query(&mut out, sql);
    stream.write_all(&out).ok()?;
    let (mut told, mut ready) = (Vec::new(), 0);
    loop {
        let mut message = vec![0; 5];
        if stream.read_exact(&mut message).is_err() {
            return Some(told.join("; "));
        }
        let total = head(&message).expect("a good length").expect("five bytes").total;
        message.resize(total, 0);
        stream.read_exact(&mut message[5..]).expect("the whole message");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match message[0] {
            b'E' | b'N' => {
                let f = fields(&message);
                told.push(format!("{} {} {}", text(f.severity), text(f.code), text(f.message)));
            }
            b'D' => told.push(text(&message[7..]).chars().filter(|c| !c.is_control()).collect()),
            b'C' => told.push(text(&message[5..message.len() - 1])),
            // The first is the login's.
            b'Z' if ready > 0 => return Some(told.join("; ")),
            b'Z' => ready += 1,
            _ => {}
        }
    }
}

/// Wait until the process reads and says this.
fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < BOUND, "waited {BOUND:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn each_way_to_reload_puts_a_live_key_in_force_and_refuses_a_wrong_file() {
    let dir = tempfile::tempdir().unwrap();
    let (admin, endpoint) = (free_port(), free_port());
    let file = proxy_file(dir.path(), admin, endpoint);
    std::fs::write(dir.path().join("secret"), "0123456789abcdef\n").unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let text =
        text.replace("name = \"t\"", &format!("name = \"t\"\nsecret_file = \"{}/secret\"", dir.path().display()));
    let write = |hold: &str, workers: &str| {
        let more =
            "[proxy.auth]\nrules = [\"host all all 127.0.0.1/32 trust\"]\n[proxy.console]\nadmin_users = [\"op\"]\n";
        let proxy = format!("{}hold_timeout = \"{hold}\"\n{more}", text.replace("workers = 1", workers));
        std::fs::write(&file, proxy).unwrap();
    };
    write("50s", "workers = 1");
    let running = Running::start(&file);
    wait_for(admin, "/livez", "200");
    let console = |sql: &str| say(endpoint, ("op", "pgtenure"), sql).expect("the console answers");
    let in_force = || {
        let config = console("show config");
        let row = config.split("; ").find(|row| row.starts_with("hold_timeout")).expect("it is a key");
        row.trim_start_matches("hold_timeout").to_owned()
    };
    assert!(in_force().starts_with("50s"), "{}", in_force());
    let post = "POST /reload HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer 0123456789abcdef\r\nContent-Length: 0\r\n\
                Connection: close\r\n\r\n";
    let successful = || metric(admin, "pgtenure_admin_config_last_reload_successful");
    for (way, hold) in [("SIGHUP", "51s"), ("POST /reload", "52s"), ("RELOAD", "53s")] {
        let reload = || match way {
            "SIGHUP" => {
                signal(&running, Signal::SIGHUP);
                String::new()
            }
            "RELOAD" => console("reload"),
            _ => ask(admin, post).expect("the admin pages are served"),
        };
        // Workers are made at the start: that key is named, where somebody is told anything.
        write(hold, "workers = 2");
        let told = reload();
        until(&format!("{way} to take effect"), || in_force().starts_with(hold).then_some(()));
        assert!(way == "SIGHUP" || told.contains("proxy.workers"), "{way}: {told}");
        assert_eq!(successful(), Some(1.0), "{way}");
        write("54s", "wrokers = 2");
        let told = reload();
        until(&format!("{way} to be refused"), || (successful() == Some(0.0)).then_some(()));
        let refused = told.contains("proxy.wrokers") || told.contains("the configuration was not reloaded");
        assert!(way == "SIGHUP" || refused, "{way}: {told}");
        assert!(in_force().starts_with(hold), "{way}: {}", in_force());
    }
    // The workers act on it: another user may look.
    let looks = || say(endpoint, ("looker", "pgtenure"), "show version").expect("the endpoint answers");
    assert!(looks().starts_with("FATAL"), "{}", looks());
    write("50s", "workers = 1");
    let more = std::fs::read_to_string(&file).unwrap() + "stats_users = [\"looker\"]\n";
    std::fs::write(&file, more).unwrap();
    assert_eq!(console("reload"), "RELOAD");
    until("another user to be let in", || looks().ends_with("SHOW").then_some(()));
}

#[test]
fn a_process_that_does_not_become_ready_takes_nothing_over() {
    let dir = tempfile::tempdir().unwrap();
    let (admin, endpoint) = (free_port(), free_port());
    let file = proxy_file(dir.path(), admin, endpoint);
    let text = std::fs::read_to_string(&file).unwrap();
    let socket = dir.path().join("handover");
    let text = text.replace("drain_timeout = \"5s\"", &format!("drain_timeout = \"1s\"\nhandover_socket = {socket:?}"));
    std::fs::write(&file, text).unwrap();
    // Nobody is there to take over from: it starts as ever.
    let mut command = program(&["run", "--takeover", "--config", &file]);
    let old = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program was built"));
    wait_for(admin, "/livez", "200");
    let start = Instant::now();
    while !socket.exists() {
        assert!(start.elapsed() < BOUND, "waited {BOUND:?} for the handover socket");
        std::thread::sleep(Duration::from_millis(20));
    }
    // The ports are taken, and handed over; without etcd the next one is never ready.
    let out = output(&["run", "--takeover", "--config", &file]);
    assert_eq!(out.status.code(), Some(1), "{}", stderr(&out));
    assert!(stderr(&out).contains("the process before this one goes on"), "{}", stderr(&out));
    assert!(get(admin, "/livez").unwrap_or_default().starts_with("HTTP/1.1 200"));
    assert!(TcpStream::connect(("127.0.0.1", endpoint)).is_ok());
    // Without being told to, a process takes nothing over.
    let out = output(&["run", "--config", &file]);
    assert!(stderr(&out).contains("in use"), "{}", stderr(&out));
    drop(old);
}
