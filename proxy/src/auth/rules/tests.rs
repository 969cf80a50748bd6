//! Rules and the connections they let in.

use super::*;

fn rules(lines: &[&str]) -> Rules {
    Rules::parse(&lines.iter().map(|&l| l.to_owned()).collect::<Vec<_>>()).expect("the test's rules are right")
}

fn host(address: &str, tls: bool) -> Way {
    Way::Host { address: address.parse().unwrap(), tls }
}

/// The method that `lines` demand of `user` for `database` from `origin`.
fn check(lines: &[&str], way: Way, database: &str, user: &str, want: Option<Method>) {
    let attempt = Attempt { way, database, user, replication: false };
    assert_eq!(rules(lines).demand(&attempt).map(|d| d.method), want, "{lines:?} {attempt:?}");
}

#[test]
fn the_first_rule_that_fits_decides() {
    let lines = ["host all all 10.0.0.0/8 reject", "host app ann all trust", "host all all all md5"];
    check(&lines, host("10.1.2.3", false), "app", "ann", Some(Method::Reject));
    check(&lines, host("11.1.2.3", false), "app", "ann", Some(Method::Trust));
    check(&lines, host("11.1.2.3", false), "app", "bob", Some(Method::Md5));
    check(&lines, Way::Local, "app", "ann", None);
}

#[test]
fn the_type_tells_sockets_and_encryption_apart() {
    let lines = ["local all all peer", "hostssl all all all cert", "hostnossl all all all reject"];
    check(&lines, Way::Local, "d", "u", Some(Method::Peer));
    check(&lines, host("::1", true), "d", "u", Some(Method::Cert));
    check(&lines, host("::1", false), "d", "u", Some(Method::Reject));
    check(&["hostssl all all all scram-sha-256"], host("1.1.1.1", false), "d", "u", None);
}

#[test]
fn networks_contain_what_their_bits_say() {
    for (network, inside, outside) in [
        ("192.168.4.0/22", "192.168.7.255", "192.168.8.0"),
        ("10.0.0.7/32", "10.0.0.7", "10.0.0.6"),
        ("0.0.0.0/0", "255.255.255.255", "::1"),
        ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
        ("::1/128", "::1", "::2"),
        ("10.0.0.0/8", "::ffff:10.1.1.1", "::ffff:11.1.1.1"),
    ] {
        let line = format!("host all all {network} trust");
        check(&[&line], host(inside, false), "d", "u", Some(Method::Trust));
        check(&[&line], host(outside, false), "d", "u", None);
    }
}

#[test]
fn names_are_lists_and_quotes_take_a_keywords_meaning_away() {
    let lines = ["host \"all\", app , \"my db\" \"ann\",bob all trust", "host sameuser all all password"];
    let from = host("1.1.1.1", false);
    check(&lines, from, "all", "bob", Some(Method::Trust));
    check(&lines, from, "my db", "ann", Some(Method::Trust));
    check(&lines, from, "other", "ann", None);
    check(&lines, from, "eve", "eve", Some(Method::Password));
}

#[test]
fn replication_belongs_to_no_database() {
    let rules = rules(&["host all all all trust", "host replication rep all md5"]);
    let attempt = |user| Attempt { way: host("1.1.1.1", false), database: "", user, replication: true };
    assert_eq!(rules.demand(&attempt("rep")).map(|d| d.method), Some(Method::Md5));
    assert_eq!(rules.demand(&attempt("other")), None);
}

#[test]
fn a_certificate_can_be_asked_for_as_well() {
    let rules = rules(&["hostssl all all all scram-sha-256 clientcert=verify-full"]);
    let attempt = Attempt { way: host("1.1.1.1", true), database: "d", user: "u", replication: false };
    let want = Demand { method: Method::Scram, certificate: Certificate::OfUser };
    assert_eq!(rules.demand(&attempt), Some(want));
}

#[test]
fn a_rule_that_cannot_mean_what_it_says_is_refused() {
    for (line, want) in [
        ("host all all", "expected TYPE DATABASE USER [ADDRESS] METHOD, the address for all types but local"),
        ("host all all all", "expected TYPE DATABASE USER [ADDRESS] METHOD, the address for all types but local"),
        ("hosts all all all md5", "\"hosts\" is not one of local, host, hostssl, hostnossl"),
        (
            "host all all 10.0.0.0 md5",
            "\"10.0.0.0\" is neither all nor an address with its number of bits, as in 10.0.0.0/8",
        ),
        (
            "host all all 10.0.0.0/33 md5",
            "\"10.0.0.0/33\" is neither all nor an address with its number of bits, as in 10.0.0.0/8",
        ),
        (
            "host all all samenet md5",
            "\"samenet\" is neither all nor an address with its number of bits, as in 10.0.0.0/8",
        ),
        ("host all all all gss", "\"gss\" is not one of scram-sha-256, md5, password, cert, peer, trust, reject"),
        (
            "host all +staff all md5",
            "\"+staff\" needs what only the server knows: name databases and users one by one, or all",
        ),
        ("host all \"ann all md5", "a quote is not closed"),
        ("host all all all peer", "method peer does not go with type host"),
        ("host all all all cert", "method cert or clientcert does not go with type host"),
        ("hostssl all all all md5 map=x", "\"map=x\" is not one of clientcert=verify-ca, clientcert=verify-full"),
        ("host all all all md5,", "expected TYPE DATABASE USER [ADDRESS] METHOD, the address for all types but local"),
    ] {
        assert_eq!(line.parse::<Rule>().unwrap_err().to_string(), want, "{line}");
    }
}

#[test]
fn trust_from_elsewhere_is_noticed() {
    let lines = [
        "local all all trust",
        "host all all 127.0.0.1/32 trust",
        "host all all ::1/128 trust",
        "host all all 10.0.0.0/8 trust",
        "host all all all trust",
    ];
    let found: Vec<String> = rules(&lines).trusting().map(ToString::to_string).collect();
    assert_eq!(found, ["host from 10.0.0.0/8 by trust", "host from all by trust"]);
}
