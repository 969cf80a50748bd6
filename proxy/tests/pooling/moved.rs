//! A reload leads a database elsewhere while its clients are there.

use super::*;

#[test]
fn clients_of_a_database_that_leads_elsewhere_now_are_sent_away_outside_of_transactions() {
    let mut settings = None;
    let alias = |dbname: &str| Database { dbname: Some(dbname.into()), ..Database::default() };
    let c = Cluster::start(0, |raw| {
        raw.databases.insert("shop".into(), alias("app"));
        settings = Some(raw.clone());
    });
    let mut changed = settings.unwrap();
    let mut reload = |dbname: &str| {
        changed.databases.insert("shop".into(), alias(dbname));
        let config = proxy::config::check(changed.clone()).unwrap();
        c.handle.as_ref().unwrap().control().reload(config).unwrap();
    };
    let shop = || Raw::login(c.port, &[("database", "shop")]);
    let (mut idle, mut waits, mut other) = (shop(), shop(), Raw::login(c.port, &[]));
    let which = "select current_database()";
    assert_eq!(words(&idle.query(which)), "T | D app | C SELECT 1 | Z I");
    // What waits for the end of a pause has not begun.
    order(&c, Order::Pause, Scope::Database("shop".into()), LIMIT).unwrap();
    waits.write(|out| write_query(out, which));
    wait_until_waiting(&c, 1);
    reload("postgres");
    for client in [&mut idle, &mut waits] {
        assert_eq!((client.next(), client.next()), ("E 57P01".into(), "EOF".into()));
    }
    order(&c, Order::Resume, Scope::Database("shop".into()), LIMIT).unwrap();
    // What has begun goes on to its end.
    let mut inside = shop();
    inside.query("begin");
    reload("app");
    assert_eq!(words(&inside.query(which)), "T | D postgres | C SELECT 1 | Z T");
    assert_eq!(words(&inside.query("commit")), "C COMMIT | Z I");
    assert_eq!((inside.next(), inside.next()), ("E 57P01".into(), "EOF".into()));
    assert_eq!(words(&shop().query(which)), "T | D app | C SELECT 1 | Z I");
    assert_eq!(words(&other.query(which)), "T | D app | C SELECT 1 | Z I");
}
