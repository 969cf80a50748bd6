//! A client's first packets.

use proxy::wire::proxy_protocol;
use proxy::wire::startup::{Packet, packet_len, parse, write_startup};

/// No packet panics, nor what a proxy before us may say first; a StartupMessage means the same when it is written again from
/// what was read.
pub(crate) fn check(data: &[u8]) {
    if let Ok(Some((source, len))) = proxy_protocol::parse(data) {
        // What comes behind a header is no part of it, and less is not enough.
        assert_eq!(proxy_protocol::parse(&data[..len]), Ok(Some((source, len))));
        assert_eq!(proxy_protocol::parse(&data[..len - 1]), Ok(None));
    }
    let Ok(Some(len)) = packet_len(data) else { return };
    let Some(packet) = data.get(..len) else { return };
    let Ok(Packet::Startup(startup)) = parse(packet) else { return };
    // Names and values of the packet bound what is kept of them: a byte that is of no character becomes one of four bytes.
    let kept: usize = startup.parameters.iter().map(|(n, v)| n.len() + v.len()).sum();
    assert!(kept + startup.user.len() <= 4 * len, "{startup:?} is longer than its packet");
    let mut again = Vec::new();
    let own = [("user", startup.user.as_str()), ("database", startup.database.as_str())];
    write_startup(&mut again, own.into_iter().filter(|(_, v)| !v.is_empty()));
    if let Ok(Packet::Startup(second)) = parse(&again) {
        assert_eq!((second.user, second.database), (startup.user, startup.database));
    }
}
