//! `allow_functions` and `deny_functions`, in `[proxy]` and in `[proxy.databases.NAME]`: functions whose label does not
//! say what they do.
//!
//! What a function does is a matter of the database at the servers, so the lists of all names that lead to one database
//! hold for it together. What a database says of a name comes before what `[proxy]` says of the same.

use super::pools::Database;
use crate::pool::policy::dbname_of;
use crate::sql::{FunctionName, is_primary_only};
use cluster::config::BadSetting;
use std::collections::BTreeMap;

/// The lists that hold for a database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// Reads may call these whatever their volatility.
    pub allow: Vec<FunctionName>,
    /// Reads may not call these.
    pub deny: Vec<FunctionName>,
}

/// All lists, as the configuration has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Functions {
    /// `[proxy]`
    all: Lists,
    /// `[proxy.databases.NAME]`, by the database's name at the servers.
    own: BTreeMap<String, Lists>,
}

impl Functions {
    /// What holds for a database, by its name at the servers.
    pub fn of(&self, dbname: &str) -> Lists {
        let Some(own) = self.own.get(dbname) else { return self.all.clone() };
        let with = |own: &[FunctionName], all: &[FunctionName], but: &[FunctionName]| {
            own.iter().chain(all.iter().filter(|name| !but.contains(name))).cloned().collect()
        };
        Lists { allow: with(&own.allow, &self.all.allow, &own.deny), deny: with(&own.deny, &self.all.deny, &own.allow) }
    }

    /// What the database's own lists name, by its name at the servers.
    pub fn own(&self, dbname: &str) -> impl Iterator<Item = &FunctionName> {
        self.own.get(dbname).into_iter().flat_map(|own| own.allow.iter().chain(&own.deny))
    }
}

/// Read all names, those allowed and those denied for all databases, and those of each; what cannot be used is added to
/// `bad`.
pub fn check(
    typed: (&[String], &[String]),
    databases: &BTreeMap<String, Database>,
    bad: &mut Vec<BadSetting>,
) -> Functions {
    let all = lists("proxy", typed, &Lists::default(), bad);
    let mut own: BTreeMap<String, Lists> = BTreeMap::new();
    for (name, database) in databases {
        let known = own.entry(dbname_of(name, database).to_owned()).or_default();
        let typed = (&*database.allow_functions, &*database.deny_functions);
        let more = lists(&format!("proxy.databases.{name}"), typed, known, bad);
        known.allow.extend(more.allow);
        known.deny.extend(more.deny);
    }
    own.retain(|_, lists| *lists != Lists::default());
    Functions { all, own }
}

/// The two lists of one table, beside those of another name of the same database.
fn lists(table: &str, typed: (&[String], &[String]), beside: &Lists, bad: &mut Vec<BadSetting>) -> Lists {
    let (allow_key, deny_key) = (format!("{table}.allow_functions"), format!("{table}.deny_functions"));
    let (allow, deny) = (names(&allow_key, typed.0, bad), names(&deny_key, typed.1, bad));
    for name in &allow {
        let mut complain = |problem: String| bad.push(BadSetting::new(&allow_key, format!("\"{name}\""), problem));
        if deny.contains(name) {
            complain(format!("is in {deny_key} as well"));
        } else if beside.deny.contains(name) {
            complain("is among the deny_functions of another name of the same database".to_owned());
        } else if is_primary_only(&name.name) {
            complain("means the server that it runs on, or a transaction id: it always runs on the primary".to_owned());
        }
    }
    for name in deny.iter().filter(|name| beside.allow.contains(name)) {
        let problem = "is among the allow_functions of another name of the same database";
        bad.push(BadSetting::new(&deny_key, format!("\"{name}\""), problem));
    }
    Lists { allow, deny }
}

fn names(key: &str, typed: &[String], bad: &mut Vec<BadSetting>) -> Vec<FunctionName> {
    let mut names = Vec::with_capacity(typed.len());
    for text in typed {
        match text.parse::<FunctionName>() {
            Ok(name) => names.push(name),
            Err(error) => bad.push(BadSetting::new(key, format!("{text:?}"), error.to_string())),
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(dbname: Option<&str>, allow: &[&str], deny: &[&str]) -> Database {
        let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Database {
            dbname: dbname.map(str::to_owned),
            allow_functions: texts(allow),
            deny_functions: texts(deny),
            ..Database::default()
        }
    }

    fn checked(all: &Database, databases: Vec<(&str, Database)>) -> (Functions, Vec<String>) {
        let databases = databases.into_iter().map(|(name, d)| (name.to_owned(), d)).collect();
        let mut bad = Vec::new();
        let functions = check((&all.allow_functions, &all.deny_functions), &databases, &mut bad);
        (functions, bad.iter().map(BadSetting::to_string).collect())
    }

    fn shown(names: &[FunctionName]) -> String {
        names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_database_says_of_its_functions_what_all_do_not() {
        let of_shop = database(None, &["s.report", "tick"], &["f"]);
        let alias = database(Some("shop"), &["Stamp"], &[]);
        let all = database(None, &["f", "g"], &["tick", "h"]);
        let (functions, bad) = checked(&all, vec![("shop", of_shop), ("old_shop", alias)]);
        assert_eq!(bad, [""; 0]);
        for (dbname, allow, deny) in [("shop", "stamp s.report tick g", "f h"), ("other", "f g", "tick h")] {
            let lists = functions.of(dbname);
            assert_eq!((shown(&lists.allow).as_str(), shown(&lists.deny).as_str()), (allow, deny), "{dbname}");
        }
        assert_eq!(functions.own("shop").count(), 4);
        assert_eq!(functions.own("other").count(), 0);
    }

    #[test]
    fn names_that_cannot_be_used_are_told_with_their_table() {
        let one = database(None, &["f(int)", "g", "txid_current"], &["a.b.c", "g"]);
        let alias = database(Some("one"), &["x"], &[]);
        let other = database(Some("one"), &[], &["x"]);
        let all = database(None, &["my report"], &["\"f"]);
        let (_, bad) = checked(&all, vec![("one", one), ("two", alias), ("zwei", other)]);
        assert_eq!(
            bad,
            [
                "proxy.allow_functions = \"my report\": must have double quotes around a name with ' ' in it",
                "proxy.deny_functions = \"\\\"f\": must have each quoted part between two double quotes",
                "proxy.databases.one.allow_functions = \"f(int)\": must be without arguments: all functions of that \
                 name are meant",
                "proxy.databases.one.deny_functions = \"a.b.c\": must have one dot at most, as in schema.name; quote \
                 what has a dot in it",
                "proxy.databases.one.allow_functions = \"g\": is in proxy.databases.one.deny_functions as well",
                "proxy.databases.one.allow_functions = \"txid_current\": means the server that it runs on, or a \
                 transaction id: it always runs on the primary",
                "proxy.databases.zwei.deny_functions = \"x\": is among the allow_functions of another name of the same \
                 database",
            ]
        );
    }
}
