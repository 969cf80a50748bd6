//! What the admin listener answers, made of what each role shows.

use super::metrics;
use crate::wiring::reload::Ask;
use cluster::secret::Secret;
use prometheus::Registry;
use serde_json::{Map, Value, json};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::oneshot;

/// A running role as the admin listener sees it: two questions, answered from snapshots, never waiting.
pub trait Part: Send + Sync {
    /// The role's name.
    fn name(&self) -> &'static str;
    /// Ready to do its work?
    ///
    /// # Errors
    /// What is missing, as a sentence for people.
    fn ready(&self) -> Result<(), String>;
    /// Its present state.
    fn status(&self) -> Value;
}

/// An HTTP status and JSON, when they are there; `None` when the route is another's.
pub type RouteFuture<'a> = Pin<Box<dyn Future<Output = Option<(u16, Value)>> + Send + 'a>>;

/// Routes that a role answers itself. `None`: not one of its routes.
pub trait Routes: Send + Sync {
    /// What `cluster=NAME` of a query may name; the first is meant where a query names none.
    fn clusters(&self) -> Vec<&str>;
    /// Answer a request with an HTTP status and JSON.
    fn handle<'a>(&'a self, method: &'a str, path: &'a str, query: &'a str, body: &'a [u8]) -> RouteFuture<'a>;
}

/// Gives the recent past of every standby as JSON, without waiting.
pub type LagHistory = Arc<dyn Fn() -> Value + Send + Sync>;

/// Everything the admin listener can answer from.
pub struct Pages {
    /// One entry per role.
    pub parts: Vec<Box<dyn Part>>,
    /// The managers' routes, when this process is one.
    pub routes: Option<Arc<dyn Routes>>,
    /// The recent past of every standby, when this process has the role lagmon.
    pub lag_history: Option<LagHistory>,
    /// All metrics of the process.
    pub registry: Registry,
    /// The shared secret; without one no order is taken.
    pub secret: Option<Secret>,
    /// The proxy, when this process has the role.
    pub proxy: Option<proxy::Control>,
    /// Reads the configuration file again.
    pub reload: Option<Ask>,
}

/// An HTTP answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Content type.
    pub kind: &'static str,
    /// The body.
    pub body: String,
}

impl Reply {
    fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", body: body.into() }
    }

    fn json(status: u16, value: &Value) -> Self {
        Self { status, kind: "application/json", body: format!("{value:#}\n") }
    }

    pub(super) fn error(status: u16, why: &str) -> Self {
        Self::json(status, &json!({ "error": why }))
    }
}

impl Pages {
    /// Does this `Authorization` header carry the shared secret?
    pub(super) fn may_order(&self, header: Option<&[u8]>) -> bool {
        let (Some(secret), Some(header)) = (&self.secret, header) else { return false };
        header.strip_prefix(b"Bearer ").is_some_and(|given| same(given, secret.expose().as_bytes()))
    }

    /// Answer a request that may be answered.
    pub(super) async fn reply(&self, method: &str, path: &str, query: &str, body: &[u8]) -> Reply {
        match (method, path) {
            ("GET", "/") => Reply::text(
                200,
                "pgtenure: /livez /readyz /metrics /status /lag /lag/history, on managers /report /history; POST /reload\n",
            ),
            ("GET", "/livez") => Reply::text(200, "ok\n"),
            ("GET", "/readyz") => self.readiness(),
            ("GET", "/metrics") => metrics::page(&self.registry, &self.parts),
            ("GET", "/status") => self.status(query).await,
            ("GET", "/lag") if self.part("lagmon").is_some() => {
                Reply::json(200, &self.part("lagmon").map_or(Value::Null, Part::status))
            }
            ("GET", "/lag/history") if self.lag_history.is_some() => {
                Reply::json(200, &self.lag_history.as_ref().map_or(Value::Null, |history| history()))
            }
            ("GET", "/route") if self.proxy.is_some() => self.explain(query).await,
            ("POST", "/reload") => self.reload().await,
            _ => match self.route(method, path, query, body).await {
                Some((status, value)) => Reply::json(status, &value),
                None => Reply::error(404, &format!("no {method} {path} here; it may be a manager's")),
            },
        }
    }

    /// 200 with the keys that changed, or 409 with the reasons why nothing was changed.
    async fn reload(&self) -> Reply {
        let (answer, outcome) = oneshot::channel();
        let asked = match &self.reload {
            Some(ask) => ask.try_send(answer).is_ok(),
            None => false,
        };
        match outcome.await {
            Ok(Ok(done)) => Reply::json(200, &json!(done)),
            Ok(Err(refused)) => Reply::json(409, &json!({ "error": "nothing was changed", "reasons": refused.0 })),
            Err(_) if asked => Reply::error(503, "the process is stopping"),
            Err(_) => Reply::error(503, "too many reloads wait already"),
        }
    }

    /// Where a statement would go.
    async fn explain(&self, query: &str) -> Reply {
        let Some(proxy) = &self.proxy else { return Reply::error(404, "no proxy runs here") };
        let value = |name: &str| {
            let found = query.split('&').filter_map(|p| p.split_once('=')).find(|(key, _)| *key == name);
            found.and_then(|(_, value)| decoded(value))
        };
        let [Some(database), Some(user), Some(sql)] = ["database", "user", "sql"].map(value) else {
            return Reply::error(400, "needs database, user and sql, percent-encoded");
        };
        match proxy.explain(&database, &user, sql.as_bytes()).await {
            Ok(explained) => Reply::json(200, &json!(explained)),
            Err(error) => Reply::error(503, &error.to_string()),
        }
    }

    fn part(&self, name: &str) -> Option<&dyn Part> {
        self.parts.iter().find(|p| p.name() == name).map(|p| &**p)
    }

    async fn route(&self, method: &str, path: &str, query: &str, body: &[u8]) -> Option<(u16, Value)> {
        match &self.routes {
            Some(routes) => routes.handle(method, path, query, body).await,
            None => None,
        }
    }

    fn readiness(&self) -> Reply {
        let missing: Vec<String> =
            self.parts.iter().filter_map(|p| p.ready().err().map(|why| format!("{}: {why}\n", p.name()))).collect();
        if missing.is_empty() { Reply::text(200, "ok\n") } else { Reply::text(503, missing.concat()) }
    }

    /// On a manager the cluster's status, with this process's own beside it; elsewhere the latter alone.
    async fn status(&self, query: &str) -> Reply {
        let (code, cluster) = self.route("GET", "/status", query, &[]).await.unwrap_or((200, json!({})));
        let mut all = match cluster {
            Value::Object(map) => map,
            other => Map::from_iter([("cluster".to_owned(), other)]),
        };
        let roles = self.parts.iter().map(|p| (p.name().to_owned(), self.shown(&**p)));
        let process = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "clusters": self.routes.as_ref().map(|routes| routes.clusters()).unwrap_or_default(),
            "roles": Map::from_iter(roles),
        });
        all.insert("process".to_owned(), process);
        Reply::json(code, &Value::Object(all))
    }

    fn shown(&self, part: &dyn Part) -> Value {
        // The manager's own state is the rest of the page.
        let state = if part.name() == "manager" { Value::Null } else { part.status() };
        json!({ "ready": part.ready().is_ok(), "waits_for": part.ready().err(), "state": state })
    }
}

/// Compare without telling by the time it takes where the difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

/// A percent-encoded value of a query.
fn decoded(value: &str) -> Option<String> {
    let (mut out, mut bytes) = (Vec::with_capacity(value.len()), value.bytes());
    while let Some(byte) = bytes.next() {
        let digit = |b: Option<u8>| char::from(b?).to_digit(16);
        match byte {
            b'%' => out.push(u8::try_from(digit(bytes.next())? * 16 + digit(bytes.next())?).ok()?),
            b'+' => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Half(bool);
    impl Part for Half {
        fn name(&self) -> &'static str {
            "proxy"
        }
        fn ready(&self) -> Result<(), String> {
            self.0.then_some(()).ok_or_else(|| "no topology yet".to_owned())
        }
        fn status(&self) -> Value {
            json!({ "sessions": 3 })
        }
    }

    struct Leader;
    impl Routes for Leader {
        fn clusters(&self) -> Vec<&str> {
            vec!["demo"]
        }
        fn handle<'a>(&'a self, method: &'a str, path: &'a str, _: &'a str, _: &'a [u8]) -> RouteFuture<'a> {
            let known = matches!((method, path), ("GET", "/status") | ("POST", "/ops/switchover"));
            Box::pin(async move { known.then(|| (200, json!({ "term": 7 }))) })
        }
    }

    #[test]
    fn values_are_decoded_or_refused() {
        assert_eq!(decoded("a%3D%27%C3%A9%27+b").as_deref(), Some("a='é' b"));
        assert_eq!(["%3", "%zz", "%ff"].map(decoded), [None, None, None]);
    }

    fn pages(ready: bool) -> Pages {
        Pages {
            parts: vec![Box::new(Half(ready))],
            routes: Some(Arc::new(Leader)),
            lag_history: None,
            registry: Registry::new(),
            secret: Some(Secret::new("0123456789abcdef")),
            proxy: None,
            reload: None,
        }
    }

    async fn get(pages: &Pages, path: &str) -> (u16, String) {
        let reply = pages.reply("GET", path, "", &[]).await;
        (reply.status, reply.body)
    }

    #[tokio::test]
    async fn a_process_is_ready_when_all_its_roles_are() {
        assert_eq!(get(&pages(true), "/readyz").await, (200, "ok\n".into()));
        assert_eq!(get(&pages(false), "/readyz").await, (503, "proxy: no topology yet\n".into()));
        assert_eq!(get(&pages(false), "/livez").await.0, 200);
    }

    #[tokio::test]
    async fn the_status_is_the_managers_with_the_process_beside_it() {
        let status: Value = serde_json::from_str(&get(&pages(true), "/status").await.1).unwrap();
        assert_eq!(status["term"], 7);
        assert_eq!(status["process"]["clusters"], json!(["demo"]));
        assert_eq!(status["process"]["roles"]["proxy"]["state"]["sessions"], 3);
        assert_eq!(get(&pages(true), "/nothing").await.0, 404);
        assert_eq!(pages(true).reply("POST", "/ops/switchover", "", b"{}").await.status, 200);
    }

    #[tokio::test]
    async fn readiness_is_a_metric_too() {
        let (status, text) = get(&pages(false), "/metrics").await;
        assert_eq!(status, 200);
        assert!(text.contains("pgtenure_admin_ready{role=\"proxy\"} 0"), "{text}");
    }

    #[test]
    fn orders_need_the_whole_secret() {
        let p = pages(true);
        assert!(p.may_order(Some(b"Bearer 0123456789abcdef")));
        for bad in [&b"Bearer 0123456789abcde"[..], b"Bearer 0123456789abcdeX", b"0123456789abcdef", b"Bearer "] {
            assert!(!p.may_order(Some(bad)), "{bad:?}");
        }
        assert!(!p.may_order(None));
        let without = Pages { secret: None, ..pages(true) };
        assert!(!without.may_order(Some(b"Bearer ")));
    }
}
