//! From the first byte of a connection to its first ReadyForQuery.

use crate::auth::credentials::Credentials;
use crate::catalog::Tables;
use crate::console;
use crate::net::{Origin, Stream};
use crate::pool::Identity;
use crate::pool::clients::Admission;
use crate::pool::policy::{ClientLimit, dbname, forced_user};
use crate::route::{Causality, Consistency, Promise};
use crate::session::acquire::{self, Found, NotFound, Want};
use crate::session::cancel::pid_of;
use crate::session::client::Session;
use crate::session::greeting::{Greeting, shown_name};
use crate::session::peers;
use crate::session::presence::{Facts, Presence};
use crate::session::{durable, encrypt, proxied, read_only, shown};
use crate::sql::{Access, LexRules};
use crate::tls::AcceptError;
use crate::wire::backend::{self, TxStatus};
use crate::wire::codec::head;
use crate::wire::error_response::ClientError;
use crate::wire::lossless;
use crate::wire::pool_error::PoolError;
use crate::wire::read_only_error::ReadOnlyError;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::{self, Packet, Startup};
use crate::worker::{Settings, Stranger, Worker};
use cluster::topology::Gate;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::SemaphorePermit;

/// Longest message of a login, bytes: SCRAM messages are far shorter.
const MAX_MESSAGE: usize = 4096;

/// Longest message with a password in clear, which may be a token, bytes (PG_MAX_AUTH_TOKEN_LENGTH, and the type).
const MAX_PASSWORD: usize = 65_535 + 1;

/// How long a login waits for the functions of its database to be read, when it is the first there: one with 100,000 functions
/// takes a second, on a machine that is busy several. Behind that the server is asked what its statements leave.
const CATALOG_WAIT: Duration = Duration::from_secs(10);

/// Room for what a client sends in its login, bytes: a message comes in one piece nearly always.
const ROOM: usize = 512;

/// Why a connection ends before its session begins.
pub(super) enum Farewell {
    /// Nothing is said: the peer is gone, or it only wanted to cancel.
    Silent,
    /// Nothing can be said.
    Handshake(AcceptError),
    /// FATAL.
    Error(ClientError),
    /// The server's own words.
    Refused(Vec<u8>),
}

impl From<ClientError> for Farewell {
    fn from(error: ClientError) -> Self {
        Self::Error(error)
    }
}

impl From<AcceptError> for Farewell {
    fn from(error: AcceptError) -> Self {
        Self::Handshake(error)
    }
}

impl From<std::io::Error> for Farewell {
    fn from(_: std::io::Error) -> Self {
        Self::Silent
    }
}

/// Greet a client. What it rarely comes to is boxed, so that the rest takes little room. `None` when there will be no session; it has been told why.
pub async fn welcome(
    w: &Rc<Worker>,
    (stream, buf): (Stream, Vec<u8>),
    origin: Origin,
    (read_only, stranger): (bool, Stranger),
) -> Option<Box<Session>> {
    let stranger = Some(stranger);
    let mut greeter = Greeter { w, stream, origin, read_only, stranger, buf, turn: None, out: Vec::new() };
    let limit = w.config().login_timeout;
    let outcome = match tokio::time::timeout(limit, greeter.authenticate()).await {
        Ok(Ok(admitted)) => {
            greeter.stranger = None;
            if console::is_console(&admitted.startup.database) {
                Err(Box::pin(greeter.console(&admitted)).await)
            } else {
                greeter.admit(admitted).await
            }
        }
        Ok(Err(farewell)) => Err(farewell),
        Err(_) => {
            // Its farewell may take as long again.
            greeter.turn = None;
            Err(ClientError::LoginTimeout.into())
        }
    };
    let farewell = match outcome {
        Ok(session) => {
            w.counts.logged_in();
            return session.enter(greeter.stream, greeter.buf);
        }
        Err(farewell) => farewell,
    };
    let mut out = std::mem::take(&mut greeter.out);
    match farewell {
        Farewell::Silent => return None,
        Farewell::Handshake(error) => {
            w.counts.login("tls_failed");
            w.counts.handshake("client", false);
            let (origin, source) = (greeter.origin, std::error::Error::source(&error).map(ToString::to_string));
            if let Some(left_out) = w.logs_refusal(false) {
                tracing::info!(%origin, %error, source, left_out, "encrypted connection not accepted");
            }
            return None;
        }
        Farewell::Error(error) => {
            let report = error.report();
            let result = match &error {
                ClientError::LoginTimeout => "timeout",
                ClientError::TooManyClients { .. } => "too_many",
                _ if report.sqlstate == SqlState::INVALID_PASSWORD => "bad_password",
                _ if report.sqlstate == SqlState::TOO_MANY_CONNECTIONS => "too_many",
                _ => "refused",
            };
            w.counts.login(result);
            if let Some(left_out) = w.logs_refusal(false) {
                let (origin, sqlstate, reason) = (greeter.origin, report.sqlstate.as_str(), report.message.as_str());
                tracing::info!(%origin, sqlstate, reason, left_out, "login refused");
            }
            fatal(&error, &mut out);
        }
        Farewell::Refused(frame) => {
            w.counts.login("refused");
            out.extend_from_slice(&frame);
        }
    }
    // Best effort: the client may have gone.
    let _ = tokio::time::timeout(limit, greeter.stream.write_all(&out)).await;
    None
}

/// An error that ends the connection is FATAL whatever it is for a statement.
fn fatal(error: &ClientError, out: &mut Vec<u8>) {
    let mut report = error.report();
    report.severity = crate::wire::error_response::Severity::Fatal;
    report.encode(out);
}

struct Admitted {
    startup: Startup,
    credentials: Credentials,
}

/// A client that may come in.
struct Entering {
    /// What its server is looked for with.
    want: Want,
    admission: Admission,
    long_key: bool,
    application_name: Option<Vec<u8>>,
    replication: bool,
}

/// A session that lacks only its socket.
pub struct Prepared {
    w: Rc<Worker>,
    identity: Arc<Identity>,
    credentials: Arc<Credentials>,
    causality: Rc<RefCell<Causality>>,
    settings: Arc<Settings>,
    lex: LexRules,
    application_name: Option<String>,
    /// The client speaks protocol 3.2 or later.
    long_key: bool,
    hello: Vec<u8>,
    /// The server of a replication connection.
    tunnel: Option<Found>,
    functions: Tables,
    origin: Origin,
    admission: Admission,
    read_only: bool,
}

impl Prepared {
    fn enter(self, stream: Stream, rest: Vec<u8>) -> Option<Box<Session>> {
        let presence = Rc::new(Presence::new(self.w.now()));
        let Some(place) = self.w.places.borrow_mut().enter(presence.clone()) else {
            if let Some(left_out) = self.w.logs_refusal(true) {
                tracing::warn!(worker = self.w.index, left_out, "no place for another session");
            }
            return None;
        };
        let mut hello = self.hello;
        let (pid, id) = (pid_of(self.w.index, place), self.w.config().cancel.id);
        let secret = self.w.shared.cancelling.secret(id, pid, self.long_key);
        presence.secret.set(Some(secret));
        let term = self.w.view.borrow().topology.term;
        if self.tunnel.is_none() {
            shown::write_term(&mut hello, term);
        }
        backend::write_backend_key(&mut hello, pid, secret.as_bytes());
        backend::write_ready(&mut hello, TxStatus::Idle);
        let (identity, connected) = (self.identity.clone(), self.w.now());
        // Logical replication belongs to a database, physical to none.
        let logical = |name: &str, value: &str| name == "replication" && value == "database";
        let replication = self
            .tunnel
            .is_some()
            .then(|| if identity.parameters.iter().any(|(n, v)| logical(n, v)) { "logical" } else { "physical" });
        let (origin, admission, tls) = (self.origin, self.admission, stream.encryption());
        let facts = Facts { identity, origin, connected, tls, replication, admission: RefCell::new(Some(admission)) };
        // The configuration may have changed while it logged in.
        presence.moved.set(facts.identity.leads_elsewhere(&self.w.config().pools));
        let _ = presence.facts.set(facts);
        let mut session = Session::new(
            self.w,
            (presence, place),
            stream,
            (self.identity, self.credentials),
            self.causality,
            (self.settings, self.lex, self.application_name.as_deref()),
            self.functions,
        );
        session.term_told = term;
        if self.read_only {
            session.only_read();
        }
        if let Some(found) = self.tunnel {
            // What was sent early is the server's to read.
            session.tunnel = true;
            session.attach(found);
            session.to_server.queue(&rest);
            session.greet(hello, Vec::new());
        } else {
            session.greet(hello, rest);
        }
        Some(session)
    }
}

/// A client that has not proven yet who it is.
pub(super) struct Greeter<'a> {
    pub(super) w: &'a Rc<Worker>,
    pub(super) stream: Stream,
    pub(super) origin: Origin,
    /// Its session may only read.
    read_only: bool,
    /// It has not proven yet who it is.
    stranger: Option<Stranger>,
    /// What it has sent and nobody has looked at.
    buf: Vec<u8>,
    /// Its turn among those that are worked on.
    turn: Option<SemaphorePermit<'a>>,
    /// What it is told before anything else is waited for: a login without questions is answered in one piece.
    pub(super) out: Vec<u8>,
}

impl Greeter<'_> {
    async fn authenticate(&mut self) -> Result<Admitted, Farewell> {
        let startup = self.startup().await?;
        self.stranger.iter().for_each(Stranger::name_itself);
        if self.w.shared.stopping.load(Ordering::Relaxed) {
            return Err(ClientError::ShuttingDown.into());
        }
        if startup.user.is_empty() {
            return Err(ClientError::NoUser.into());
        }
        let clients = self.w.shared.admissions.all();
        let limit = self.w.config().max_client_connections;
        // Who must find out why they are so many comes in all the same.
        if clients >= limit && !console::is_console(&startup.database) {
            return Err(ClientError::TooManyClients { limit }.into());
        }
        if startup.minor > startup::NEWEST_MINOR || !startup.extensions.is_empty() {
            let minor = startup.minor.min(startup::NEWEST_MINOR);
            backend::write_negotiate_version(&mut self.out, minor, &startup.extensions);
        }
        // Taken only now: who connects and says nothing holds up nobody. The wait is part of the login's time.
        self.take_turn().await;
        let credentials = self.prove(&startup).await;
        self.turn = None;
        Ok(Admitted { startup, credentials: credentials? })
    }

    async fn take_turn(&mut self) {
        self.turn = Some(self.w.logins.acquire().await.expect("the semaphore is never closed"));
    }

    /// Read packets up to the StartupMessage. Encryption may be asked for once of each kind.
    async fn startup(&mut self) -> Result<Startup, Farewell> {
        let contexts = self.w.shared.tls.borrow().clone();
        let turns = &self.w.handshakes;
        let (mut ssl, mut gss) = (false, false);
        self.proxied().await?;
        if self.buf.is_empty() {
            self.more().await?;
        }
        if encrypt::is_direct(&self.buf) {
            let first = std::mem::take(&mut self.buf);
            Box::pin(encrypt::accept_direct(&mut self.stream, &contexts, first, turns)).await?;
            (ssl, gss) = (true, true);
        }
        loop {
            let len = self.packet().await?;
            let violation = |what: &str| ClientError::ProtocolViolation { what: what.to_owned() };
            let parsed = startup::parse(&self.buf[..len]).map_err(|bad| violation(&bad.to_string()))?;
            self.buf.drain(..len);
            match parsed {
                Packet::Ssl | Packet::GssEnc => {
                    let asked = if parsed == Packet::Ssl { &mut ssl } else { &mut gss };
                    if std::mem::replace(asked, true) {
                        return Err(violation("repeated request for encryption").into());
                    }
                    if !self.buf.is_empty() {
                        return Err(violation("received unencrypted data after a request for encryption").into());
                    }
                    // Bytes behind the request would be read as if TLS had protected them: see above.
                    if parsed == Packet::GssEnc {
                        self.stream.write_all(b"N").await?;
                    } else if Box::pin(encrypt::answer(&mut self.stream, &contexts, turns)).await? {
                        // Within TLS there is no other encryption.
                        gss = true;
                    }
                }
                Packet::Cancel { pid, secret } => {
                    Box::pin(peers::dispatch(self.w, self.origin, pid, &secret)).await;
                    return Err(Farewell::Silent);
                }
                Packet::UnknownVersion { major, minor } => {
                    return Err(ClientError::UnsupportedProtocol { major, minor }.into());
                }
                Packet::BadReplication { value } => return Err(ClientError::BadReplication { value }.into()),
                Packet::Startup(startup) => {
                    if self.stream.tls().is_some() {
                        self.w.counts.handshake("client", true);
                    }
                    encrypt::check(&self.stream, &contexts)?;
                    return Ok(startup);
                }
            }
        }
    }

    /// Take the header of a trusted proxy before us off the connection.
    async fn proxied(&mut self) -> Result<(), Farewell> {
        let Origin::Tcp(proxy) = self.origin else { return Ok(()) };
        if !self.w.config().proxy_protocol_from.iter().any(|n| n.contains(proxy.ip())) {
            return Ok(());
        }
        while proxied::may_be_cancel(&self.buf) {
            if self.buf.len() >= proxied::CANCEL_BEGINS {
                // Of another process of ours, which passes it on: it is proven by its key.
                return Ok(());
            }
            self.more().await?;
        }
        loop {
            match proxied::origin(&self.buf, proxy) {
                Ok(None) => self.more().await?,
                Ok(Some((origin, used))) => {
                    self.origin = Origin::Tcp(origin);
                    self.buf.drain(..used);
                    return Ok(());
                }
                Err(error) => {
                    if let Some(left_out) = self.w.logs_refusal(true) {
                        tracing::warn!(%proxy, %error, left_out, "connection of a trusted proxy not accepted");
                    }
                    return Err(Farewell::Silent);
                }
            }
        }
    }

    /// Bytes of the packet that the client has sent first, once all of it has come.
    async fn packet(&mut self) -> Result<usize, Farewell> {
        loop {
            let len = startup::packet_len(&self.buf)
                .map_err(|bad| ClientError::ProtocolViolation { what: bad.to_string() })?;
            if let Some(len) = len.filter(|&len| self.buf.len() >= len) {
                return Ok(len);
            }
            self.more().await?;
        }
    }

    /// The next message of the type that all answers to Authentication have; `what` it must be, in PostgreSQL's words.
    pub(super) async fn message(&mut self, what: &str) -> Result<Vec<u8>, Farewell> {
        self.message_within(what, MAX_MESSAGE).await
    }

    /// The same with a password in clear.
    pub(super) async fn password_message(&mut self) -> Result<Vec<u8>, Farewell> {
        self.message_within("password response", MAX_PASSWORD).await
    }

    async fn message_within(&mut self, what: &str, most: usize) -> Result<Vec<u8>, Farewell> {
        loop {
            let violation = |what: &str| ClientError::ProtocolViolation { what: what.to_owned() };
            match head(&self.buf) {
                Err(_) => return Err(violation("invalid message length").into()),
                Ok(Some(h)) if h.kind != b'p' => return Err(violation(&format!("expected {what}")).into()),
                Ok(Some(h)) if h.total > most => return Err(violation(&format!("{what} too long")).into()),
                Ok(Some(h)) if self.buf.len() >= h.total => {
                    let message = self.buf.drain(..h.total).collect();
                    if self.turn.is_none() {
                        self.take_turn().await;
                    }
                    return Ok(message);
                }
                Ok(_) => {
                    // Who is asked and says nothing holds up nobody either.
                    self.turn = None;
                    self.more().await?;
                }
            }
        }
    }

    /// Tell the client what it has not been told yet.
    pub(super) async fn flush(&mut self) -> Result<(), Farewell> {
        // What is sent is taken off at once: the login's time may end in between.
        if !self.out.is_empty() {
            let sent = self.stream.write_at_once(&self.out);
            self.out.drain(..sent);
        }
        while !self.out.is_empty() {
            let n = self.stream.write(&self.out).await?;
            self.out.drain(..n);
        }
        Ok(())
    }

    async fn more(&mut self) -> Result<(), Farewell> {
        self.flush().await?;
        self.buf.reserve(ROOM);
        if self.stream.read_buf(&mut self.buf).await? == 0 {
            return Err(Farewell::Silent);
        }
        Ok(())
    }

    /// Is there room for one more client of this database and user? Asked only of those who have proven who they are.
    fn count(&self, startup: &Startup) -> Result<Admission, ClientError> {
        let (database, user) = (&startup.database, &startup.user);
        if self.w.doorway.disabled(database) {
            return Err(ClientError::Pool(PoolError::Disabled { database: database.clone() }));
        }
        let (config, replication) = (self.w.config(), startup.replication);
        let (most, rules) = (config.max_client_connections, &config.pools);
        let admitted = self.w.shared.admissions.admit((most, rules), (database, user), replication);
        admitted.map_err(|limit| match limit {
            ClientLimit::All(limit) => ClientError::TooManyClients { limit },
            ClientLimit::Database(limit) => {
                ClientError::Pool(PoolError::ClientsOfDatabase { database: database.clone(), limit })
            }
            ClientLimit::User(limit) => ClientError::Pool(PoolError::ClientsOfUser { user: user.clone(), limit }),
            ClientLimit::Replication(limit) => ClientError::Pool(PoolError::Replication { limit }),
        })
    }

    /// Serve a client of the console to its end, if it may use it.
    async fn console(&mut self, admitted: &Admitted) -> Farewell {
        let Startup { database, user, .. } = &admitted.startup;
        match console::admit(self.w, database, user) {
            Ok(access) => {
                self.w.counts.logged_in();
                if let Err(farewell) = self.flush().await {
                    return farewell;
                }
                console::run(self.w, &mut self.stream, std::mem::take(&mut self.buf), access).await;
                Farewell::Silent
            }
            Err(report) => {
                let mut out = Vec::new();
                report.encode(&mut out);
                Farewell::Refused(out)
            }
        }
    }

    /// What the files have for logging in to servers as that user.
    fn configured(&self, user: &str) -> Credentials {
        self.w.shared.users.leaves(user)
    }

    /// Nobody of this identity has come before, or the client is to have a server of its own.
    async fn first(&mut self, want: &Want, replication: bool) -> Result<(Arc<Greeting>, Option<Found>), Farewell> {
        self.flush().await?;
        if replication {
            let found = tokio::select! {
                found = own(self.w, want) => found?,
                farewell = gone(&mut self.stream, &mut self.buf) => return Err(farewell),
            };
            return Ok((Arc::new(Greeting::new(found.server.meta.settings.clone())), Some(found)));
        }
        let settings = tokio::select! {
            settings = ask(self.w, want) => settings?,
            farewell = gone(&mut self.stream, &mut self.buf) => return Err(farewell),
        };
        Ok((Arc::new(Greeting::new(settings)), None))
    }

    /// Find out what a server reports to this user, which also proves that the database exists.
    async fn admit(&mut self, admitted: Admitted) -> Result<Prepared, Farewell> {
        let entering = self.entering(admitted)?;
        let (want, replication) = (&entering.want, entering.replication);
        let known = if replication { None } else { self.w.welcome(&want.identity) };
        let (identity, greeting, tunnel) = match known {
            Some((identity, greeting)) => (identity, greeting, None),
            None => {
                let (greeting, tunnel) = Box::pin(self.first(want, replication)).await?;
                (want.identity.clone(), greeting, tunnel)
            }
        };
        let functions = self.functions(&identity.dbname).await?;
        Ok(self.prepared(entering, identity, &greeting, (tunnel, functions)))
    }

    /// What is known of the database's functions. Its first client waits a moment for that to be read: what its statements
    /// leave in the session could not be followed before.
    async fn functions(&mut self, dbname: &str) -> Result<Tables, Farewell> {
        let mut functions = self.w.shared.catalogs.table(dbname);
        if functions.borrow().is_awaited() {
            self.flush().await?;
            tokio::select! {
                _ = tokio::time::timeout(CATALOG_WAIT, functions.wait_for(|table| !table.is_awaited())) => {}
                farewell = gone(&mut self.stream, &mut self.buf) => return Err(farewell),
            }
        }
        Ok(functions)
    }

    /// Whose session it is to be, if there is room for it.
    fn entering(&self, Admitted { mut startup, mut credentials }: Admitted) -> Result<Entering, Farewell> {
        if self.read_only && startup.replication {
            return Err(ClientError::ReadOnly(ReadOnlyError::Replication).into());
        }
        let admission = self.count(&startup)?;
        let config = self.w.config();
        let dbname = dbname(&config.pools, &startup.database).to_owned();
        // What the client has proven here says nothing there.
        if let Some(user) = forced_user(&config.pools, &startup.database) {
            credentials = self.configured(user);
            user.clone_into(&mut startup.user);
        }
        if startup.replication
            && let Some(name) = &startup.application_name
        {
            // synchronous_standby_names knows a standby by this name.
            let name = lossless::keep(name).into_owned();
            startup.parameters.push(("application_name".to_owned(), name));
        }
        let Startup { minor, database, user, parameters, replication, application_name, .. } = startup;
        let mut identity = Identity { database, dbname, user, parameters };
        if !identity.is_physical() {
            let more = durable::at_login(self.w, &identity)?;
            identity.parameters.extend(more);
        }
        if self.read_only {
            read_only::at_login(&mut identity.parameters);
        }
        let want = Want {
            identity: Arc::new(identity),
            credentials: Arc::new(credentials),
            entered: false,
            causality: Rc::default(),
            access: Access::Write,
            quiet: false,
            // A login reads nothing: each statement is judged by what its session is promised.
            promise: Promise { consistency: Consistency::Eventual, ..Promise::session(config.max_replay_lag) },
            avoid: Vec::new(),
            since: self.w.now(),
        };
        Ok(Entering { want, admission, long_key: minor >= 2, application_name, replication })
    }

    fn prepared(
        &mut self,
        entering: Entering,
        identity: Arc<Identity>,
        greeting: &Greeting,
        (tunnel, functions): (Option<Found>, Tables),
    ) -> Prepared {
        let Entering { want, admission, long_key, application_name, replication: _ } = entering;
        let Want { credentials, causality, .. } = want;
        let application_name = application_name.map(|given| shown_name(&given, &greeting.settings));
        let mut hello = std::mem::take(&mut self.out);
        if self.read_only {
            Greeting::of_standby(greeting.settings.clone()).write(application_name.as_deref(), &mut hello);
        } else {
            greeting.write(application_name.as_deref(), &mut hello);
        }
        let (w, origin, settings, lex) = (self.w.clone(), self.origin, greeting.settings.clone(), greeting.lex);
        Prepared {
            w,
            identity,
            credentials,
            causality,
            settings,
            lex,
            application_name,
            long_key,
            hello,
            tunnel,
            functions,
            origin,
            admission,
            read_only: self.read_only,
        }
    }
}

/// A connection to the primary that is the client's alone.
async fn own(w: &Rc<Worker>, want: &Want) -> Result<Found, Farewell> {
    acquire::find(w, want.clone(), 0, None).await.map_err(|error| match error {
        NotFound::Error(error) => error.into(),
        NotFound::Refused(frame) => Farewell::Refused(frame),
    })
}

async fn ask(w: &Rc<Worker>, want: &Want) -> Result<Arc<Settings>, Farewell> {
    if w.gate(w.now()) != Gate::Open
        && let Some(server) = acquire::any_standby(w, want).await
    {
        let settings = server.meta.settings.clone();
        let pool = w.pools.of(&server.meta.node, &want.identity);
        pool.give(server);
        return Ok(settings);
    }
    match acquire::find(w, want.clone(), 0, None).await {
        Ok(found) => {
            let settings = found.server.meta.settings.clone();
            found.pool.give(found.server);
            Ok(settings)
        }
        Err(NotFound::Error(error)) => Err(error.into()),
        Err(NotFound::Refused(frame)) => Err(Farewell::Refused(frame)),
    }
}

/// Returns when the client has gone while it waits. What it sends early is kept, up to a little.
async fn gone(stream: &mut Stream, buf: &mut Vec<u8>) -> Farewell {
    while buf.len() < MAX_MESSAGE {
        match stream.read_buf(buf).await {
            Ok(0) | Err(_) => return Farewell::Silent,
            Ok(_) => {}
        }
    }
    std::future::pending().await
}
