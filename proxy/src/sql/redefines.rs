//! Which commands change what routing knows of a database: its functions, and where these hide.

/// Kinds of object whose definition matters to routing. Tables do in that row security may be switched on; new ones do
/// not, as they are made all the time and a standby itself refuses to read an unlogged one.
const KINDS: [&[u8]; 18] = [
    b"FUNCTION",
    b"PROCEDURE",
    b"ROUTINE",
    b"AGGREGATE",
    b"OPERATOR",
    b"CAST",
    b"VIEW",
    b"RULE",
    b"POLICY",
    b"EXTENSION",
    b"SCHEMA",
    b"DOMAIN",
    b"TYPE",
    b"OWNED",
    b"TRIGGER",
    b"EVENT TRIGGER",
    b"SEQUENCE",
    b"FOREIGN",
];

/// May the command that ended with this tag (a zero byte behind it) have changed it? DO runs anything.
/// CALL does too, but is for many the way to run every transaction: what a procedure defines is seen in time.
/// Source: PostgreSQL's src/include/tcop/cmdtaglist.h.
pub fn redefines(tag: &[u8]) -> bool {
    let kind = match tag {
        b"DO\0" | b"ALTER TABLE\0" | b"IMPORT FOREIGN SCHEMA\0" => return true,
        // What was prepared is seen only now.
        b"COMMIT PREPARED\0" => return true,
        [b'C', b'R', b'E', b'A', b'T', b'E', b' ', kind @ ..] => kind,
        [b'A', b'L', b'T', b'E', b'R', b' ', kind @ ..] => kind,
        [b'D', b'R', b'O', b'P', b' ', kind @ ..] => kind,
        _ => return false,
    };
    KINDS.iter().any(|known| kind.starts_with(known))
}

#[cfg(test)]
mod tests {
    use super::redefines;

    #[test]
    fn commands_that_define_what_reads_may_call_are_known_by_their_tags() {
        for tag in [
            "CREATE FUNCTION",
            "ALTER FUNCTION",
            "DROP OPERATOR CLASS",
            "CREATE VIEW",
            "CREATE TRIGGER",
            "ALTER TABLE",
            "CREATE SEQUENCE",
            "CREATE FOREIGN TABLE",
            "IMPORT FOREIGN SCHEMA",
            "COMMIT PREPARED",
            "DO",
        ] {
            assert!(redefines(format!("{tag}\0").as_bytes()), "{tag}");
        }
        for tag in [
            "SELECT 1",
            "CALL",
            "COMMIT",
            "CREATE TABLE",
            "DROP TABLE",
            "ALTER ROLE",
            "COPY 3",
            "CLOSE CURSOR",
            "DELETE 1",
            "",
        ] {
            assert!(!redefines(format!("{tag}\0").as_bytes()), "{tag}");
        }
    }
}
