//! Encodings and decodings of 1,000 mixed strings against transformers, for tokenizers of the kinds that
//! Qwen, Llama 3 and SentencePiece models have. The expected values are made by
//! `scripts/reference/make_tokenizer_golden.py`.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::path::{Path, PathBuf};

use g2rl_worker::tokenizer::Tokenizer;
use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Deserialize)]
struct Expected {
    ids: Vec<u32>,
    /// Tokens that are added on request, all of them in front.
    with_special: usize,
    /// Absent where it is the text itself.
    decoded: Option<String>,
}

fn rows<T: DeserializeOwned>(path: PathBuf) -> Vec<T> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn encodings_equal_transformers() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers");
    let strings: Vec<String> = rows(golden.join("strings.jsonl"));
    assert_eq!(strings.len(), 1_000);
    for name in ["qwen_like", "llama3_like", "llama2_like"] {
        let tokenizer = Tokenizer::load(&golden.join(name)).unwrap();
        let expected: Vec<Expected> = rows(golden.join(name).join("expected.jsonl"));
        assert_eq!(expected.len(), strings.len());
        for (text, expected) in strings.iter().zip(expected) {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(ids, expected.ids, "{name}: {text:?}");
            let with_special = tokenizer.encode(text, true).unwrap();
            assert_eq!(with_special[expected.with_special..], ids, "{name}: {text:?}");
            assert_eq!(with_special.len(), ids.len() + expected.with_special, "{name}: {text:?}");
            let decoded = tokenizer.decode(&ids);
            assert_eq!(&decoded, expected.decoded.as_ref().unwrap_or(text), "{name}: {text:?}");
        }
    }
}
