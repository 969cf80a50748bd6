use super::*;
use pgwire::api::auth::sasl::scram::{ScramSecret, ScramServerAuth};

const SALT: [u8; 16] = [9; 16];
const PLAIN: &[u8] = MECHANISM.as_bytes();
const PLUS: &[u8] = MECHANISM_PLUS.as_bytes();

fn verifier() -> Verifier {
    Verifier::from_password("pencil", SALT, 4096)
}

/// Log in with a password to `server`; what both ends make of it.
fn login(client: &mut ClientSide, server: &mut ServerSide) -> Result<Accepted, ScramError> {
    let server_first = server.first(client.mechanism().as_bytes(), &client.first())?;
    let accepted = server.finish(&client.respond(&server_first)?)?;
    client.finish(&accepted.server_final)?;
    Ok(accepted)
}

fn server() -> ServerSide {
    ServerSide::new(verifier(), [1; NONCE_LEN])
}

#[test]
fn a_verifier_printed_is_read_back() {
    assert_eq!(verifier().to_string().parse(), Ok(verifier()));
    assert_eq!(
        "md5".parse::<Verifier>().unwrap_err().to_string(),
        "not a SCRAM-SHA-256 verifier: it does not start with SCRAM-SHA-256$"
    );
}

#[test]
fn the_exchange_of_rfc_7677_is_reproduced() {
    // RFC 7677 section 3; its nonces are text, so the parts are put together by hand.
    let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let salted = salted_password("pencil", &salt, 4096);
    let client_key = mac(&salted, &[b"Client Key"]);
    let message = "n=user,r=rOprNGfwEbeRWgbNEkqO,\
                   r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,\
                   c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    let proof = xor(client_key, mac(&sha256(&client_key), &[message.as_bytes()]));
    assert_eq!(BASE64.encode(proof), "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
    let signature = mac(&mac(&salted, &[b"Server Key"]), &[message.as_bytes()]);
    assert_eq!(BASE64.encode(signature), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
}

#[test]
fn the_keys_a_login_leaves_log_in_to_a_server_with_the_same_verifier() {
    let accepted = login(&mut ClientSide::with_password("u", "pencil", [2; NONCE_LEN]), &mut server()).unwrap();
    let mut onward = ClientSide::with_keys("u", accepted.keys.clone(), [3; NONCE_LEN]);
    let again = login(&mut onward, &mut server()).unwrap();
    assert_eq!(again.keys, accepted.keys);
}

#[test]
fn pgwires_server_accepts_our_client_and_hands_out_the_same_signature() {
    let salt = SALT.to_vec();
    let salted_password = salted_password("pencil", &SALT, 4096).to_vec();
    let secret = ScramSecret::SaltedPassword { salt, salted_password };
    let keys = login(&mut ClientSide::with_password("u", "pencil", [2; NONCE_LEN]), &mut server()).unwrap().keys;
    let mut client = ClientSide::with_keys("u", keys, [4; NONCE_LEN]);
    let auth = ScramServerAuth::new();
    let (first, state) = auth.on_client_first_message_with_secret(&client.first(), secret).unwrap();
    let last = state.on_client_final_message(&client.respond(first.as_bytes()).unwrap()).unwrap();
    assert_eq!(client.finish(last.as_bytes()), Ok(()));
}

#[test]
fn a_wrong_password_and_an_unknown_user_fail_alike_and_only_at_the_end() {
    let mut wrong = ClientSide::with_password("u", "pen", [2; NONCE_LEN]);
    assert_eq!(login(&mut wrong, &mut server()).unwrap_err(), ScramError::WrongPassword);
    let mock = |secret| ServerSide::new(Verifier::mock("ghost", &[secret; 32]), [1; NONCE_LEN]);
    let mut ghost = ClientSide::with_password("ghost", "pencil", [2; NONCE_LEN]);
    assert_eq!(login(&mut ghost, &mut mock(5)).unwrap_err(), ScramError::WrongPassword);
    let first = |secret| mock(secret).first(PLAIN, &ghost.first()).unwrap();
    assert_eq!(first(5), first(5));
    assert_ne!(first(5), first(6));
}

#[test]
fn the_channel_binding_flags_are_told_apart() {
    let first = |text: &str| server().first(PLAIN, text.as_bytes());
    assert!(first("n,,n=,r=abc").is_ok());
    assert!(first("y,,n=*,r=abc").is_ok());
    assert_eq!(
        first("p=tls-server-end-point,,n=,r=abc"),
        Err(ScramError::Malformed("channel binding data without SCRAM-SHA-256-PLUS"))
    );
}

/// The exchange over TLS; `ours` is the hash of the server's certificate.
fn login_over_tls(channel: Channel, ours: &[u8]) -> Result<Accepted, ScramError> {
    let mut client = ClientSide::with_password("u", "pencil", [2; NONCE_LEN]);
    client.over(channel);
    login(&mut client, &mut server().over_tls(Some(ours.to_vec())))
}

#[test]
fn a_login_over_tls_is_bound_to_the_certificate_both_ends_see() {
    assert!(login_over_tls(Channel::Bound(b"hash".to_vec()), b"hash").is_ok());
    let other = login_over_tls(Channel::Bound(b"another".to_vec()), b"hash").unwrap_err();
    assert_eq!(other, ScramError::OtherChannel);
    // A client that cannot bind is let in, as in PostgreSQL; one that could and was told that we cannot is not.
    assert!(login_over_tls(Channel::Plain, b"hash").is_ok());
    assert_eq!(login_over_tls(Channel::NotOffered, b"hash").unwrap_err(), ScramError::Downgrade);
}

#[test]
fn mechanism_and_flag_must_fit_each_other() {
    let first = |mechanism, text: &str| server().over_tls(Some(vec![1])).first(mechanism, text.as_bytes());
    let malformed = |what| Err(ScramError::Malformed(what));
    assert!(first(PLUS, "p=tls-server-end-point,,n=,r=abc").is_ok());
    for text in ["n,,n=,r=abc", "y,,n=,r=abc"] {
        assert_eq!(first(PLUS, text), malformed("no channel binding data for SCRAM-SHA-256-PLUS"));
    }
    assert_eq!(first(PLUS, "p=tls-unique,,n=,r=abc"), malformed("an unknown type of channel binding"));
    let without = malformed("channel binding data without SCRAM-SHA-256-PLUS");
    assert_eq!(first(PLAIN, "p=tls-server-end-point,,n=,r=abc"), without);
    // Never offered without TLS.
    assert_eq!(server().mechanisms(), [MECHANISM]);
    assert_eq!(server().first(PLUS, b"p=tls-server-end-point,,n=,r=abc"), Err(ScramError::Mechanism));
}

#[test]
fn a_client_without_a_password_says_what_it_lacks() {
    let mut client = ClientSide::with("u", &Credentials::Nothing, [2; NONCE_LEN]);
    let error = login(&mut client, &mut server()).unwrap_err();
    assert_eq!(error, ScramError::NoPassword { user: "u".into() });
}

#[test]
fn a_verifier_knows_its_password() {
    let keys = verifier().matches("pencil").expect("it is the password");
    assert_eq!(login(&mut ClientSide::with_keys("u", keys, [5; NONCE_LEN]), &mut server()).err(), None);
    assert!(verifier().matches("pen").is_none());
}

/// A client that says "y" and then claims another header has been tampered with.
#[test]
fn a_header_that_changes_on_the_way_is_refused() {
    let mut server = server();
    let first = server.first(PLAIN, b"y,,n=,r=abc").unwrap();
    let nonce = std::str::from_utf8(&first).unwrap().split(',').next().unwrap().to_owned();
    let last = format!("c=biws,{nonce},p={}", BASE64.encode([0; 32]));
    let want = ScramError::Malformed("the channel binding differs from the first message's");
    assert_eq!(server.finish(last.as_bytes()).unwrap_err(), want);
}

#[test]
fn garbage_is_malformed_and_never_a_panic() {
    for garbage in
        ["", "n", "n,", "n,,", "n,,n=", "n,,n=,", "n,,n=,r=", "n,a=x,n=,r=abc", "x,,n=,r=abc", "n,,m=,n=,r=a"]
    {
        assert!(matches!(server().first(PLAIN, garbage.as_bytes()), Err(ScramError::Malformed(_))), "{garbage:?}");
    }
    for garbage in ["", "c=biws", "c=biws,r=x,p=", "p=", ",p=x", "c=biws,r=abc,p=!!!"] {
        let mut server = server();
        server.first(PLAIN, b"n,,n=,r=abc").unwrap();
        assert!(matches!(server.finish(garbage.as_bytes()), Err(ScramError::Malformed(_))), "{garbage:?}");
    }
    assert!(matches!(server().finish(b"c=biws,r=x,p=x"), Err(ScramError::Malformed(_))));
    assert!(server().first(PLAIN, &vec![b'n'; MAX_MESSAGE + 1]).is_err());
    let mut client = ClientSide::with_password("u", "pencil", [2; NONCE_LEN]);
    for garbage in ["", "r=", "r=x,s=,i=", "r=other,s=AAAA,i=4096"] {
        assert!(matches!(client.respond(garbage.as_bytes()), Err(ScramError::Malformed(_))), "{garbage:?}");
    }
}

#[test]
fn a_server_with_another_verifier_is_named_as_the_cause() {
    let keys = login(&mut ClientSide::with_password("u", "pencil", [2; NONCE_LEN]), &mut server()).unwrap().keys;
    let onward = |verifier| {
        let mut client = ClientSide::with_keys("u", keys.clone(), [3; NONCE_LEN]);
        login(&mut client, &mut ServerSide::new(verifier, [1; NONCE_LEN])).unwrap_err().to_string()
    };
    assert_eq!(
        onward(Verifier::from_password("pencil", SALT, 5000)),
        "the userlist's verifier for user \"u\" differs from the server's: iterations 4096 here, 5000 there"
    );
    assert_eq!(
        onward(Verifier::from_password("pencil", [8; 16], 4096)),
        "the userlist's verifier for user \"u\" differs from the server's: the salt"
    );
    assert_eq!(onward(Verifier::from_password("other", SALT, 4096)), "wrong password");
}

#[test]
fn a_server_that_does_not_know_the_verifier_is_not_believed() {
    let mut client = ClientSide::with_password("u", "pencil", [2; NONCE_LEN]);
    assert!(client.finish(b"v=AAAA").is_err());
    let first = server().first(PLAIN, &client.first()).unwrap();
    client.respond(&first).unwrap();
    let forged = format!("v={}", BASE64.encode([0; 32]));
    assert_eq!(client.finish(forged.as_bytes()), Err(ScramError::WrongServerSignature));
    assert_eq!(client.finish(b"e=other-error"), Err(ScramError::Refused("other-error".into())));
}

#[test]
fn a_server_cannot_ask_for_endless_work() {
    let mut client = ClientSide::with_password("u", "pencil", [2; NONCE_LEN]);
    let first = format!("r={}x,s=AAAA,i=4000000000", BASE64.encode([2; NONCE_LEN]));
    assert_eq!(client.respond(first.as_bytes()), Err(ScramError::TooManyIterations { asked: 4_000_000_000 }));
}

#[test]
fn nothing_secret_is_in_debug_output() {
    let keys = login(&mut ClientSide::with_password("u", "pencil", [2; NONCE_LEN]), &mut server()).unwrap().keys;
    assert_eq!(format!("{:?} {keys:?}", verifier()), "<verifier> <login keys>");
    let client = ClientSide::with_password("u", "pencil", [2; NONCE_LEN]);
    assert!(!format!("{client:?}").contains("pencil"));
}
