//! What a client sends once it is logged in: cut into units and written for a server.

use proxy::session::batch::{Context, Limits, Scan, scan};
use proxy::session::relay::Relay;
use proxy::session::statements::{ClientStatements, ServerStatements, Texts};
use proxy::session::translate::{Done, Naming, Translator};
use proxy::sql::{FunctionTable, LexRules, classify};
use proxy::wire::codec::{Sink, head};
use proxy::wire::frontend;

/// No input panics; a unit is made of what has come; what goes to the server is whole frames, but for a message that
/// has not come whole itself.
pub(crate) fn check(data: &[u8]) {
    views(data);
    for sql in [false, true] {
        converse(data, Naming::Shared { parse_key: 1, sql }, sql);
    }
    converse(data, Naming::Own, false);
}

fn converse(data: &[u8], naming: Naming, impatient: bool) {
    let functions = FunctionTable::unloaded();
    let (mut client, mut server) = (ClientStatements::default(), ServerStatements::default());
    let (mut texts, mut relay) = (Texts::new(0), Relay::default());
    let (mut at, mut classes) = (0, Vec::new());
    while at < data.len() {
        let input = &data[at..];
        classes.clear();
        let cx = Context {
            statements: &client,
            classify: &|sql| classify(sql, &functions, LexRules::STANDARD),
            open: relay.open,
            portal_may_commit: false,
            impatient,
            limits: Limits { unit: 1024, text: 4096, message: 1 << 20, statements: 4096 },
        };
        let unit = match scan(input, &cx, &mut classes) {
            Scan::Unit(unit) => unit,
            Scan::Ignore(total) => {
                at += total.min(input.len());
                continue;
            }
            Scan::More | Scan::Terminate | Scan::Violation(_) => return,
        };
        assert!(unit.len > 0 && unit.len <= input.len(), "a unit of {} in {}", unit.len, input.len());
        let mut sink = Sink::default();
        let mut translator = Translator {
            client: &mut client,
            server: &mut server,
            texts: &mut texts,
            relay: &mut relay,
            statement_bytes: 4096,
            usual_statement_bytes: 4096,
            server_bytes: 8192,
            unnamed_bytes: 4096,
            naming,
            classify: &|sql| classify(sql, &functions, LexRules::STANDARD),
            done: &mut Done::default(),
            failed: false,
        };
        translator.unit(input, &unit, &classes, &mut sink);
        if unit.tail_left == 0 {
            whole_frames(sink.bytes(input));
        }
        assert!(client.bytes() <= 4096, "{} bytes of statements", client.bytes());
        // One that shows all statements may have all of them prepared before it, under each one's own name.
        let each = 8 + 4 * client.len();
        assert!(relay.pending() <= (data.len() / 5 + 1) * each, "{} answers owed", relay.pending());
        // The rest of a long message passes by.
        at += unit.len + unit.tail_left;
    }
}

fn views(data: &[u8]) {
    let _ = frontend::parse(data);
    let _ = frontend::bind(data);
    let _ = frontend::subject(data);
    let _ = frontend::query(data);
    let _ = frontend::sasl_initial(data);
}

fn whole_frames(bytes: &[u8]) {
    let mut at = 0;
    while at < bytes.len() {
        let head = head(&bytes[at..]).expect("lengths that were checked").expect("a whole head");
        at += head.total;
    }
    assert_eq!(at, bytes.len(), "the last frame is cut off");
}
