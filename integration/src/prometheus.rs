//! Debian's Prometheus against a running cluster, and the expressions that dashboards and alerts ask it.

use crate::http;
use crate::ports::free_port;
use crate::process::{Process, unprivileged};
use crate::scratch::Scratch;
use crate::wait::wait_for;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// A running Prometheus.
#[derive(Debug)]
pub struct Prometheus {
    addr: SocketAddr,
    _process: Process,
}

impl Prometheus {
    /// Start one on this configuration file and wait until it is ready.
    ///
    /// # Panics
    /// When it is not installed or does not become ready.
    pub fn start(scratch: &Scratch, config: &Path) -> Self {
        let addr: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let dir = scratch.dir("prometheus");
        let mut command = unprivileged("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("data").display()));
        command.arg(format!("--web.listen-address={addr}"));
        let log = scratch.dir("log").join("prometheus.log");
        let process = Process::spawn("prometheus", command, &dir, &log);
        let prometheus = Self { addr, _process: process.expect("Prometheus is installed (Debian package prometheus)") };
        wait_for("Prometheus to be ready", Duration::from_secs(60), || {
            match http::get(addr, "/-/ready", Duration::from_secs(2)) {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        prometheus
    }

    /// The value of an instant query: Prometheus's `data.result`.
    ///
    /// # Errors
    /// When it does not answer or calls the expression wrong.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let path = format!("/api/v1/query?query={}", http::encode(expression));
        let (status, body) = http::get(self.addr, &path, Duration::from_secs(10))?;
        let answer: Value = serde_json::from_str(&body)?;
        if status != 200 || answer["status"] != "success" {
            bail!("{expression}: {status} {}", answer["error"]);
        }
        match &answer["data"]["result"] {
            // A scalar comes as [time, value], one element for our purpose.
            Value::Array(list) if answer["data"]["resultType"] == "scalar" => Ok(vec![Value::Array(list.clone())]),
            Value::Array(list) => Ok(list.clone()),
            other => bail!("{expression}: no result in {other}"),
        }
    }
}

/// Every query of a Grafana dashboard as (where, expression), its variables replaced by what matches everything.
///
/// # Errors
/// When the file is not a dashboard.
pub fn dashboard_expressions(dashboard: &str) -> Result<Vec<(String, String)>> {
    let json: Value = serde_json::from_str(dashboard)?;
    let mut found = Vec::new();
    panels(json["panels"].as_array().context("a dashboard has panels")?, &mut found);
    for a in json["annotations"]["list"].as_array().into_iter().flatten() {
        if let Some(expr) = a["expr"].as_str() {
            found.push((format!("annotation {}", a["name"]), without_variables(expr)));
        }
    }
    Ok(found)
}

fn panels(list: &[Value], found: &mut Vec<(String, String)>) {
    for panel in list {
        for target in panel["targets"].as_array().into_iter().flatten() {
            if let Some(expr) = target["expr"].as_str() {
                found.push((format!("panel {}", panel["title"]), without_variables(expr)));
            }
        }
        panels(panel["panels"].as_array().map_or(&[], Vec::as_slice), found);
    }
}

/// Grafana's interval variables become a minute, every other variable "anything".
fn without_variables(expr: &str) -> String {
    let mut out = String::new();
    let mut rest = expr;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let braced = after.starts_with('{');
        let name_at = usize::from(braced);
        let name_len =
            after[name_at..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(after.len() - name_at);
        let name = &after[name_at..name_at + name_len];
        let end = if braced { after.find('}').map_or(after.len(), |i| i + 1) } else { name_at + name_len };
        out.push_str(if name.starts_with("__") { "1m" } else { ".*" });
        rest = &after[end..];
    }
    out + rest
}

/// The alerts of a rule file as (name, expression). Only what promtool accepts is expected: it checks the file.
pub fn alert_expressions(rules: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut lines = rules.lines().peekable();
    let mut name = None;
    while let Some(line) = lines.next() {
        let indent = line.len() - line.trim_start().len();
        let field = line.trim_start().trim_start_matches("- ");
        if let Some(alert) = field.strip_prefix("alert:") {
            name = Some(alert.trim().to_owned());
        }
        let Some(expr) = field.strip_prefix("expr:") else { continue };
        let mut text = expr.trim().trim_matches(['"', '\'']).to_owned();
        if text.is_empty() || text.starts_with(['|', '>']) {
            text.clear();
            while let Some(more) = lines.next_if(|l| l.trim().is_empty() || l.len() - l.trim_start().len() > indent) {
                text = format!("{text} {}", more.trim());
            }
        }
        if let Some(name) = name.take() {
            found.push((name, text.trim().to_owned()));
        }
    }
    found
}

/// The operands of an alert's condition: what is compared, without the comparison, and what is joined by and, or,
/// unless. Each must return data on a healthy cluster for the alert to be able to fire at all.
pub fn operands(expression: &str) -> Vec<String> {
    const SPLITS: [&str; 9] = [" and ", " or ", " unless ", "==", "!=", ">=", "<=", ">", "<"];
    let text = strip_parentheses(expression.trim());
    let mut depth = 0usize;
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), _) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '(' | '{' | '[') => depth += 1,
            (None, ')' | '}' | ']') => depth = depth.saturating_sub(1),
            (None, _) if depth == 0 => {
                if let Some(op) = SPLITS.iter().find(|op| text[at..].starts_with(**op)) {
                    let right = text[at + op.len()..].trim();
                    return [operands(&text[..at]), operands(without_matching(right))].concat();
                }
            }
            (None, _) => {}
        }
    }
    vec![text.to_owned()]
}

/// Without `on (...)`, `ignoring (...)`, `group_left (...)`, `bool` behind an operator.
fn without_matching(text: &str) -> &str {
    let mut rest = text.trim_start();
    loop {
        let before = rest;
        if let Some(r) = rest.strip_prefix("bool ") {
            rest = r.trim_start();
        }
        for word in ["on", "ignoring", "group_left", "group_right"] {
            if let Some(r) = rest.strip_prefix(word).map(str::trim_start).filter(|r| r.starts_with('(')) {
                rest = r.find(')').map_or("", |i| r[i + 1..].trim_start());
            }
        }
        if rest == before {
            return rest;
        }
    }
}

fn strip_parentheses(text: &str) -> &str {
    let Some(inner) = text.strip_prefix('(').and_then(|t| t.strip_suffix(')')) else { return text };
    let mut depth = 0i32;
    for c in inner.chars() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth < 0 {
            // `(a) > (b)`: the first and the last parenthesis are not a pair.
            return text;
        }
    }
    strip_parentheses(inner.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_falls_apart_into_what_it_compares() {
        let check = |expr: &str, expected: &[&str]| assert_eq!(operands(expr), expected, "{expr}");
        check("up == 0", &["up", "0"]);
        check("(a > 1) and on (node) b < 2", &["a", "1", "b", "2"]);
        check("sum by (x) (rate(m{l=~\"a>b\"}[5m])) >= 3", &["sum by (x) (rate(m{l=~\"a>b\"}[5m]))", "3"]);
        check("max(a) unless ignoring(node) b", &["max(a)", "b"]);
        check("absent(a)", &["absent(a)"]);
    }

    #[test]
    fn variables_of_a_dashboard_match_everything() {
        let check = |expr: &str, expected: &str| assert_eq!(without_variables(expr), expected);
        check("rate(m{node=~\"$node\"}[$__rate_interval])", "rate(m{node=~\".*\"}[1m])");
        check("m{c=\"${cluster:regex}\"} > 1", "m{c=\".*\"} > 1");
    }

    #[test]
    fn alerts_are_found_in_a_rule_file() {
        let rules = "groups:\n- name: g\n  rules:\n  - alert: A\n    expr: up == 0\n    for: 1m\n  - alert: B\n    expr: |\n      a\n      > 1\n    for: 2m\n";
        let expected = [("A".to_owned(), "up == 0".to_owned()), ("B".to_owned(), "a > 1".to_owned())];
        assert_eq!(alert_expressions(rules), expected);
    }
}
