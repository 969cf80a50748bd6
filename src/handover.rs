//! Restart without refused connections: a process hands its listening sockets to the next one.
//!
//! The next process, started with `--takeover`, connects to `process.handover_socket` of the one that runs and is sent
//! copies of its listening sockets, and what operators have ordered it. It starts its roles on them and says so when they are
//! ready; only then does the old one stop accepting. Until it has let its clients go, it is sent the cancel requests and the
//! orders of operators that reach the new one.
//!
//! On the socket: names as JSON and a line end, with the descriptors (SCM_RIGHTS), from the old one; `ready` and a line
//! end from the new one, and then two frames for each cancel request: its number and a zero byte; process number, length of the
//! secret, the secret. The old one says the number when that has been acted on. An order has the process number of nobody,
//! zero, and its text in the secret's place; the number's highest bit says that it was not carried out. One that knows nothing of numbers takes such
//! a frame for the key of nobody, and is asked for no number by one that knows nothing of them. A new one that ends before
//! `ready` changes nothing, and one that stands still keeps no other from taking over.

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recv, recvmsg, sendmsg};
use proxy::inherit::Named;
use proxy::{CancelKey, CancelSecret, Control, Obeying, Passed, PassedCancel, PassedOrder};
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{info, warn};

/// For the process that runs to send its sockets.
const SEND_BOUND: Duration = Duration::from_secs(5);
/// For the new process to become ready; it gives up by itself before.
const READY_BOUND: Duration = Duration::from_secs(3600);
/// New processes that may be on their way to being ready.
const MAX_ASKED: usize = 8;
/// Sockets of one process.
const MAX_SOCKETS: usize = 32;
/// Bytes of their names.
const MAX_NAMES: usize = 8192;
/// Cancel requests and orders on their way to the old process, and those that it has not acted on yet.
const CANCELS: usize = 256;
/// An order of that number was not carried out.
const REFUSED: u32 = 1 << 31;
const READY: &[u8] = b"ready\n";

/// The name of the admin HTTP's socket.
pub fn admin_name(addr: std::net::SocketAddr) -> String {
    format!("admin {addr}")
}

/// The process before this one, and its sockets.
#[derive(Debug)]
pub struct Predecessor {
    stream: StdStream,
    path: PathBuf,
    /// Its listening sockets.
    pub sockets: Vec<Named>,
}

/// Ask the process at that path for its sockets; `None` when no process answers there. Blocks.
///
/// # Errors
/// A process answers, and not as it should.
pub fn ask(path: &Path) -> Result<Option<Predecessor>> {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    let stream = match StdStream::connect(path) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), ConnectionRefused | NotFound) => return Ok(None),
        Err(e) => {
            return Err(e).with_context(|| format!("cannot connect to process.handover_socket {}", path.display()));
        }
    };
    stream.set_read_timeout(Some(SEND_BOUND))?;
    let sockets = receive(&stream).context("the process that runs did not hand its sockets over")?;
    stream.set_read_timeout(None)?;
    Ok(Some(Predecessor { stream, path: path.to_owned(), sockets }))
}

fn send(stream: &StdStream, sockets: &[Named]) -> Result<()> {
    let names: Vec<&str> = sockets.iter().map(|(name, _)| name.as_str()).collect();
    let text = serde_json::to_string(&names)? + "\n";
    if sockets.len() > MAX_SOCKETS || text.len() > MAX_NAMES {
        bail!("{} sockets are too many to hand over", sockets.len());
    }
    let raw: Vec<RawFd> = sockets.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let sent =
        sendmsg::<UnixAddr>(stream.as_raw_fd(), &[IoSlice::new(text.as_bytes())], &rights, MsgFlags::empty(), None)?;
    if sent < text.len() {
        bail!("the sockets' names were cut short");
    }
    Ok(())
}

fn receive(stream: &StdStream) -> Result<Vec<Named>> {
    let mut bytes = vec![0; MAX_NAMES];
    let mut space = nix::cmsg_space!([RawFd; MAX_SOCKETS]);
    let (read, descriptors) = {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        // Programs that are started later must not keep the sockets open.
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        let mut descriptors = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made these for us; nobody else knows them.
                descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (message.bytes, descriptors)
    };
    let text = std::str::from_utf8(&bytes[..read])?;
    let names: Vec<String> = serde_json::from_str(text.trim_end())?;
    if names.len() != descriptors.len() {
        bail!("{} names came with {} sockets", names.len(), descriptors.len());
    }
    Ok(names.into_iter().zip(descriptors).collect())
}

impl Predecessor {
    /// The socket of that name, which the runtime will watch.
    ///
    /// # Errors
    /// It cannot be made non-blocking.
    pub fn tcp(&mut self, name: &str) -> Result<Option<TcpListener>> {
        let Some(at) = self.sockets.iter().position(|(n, _)| n == name) else { return Ok(None) };
        let listener = TcpListener::from(self.sockets.swap_remove(at).1);
        listener.set_nonblocking(true)?;
        Ok(Some(listener))
    }

    /// Has another process taken the place of the old one, while this one was not ready? The old one has closed this
    /// process's connection then, and somebody listens where it did.
    pub fn is_overtaken(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.stream.as_raw_fd(), &mut [0], flags) == Ok(0) && StdStream::connect(&self.path).is_ok()
    }

    /// Let the old process stop accepting, begin to accept, and pass cancel requests and orders on for as long as it lives.
    ///
    /// # Errors
    /// It has gone: there is nobody to pass anything to. This process accepts all the same.
    pub fn succeed(mut self, proxy: Option<&Control>) -> Result<()> {
        if let Some(proxy) = proxy {
            proxy.begin_accepting();
        }
        self.stream.write_all(READY).context("the process before this one has gone")?;
        self.stream.set_nonblocking(true)?;
        let stream = UnixStream::from_std(self.stream)?;
        let (to, requests) = mpsc::channel(CANCELS);
        if let Some(proxy) = proxy {
            proxy.pass_on(to);
        }
        tokio::spawn(pass_on(stream, requests));
        Ok(())
    }
}

/// Who waits for the old process to say a number.
#[derive(Default)]
struct Waiting {
    cancels: BTreeMap<u32, oneshot::Sender<()>>,
    orders: BTreeMap<u32, oneshot::Sender<bool>>,
    /// Has it said any? One of an earlier version says none.
    says: bool,
}

/// Pass cancel requests and orders on to the old process, until it has gone; then nobody takes them any more. Who waits for one
/// is told when that process says its number.
async fn pass_on(stream: UnixStream, mut requests: mpsc::Receiver<Passed>) {
    let (mut from, mut to) = stream.into_split();
    let waiting = Mutex::new(Waiting::default());
    let lock = || waiting.lock().unwrap_or_else(PoisonError::into_inner);
    let told = async {
        let mut number = [0; 4];
        while from.read_exact(&mut number).await.is_ok() {
            let number = u32::from_be_bytes(number);
            let waiting = &mut *lock();
            waiting.says = true;
            waiting.cancels.remove(&number);
            if let Some(done) = waiting.orders.remove(&(number & !REFUSED)) {
                let _ = done.send(number & REFUSED == 0);
            }
        }
    };
    let passing = async {
        let (mut number, mut silent) = (0u32, false);
        while let Some(passed) = requests.recv().await {
            number = number.wrapping_add(1) & !REFUSED;
            let frames = match passed {
                Passed::Cancel(PassedCancel { key, done }) => {
                    let Waiting { cancels, says, .. } = &mut *lock();
                    let before = cancels.len();
                    cancels.retain(|_, done| !done.is_closed());
                    silent = !*says && (silent || cancels.len() < before);
                    if cancels.len() < CANCELS && !silent {
                        cancels.insert(number, done);
                    }
                    frames(number, key.pid, key.secret.as_bytes())
                }
                Passed::Order(PassedOrder { text, done }) => {
                    let orders = &mut lock().orders;
                    orders.retain(|_, done| !done.is_closed());
                    orders.insert(number, done);
                    frames(number, NOBODY, text.as_bytes())
                }
            };
            if to.write_all(&frames).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = told => {}
        () = passing => {}
    }
}

/// The process number of an order.
const NOBODY: u32 = 0;

fn frames(number: u32, pid: u32, secret: &[u8]) -> Vec<u8> {
    let len = u8::try_from(secret.len()).expect("secrets and orders are no longer");
    [&number.to_be_bytes()[..], &[0], &pid.to_be_bytes(), &[len], secret].concat()
}

/// Where the next process asks.
#[derive(Debug)]
pub struct Desk {
    listener: UnixListener,
    path: PathBuf,
}

impl Desk {
    /// Listen at that path, in the place of who listened there before.
    ///
    /// # Errors
    /// The directory is missing or not ours to write.
    pub fn open(path: &Path) -> Result<Self> {
        let fresh = path.with_extension(format!("{}", std::process::id()));
        let why = || format!("cannot listen on process.handover_socket {}", path.display());
        // Left over by a process of this number that was killed at this very moment.
        let _ = std::fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).with_context(why)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600)).with_context(why)?;
        std::fs::rename(&fresh, path).with_context(why)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Hand the sockets over to whoever asks; ends when one of them is ready to take the place of this process.
    pub async fn next(&self, admin: &TcpListener, name: &str, proxy: Option<&Control>) -> UnixStream {
        // Those that are not ready yet: one that never will be must not keep the next from asking.
        let mut asked = JoinSet::new();
        loop {
            let outcome = tokio::select! {
                Some(ready) = asked.join_next() => match ready.map_err(anyhow::Error::from).and_then(|ready| ready) {
                    Ok(stream) => return stream,
                    Err(error) => Err(error),
                },
                accepted = self.listener.accept() => match accepted {
                    Ok(_) if asked.len() >= MAX_ASKED => Err(anyhow!("{MAX_ASKED} processes are not ready yet")),
                    Ok((stream, _)) => self.give(stream, admin, name, proxy),
                    Err(error) => {
                        warn!(%error, "could not accept at the handover socket");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            match outcome {
                Ok(stream) => {
                    asked.spawn(ready(stream));
                }
                Err(error) => warn!(error = format!("{error:#}"), "a handover was not completed, going on"),
            }
        }
    }

    fn give(&self, stream: UnixStream, admin: &TcpListener, name: &str, proxy: Option<&Control>) -> Result<UnixStream> {
        let peer = stream.peer_cred()?.uid();
        if peer != nix::unistd::Uid::effective().as_raw() && peer != 0 {
            bail!("user {peer} may not take over");
        }
        let mut sockets = vec![(name.to_owned(), admin.try_clone()?.into())];
        if let Some(proxy) = proxy {
            sockets.extend(proxy.listeners()?);
        }
        let std = stream.into_std()?;
        // A fresh socket's buffer has room for so little; it cannot block.
        send(&std, &sockets)?;
        info!(path = %self.path.display(), sockets = sockets.len(), "sockets handed over");
        Ok(UnixStream::from_std(std)?)
    }
}

/// Wait until the next process says that it is ready.
async fn ready(mut stream: UnixStream) -> Result<UnixStream> {
    let mut word = [0; READY.len()];
    tokio::time::timeout(READY_BOUND, stream.read_exact(&mut word)).await?.context("the next process gave up")?;
    if word != READY {
        bail!("the next process spoke nonsense");
    }
    Ok(stream)
}

/// Carry out the cancel requests and orders that the next process passes on, until it ends, and tell it when each has been acted
/// on. The next is read when `order` has returned.
pub async fn serve<F, O>(stream: UnixStream, cancel: impl Fn(CancelKey) -> F, order: impl Fn(Vec<u8>) -> O)
where
    F: Future<Output = ()> + Send + 'static,
    O: Future<Output = Obeying>,
{
    let (mut from, mut to) = stream.into_split();
    let (acted, mut over) = mpsc::channel::<u32>(CANCELS);
    let serving = async {
        let (mut head, mut secret, mut number) = ([0; 5], [0; u8::MAX as usize], None);
        while from.read_exact(&mut head).await.is_ok() {
            let [a, b, c, d, len] = head;
            let (word, secret) = (u32::from_be_bytes([a, b, c, d]), &mut secret[..usize::from(len)]);
            if from.read_exact(secret).await.is_err() {
                return;
            }
            if len == 0 {
                number = Some(word);
                continue;
            }
            // Clients say which process number they like: what may be a secret is no order. Orders are longer.
            let key = CancelSecret::new(secret);
            let acting: Obeying = if word == NOBODY && key.is_none() {
                order(secret.to_vec()).await
            } else if let Some(secret) = key {
                let request = cancel(CancelKey { pid: word, secret });
                Box::pin(async {
                    request.await;
                    true
                })
            } else {
                continue;
            };
            // What is beyond as many as the next process waits for is carried out all the same.
            let told = number.take().zip(acted.clone().try_reserve_owned().ok());
            tokio::spawn(async move {
                let done = acting.await;
                if let Some((number, acted)) = told {
                    acted.send(if done { number } else { number | REFUSED });
                }
            });
        }
    };
    let telling = async {
        while let Some(number) = over.recv().await {
            if to.write_all(&number.to_be_bytes()).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = serving => {}
        () = telling => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    async fn unordered(_: Vec<u8>) -> Obeying {
        panic!("nobody orders anything")
    }

    #[tokio::test]
    async fn a_socket_and_who_waits_in_its_queue_reach_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("handover");
        assert!(ask(&path).unwrap().is_none());
        let admin = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, name) = (admin.local_addr().unwrap(), "admin x");
        let client = TcpStream::connect(addr).unwrap();
        let desk = Desk::open(&path).unwrap();
        let there = path.clone();
        let asking = tokio::task::spawn_blocking(move || ask(&there));
        // The first who asks gives up, the second stands still; the third takes over.
        let giving_up = tokio::spawn({
            let path = path.clone();
            async move {
                let first = asking.await.unwrap().unwrap().expect("it answers");
                drop(first);
                let there = path.clone();
                let second = tokio::task::spawn_blocking(move || ask(&there)).await.unwrap();
                let second = second.unwrap().expect("it answers");
                assert!(!second.is_overtaken());
                let third = tokio::task::spawn_blocking(move || ask(&path)).await.unwrap();
                let mut third = third.unwrap().expect("it answers");
                let listener = third.tcp("admin x").unwrap().expect("handed over");
                assert!(third.sockets.is_empty());
                third.succeed(None).unwrap();
                (listener, second)
            }
        });
        let old = desk.next(&admin, name, None).await;
        drop(admin);
        let (listener, second) = giving_up.await.unwrap();
        while !second.is_overtaken() {
            tokio::task::yield_now().await;
        }
        drop(old);
        listener.set_nonblocking(false).unwrap();
        assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
        // The next desk takes the path of this one.
        Desk::open(&path).unwrap();
        drop(desk);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_cancel_request_is_over_when_the_old_process_has_acted_on_it() {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let (to, requests) = mpsc::channel(1);
        let passing = tokio::spawn(pass_on(ours, requests));
        let (came, mut seen) = mpsc::channel(1);
        let serving = tokio::spawn(serve(
            theirs,
            move |key| {
                let (act, told) = oneshot::channel::<()>();
                came.try_send((key, act)).unwrap();
                async move { drop(told.await) }
            },
            unordered,
        ));
        let mut asked = Vec::new();
        for (pid, secret) in [(7, vec![1, 2, 3, 4]), (0x0102_0304, (10..42).collect()), (7, vec![1, 2, 3, 4])] {
            let key = CancelKey { pid, secret: CancelSecret::new(&secret).unwrap() };
            let (done, over) = oneshot::channel();
            to.send(Passed::Cancel(PassedCancel { key, done })).await.unwrap();
            let (there, act) = seen.recv().await.unwrap();
            assert_eq!(there, key);
            asked.push((act, over));
        }
        // In any order; the same key twice is two requests.
        let (last, over) = asked.pop().unwrap();
        drop(last);
        assert!(over.await.is_err());
        let (second, over) = asked.pop().unwrap();
        drop(second);
        assert!(over.await.is_err());
        let (_first, mut over) = asked.pop().unwrap();
        assert_eq!(over.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        // With its process it ends, and no other is taken.
        serving.abort();
        assert!(over.await.is_err());
        passing.await.unwrap();
        assert!(to.is_closed());
    }

    #[tokio::test]
    async fn an_order_is_over_when_the_old_process_says_what_came_of_it() {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let (to, requests) = mpsc::channel(1);
        tokio::spawn(pass_on(ours, requests));
        let order =
            |text: Vec<u8>| std::future::ready(Box::pin(std::future::ready(text.starts_with(b"good"))) as Obeying);
        let serving = tokio::spawn(serve(theirs, |_| std::future::ready(()), order));
        // As long as orders are.
        let padded = |text: &str| format!("{text:40}");
        for (text, want) in [("good", Ok(true)), ("bad", Ok(false)), ("good", Ok(true))] {
            let (done, told) = oneshot::channel();
            to.send(Passed::Order(PassedOrder { text: padded(text), done })).await.unwrap();
            assert_eq!(told.await, want, "{text}");
        }
        serving.abort();
        let (done, told) = oneshot::channel();
        // It may be taken before it is noticed that nobody is there.
        let _ = to.send(Passed::Order(PassedOrder { text: padded("good"), done })).await;
        assert!(told.await.is_err());
    }

    /// Whoever reaches the port may send a request for nobody, with a secret of its choice.
    #[tokio::test]
    async fn a_cancel_request_is_no_order_whatever_it_says() {
        let (theirs, mut ours) = UnixStream::pair().unwrap();
        let (came, mut seen) = mpsc::channel(1);
        let cancel = move |key| {
            came.try_send(key).unwrap();
            async {}
        };
        tokio::spawn(serve(theirs, cancel, unordered));
        let forged = format!("{:32}", r#"["kill",null,9]"#);
        let key = CancelKey { pid: NOBODY, secret: CancelSecret::new(forged.as_bytes()).unwrap() };
        ours.write_all(&frames(1, key.pid, key.secret.as_bytes())).await.unwrap();
        assert_eq!(seen.recv().await, Some(key));
    }

    #[tokio::test]
    async fn a_next_process_that_gives_no_numbers_is_told_none() {
        let (theirs, mut ours) = UnixStream::pair().unwrap();
        let (came, mut seen) = mpsc::channel(1);
        tokio::spawn(serve(
            theirs,
            move |key| {
                came.try_send(key).unwrap();
                async {}
            },
            unordered,
        ));
        let key = CancelKey { pid: 7, secret: CancelSecret::new(&[1, 2, 3, 4]).unwrap() };
        ours.write_all(&frames(0, key.pid, key.secret.as_bytes())[5..]).await.unwrap();
        assert_eq!(seen.recv().await, Some(key));
        ours.write_all(&frames(9, key.pid, key.secret.as_bytes())).await.unwrap();
        let mut number = [0; 4];
        ours.read_exact(&mut number).await.unwrap();
        assert_eq!((seen.recv().await, u32::from_be_bytes(number)), (Some(key), 9));
    }

    #[tokio::test]
    async fn an_old_process_that_says_no_numbers_is_waited_for_once() {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let (to, requests) = mpsc::channel(1);
        tokio::spawn(pass_on(ours, requests));
        let key = CancelKey { pid: 7, secret: CancelSecret::new(&[1, 2, 3, 4]).unwrap() };
        let ask = || {
            let (done, over) = oneshot::channel();
            to.try_send(Passed::Cancel(PassedCancel { key, done })).unwrap();
            over
        };
        let mut frames = vec![0; frames(0, key.pid, key.secret.as_bytes()).len()];
        let (mut from, mut says) = theirs.into_split();
        let mut first = ask();
        from.read_exact(&mut frames).await.unwrap();
        assert_eq!(first.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        drop(first);
        assert!(ask().await.is_err());
        from.read_exact(&mut frames).await.unwrap();
        // One that stood still says them later.
        says.write_all(&2u32.to_be_bytes()).await.unwrap();
        loop {
            let mut next = ask();
            from.read_exact(&mut frames).await.unwrap();
            if next.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
                return;
            }
        }
    }
}
