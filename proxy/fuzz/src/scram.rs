//! Both sides of SCRAM with a peer that says anything.

use proxy::auth::scram::{ClientSide, ServerSide, Verifier};

/// Nothing panics or takes long; nobody who does not know the password is let in.
pub(crate) fn check(data: &[u8]) {
    let parts: Vec<&[u8]> = data.splitn(2, |b| *b == b'\n').collect();
    let (first, second) = (parts[0], parts.get(1).copied().unwrap_or_default());
    if let Ok(text) = std::str::from_utf8(first) {
        let parsed: Result<Verifier, _> = text.parse();
        drop(parsed);
    }
    let mut server = ServerSide::new(Verifier::mock("nobody", &[7; 32]), [1; 18]);
    if server.first(b"SCRAM-SHA-256", first).is_ok() {
        assert!(server.finish(second).is_err(), "a proof of a password that nobody has");
    }
    let mut bound = ServerSide::new(Verifier::mock("nobody", &[7; 32]), [1; 18]).over_tls(Some(vec![3; 32]));
    if bound.first(b"SCRAM-SHA-256-PLUS", first).is_ok() {
        assert!(bound.finish(second).is_err(), "a proof of a password that nobody has, over TLS");
    }
    let mut client = ClientSide::with_password("app", "secret", [2; 18]);
    if client.respond(first).is_ok() {
        assert!(client.finish(second).is_err(), "a server was believed");
    }
}
