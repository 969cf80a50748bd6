//! Reads a TOML file into a raw configuration and lists everything wrong with it at once, each with its line.

use super::shape::Shape;
use cluster::config::BadSetting;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt;
use toml::de::{DeTable, DeValue};

/// Keys that are no more, and what to do about them.
const REMOVED: [(&str, &str); 1] =
    [("etcd.lease_margin", "it never had an effect; the primary's is agent.lease_margin, so remove this one")];

/// Something wrong with a configuration file, as shown to a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, 1 for the first; `None` when the key is not in the file.
    pub line: Option<usize>,
    /// What is wrong, beginning with the full dotted key.
    pub text: String,
}

/// A file that was read: the raw values, and on which line each key stands.
#[derive(Debug)]
pub(super) struct Parsed<T> {
    /// The values, defaults where a key is absent or its value is wrong.
    pub raw: T,
    /// Lines of the keys present.
    pub lines: BTreeMap<String, usize>,
    /// Everything wrong so far.
    pub problems: Vec<Problem>,
    /// Keys that are no more.
    pub removed: Vec<Problem>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Parse `text` as `T`, whose keys are `shape`.
pub(super) fn parse<T: DeserializeOwned + Default>(text: &str, shape: &Shape) -> Parsed<T> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let problems = errors
            .iter()
            .map(|e| Problem { line: e.span().map(|s| line_at(text, s.start)), text: e.message().to_owned() })
            .collect();
        return Parsed { raw: T::default(), lines: BTreeMap::new(), problems, removed: Vec::new() };
    }
    let mut walk = Walk { text, known: shape.leaves(), ..Walk::default() };
    walk.table("", document.get_ref(), shape);
    let Walk { lines, leaves, mut problems, removed, .. } = walk;

    let values: toml::Table = text.parse().unwrap_or_default();
    let mut good = toml::Table::new();
    for key in leaves {
        let Some(value) = value_at(&values, &key) else { continue };
        let mut alone = toml::Table::new();
        put_at(&mut alone, &key, value.clone());
        match alone.try_into::<T>() {
            Ok(_) => put_at(&mut good, &key, value.clone()),
            Err(e) => problems
                .push(Problem { line: lines.get(&key).copied(), text: format!("{key}: {}", e.message().trim_end()) }),
        }
    }
    let raw = good.try_into().unwrap_or_else(|e: toml::de::Error| {
        problems.push(Problem { line: None, text: e.message().to_owned() });
        T::default()
    });
    Parsed { raw, lines, problems, removed }
}

impl<T> Parsed<T> {
    /// Add what a section's check found.
    pub(super) fn add(&mut self, bad: Vec<BadSetting>) {
        let lines = &self.lines;
        let problem = |b: BadSetting| Problem { line: lines.get(&b.key).copied(), text: b.to_string() };
        self.problems.extend(bad.into_iter().map(problem));
    }
}

/// Collects the lines of known keys and complains about the others.
#[derive(Default)]
struct Walk<'a> {
    text: &'a str,
    known: Vec<String>,
    lines: BTreeMap<String, usize>,
    leaves: Vec<String>,
    problems: Vec<Problem>,
    removed: Vec<Problem>,
}

impl Walk<'_> {
    fn table(&mut self, prefix: &str, table: &DeTable<'_>, shape: &Shape) {
        for (key, value) in table {
            let full =
                if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
            let line = line_at(self.text, key.span().start);
            let below = match shape {
                Shape::Table(keys) => keys.get(key.get_ref().as_ref()),
                Shape::List(_) | Shape::Free | Shape::Leaf => None,
            };
            match below {
                Some(below) => {
                    self.lines.insert(full.clone(), line);
                    self.value(&full, value.get_ref(), below);
                }
                None => self.unknown(line, &full),
            }
        }
    }

    fn value(&mut self, full: &str, value: &DeValue<'_>, shape: &Shape) {
        match (shape, value) {
            (Shape::Table(_), DeValue::Table(table)) => self.table(full, table, shape),
            (Shape::List(of), DeValue::Array(array)) if matches!(**of, Shape::Table(_)) => {
                let before = self.problems.len();
                for element in array.iter() {
                    if let DeValue::Table(table) = element.get_ref() {
                        let mut inner = Walk { text: self.text, known: self.known.clone(), ..Walk::default() };
                        inner.table(&format!("{full}[]"), table, of);
                        self.problems.append(&mut inner.problems);
                    }
                }
                // A table with an unknown key would fail as a whole and be reported twice.
                if self.problems.len() == before {
                    self.leaves.push(full.to_owned());
                }
            }
            _ => self.leaves.push(full.to_owned()),
        }
    }

    fn unknown(&mut self, line: usize, full: &str) {
        if let Some((_, why)) = REMOVED.iter().find(|(key, _)| *key == full) {
            self.removed.push(Problem { line: Some(line), text: format!("{full}: is no more; {why}") });
            return;
        }
        let near = nearest(full, &self.known).map(|k| format!("; the nearest known key is {k}"));
        let hint = near.unwrap_or_default();
        self.problems.push(Problem { line: Some(line), text: format!("{full}: unknown key{hint}") });
    }
}

pub(super) fn value_at<'a>(table: &'a toml::Table, key: &str) -> Option<&'a toml::Value> {
    let (first, rest) = key.split_once('.').map_or((key, None), |(f, r)| (f, Some(r)));
    let value = table.get(first)?;
    rest.map_or(Some(value), |rest| value_at(value.as_table()?, rest))
}

fn put_at(table: &mut toml::Table, key: &str, value: toml::Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((first, rest)) => {
            let below = table.entry(first).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let toml::Value::Table(below) = below {
                put_at(below, rest, value);
            }
        }
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count()
}

/// The known key most like `full`. A key in the wrong section counts as two mistakes, a misspelling as one per letter.
fn nearest<'a>(full: &str, known: &'a [String]) -> Option<&'a str> {
    let name = |k: &str| k.rsplit('.').next().unwrap_or_default().to_owned();
    let score = |k: &str| distance(full, k).min(distance(&name(full), &name(k)) + 2);
    known.iter().map(String::as_str).min_by_key(|k| score(k))
}

/// Letters to insert, remove, replace or swap with their neighbour to get from `a` to `b` (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let width = b.len() + 1;
    let mut d = vec![0; (a.len() + 1) * width];
    for i in 0..=a.len() {
        for j in 0..width {
            let at = |i: usize, j: usize| d[i * width + j];
            d[i * width + j] = match (i, j) {
                (i, 0) => i,
                (0, j) => j,
                (i, j) => {
                    let replace = at(i - 1, j - 1) + usize::from(a[i - 1] != b[j - 1]);
                    let best = replace.min(at(i - 1, j) + 1).min(at(i, j - 1) + 1);
                    let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                    if swapped { best.min(at(i - 2, j - 2) + 1) } else { best }
                }
            };
        }
    }
    d[d.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::config::Span;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct File {
        proxy: Proxy,
        lagmon: Lagmon,
        users: Vec<User>,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Proxy {
        hold_timeout: Option<Span>,
        pool_size: Option<u32>,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Lagmon {
        probe_interval: Option<Span>,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct User {
        name: String,
    }

    fn check(text: &str, expected: &[(usize, &str)]) {
        let parsed = parse::<File>(text, &Shape::of::<File>());
        let got: Vec<_> = parsed.problems.iter().map(|p| (p.line.unwrap_or(0), p.text.as_str())).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn everything_wrong_is_listed_at_once_with_its_line() {
        check(
            "[proxy]\nhold_timeout = \"30\"\npool_size = \"many\"\n\n[lagmon]\nprobe_intreval = \"1s\"\n",
            &[
                (6, "lagmon.probe_intreval: unknown key; the nearest known key is lagmon.probe_interval"),
                (
                    2,
                    "proxy.hold_timeout: \"30\" is not a duration: expected a whole number and one of ms, s, min, h, d, \
                     as in \"10s\"",
                ),
                (3, "proxy.pool_size: invalid type: string \"many\", expected u32"),
            ],
        );
    }

    #[test]
    fn a_key_in_the_wrong_section_is_told_its_own() {
        check(
            "[proxy]\nprobe_interval = \"1s\"\n",
            &[(2, "proxy.probe_interval: unknown key; the nearest known key is lagmon.probe_interval")],
        );
        check("[[users]]\nnmae = \"a\"\n", &[(2, "users[].nmae: unknown key; the nearest known key is users[].name")]);
    }

    #[test]
    fn a_file_that_is_not_toml_says_where() {
        let parsed = parse::<File>("[proxy]\npool_size = \n", &Shape::of::<File>());
        assert_eq!(parsed.problems[0].line, Some(2), "{:?}", parsed.problems);
    }

    #[test]
    fn good_values_survive_beside_bad_ones() {
        let text = "proxy.pool_size = 7\nproxy.hold_timeout = 3\n[[users]]\nname = \"a\"\n";
        let parsed = parse::<File>(text, &Shape::of::<File>());
        assert_eq!(parsed.raw.proxy, Proxy { hold_timeout: None, pool_size: Some(7) });
        assert_eq!(parsed.raw.users, [User { name: "a".into() }]);
        assert_eq!(parsed.problems.len(), 1);
    }
}
