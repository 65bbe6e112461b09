//! Finding the answer in a response.

use super::super::after_thinking;

/// The inside of the last complete `\boxed{...}` or `\fbox{...}` (braces nested), or the token after
/// a bare `\boxed`.
#[must_use]
pub fn last_boxed(text: &str) -> Option<&str> {
    let mut end = text.len();
    // Only the last few boxes are looked at: a response of nothing but boxes stays cheap.
    for _ in 0..16 {
        let at = ["\\boxed", "\\fbox"].iter().filter_map(|command| text[..end].rfind(command)).max()?;
        let rest = text[at + 1..].trim_start_matches(|c: char| c.is_ascii_alphabetic());
        if let Some(inside) = rest.trim_start().strip_prefix('{') {
            if let Some(inside) = until_closing(inside) {
                return Some(inside);
            }
        } else if let Some(word) = rest.split_whitespace().next() {
            return Some(word.trim_matches(|c| matches!(c, '$' | '.' | ',')));
        }
        end = at;
    }
    None
}

/// Up to the brace that closes the one before the text.
fn until_closing(text: &str) -> Option<&str> {
    let mut depth = 1u32;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(&text[..at]);
                }
            }
            _ => {}
        }
    }
    None
}

/// The last number of a text, with sign, thousands separators and decimals.
fn last_number(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let end = bytes.iter().rposition(u8::is_ascii_digit)? + 1;
    let inside = |b: &u8| b.is_ascii_digit() || matches!(b, b',' | b'.');
    let mut start = bytes[..end].iter().rposition(|b| !inside(b)).map_or(0, |at| at + 1);
    while matches!(bytes[start], b',' | b'.') {
        start += 1;
    }
    if start > 0 && bytes[start - 1] == b'-' {
        start -= 1;
    }
    Some(&text[start..end])
}

/// The answer of a response: the last box, else by option its last number.
#[must_use]
pub fn answer(response: &str, number_as_fallback: bool) -> Option<&str> {
    let text = after_thinking(response);
    last_boxed(text).or_else(|| if number_as_fallback { last_number(text) } else { None }).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_complete_box_counts() {
        assert_eq!(last_boxed(r"\boxed{1} then \boxed{\frac{1}{2}}."), Some(r"\frac{1}{2}"));
        assert_eq!(last_boxed(r"\boxed{\{1,2\}}"), Some(r"\{1,2\}"));
        assert_eq!(last_boxed(r"\boxed{3} and \boxed{4"), Some("3"));
        assert_eq!(last_boxed(r"$\boxed 7$."), Some("7"));
        assert_eq!(last_boxed("no box"), None);
    }

    #[test]
    fn thinking_is_not_the_answer() {
        assert_eq!(answer(r"<think>\boxed{1}</think> \boxed{2}", false), Some("2"));
        assert_eq!(answer(r"<think>\boxed{1}</think> so 2", false), None);
        assert_eq!(answer("it is 1,234.50.", true), Some("1,234.50"));
        assert_eq!(answer("x = -3", true), Some("-3"));
    }
}
