//! `/metrics`: every role's metrics, and those of the process itself.

use super::pages::{Part, Reply};
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, GaugeVec, IntGaugeVec, Opts, Registry, TextEncoder, core::Collector};
use tracing::warn;

/// Prometheus text, version 0.0.4.
const KIND: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The page.
pub(super) fn page(registry: &Registry, parts: &[Box<dyn Part>]) -> Reply {
    let mut families = registry.gather();
    families.extend(own(parts));
    let mut body = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&families, &mut body) {
        warn!(%error, "cannot encode metrics");
        return Reply::error(500, "the metrics could not be encoded; the log says why");
    }
    Reply { status: 200, kind: KIND, body: String::from_utf8_lossy(&body).into_owned() }
}

/// `pgtenure_admin_ready{role}` and `pgtenure_admin_build_info{version}`.
fn own(parts: &[Box<dyn Part>]) -> Vec<MetricFamily> {
    let ready =
        IntGaugeVec::new(Opts::new("pgtenure_admin_ready", "1 when the role is ready, as in /readyz"), &["role"]);
    let info = GaugeVec::new(Opts::new("pgtenure_admin_build_info", "Always 1; the version is a label"), &["version"]);
    let (ready, info) = (ready.expect("a valid metric name"), info.expect("a valid metric name"));
    for part in parts {
        ready.with_label_values(&[part.name()]).set(i64::from(part.ready().is_ok()));
    }
    info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
    ready.collect().into_iter().chain(info.collect()).collect()
}
