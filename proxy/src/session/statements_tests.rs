use super::*;
use crate::sql::{Access, Control, Names, Pins};

const CLASS: Statement = Statement {
    access: Access::Read,
    quiet: false,
    strange: false,
    control: Control::None,
    may_commit: false,
    pins: Pins::NONE,
    unpins: false,
    advisory: false,
    ours: false,
    aside: false,
    local: crate::sql::Local::Nothing,
    names: Names::None,
};

#[test]
fn the_same_text_types_and_key_share_a_name_until_retired() {
    let mut texts = Texts::new(1 << 40);
    let a = texts.intern(b"select 1\0\0\0", 0);
    assert!(Rc::ptr_eq(&a, &texts.intern(b"select 1\0\0\0", 0)));
    assert_ne!(a.id, texts.intern(b"select 2\0\0\0", 0).id);
    let b = texts.intern(b"select 1\0\0\0", 7);
    assert_ne!(a.id, b.id);
    assert!(Rc::ptr_eq(&b, &texts.intern(b"select 1\0\0\0", 7)));
    texts.retire(&a);
    assert!(a.is_retired() && !b.is_retired());
    assert_ne!(a.id, texts.intern(b"select 1\0\0\0", 0).id);
    assert!(Rc::ptr_eq(&b, &texts.intern(b"select 1\0\0\0", 7)));
}

#[test]
fn the_bytes_of_a_client_follow_its_statements() {
    let (mut texts, mut client) = (Texts::new(0), ClientStatements::default());
    let named = Named::new(b"abc", texts.intern(b"12345", 0), CLASS);
    client.insert(named.clone());
    client.insert(named);
    assert_eq!((client.bytes(), client.len()), (8 + OVERHEAD_HERE, 1));
    assert_eq!(client.own_bytes(), 3 + OVERHEAD_HERE);
    client.insert(Named::new(b"other", texts.intern(b"12345", 0), CLASS));
    client.clear(&[(*b"abc").into()]);
    assert_eq!((client.bytes(), client.len()), (8 + OVERHEAD_HERE, 1));
    assert!(client.remove(b"abc").is_some() && client.remove(b"abc").is_none());
    assert_eq!((client.bytes(), client.own_bytes()), (0, 0));
    client.unnamed = Some(Unnamed { serial: 1, tail: Some(vec![0; 7]), class: CLASS });
    assert_eq!((client.bytes(), client.own_bytes()), (0, 7));
}

#[test]
fn a_text_takes_its_memory_once_and_gives_it_back() {
    let mut texts = Texts::new(0);
    let text = texts.intern(b"12345", 0);
    let one = texts.bytes();
    assert!(one >= 5 + OVERHEAD_HERE);
    let again = texts.intern(b"12345", 0);
    assert_eq!(texts.bytes(), one);
    let own = texts.own(b"a", b"12345");
    assert!(texts.bytes() > one);
    drop((text, own));
    assert_eq!(texts.bytes(), one);
    drop(again);
    assert_eq!(texts.bytes(), 0);
}

#[test]
fn a_full_server_gives_up_what_it_has_not_used_for_longest() {
    let (mut texts, mut server) = (Texts::new(0), ServerStatements::default());
    let text: Vec<_> = (0..5).map(|i| texts.intern(format!("select {i}").as_bytes(), 0)).collect();
    let limit = 3 * text[0].cost() + 100;
    for t in &text[..3] {
        assert!(server.insert(t, limit).is_empty());
    }
    assert!(server.has(text[0].id));
    assert_eq!(server.insert(&text[3], limit), [text[1].id]);
    server.remove(text[1].id).unwrap();
    assert!(!server.has(text[1].id));
    // One that alone is too large is kept all the same, and alone.
    let mut evicted = server.insert(&text[4], 1);
    evicted.sort_unstable();
    assert_eq!(evicted, [text[0].id, text[2].id, text[3].id]);
    evicted.iter().for_each(|id| assert!(server.remove(*id).is_some()));
    assert_eq!((server.len(), server.bytes()), (1, text[4].cost()));
    server.clear(&[]);
    assert_eq!((server.has(text[4].id), server.bytes()), (false, 0));
}
