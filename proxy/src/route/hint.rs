//! What a statement says of itself in a comment before its first word: `/* pgtenure: read_from=primary */ select 1`.
//!
//! It is read from the client's own text each time the text is executed, so that sessions which share a prepared
//! statement on a server do not share the first one's hint.

use super::promise::PREFIX;

/// Longest comment that is read, bytes.
const LONGEST: usize = 256;

/// The settings that a text names for itself, in full and in lower case, with their values. None when it has no such
/// comment, and when the comment cannot be read: it is a comment.
pub fn settings(sql: &[u8]) -> Vec<(String, String)> {
    let text = sql.trim_ascii_start();
    let Some(comment) = text.strip_prefix(b"/*") else { return Vec::new() };
    let comment = &comment[..comment.len().min(LONGEST)];
    let Some(end) = comment.windows(2).position(|w| w == b"*/") else { return Vec::new() };
    let Ok(comment) = std::str::from_utf8(&comment[..end]) else { return Vec::new() };
    let Some(words) = comment.trim_start().strip_prefix("pgtenure:") else { return Vec::new() };
    words.split(',').filter_map(|pair| pair.split_once('=')).map(setting).collect()
}

fn setting((name, value): (&str, &str)) -> (String, String) {
    let value = value.trim();
    let plain = value.strip_prefix('\'').and_then(|v| v.strip_suffix('\'')).unwrap_or(value);
    (format!("{PREFIX}{}", name.trim().to_ascii_lowercase()), plain.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_before_the_first_word_is_read() {
        for (sql, want) in [
            ("/* pgtenure: consistency=eventual */ select 1", &[("pgtenure.consistency", "eventual")][..]),
            (
                " \n/*pgtenure: Max_Replay_Lag = '500ms',after=3-3-0/1 */select 1",
                &[("pgtenure.max_replay_lag", "500ms"), ("pgtenure.after", "3-3-0/1")],
            ),
            ("/* pgtenure: */ select 1", &[]),
            ("/* other: read_from=primary */ select 1", &[]),
            ("select /* pgtenure: read_from=primary */ 1", &[]),
            ("-- pgtenure: read_from=primary\nselect 1", &[]),
            ("/* pgtenure: read_from=primary", &[]),
            ("", &[]),
        ] {
            let got = settings(sql.as_bytes());
            let got: Vec<_> = got.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            assert_eq!(got, want, "{sql}");
        }
        let long = format!("/* pgtenure: read_from=primary {} */ select 1", "x".repeat(LONGEST));
        assert_eq!(settings(long.as_bytes()), []);
    }
}
