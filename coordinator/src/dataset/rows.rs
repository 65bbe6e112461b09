//! Rows of a file: JSON objects, whatever the format.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Map, Value};

use super::DatasetError;

/// A row, or what is wrong with it.
pub(super) type Row = Result<Map<String, Value>, String>;

/// Rows with their numbers in the file, from 1.
pub(super) type Rows = Box<dyn Iterator<Item = Result<(usize, Row), DatasetError>>>;

/// Whether a file's name is that of a format that can be read.
pub(super) fn is_readable(name: &str) -> bool {
    [".jsonl", ".json", ".parquet", ".csv"].iter().any(|ending| name.ends_with(ending))
}

/// Opens a file by its ending: `.parquet`, `.csv`, `.json` (an array, or lines), anything else as lines of JSON.
pub(super) fn open(path: &Path) -> Result<Rows, DatasetError> {
    let unreadable = |cause| DatasetError::Unreadable { path: path.to_owned(), cause };
    let file = File::open(path).map_err(unreadable)?;
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("parquet") => parquet_rows(path, file),
        Some("json") => json_rows(path, file),
        Some("csv") => csv_rows(path, file),
        _ => Ok(lines(path, file)),
    }
}

fn lines(path: &Path, file: File) -> Rows {
    let path = path.to_owned();
    let rows = BufReader::new(file).lines().enumerate().filter_map(move |(index, line)| match line {
        Ok(line) if line.trim().is_empty() => None,
        Ok(line) => {
            let row = serde_json::from_str(&line).map_err(|error| format!("not a JSON object: {error}"));
            Some(Ok((index + 1, row)))
        }
        Err(cause) => Some(Err(DatasetError::Unreadable { path: path.clone(), cause })),
    });
    Box::new(rows)
}

/// One array of objects; files of lines that are only called `.json` are read too.
fn json_rows(path: &Path, file: File) -> Result<Rows, DatasetError> {
    let mut reader = BufReader::new(file);
    let start =
        reader.fill_buf().map_err(|cause| DatasetError::Unreadable { path: path.to_owned(), cause })?;
    if start.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'[') {
        drop(reader);
        let file =
            File::open(path).map_err(|cause| DatasetError::Unreadable { path: path.to_owned(), cause })?;
        return Ok(lines(path, file));
    }
    let values: Vec<Value> = serde_json::from_reader(reader).map_err(|error| DatasetError::Malformed {
        path: path.to_owned(),
        format: "JSON",
        cause: error.to_string(),
    })?;
    let rows = values.into_iter().enumerate().map(|(index, value)| {
        let row = match value {
            Value::Object(row) => Ok(row),
            other => Err(format!("not a JSON object: {other}")),
        };
        Ok((index + 1, row))
    });
    Ok(Box::new(rows))
}

/// Texts under the names of the first line; an empty field is none.
fn csv_rows(path: &Path, file: File) -> Result<Rows, DatasetError> {
    let path = path.to_owned();
    let malformed = move |error: csv::Error| DatasetError::Malformed {
        path: path.clone(),
        format: "CSV",
        cause: error.to_string(),
    };
    let mut reader = csv::Reader::from_reader(BufReader::new(file));
    let names = reader.headers().map_err(&malformed)?.clone();
    let rows = reader.into_records().enumerate().map(move |(index, record)| {
        let record = record.map_err(&malformed)?;
        let field = |(name, text): (&str, &str)| match text {
            "" => (name.to_owned(), Value::Null),
            text => (name.to_owned(), Value::String(text.to_owned())),
        };
        Ok((index + 1, Ok(names.iter().zip(record.iter()).map(field).collect())))
    });
    Ok(Box::new(rows))
}

fn parquet_rows(path: &Path, file: File) -> Result<Rows, DatasetError> {
    let path = path.to_owned();
    let malformed = move |error: parquet::errors::ParquetError| DatasetError::Malformed {
        path: path.clone(),
        format: "Parquet",
        cause: error.to_string(),
    };
    let reader = SerializedFileReader::new(file).map_err(&malformed)?;
    // Opening tells more than reading: unknown compressions and encodings show here.
    reader.get_row_iter(None).map_err(&malformed)?;
    let rows = reader.into_iter().enumerate().map(move |(index, row)| {
        let row = row.map_err(&malformed)?;
        Ok((
            index + 1,
            match row.to_json_value() {
                Value::Object(row) => Ok(row),
                other => Err(format!("not a row of columns: {other}")),
            },
        ))
    });
    Ok(Box::new(rows))
}
