//! Rust source as far as the tidy tests read it: without comments, strings and tests; its imports, its paths.

/// `source` with comments, string and character literals blanked out and everything from the first `#[cfg(test)]`
/// on removed. Line breaks stay, so that line numbers hold.
pub fn code_only(source: &str) -> String {
    let blank = blank_literals(source);
    // By convention tests come last in a file.
    let end = blank.find("#[cfg(test)]").unwrap_or(blank.len());
    blank[..end].to_owned()
}

fn blank_literals(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut i = 0;
    while i < bytes.len() {
        let end = literal_end(bytes, i);
        if end > i {
            for b in &mut out[i..end] {
                if *b != b'\n' {
                    *b = b' ';
                }
            }
            i = end;
        } else {
            i += 1;
        }
    }
    String::from_utf8(out).expect("only whole literals are blanked")
}

/// Where the comment or literal that begins at `i` ends; `i` when none does.
fn literal_end(s: &[u8], i: usize) -> usize {
    let find = |from: usize, what: &[u8]| {
        s[from..].windows(what.len()).position(|w| w == what).map_or(s.len(), |p| from + p + what.len())
    };
    let word_before = i > 0 && (s[i - 1].is_ascii_alphanumeric() || s[i - 1] == b'_');
    match s[i] {
        b'/' if s.get(i + 1) == Some(&b'/') => s[i..].iter().position(|b| *b == b'\n').map_or(s.len(), |p| i + p),
        b'/' if s.get(i + 1) == Some(&b'*') => find(i + 2, b"*/"),
        b'"' => quoted_end(s, i),
        b'r' if !word_before || s[i - 1] == b'b' => {
            let hashes = s[i + 1..].iter().take_while(|b| **b == b'#').count();
            if s.get(i + 1 + hashes) != Some(&b'"') {
                return i;
            }
            let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
            find(i + 2 + hashes, &close)
        }
        // A character literal, not a lifetime: 'x' or an escape.
        b'\'' if s.get(i + 1) == Some(&b'\\') => {
            s[i + 3..].iter().position(|b| *b == b'\'').map_or(s.len(), |p| i + p + 4)
        }
        b'\'' if s.get(i + 2) == Some(&b'\'') => i + 3,
        _ => i,
    }
}

fn quoted_end(s: &[u8], i: usize) -> usize {
    let mut j = i + 1;
    while j < s.len() && s[j] != b'"' {
        j += 1 + usize::from(s[j] == b'\\');
    }
    (j + 1).min(s.len())
}

/// Every path that the `use` declarations of `code` bring in, groups taken apart: `std::fs::File`. `as` names and
/// visibility are dropped.
pub fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(at) = find_word(rest, "use") {
        let Some(end) = rest[at..].find(';') else { break };
        flatten("", &rest[at + 3..at + end], &mut found);
        rest = &rest[at + end..];
    }
    found
}

fn flatten(prefix: &str, tree: &str, found: &mut Vec<String>) {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or(tree);
        let whole: String = format!("{prefix}{path}").split_whitespace().collect();
        found.push(whole.trim_end_matches("::self").to_owned());
        return;
    };
    let prefix = format!("{prefix}{}", tree[..open].trim());
    let inner = &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())];
    let (mut depth, mut start) = (0, 0);
    for (i, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                flatten(&prefix, &inner[start..i], found);
                start = i + 1;
            }
            _ => {}
        }
    }
    if !inner[start..].trim().is_empty() {
        flatten(&prefix, &inner[start..], found);
    }
}

/// Every `a::b::c` written in `code`, imports included in their flat form.
pub fn paths(code: &str) -> Vec<String> {
    let mut found = imports(code);
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = code.split(|c| !is_path(c)).map(|w| w.trim_matches(':'));
    found.extend(words.filter(|w| w.contains("::")).map(str::to_owned));
    found
}

/// Where `word` stands in `text` as a whole word, not as part of a longer one.
pub fn find_word(text: &str, word: &str) -> Option<usize> {
    let letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let whole = |at: usize| !letter(text[..at].chars().next_back()) && !letter(text[at + word.len()..].chars().next());
    text.match_indices(word).map(|(at, _)| at).find(|at| whole(*at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_comments_are_blank_and_the_rest_stays() {
        let check = |source: &str, expected: &str| {
            let words: Vec<String> = code_only(source).split_whitespace().map(str::to_owned).collect();
            assert_eq!(words.join(" "), expected, "{source}");
        };
        check("a // use std::fs\nb", "a b");
        check(r#"f("std::fs \" x", 'y', '\'') + g::<'a>()"#, "f( , , ) + g::<'a>()");
        check("r#\"a\"b\"# c", "c");
        check("x\n#[cfg(test)]\nmod tests { use std::fs; }", "x");
    }

    #[test]
    fn a_group_of_imports_is_taken_apart() {
        let found = imports("pub use std::{fs::{self, File}, time::Duration as D};\nuse crate::lsn::Lsn;");
        assert_eq!(found, ["std::fs", "std::fs::File", "std::time::Duration", "crate::lsn::Lsn"]);
    }
}
