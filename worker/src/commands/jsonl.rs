//! Files of one JSON object a line, with errors that name file and line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads all rows of a file; `-` is standard input. Empty lines are passed over.
///
/// # Errors
/// If the file cannot be read or a line is not a row; names file and line.
pub fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Vec<(Place, T)>> {
    let input: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(path).with_context(|| format!("cannot read {}", path.display()))?))
    };
    let mut rows = Vec::new();
    for (index, line) in input.lines().enumerate() {
        let place = Place { file: path.to_owned(), line: index + 1 };
        let line = line.with_context(|| place.to_string())?;
        if !line.trim().is_empty() {
            let row = serde_json::from_str(&line).map_err(|e| anyhow!("{place}: {e}"))?;
            rows.push((place, row));
        }
    }
    Ok(rows)
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    file: PathBuf,
    line: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Writes rows to a file, or to standard output.
pub struct Writer {
    out: Box<dyn Write>,
    name: String,
}

impl Writer {
    /// Creates the file; `None` and `-` are standard output.
    ///
    /// # Errors
    /// If the file cannot be created.
    pub fn create(path: Option<&Path>) -> anyhow::Result<Self> {
        match path {
            Some(path) if path != Path::new("-") => {
                let name = path.display().to_string();
                let file = File::create(path).with_context(|| format!("cannot write {name}"))?;
                Ok(Self { out: Box::new(BufWriter::new(file)), name })
            }
            _ => Ok(Self { out: Box::new(BufWriter::new(io::stdout())), name: "standard output".into() }),
        }
    }

    /// Writes one row.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, row: &impl Serialize) -> anyhow::Result<()> {
        serde_json::to_writer(&mut self.out, row)
            .map_err(io::Error::from)
            .and_then(|()| self.out.write_all(b"\n"))
            .with_context(|| format!("cannot write to {}", self.name))
    }

    /// Makes sure that everything is written.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.out.flush().with_context(|| format!("cannot write to {}", self.name))
    }
}
