//! What one worker has, written down for an operator.

use crate::pool::view::{ClientView, PreparedView, QueueView, ServerState, ServerView, View};
use crate::session::presence::{Activity, Facts, Presence};
use crate::worker::Worker;

/// Bytes of a prepared text that are shown.
const SHOWN_TEXT: usize = 200;

/// Everything a worker has at this moment.
pub fn of(w: &Worker) -> View {
    let mut view = View::default();
    for (place, presence) in w.places.borrow().all() {
        // A session that has just begun has said nothing yet.
        if let Some(facts) = presence.facts.get() {
            client(w, place, presence, facts, &mut view);
        }
    }
    view.tallies = w.tallies.view(w.now());
    w.texts.borrow_mut().each(|text, references| {
        let end = text.tail.iter().position(|b| *b == 0).unwrap_or(text.tail.len());
        view.prepared.push(PreparedView {
            worker: w.index,
            name: String::from_utf8_lossy(&text.server_name).into_owned(),
            references,
            bytes: end,
            query: String::from_utf8_lossy(&text.tail[..end.min(SHOWN_TEXT)]).into_owned(),
        });
    });
    let check_before = w.check_before(w.now());
    for pool in w.pools.all() {
        let identity = &pool.key.identity;
        pool.each_idle(|s| {
            let used = s.meta.idle_since < check_before;
            view.servers.push(ServerView {
                worker: w.index,
                node: s.meta.node.clone(),
                role: s.meta.role,
                addr: Some(s.meta.peer),
                database: identity.database.clone(),
                user: identity.user.clone(),
                pid: s.meta.key.0,
                state: if used { ServerState::Used } else { ServerState::Idle },
                born: s.meta.born,
                since: s.meta.idle_since,
                tls: s.stream.encryption(),
                replication: None,
                application_name: s.meta.given.get("application_name").unwrap_or_default().to_owned(),
                prepared: s.meta.statements.len(),
                client: None,
            });
        });
        if pool.opening.get() > 0 {
            let (database, user) = (identity.database.clone(), identity.user.clone());
            view.queues.push(QueueView { database, user, opening: pool.opening.get() });
        }
    }
    view
}

fn client(w: &Worker, place: usize, presence: &Presence, facts: &Facts, view: &mut View) {
    let doing = presence.doing.get();
    let (database, user) = (&facts.identity.database, &facts.identity.user);
    let settings = presence.settings.borrow();
    let application_name = settings.get("application_name").unwrap_or_default();
    let (prepared, on_server) = presence.prepared.get();
    let serving = presence.serving.get().and_then(|s| Some((s, w.node_at(s.node)?)));
    if let Some((serving, node)) = &serving {
        view.servers.push(ServerView {
            worker: w.index,
            node: node.clone(),
            role: serving.role,
            addr: None,
            database: database.clone(),
            user: user.clone(),
            pid: serving.pid,
            state: ServerState::Active,
            born: serving.born,
            since: doing.began,
            tls: serving.tls,
            replication: facts.replication,
            application_name: application_name.to_owned(),
            prepared: on_server,
            client: Some(place),
        });
    }
    view.clients.push(ClientView {
        worker: w.index,
        place,
        database: database.clone(),
        user: user.clone(),
        origin: facts.origin,
        connected: facts.connected,
        activity: doing.activity,
        cancels: presence.cancels.get(),
        since: doing.since,
        blocked_since: presence.blocked.get(),
        transaction_since: (doing.activity != Activity::Idle).then_some(doing.began),
        pins: presence.pins.get().list(),
        tls: facts.tls,
        replication: facts.replication,
        application_name: application_name.to_owned(),
        prepared,
        server: serving.map(|(s, node)| (node, s.pid)),
    });
}
