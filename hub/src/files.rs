//! Files whose names or contents come from others: a repository, an index, a message.
//!
//! A name must not lead out of its directory, neither by what it says nor by a link, and a file must be a
//! file of a bounded size before it is read as a whole.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::{Path, PathBuf};

/// Longest name of a file in a repository, bytes.
const MAX_NAME: usize = 1024;

/// Whether a name, with `/` between folders, stays below the directory that it is looked up in.
#[must_use]
pub fn is_inside(name: &str) -> bool {
    let part = |part: &str| !matches!(part, "" | "." | "..");
    let plain = |c: char| !c.is_control() && c != '\\';
    name.len() <= MAX_NAME && name.chars().all(plain) && name.split('/').all(part)
}

/// A file of a directory by a name that somebody else chose.
///
/// Links are followed as far as the directory or, where it is a snapshot of the Hugging Face cache, its
/// repository: that is how the cache keeps files.
///
/// # Errors
/// If the name leads elsewhere, or to no regular file.
pub fn inside(dir: &Path, name: &str) -> Result<PathBuf> {
    let refuse = |message: String| Error::new(ErrorKind::InvalidInput, message);
    if !is_inside(name) {
        return Err(refuse(format!("the name {name:?} leads out of {}", dir.display())));
    }
    let path = dir.join(name);
    let real = path.canonicalize()?;
    let real_dir = dir.canonicalize()?;
    let snapshots = real_dir.parent().filter(|parent| parent.ends_with("snapshots"));
    let root = snapshots.and_then(Path::parent).unwrap_or(&real_dir);
    if !real.starts_with(root) {
        let (name, root) = (path.display(), root.display());
        return Err(refuse(format!("{name} is a link to {}, which is not in {root}", real.display())));
    }
    if !real.is_file() {
        return Err(refuse(format!("{} is no regular file", path.display())));
    }
    Ok(path)
}

/// A regular file's bytes, of which there are at most `limit`.
///
/// # Errors
/// If it cannot be read, is no regular file (a pipe never ends), or is larger.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "no regular file"));
    }
    let mut bytes = Vec::new();
    if metadata.len() <= limit {
        // It may grow while it is read.
        File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    }
    if metadata.len().max(bytes.len() as u64) > limit {
        let message = format!("larger than the {limit} bytes that such a file may have");
        return Err(Error::new(ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// The same of a text.
///
/// # Errors
/// Also if it is not UTF-8.
pub fn read_text_limited(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read_limited(path, limit)?).map_err(|error| Error::new(ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn names_that_lead_elsewhere() {
        for name in ["model.safetensors", "a/b.json", "..model", "a..b"] {
            assert!(is_inside(name), "{name}");
        }
        let long = "x".repeat(MAX_NAME + 1);
        for name in
            ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "a/", "a\\b", "a\0b", "a\nb", &long]
        {
            assert!(!is_inside(name), "{name:?}");
        }
    }

    #[test]
    fn links_may_stay_inside_only() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("model");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(root.path().join("secret"), "s").unwrap();
        std::fs::write(dir.join("real"), "r").unwrap();
        symlink("real", dir.join("near")).unwrap();
        symlink("../secret", dir.join("far")).unwrap();
        symlink("/dev/zero", dir.join("endless")).unwrap();
        symlink("..", dir.join("up")).unwrap();
        assert!(inside(&dir, "real").is_ok() && inside(&dir, "near").is_ok());
        let error = |name: &str| inside(&dir, name).unwrap_err().to_string();
        assert!(error("far").contains("is a link to"), "{}", error("far"));
        assert!(error("endless").contains("is a link to"), "{}", error("endless"));
        assert!(error("up/secret").contains("is a link to"), "{}", error("up/secret"));
        assert!(error("../secret").contains("leads out"), "{}", error("../secret"));
        assert!(inside(root.path(), "model").unwrap_err().to_string().contains("no regular file"));
    }

    #[test]
    fn the_caches_links_stay_in_their_repository() {
        let root = tempfile::tempdir().unwrap();
        let repository = root.path().join("models--o--n");
        let snapshot = repository.join("snapshots/0123");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir(repository.join("blobs")).unwrap();
        std::fs::write(repository.join("blobs/abc"), "weights").unwrap();
        std::fs::write(root.path().join("other"), "o").unwrap();
        symlink("../../blobs/abc", snapshot.join("model.safetensors")).unwrap();
        symlink("../../../other", snapshot.join("vocab.json")).unwrap();
        assert!(inside(&snapshot, "model.safetensors").is_ok());
        assert!(inside(&snapshot, "vocab.json").is_err());
    }

    #[test]
    fn what_is_read_as_a_whole_has_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_text_limited(&path, 5).unwrap(), "12345");
        assert_eq!(read_limited(&path, 4).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert!(read_limited(Path::new("/dev/zero"), 4).unwrap_err().to_string().contains("regular"));
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(read_text_limited(&path, 4).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
