//! Who has proven who they are: may they come in, and what their sessions begin with.

use crate::auth::credentials::Credentials;
use crate::catalog::Tables;
use crate::net::{Origin, Stream};
use crate::pool::Identity;
use crate::pool::clients::Admission;
use crate::pool::policy::{ClientLimit, dbname, forced_user};
use crate::route::{Causality, Consistency, Promise};
use crate::session::acquire::{self, Found, NotFound, Want};
use crate::session::cancel::pid_of;
use crate::session::client::Session;
use crate::session::greeting::{Greeting, shown_name};
use crate::session::login::{Admitted, Farewell, Greeter, MAX_MESSAGE};
use crate::session::presence::{Facts, Presence};
use crate::session::{durable, read_only, shown};
use crate::sql::{Access, LexRules};
use crate::wire::backend::{self, TxStatus};
use crate::wire::error_response::ClientError;
use crate::wire::lossless;
use crate::wire::pool_error::PoolError;
use crate::wire::read_only_error::ReadOnlyError;
use crate::wire::startup::Startup;
use crate::worker::{Settings, Worker};
use cluster::topology::Gate;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// How long a login waits for the functions of its database to be read, when it is the first there: one with 100,000 functions
/// takes a second, on a machine that is busy several. Behind that the server is asked what its statements leave.
const CATALOG_WAIT: Duration = Duration::from_secs(10);

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
pub(super) struct Prepared {
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
    pub(super) fn enter(self, stream: Stream, rest: Vec<u8>) -> Option<Box<Session>> {
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

impl Greeter<'_> {
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
    pub(super) async fn admit(&mut self, admitted: Admitted) -> Result<Prepared, Farewell> {
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
