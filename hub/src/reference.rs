//! Names of repositories: `owner/name`, with `@revision` if not `main`.

use crate::{HubError, is_inside};

/// A repository at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `owner/name`
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl Reference {
    /// Reads `owner/name` or `owner/name@revision`, with or without `hf:` before it.
    ///
    /// # Errors
    /// [`HubError::NotFound`] for anything else.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        let (name, revision) = match text.strip_prefix("hf:").unwrap_or(text).split_once('@') {
            Some((name, revision)) => (name, revision),
            None => (text.strip_prefix("hf:").unwrap_or(text), "main"),
        };
        let word = |part: &str| {
            !part.is_empty()
                && !part.starts_with(['.', '-'])
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let valid = name.split_once('/').is_some_and(|(owner, name)| word(owner) && word(name));
        // It becomes a file's name in the cache.
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/+".contains(c);
        if !valid || !is_inside(revision) || !revision.chars().all(plain) {
            return Err(HubError::NotFound(text.to_owned()));
        }
        Ok(Self { name: name.to_owned(), revision: revision.to_owned() })
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.revision.as_str() {
            "main" => f.write_str(&self.name),
            revision => write!(f, "{}@{revision}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_revisions() {
        for (text, name, revision) in [
            ("Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-1.7B-Base", "main"),
            ("hf:openai/gsm8k@v1.0", "openai/gsm8k", "v1.0"),
            ("a/b@refs/convert/parquet", "a/b", "refs/convert/parquet"),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!((reference.name.as_str(), reference.revision.as_str()), (name, revision));
        }
        for text in [
            "",
            "name",
            "./a/b",
            "/abs/olute",
            "a/b/c",
            "../x",
            "a/..",
            "a/b@",
            "a b/c",
            "a/b@..",
            "a/b@../../x",
            "a/b@/x",
            "a/b@x//y",
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }
}
