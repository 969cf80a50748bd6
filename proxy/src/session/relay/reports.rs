//! Settings that the server reports on its way through an answer, and what the client is told of them.

use crate::session::relay::{Host, Relay};
use crate::session::tracking::APPLICATION_NAME;
use crate::wire::backend::{self, TxStatus};
use crate::wire::codec::Sink;

/// A setting the server reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// Its name, as the server spells it.
    pub name: String,
    /// Its value there.
    pub value: String,
    /// The value that the client was told in its place; `None` when it is the same.
    pub instead: Option<String>,
}

impl Reported {
    /// What the client was told.
    fn told(&self) -> &str {
        self.instead.as_ref().unwrap_or(&self.value)
    }
}

impl Relay {
    /// A setting is reported that the client is not told of.
    pub(super) fn learn(&mut self, frame: &[u8]) {
        if let Some((name, value)) = backend::parameter_status(frame) {
            let (name, value) = (name.to_owned(), value.into_owned());
            self.reported.push(Reported { name, value, instead: None });
        }
    }

    /// Nothing has failed, so the name of the application is what it was at the client's login.
    pub(super) fn take_name_back(&mut self, input: &[u8], sink: &mut Sink, host: &dyn Host) {
        let Some((login, own)) = host.name_taken_back() else { return };
        let reported = self.reported.iter().any(|r| r.name == APPLICATION_NAME);
        if reported || host.name_known() == Some(own) || !self.errors.is_empty() || self.status == TxStatus::Failed {
            return;
        }
        backend::write_parameter_status(sink.insert(input), APPLICATION_NAME, own);
        let (name, value) = (APPLICATION_NAME.to_owned(), login.to_owned());
        self.reported.push(Reported { name, value, instead: Some(own.to_owned()) });
    }

    /// A setting is reported. The name of the application is passed on as its client knows it, and only when that has
    /// changed.
    pub(super) fn report(
        &mut self,
        frame: &[u8],
        input: &[u8],
        span: std::ops::Range<usize>,
        sink: &mut Sink,
        host: &dyn Host,
    ) {
        let Some((name, value)) = backend::parameter_status(frame) else { return sink.pass(input, span) };
        let mut instead = None;
        if name == APPLICATION_NAME {
            let told = host.name_told(&value);
            instead = told.map(str::to_owned);
            let last = self.reported.iter().rev().find(|r| r.name == name).map(Reported::told);
            match (last.or_else(|| host.name_known()), told) {
                (Some(known), _) if known == told.unwrap_or(&value) => {}
                (_, Some(told)) => backend::write_parameter_status(sink.insert(input), name, told),
                (_, None) => sink.pass(input, span),
            }
        } else {
            sink.pass(input, span);
        }
        self.reported.push(Reported { name: name.to_owned(), value: value.into_owned(), instead });
    }
}
