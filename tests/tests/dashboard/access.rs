//! Texts are for who may read them; what everybody gets says what a browser may do with it.

use std::io::{Read, Write};
use std::net::TcpStream;

use g2rl_tests::big_journal::Size;
use g2rl_tests::cluster::DEADLINE;

use super::shown::Shown;

const SMALL: Size = Size { steps: 3, groups: 2, group_size: 2 };
const TOKEN: &str = "0123456789abcdef-known";
const TEXTS: [&str; 4] = ["/api/config", "/api/groups", "/api/groups/1", "/api/groups/1/0/text"];
const NUMBERS: [&str; 6] =
    ["/", "/assets/js/app.js", "/api/run", "/api/curves", "/api/geometry", "/api/stalls"];

/// Head and body of an answer.
fn ask(shown: &Shown, method: &str, path: &str, headers: &str) -> (String, String) {
    let mut stream = TcpStream::connect(&shown.address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "{method} {path} HTTP/1.0\r\n{headers}\r\n\r\n").unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let answer = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn status(shown: &Shown, path: &str, headers: &str) -> String {
    let (head, _) = ask(shown, "GET", path, headers);
    head.split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn with_a_token_texts_are_for_who_sends_it() {
    let shown = Shown::start(SMALL, Some(TOKEN));
    for path in TEXTS {
        assert_eq!(status(&shown, path, "host: localhost"), "401", "{path}");
        assert_eq!(status(&shown, path, "authorization: Bearer 0123456789abcdef-wrong"), "401", "{path}");
        assert_eq!(status(&shown, path, &format!("authorization: Bearer {TOKEN}")), "200", "{path}");
    }
    for path in NUMBERS {
        let (head, body) = ask(&shown, "GET", path, "host: localhost");
        assert!(head.contains(" 200 ") && !body.contains(TOKEN), "{path}: {head}");
    }
}

#[test]
fn without_a_token_texts_are_for_this_machine_under_its_own_name() {
    let shown = Shown::start(SMALL, None);
    for path in TEXTS {
        assert_eq!(status(&shown, path, &format!("host: {}", shown.address)), "200", "{path}");
        // The page of another site whose name points here.
        assert_eq!(status(&shown, path, "host: evil.example"), "403", "{path}");
    }
}

#[test]
fn every_answer_says_what_a_browser_may_do_with_it() {
    let shown = Shown::start(SMALL, None);
    let local = format!("host: {}", shown.address);
    for path in
        TEXTS.iter().chain(&NUMBERS).chain(&["/api/groups/99", "/assets/js/none.js", "/assets/../Cargo.toml"])
    {
        let (head, _) = ask(&shown, "GET", path, &local);
        let head = head.to_ascii_lowercase();
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
        ] {
            assert!(head.contains(header), "{path} lacks {header}:\n{head}");
        }
        let cache = if path.starts_with("/api/") { "cache-control: no-store" } else { "cache-control: no-" };
        assert!(head.contains(cache), "{path}: {head}");
        assert!(!head.contains("access-control-allow"), "{path}: {head}");
    }
    // A response is text, whatever it holds.
    let (head, body) = ask(&shown, "GET", "/api/groups/0/0/text", &local);
    assert!(head.contains("text/plain") && body.contains("<script>"), "{head}\n{body}");
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        for path in ["/", "/api/run", "/api/groups/1"] {
            assert!(ask(&shown, method, path, &local).0.contains(" 405 "), "{method} {path}");
        }
    }
}
