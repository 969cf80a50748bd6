//! What an idle client with TLS costs: counted at the allocator, so that nothing else on the machine matters.

mod common;

use common::{Cluster, dial, wait_for};
use proxy::config::tls::ClientMode;
use proxy::wire::startup::write_startup;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::ServerName;
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};

static LIVE: AtomicIsize = AtomicIsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size().cast_signed(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size().cast_signed(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A client that is logged in and has had an answer. Its own TLS state is dropped: only the socket stays.
fn idle_client(c: &Cluster, config: &Arc<rustls::ClientConfig>) -> TcpStream {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut conn = rustls::ClientConnection::new(config.clone(), name).unwrap();
    let mut socket = dial(c.port);
    let mut tls = rustls::Stream::new(&mut conn, &mut socket);
    let mut out = Vec::new();
    write_startup(&mut out, [("user", "postgres"), ("database", "app")].into_iter());
    proxy::wire::frontend::write_query(&mut out, "select repeat('x', 100000)");
    tls.write_all(&out).unwrap();
    let (mut seen, mut chunk) = (Vec::new(), [0; 16384]);
    while seen.len() < 100_000 || !seen.ends_with(b"Z\0\0\0\x05I") {
        let n = tls.read(&mut chunk).unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&chunk[..n]);
    }
    socket
}

#[test]
fn an_idle_client_with_tls_holds_little() {
    const CLIENTS: isize = 200;
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("crt"), dir.path().join("key"));
    let pair = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&pair).unwrap();
    std::fs::write(&cert, certificate.pem()).unwrap();
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let mut config =
        builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    let config = Arc::new(config);
    let c = Cluster::start(0, |raw| {
        raw.tls.mode = ClientMode::Require;
        raw.tls.cert = Some(cert.clone());
        raw.tls.key = Some(key.clone());
        raw.auth.rules = vec!["hostssl all all 127.0.0.0/8 trust".to_owned()];
    });
    // Pools, buffers and tables that are made once.
    let first: Vec<TcpStream> = (0..20).map(|_| idle_client(&c, &config)).collect();
    let before = LIVE.load(Ordering::Relaxed);
    let clients: Vec<TcpStream> = (0..CLIENTS).map(|_| idle_client(&c, &config)).collect();
    let each = || (LIVE.load(Ordering::Relaxed) - before) / CLIENTS;
    // The client has its answer before the worker has put its buffers away.
    println!("{} bytes for each idle client", each());
    wait_for("idle clients to be small", || (each() <= 40 * 1024).then_some(()));
    drop(clients);
    let given_back = || ((LIVE.load(Ordering::Relaxed) - before) / CLIENTS < 1024).then_some(());
    wait_for("the memory to be given back", given_back);
    drop(first);
}
