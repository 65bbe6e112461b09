//! Files of one JSON object a line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, anyhow};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads all rows; `-` is standard input. Empty lines are passed over.
///
/// # Errors
/// If the file cannot be read or a line is not a row; names file and line.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Vec<(String, T)>> {
    let name = path.display().to_string();
    let input: Box<dyn BufRead> = match path == Path::new("-") {
        true => Box::new(io::stdin().lock()),
        false => Box::new(BufReader::new(File::open(path).with_context(|| format!("cannot read {name}"))?)),
    };
    let mut rows = Vec::new();
    for (index, line) in input.lines().enumerate() {
        let place = format!("{name}:{}", index + 1);
        let line = line.with_context(|| place.clone())?;
        if !line.trim().is_empty() {
            let row = serde_json::from_str(&line).map_err(|e| anyhow!("{place}: {e}"))?;
            rows.push((place, row));
        }
    }
    Ok(rows)
}

/// Writes all rows to a file; without one to standard output.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write<T: Serialize>(
    path: Option<&Path>,
    rows: impl IntoIterator<Item = T>,
) -> anyhow::Result<()> {
    let path = path.filter(|path| *path != Path::new("-"));
    let name = path.map_or("standard output".into(), |p| p.display().to_string());
    let mut out: Box<dyn Write> = match path {
        Some(path) => {
            Box::new(BufWriter::new(File::create(path).with_context(|| format!("cannot write {name}"))?))
        }
        None => Box::new(BufWriter::new(io::stdout())),
    };
    let write = |out: &mut dyn Write| -> io::Result<()> {
        for row in rows {
            serde_json::to_writer(&mut *out, &row)?;
            out.write_all(b"\n")?;
        }
        out.flush()
    };
    write(&mut out).with_context(|| format!("cannot write to {name}"))
}
