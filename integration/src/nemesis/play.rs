//! What the steps of a scenario do to a world.

use super::sandbox::hosts;
use super::scenario::{Blow, Dice, DiskFault, Step, names_a_host};
use super::session::attempt;
use super::world::{ASK_EVERY, PROXIES, World};
use crate::config_file::NODES;
use crate::process::{signal_all, state_of};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a log is looked at by a step that waits for its words.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A scenario being played.
#[derive(Debug)]
pub struct Play<'w> {
    world: &'w mut World,
    dice: Dice,
    /// The primary and the term at the beginning.
    old: (String, u64),
    /// What is waited for until then has not come.
    until: Instant,
    /// Which of the two standbys is `standby`.
    first: usize,
    operators: Vec<Child>,
    background: Vec<Child>,
    armed: Vec<Armed>,
    /// What was done, for the run's line.
    pub done: Vec<String>,
}

/// A blow that waits for its moment.
#[derive(Debug)]
struct Armed {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Option<String>>,
}

impl<'w> Play<'w> {
    /// Begin with the cluster in that term, and wait for nothing longer than until then.
    pub fn new(world: &'w mut World, mut dice: Dice, primary: &str, term: u64, until: Instant) -> Self {
        let (operators, background, armed, done) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let first = dice.below(2) as usize;
        Self { world, dice, old: (primary.to_owned(), term), until, first, operators, background, armed, done }
    }

    /// Do one step.
    ///
    /// # Errors
    /// When what it waits for does not come, or a host cannot be told.
    pub fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Strike(blow, what, host) => {
                let host = self.host(host)?;
                self.note(format!("{blow:?} {what} of {host}"));
                self.strike(*blow, what, &host);
            }
            Step::Continue => self.world.go_on(),
            Step::Start(what, host) => {
                let host = self.host(host)?;
                if what == "host" {
                    for kind in World::kinds(&host) {
                        self.world.start_process(&host, kind);
                    }
                } else {
                    self.world.start_process(&host, what);
                }
            }
            Step::Arm(blow, what, of, kind, text) => self.arm(*blow, (what, of.as_deref()), kind, text)?,
            Step::Cut(from, to, both) => self.cut(from, to, *both)?,
            Step::Isolate(host) => {
                let host = self.host(host)?;
                self.note(format!("isolate {host}"));
                for other in hosts().into_iter().filter(|h| *h != host) {
                    self.world.sandbox.cut(other, &host);
                    self.world.sandbox.cut(&host, other);
                }
            }
            Step::Lose(host, percent) => {
                let host = self.host(host)?;
                self.note(format!("lose {percent}% at {host}"));
                self.world.sandbox.lose(&host, *percent);
            }
            Step::Slow(host, kbits) => {
                let host = self.host(host)?;
                self.note(format!("slow {host} to {kbits} kbit/s"));
                self.world.sandbox.slow(&host, *kbits);
            }
            Step::Delay(host, wait) => {
                let host = self.host(host)?;
                let ways = if wait.both_ways { "both ways" } else { "one way" };
                self.note(format!("delay {host} {ways} by {:?} to {:?}, lose {}%", wait.from, wait.to, wait.percent));
                self.world.sandbox.delay(&host, *wait, self.dice.below(u64::MAX));
            }
            Step::Reconnect => self.world.sandbox.heal(),
            Step::Disk(fault, host) => self.disk(*fault, host, false)?,
            Step::EtcdDisk(fault, host) => self.disk(*fault, host, true)?,
            Step::Clock(host, offset) => {
                let host = self.host(host)?;
                self.note(format!("clock of {host} {offset}"));
                self.world.set_clock(&host, offset);
            }
            Step::PauseReplay(_) | Step::Conflict(_) | Step::PromoteByHand(_) => self.by_sql(step)?,
            Step::BackUpEtcd => self.world.back_up_etcd()?,
            Step::RestoreEtcd => {
                self.note("restore etcd".to_owned());
                self.world.restore_etcd()?;
            }
            Step::Operator(arguments) => self.operator(arguments)?,
            Step::For(from, to) => std::thread::sleep(self.dice.between(*from, *to)),
            Step::AwaitFailover | Step::AwaitWrites | Step::AwaitOperators | Step::AwaitBlows | Step::AwaitHeld(_) => {
                self.wait(step)?;
            }
            Step::Heal => {
                self.world.heal();
                let left = self.until.saturating_duration_since(Instant::now());
                attempt(|| Ok(self.world.healthy(left)))?;
            }
        }
        Ok(())
    }

    /// End what still waits or runs in the background.
    ///
    /// # Errors
    /// When a blow that waited could not be struck.
    pub fn end(&mut self) -> Result<(), String> {
        let mut struck = Ok(());
        for armed in self.armed.drain(..) {
            armed.over.store(true, Ordering::Relaxed);
            match armed.thread.join() {
                Ok(Some(what)) => self.done.push(what),
                Ok(None) => self.done.push("(an armed blow was not needed)".to_owned()),
                Err(_) => struck = Err("an armed blow failed".to_owned()),
            }
        }
        for mut child in self.operators.drain(..).chain(self.background.drain(..)) {
            // Verbs have bounds of their own; queries are ended with their program.
            let _ = (child.kill(), child.wait());
        }
        struck
    }

    fn note(&mut self, what: String) {
        self.done.push(what);
    }

    /// The host that a selector means now.
    fn host(&mut self, selector: &str) -> Result<String, String> {
        let primary = || -> Result<String, String> {
            let status = self.world.status();
            let named = status.as_ref().ok().and_then(|s| s["primary"].as_str().map(str::to_owned));
            Ok(named.unwrap_or_else(|| self.old.0.clone()))
        };
        let standbys = |primary: &str| -> Vec<&str> { NODES.into_iter().filter(|n| *n != primary).collect() };
        Ok(match selector {
            "primary" => primary()?,
            "old" => self.old.0.clone(),
            // Which of the two is the same for the whole run, so that `standby` and `other` differ.
            "standby" | "other" => {
                let both = standbys(&primary()?);
                both[if selector == "standby" { self.first } else { 1 - self.first }].to_owned()
            }
            "leader" => self.world.leader().map_or_else(|| self.old.0.clone(), str::to_owned),
            "etcd-leader" => self.world.etcd_leader().unwrap_or("n1").to_owned(),
            "any" => NODES[self.dice.below(3) as usize].to_owned(),
            "proxy" => PROXIES[self.dice.below(2) as usize].to_owned(),
            name if names_a_host(name) => name.to_owned(),
            other => return Err(format!("{other} is no host")),
        })
    }

    fn strike(&mut self, blow: Blow, what: &str, host: &str) {
        match blow {
            Blow::Stop => self.world.stop(host, what),
            Blow::Kill if what == "host" => self.world.sandbox.kill_all(host),
            Blow::Kill => {
                let pids = self.world.pids(host, what);
                signal_all(&pids, Signal::SIGKILL);
            }
        }
    }

    fn arm(&mut self, blow: Blow, (what, of): (&str, Option<&str>), kind: &str, text: &str) -> Result<(), String> {
        let of = of.map(|host| self.host(host)).transpose()?;
        let mut watched: Vec<(String, File, Option<Pid>)> = Vec::new();
        for node in NODES {
            let Ok(mut file) = File::open(self.world.log_file(node, kind)) else { continue };
            let _ = file.seek(SeekFrom::End(0));
            let struck = of.as_deref().unwrap_or(node);
            let pid = self.world.pids(struck, what).first().copied();
            watched.push((struck.to_owned(), file, pid));
        }
        let (over, text, what) = (Arc::new(AtomicBool::new(false)), text.to_owned(), what.to_owned());
        let told = over.clone();
        let thread = std::thread::spawn(move || {
            let signal = if blow == Blow::Kill { Signal::SIGKILL } else { Signal::SIGSTOP };
            let mut said = vec![String::new(); watched.len()];
            while !told.load(Ordering::Relaxed) {
                for ((struck, file, pid), said) in watched.iter_mut().zip(&mut said) {
                    let mut new = Vec::new();
                    let _ = file.read_to_end(&mut new);
                    said.push_str(&String::from_utf8_lossy(&new));
                    if said.contains(&text) {
                        signal_all(pid.as_slice(), signal);
                        // Else it is taken for one that runs when it is to be started again.
                        while blow == Blow::Kill && !pid.is_none_or(is_over) && !told.load(Ordering::Relaxed) {
                            std::thread::sleep(LOOK_EVERY);
                        }
                        return Some(format!("{blow:?} {what} of {struck} at {text:?}"));
                    }
                }
                std::thread::sleep(LOOK_EVERY);
            }
            None
        });
        self.armed.push(Armed { over, thread });
        Ok(())
    }

    fn cut(&mut self, from: &[String], to: &[String], both: bool) -> Result<(), String> {
        let mut named = |all: &[String]| all.iter().map(|h| self.host(h)).collect::<Result<Vec<_>, _>>();
        let (from, to) = (named(from)?, named(to)?);
        self.note(format!("cut {} {} {}", from.join(","), if both { "|" } else { ">" }, to.join(",")));
        for (a, b) in from.iter().flat_map(|a| to.iter().map(move |b| (a, b))).filter(|(a, b)| a != b) {
            self.world.sandbox.cut(a, b);
            if both {
                self.world.sandbox.cut(b, a);
            }
        }
        Ok(())
    }

    fn disk(&mut self, fault: DiskFault, host: &str, of_etcd: bool) -> Result<(), String> {
        let host = self.host(host)?;
        self.note(format!("{fault:?} {}disk of {host}", if of_etcd { "etcd " } else { "" }));
        let disk = if of_etcd { self.world.etcd_disk(&host) } else { self.world.disk(&host) };
        match fault {
            DiskFault::Fill => disk.fill(),
            DiskFault::Free => disk.free(),
            DiskFault::Freeze => disk.freeze(),
            DiskFault::Thaw => disk.thaw(),
        }
        Ok(())
    }

    /// What is done to a PostgreSQL by its superuser. It may be down; then nothing happens to it.
    fn by_sql(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::PauseReplay(host) => {
                let host = self.host(host)?;
                let told = self.world.superuser(&host, "select pg_wal_replay_pause()");
                self.note(format!("pause replay of {host}{}", if told.is_ok() { "" } else { " (refused)" }));
            }
            Step::PromoteByHand(host) => {
                let host = self.host(host)?;
                let told = self.world.superuser(&host, "select pg_promote(false)");
                self.note(format!("promote {host} by hand{}", if told.is_ok() { "" } else { " (refused)" }));
            }
            Step::Conflict(host) => {
                let (host, primary) = (self.host(host)?, self.host("primary")?);
                let sql = "begin isolation level repeatable read; select count(*) from nemesis.lists; \
                           select pg_sleep(20)";
                let mut query = self.world.psql(&host, crate::config_file::APP, sql);
                query.stdout(Stdio::null()).stderr(Stdio::null());
                self.background.push(query.spawn().map_err(|e| format!("psql: {e}"))?);
                let vacuum = "vacuum nemesis.lists, nemesis.accounts";
                let mut vacuum = self.world.psql(&primary, crate::config_file::APP, vacuum);
                std::thread::sleep(Duration::from_millis(300));
                let vacuumed = vacuum.output().is_ok_and(|o| o.status.success());
                self.note(format!("conflict at {host}{}", if vacuumed { "" } else { " (no vacuum)" }));
            }
            // The caller hands over these three.
            other => return Err(format!("{other:?} is not done by SQL")),
        }
        Ok(())
    }

    fn operator(&mut self, arguments: &[String]) -> Result<(), String> {
        let named: Result<Vec<String>, String> =
            arguments.iter().map(|a| if names_a_host(a) { self.host(a) } else { Ok(a.clone()) }).collect();
        let named = named?;
        let words: Vec<&str> = named.iter().map(String::as_str).collect();
        self.note(format!("operator {}", words.join(" ")));
        let mut command = self.world.verb_command(&words);
        let log = self.world.log_file("clients", "operators");
        let out = File::options().create(true).append(true).open(log).map_err(|e| e.to_string())?;
        command.stdout(out.try_clone().map_err(|e| e.to_string())?).stderr(out);
        self.operators.push(command.spawn().map_err(|e| e.to_string())?);
        Ok(())
    }

    fn wait(&mut self, step: &Step) -> Result<(), String> {
        let start = Instant::now();
        let mut last = String::new();
        while Instant::now() < self.until {
            let there = match step {
                Step::AwaitFailover => match self.world.active() {
                    Ok(now) if now.term > self.old.1 => Ok(()),
                    other => Err(format!("{other:?}")),
                },
                Step::AwaitHeld(text) => self.world.status().and_then(|s| {
                    let why = s["verdict_text"].to_string();
                    if why.contains(text) { Ok(()) } else { Err(format!("term {}, {why}", s["term"])) }
                }),
                Step::AwaitWrites => self.world.writes(PROXIES[0]).or_else(|_| self.world.writes(PROXIES[1])),
                Step::AwaitBlows => match self.armed.iter().filter(|armed| !armed.thread.is_finished()).count() {
                    0 => Ok(()),
                    waiting => Err(format!("{waiting} armed blows have not fallen")),
                },
                _ => {
                    let running = self.operators.iter_mut().filter_map(|c| c.try_wait().ok()?.is_none().then_some(()));
                    if running.count() == 0 { Ok(()) } else { Err("an operator waits for an answer".to_owned()) }
                }
            };
            match there {
                Ok(()) => return Ok(()),
                Err(why) => last = why,
            }
            std::thread::sleep(ASK_EVERY);
        }
        Err(format!("{step:?} took more than {:?}: {last}", start.elapsed()))
    }
}

/// Has a process ended, whether or not that was noticed?
fn is_over(pid: Pid) -> bool {
    matches!(state_of(pid), Some('Z' | 'X') | None)
}

impl Drop for Play<'_> {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
