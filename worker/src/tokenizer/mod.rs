//! `prompt -> lease`, the worker's half: text to token ids and back.
//!
//! In: a model directory's tokenizer.json, chat template and end tokens; a problem's text. Out: prompt
//! tokens, response tokens, text. Must not know what the text means.

pub mod template;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use g2rl_common::config::{PromptConfig, PromptFormat};
use serde_json::Value;

pub use self::template::{ChatTemplate, Message};

/// Why text cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The cause.
        message: String,
    },
    /// No file names a token that ends a response.
    #[error(
        "{dir}: none of generation_config.json, config.json and tokenizer_config.json names an end token"
    )]
    NoEndToken {
        /// The directory.
        dir: PathBuf,
    },
    /// A chat template is asked for and there is none.
    #[error("{dir} has no chat template; set prompt.format = \"raw\"")]
    NoTemplate {
        /// The directory.
        dir: PathBuf,
    },
    /// The template failed.
    #[error("chat template: {0}")]
    Template(String),
    /// The tokenizer failed.
    #[error("tokenizer: {0}")]
    Encode(String),
}

/// A model's tokenizer with its chat template.
#[derive(Debug)]
pub struct Tokenizer {
    dir: PathBuf,
    inner: tokenizers::Tokenizer,
    template: Option<ChatTemplate>,
    end_tokens: Vec<u32>,
}

impl Tokenizer {
    /// Reads the tokenizer of a Hugging Face model directory.
    ///
    /// # Errors
    /// [`TokenizerError`], naming the file.
    pub fn load(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        let text = read(dir, "tokenizer.json", MAX_TOKENIZER_BYTES)?;
        let inner = tokenizers::Tokenizer::from_bytes(text)
            .map_err(|e| TokenizerError::Malformed { path: path.clone(), message: e.to_string() })?;
        let settings = json(dir, "tokenizer_config.json")?.unwrap_or(Value::Null);
        let template = template::load(dir, &settings)?;
        let end_tokens = end_tokens(dir, &inner, &settings)?;
        Ok(Self { dir: dir.to_owned(), inner, template, end_tokens })
    }

    /// Tokens that end a response; the first is appended to given solutions.
    #[must_use]
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// The chat template, if the model has one.
    #[must_use]
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// A problem as the prompt's text: through the chat template, or system prompt, a blank line and
    /// the problem.
    ///
    /// # Errors
    /// [`TokenizerError`] if the template is missing or fails.
    pub fn render(&self, config: &PromptConfig, problem: &str) -> Result<String, TokenizerError> {
        match self.template_for(config)? {
            Some(template) => {
                let system = config.system.as_deref().map(|content| Message { role: "system", content });
                let user = Message { role: "user", content: problem };
                let messages: Vec<Message<'_>> = system.into_iter().chain([user]).collect();
                template.render(&messages, config.enable_thinking)
            }
            None => Ok(match &config.system {
                Some(system) => format!("{system}\n\n{problem}"),
                None => problem.to_owned(),
            }),
        }
    }

    /// A problem as prompt tokens. A chat template writes its special tokens itself; without one the
    /// tokenizer adds those it always adds (a start token for Llama, none for Qwen).
    ///
    /// # Errors
    /// [`TokenizerError`] if the template or the tokenizer fails.
    pub fn encode_prompt(&self, config: &PromptConfig, problem: &str) -> Result<Vec<u32>, TokenizerError> {
        let add_special_tokens = self.template_for(config)?.is_none();
        self.encode(&self.render(config, problem)?, add_special_tokens)
    }

    /// A given solution as response tokens, with an end token.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] if the tokenizer fails.
    pub fn encode_response(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = self.encode(text, false)?;
        tokens.push(self.end_tokens[0]);
        Ok(tokens)
    }

    /// Text as token ids.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] if the tokenizer fails.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|e| TokenizerError::Encode(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids as text, special tokens left out. Ids that the tokenizer does not know (padding rows
    /// of the embedding) have no text.
    #[must_use]
    pub fn decode(&self, tokens: &[u32]) -> String {
        let known: Vec<u32> =
            tokens.iter().copied().filter(|t| self.inner.id_to_token(*t).is_some()).collect();
        self.inner.decode(&known, true).unwrap_or_default()
    }

    fn template_for(&self, config: &PromptConfig) -> Result<Option<&ChatTemplate>, TokenizerError> {
        match (config.format, &self.template) {
            (PromptFormat::Raw, _) | (PromptFormat::Auto, None) => Ok(None),
            (_, Some(template)) => Ok(Some(template)),
            (PromptFormat::Chat, None) => Err(TokenizerError::NoTemplate { dir: self.dir.clone() }),
        }
    }
}

/// Largest tokenizer that is read, bytes: several times those of 250,000 tokens.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// Largest other file that is read, bytes.
const MAX_SETTINGS_BYTES: u64 = 16 << 20;

/// A text file of a model directory.
fn read(dir: &Path, name: &str, limit: u64) -> Result<String, TokenizerError> {
    g2rl_hub::inside(dir, name)
        .and_then(|path| g2rl_hub::read_text_limited(&path, limit))
        .map_err(|cause| TokenizerError::Unreadable { path: dir.join(name), cause })
}

/// The same; `None` if there is none.
fn read_optional(dir: &Path, name: &str) -> Result<Option<String>, TokenizerError> {
    match read(dir, name, MAX_SETTINGS_BYTES) {
        Ok(text) => Ok(Some(text)),
        Err(TokenizerError::Unreadable { cause, .. }) if cause.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A JSON file; `None` if there is none.
fn json(dir: &Path, name: &str) -> Result<Option<Value>, TokenizerError> {
    let Some(text) = read_optional(dir, name)? else { return Ok(None) };
    let malformed =
        |e: serde_json::Error| TokenizerError::Malformed { path: dir.join(name), message: e.to_string() };
    serde_json::from_str(&text).map(Some).map_err(malformed)
}

/// End tokens in the order transformers looks for them: generation_config.json, config.json, then
/// the tokenizer's own `eos_token`.
fn end_tokens(
    dir: &Path,
    inner: &tokenizers::Tokenizer,
    settings: &Value,
) -> Result<Vec<u32>, TokenizerError> {
    for file in ["generation_config.json", "config.json"] {
        let ids =
            json(dir, file)?.and_then(|value| value.get("eos_token_id").map(token_ids)).unwrap_or_default();
        if !ids.is_empty() {
            return Ok(ids);
        }
    }
    let name = settings.get("eos_token").and_then(|t| t.as_str().or_else(|| t.get("content")?.as_str()));
    match name.and_then(|name| inner.token_to_id(name)) {
        Some(id) => Ok(vec![id]),
        None => Err(TokenizerError::NoEndToken { dir: dir.to_owned() }),
    }
}

/// One id or a list of them.
fn token_ids(value: &Value) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(id).collect(),
        single => id(single).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(folder: &str) -> Tokenizer {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(folder);
        Tokenizer::load(&dir).unwrap()
    }

    fn demo() -> Tokenizer {
        of("demo/tokenizer")
    }

    #[test]
    fn text_survives_the_round_trip() {
        let tokenizer = demo();
        let config = PromptConfig::default();
        let prompt = tokenizer.encode_prompt(&config, "4,7,12>30:").unwrap();
        // Every number is one token: 4 , 7 , 12 > 30 :
        assert_eq!(prompt.len(), 8);
        assert_eq!(tokenizer.decode(&prompt), "4,7,12>30:");
        let response = tokenizer.encode_response("4*7=28,28+2=30").unwrap();
        assert_eq!(response.last(), tokenizer.end_tokens().first());
        assert_eq!(tokenizer.decode(&response), "4*7=28,28+2=30");
    }

    #[test]
    fn thinking_tags_are_tokens_that_stay_in_the_text() {
        let tokenizer = of("ladder-thinking/tokenizer");
        let solution = "<think>7*8=56,56-3=53;7*7=49,49+3=52</think>7*7=49,49+3=52";
        let tokens = tokenizer.encode_response(solution).unwrap();
        // Three chains of 11, a separator, two tags and the end.
        assert_eq!(tokens.len(), 37);
        assert_eq!(tokenizer.decode(&tokens), solution);
    }

    #[test]
    fn system_prompt_and_missing_template() {
        let tokenizer = demo();
        let config = PromptConfig { system: Some("1".into()), ..PromptConfig::default() };
        assert_eq!(tokenizer.render(&config, "2").unwrap(), "1\n\n2");
        let config = PromptConfig { format: PromptFormat::Chat, ..PromptConfig::default() };
        assert!(tokenizer.render(&config, "2").unwrap_err().to_string().contains("no chat template"));
    }

    #[test]
    fn ids_of_one_or_several_end_tokens() {
        assert_eq!(token_ids(&serde_json::json!(3)), [3]);
        assert_eq!(token_ids(&serde_json::json!([3, 5])), [3, 5]);
        assert!(token_ids(&Value::Null).is_empty());
    }

    #[test]
    fn hostile_files_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        let sound = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/demo/tokenizer/tokenizer.json");
        let sound = std::fs::read_to_string(sound).unwrap();
        let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let half = &sound[..sound.len() / 2];
        let huge_id = sound.replacen("\"id\": 0", "\"id\": 99999999999999999999", 1);
        assert_ne!(huge_id, sound);
        for text in ["", "{}", "null", "{\"model\": {\"type\": \"BPE\"}}", half, &nested, &huge_id] {
            std::fs::write(&path, text).unwrap();
            let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains("tokenizer.json"), "{error}");
        }
        // Sparse: it takes no place on the disk, and is refused before it is read.
        std::fs::File::create(&path).unwrap().set_len(MAX_TOKENIZER_BYTES + 1).unwrap();
        let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("larger than"), "{error}");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("is a link to /dev/zero"), "{error}");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = Tokenizer::load(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/tokenizer.json"), "{error}");
    }
}
