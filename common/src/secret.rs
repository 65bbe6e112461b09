//! The token with which workers prove that they belong to a run.
//!
//! A [`Secret`] can be compared and handed on, and nothing else: it prints as `***` and has no serialized
//! form, so that it reaches no log, journal, message or metric by accident.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq;

/// Holds the token where no file is named.
pub const TOKEN_VARIABLE: &str = "G2RL_TOKEN";

/// Shortest token: 16 characters of hexadecimal digits are 64 bits, more than can be tried over a network.
const MIN_CHARACTERS: usize = 16;

/// Longest token; it travels in a header.
const MAX_CHARACTERS: usize = 1024;

/// Why a token cannot be used. The token itself is in none of the messages.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("token file {path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: std::io::Error,
    },
    /// What it holds is no token.
    #[error(
        "{origin} holds no usable token: it must be {MIN_CHARACTERS} to {MAX_CHARACTERS} printable ASCII \
         characters without spaces; `openssl rand -hex 32` makes one"
    )]
    Unusable {
        /// The file or the variable.
        origin: String,
    },
}

/// A token.
#[derive(Clone)]
pub struct Secret(Box<str>);

impl Secret {
    /// The token of a file, or of [`TOKEN_VARIABLE`] if no file is named; `None` if neither is there.
    ///
    /// # Errors
    /// [`SecretError`], naming the file or the variable.
    pub fn find(file: Option<&Path>) -> Result<Option<Self>, SecretError> {
        match (file, std::env::var_os(TOKEN_VARIABLE)) {
            (Some(path), _) => Self::read(path).map(Some),
            (None, Some(value)) if !value.is_empty() => {
                Self::parse(&value.to_string_lossy(), &format!("the variable {TOKEN_VARIABLE}")).map(Some)
            }
            (None, _) => Ok(None),
        }
    }

    fn read(path: &Path) -> Result<Self, SecretError> {
        let unreadable = |cause| SecretError::Unreadable { path: path.to_owned(), cause };
        let mut bytes = Vec::new();
        // One more than allowed, with a line's end: enough to see that it is too long.
        let limit = MAX_CHARACTERS as u64 + 3;
        File::open(path).map_err(unreadable)?.take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
        Self::parse(&String::from_utf8_lossy(&bytes), &format!("token file {}", path.display()))
    }

    fn parse(text: &str, origin: &str) -> Result<Self, SecretError> {
        let text = text.trim_end_matches(['\r', '\n']);
        let allowed = (MIN_CHARACTERS..=MAX_CHARACTERS).contains(&text.len());
        if !allowed || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(SecretError::Unusable { origin: origin.to_owned() });
        }
        Ok(Self(text.into()))
    }

    /// Whether it was given, in time that depends on the length of `given` only.
    #[must_use]
    pub fn matches(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }

    /// The text, for a header or a child's environment.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Whether other users of the machine may read a file. `false` if there is none.
#[must_use]
pub fn readable_by_others(path: &Path) -> bool {
    const GROUP_AND_OTHERS: u32 = 0o044;
    std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.mode() & GROUP_AND_OTHERS != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef-known";

    #[test]
    fn it_prints_as_stars() {
        let secret = Secret::parse(TOKEN, "test").unwrap();
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
        assert_eq!(secret.expose(), TOKEN);
    }

    #[test]
    fn only_the_whole_token_matches() {
        let secret = Secret::parse(TOKEN, "test").unwrap();
        assert!(secret.matches(TOKEN.as_bytes()));
        for wrong in ["", "0", &TOKEN[1..], &format!("{TOKEN}x"), &TOKEN.to_uppercase()] {
            assert!(!secret.matches(wrong.as_bytes()), "{wrong}");
        }
    }

    #[test]
    fn a_file_holds_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let find = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Secret::find(Some(&path)).map_err(|error| error.to_string())
        };
        assert_eq!(find(&format!("{TOKEN}\n")).unwrap().unwrap().expose(), TOKEN);
        for bad in ["", "short", "with a space and more\n", "two-lines-of-text\nare-two\n", &"x".repeat(1025)]
        {
            let error = find(bad).unwrap_err();
            assert!(error.contains(path.to_str().unwrap()) && error.contains("openssl rand"), "{error}");
            assert!(bad.is_empty() || !error.contains(bad), "{error}");
        }
        assert!(find(&"x".repeat(1024)).is_ok());
        std::fs::remove_file(&path).unwrap();
        assert!(Secret::find(Some(&path)).unwrap_err().to_string().contains("token file"));
    }

    #[test]
    fn a_files_mode_says_who_reads_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, TOKEN).unwrap();
        for (mode, readable) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(readable_by_others(&path), readable, "{mode:o}");
        }
    }
}
