//! Against real sockets, on a thread that sends together what a round of its loop sends, where the kernel lets it.

use super::*;
use crate::net::round;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::{LocalSet, spawn_local, yield_now};

const DEADLINE: Duration = Duration::from_secs(20);

/// A socket that takes nothing any more, its other end, and how much is between them.
fn full() -> (Stream, UnixStream, usize) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (mut stream, mut sent): (Stream, usize) = (ours.into(), 0);
    while let Ok(n) = stream.try_write(&[b'.'; 1000]) {
        sent += n;
    }
    (stream, theirs, sent)
}

#[tokio::test]
async fn what_a_session_has_left_is_sent_by_who_waits_for_its_answer() {
    let test = async {
        spawn_local(round::run(|_| {}));
        yield_now().await;
        let _ = round::together(true);
        for leaves_more in [false, true] {
            let (mut stream, mut theirs, before) = full();
            let mut outbox = Outbox::default();
            outbox.send_in_round(&mut stream, b"the last", 0).unwrap();
            if leaves_more {
                outbox.send(&mut stream, b" and more").unwrap();
            } else {
                // The round ends, and whom it wakes is gone.
                yield_now().await;
            }
            let server = spawn_local(async move {
                let mut said = vec![0; before];
                theirs.read_exact(&mut said).await.unwrap();
                let mut last = [0; 17];
                let last = &mut last[..if leaves_more { 17 } else { 8 }];
                theirs.read_exact(last).await.unwrap();
                assert_eq!(last, &b"the last and more"[..last.len()]);
                theirs.write_all(b"heard").await.unwrap();
            });
            let mut buf = [0; 16];
            let n = outbox.exchange(&mut stream, &mut buf).await.unwrap();
            assert_eq!((&buf[..n], outbox.is_empty()), (&b"heard"[..], true));
            server.await.unwrap();
        }
    };
    tokio::time::timeout(DEADLINE, LocalSet::new().run_until(test)).await.expect("an answer");
}

#[tokio::test]
async fn who_takes_nothing_before_it_is_read_from_is_read_from() {
    let (mut stream, mut theirs, before) = full();
    let mut outbox = Outbox::default();
    outbox.send(&mut stream, b"x").unwrap();
    let server = async {
        let answer = vec![b'!'; 1 << 20];
        theirs.write_all(&answer).await.unwrap();
        let mut said = vec![0; before + 1];
        theirs.read_exact(&mut said).await.unwrap();
    };
    let client = async {
        let (mut buf, mut heard) = (vec![0; 4096], 0);
        while heard < 1 << 20 {
            heard += outbox.exchange(&mut stream, &mut buf).await.unwrap();
        }
        outbox.empty(&mut stream).await.unwrap();
    };
    tokio::time::timeout(DEADLINE, async { tokio::join!(server, client) }).await.expect("both go on");
}
